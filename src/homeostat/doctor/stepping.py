"""Stepping: one training step on one batch, taken back; how often it updates statistics, and what it would teach gains.

The loss is the mean square of the outputs: it is not the user's, but what gets no gradient from it gets none from his.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from homeostat.arrays import to_numpy
from homeostat.doctor.facts import Array, Step
from homeostat.recognising.watching import Forward, eagerly, put_back
from homeostat.surgery.certificate import tensors_in

HOOKS = ("_backward_hooks", "_backward_pre_hooks", "_post_accumulate_grad_hooks")


class NotStepped(Exception):
    """Why no step was taken."""


def step(model: nn.Module, norms: dict[str, nn.Module], batch: Any, forward: Forward) -> dict[str, Step]:
    """By name of norm; gradients, memory and modes are afterwards as they were."""
    parameters = list(model.parameters())
    if any(map(is_lazy, parameters)):
        raise NotStepped("parts of the model have not seen an input yet")
    if any(getattr(one, hooks, None) for one in (*parameters, *model.modules()) for hooks in HOOKS):
        raise NotStepped("it has hooks that act as soon as there is a gradient")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise NotStepped("other processes would wait for its gradients")
    gradients = [p.grad for p in parameters]
    try:
        for p in parameters:
            p.grad = None
        with put_back(model), eagerly(), torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _stepped(model, norms, lambda: forward(model, batch))
    finally:
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient


def _stepped(model: nn.Module, norms: dict[str, nn.Module], run: Callable[[], Any]) -> dict[str, Step]:
    model.train()
    memory = [{name: _memory(norm) for name, norm in norms.items()}]
    squares = [t.float().square().mean() for t in tensors_in(run()) if t.requires_grad]
    memory.append({name: _memory(norm) for name, norm in norms.items()})
    if squares:
        torch.stack([square.cpu() for square in squares]).sum().backward()  # type: ignore[no-untyped-call]
    memory.append({name: _memory(norm) for name, norm in norms.items()})
    first, middle, last = memory
    return {
        name: Step(norm.training, _updates(first[name], middle[name]), _updates(middle[name], last[name]), _pull(norm))
        for name, norm in norms.items()
    }


def _memory(norm: Any) -> tuple[Tensor | None, Tensor | None]:
    held = (getattr(norm, name, None) for name in ("num_batches_tracked", "running_mean"))
    tracked, mean = (b.clone() if isinstance(b, Tensor) else None for b in held)
    return tracked, mean


def _updates(before: tuple[Tensor | None, Tensor | None], after: tuple[Tensor | None, Tensor | None]) -> int:
    """Batches counted; 1 for any change where they are not counted."""
    (old, old_mean), (new, new_mean) = before, after
    if old_mean is None or new_mean is None:
        return 0
    if old is not None and new is not None:
        return int((new - old).max())
    return int(not torch.equal(old_mean.nan_to_num(), new_mean.nan_to_num()))


def _pull(norm: Any) -> Array | None:
    gain = getattr(norm, "weight", None)
    gradient = gain.grad if isinstance(gain, Tensor) else None
    if gradient is None:
        return None
    found: Array = to_numpy(gradient.detach().abs().to("cpu", torch.float64)).reshape(-1)
    return found
