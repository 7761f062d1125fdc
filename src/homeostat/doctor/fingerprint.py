"""Fingerprint: everything of a model that a look at it could change, in a few bytes.

Parameters, buffers, gradients, what requires one, modes, hooks, attributes' names, the random states: equal before and
after, or the check says so.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fingerprint(model: nn.Module) -> dict[str, bytes]:
    """Part -> its digest, so that what differs can be named."""
    found: dict[str, bytes] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        hooks = [sorted(getattr(module, kind, {})) for kind in HOOKS]
        found[f"mode of {name or 'the model'}"] = _digest(module.training, type(module).__qualname__)
        found[f"hooks of {name or 'the model'}"] = _digest(hooks)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        found[f"parameter {name}"] = _digest(_content(tensor), tensor.requires_grad, id(tensor))
        found[f"gradient of {name}"] = _digest(_content(tensor.grad))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        found[f"buffer {name}"] = _digest(_content(buffer))
    found["random state"] = _digest(
        torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(np.random.get_state())
    )
    found["mode of gradients"] = _digest(torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    return found


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """Parts that are not what they were."""
    return [part for part in before.keys() | after.keys() if before.get(part) != after.get(part)]


def _content(t: Tensor | None) -> Any:
    if t is None or is_lazy(t) or t.is_meta:
        return None if t is None else type(t).__name__
    flat = t.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).cpu().numpy().data if flat.numel() else b""


def _digest(*parts: Any) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part if isinstance(part, bytes | memoryview) else repr(part).encode())
        found.update(b"\0")
    return found.digest()
