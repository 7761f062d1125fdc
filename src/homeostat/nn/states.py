"""Trial: whatever runs inside leaves no trace in the statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from homeostat.nn.online import OnlineNorm
from homeostat.nn.power import PowerNorm
from homeostat.norm import Norm

OWN = PowerNorm | OnlineNorm  # layers that have memory and no source


@contextmanager
def trial(model: nn.Module) -> Iterator[nn.Module]:
    """Whatever runs inside, every statistic of every norm is back on exit, also after an error.

    Ours and torch.nn's alike: running means, variances and counts. Parameters are not touched.
    """
    check_module(model, "trial")
    held = [
        (module, name, None if is_lazy(buffer) else buffer.clone())
        for module in model.modules()
        if isinstance(module, Norm | _NormBase | OWN)
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield model
    finally:
        with torch.no_grad():
            for module, name, before in held:
                _put_back(module, name, before)


def _put_back(module: nn.Module, name: str, before: Tensor | None) -> None:
    """By name, for a buffer may have been exchanged (`.double()`); a lazy layer that woke up starts afresh."""
    now = module._buffers[name]
    if before is None:
        if now is not None and not is_lazy(now) and isinstance(module, _NormBase):
            module.reset_running_stats()
    elif now is None or now.shape != before.shape:
        module._buffers[name] = before
    else:
        now.copy_(before)


def check_module(model: Any, verb: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"homeostat.{verb} takes a torch.nn.Module; this is {type(model).__name__}.")
