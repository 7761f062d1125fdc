"""Freeze, unfreeze, trial: when the statistics of a model may change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from homeostat.nn.online import OnlineNorm
from homeostat.nn.power import PowerNorm
from homeostat.nn.preset import Preset
from homeostat.norm import Norm
from homeostat.sources import Frozen

M = TypeVar("M", bound=nn.Module)
OWN = PowerNorm | OnlineNorm  # layers that have memory and no source


def freeze(model: M) -> M:
    """Hold every running statistic as it is, in place. `.train()` does not undo it; `unfreeze` does.

    Frozen layers normalize by what they remembered, in training too. Gains go on learning: their `requires_grad` is
    yours to set. Layers that remember nothing (layer, group, RMS norm) have nothing to freeze.
    """
    _hold(model, True)
    for module in _remembering(model, "freeze"):
        if not isinstance(module.source, Frozen):
            module.source = Frozen(module.source)
    return model


def unfreeze(model: M) -> M:
    """Let frozen statistics run again, in place, from where they were."""
    _hold(model, False)
    for module in _remembering(model, "unfreeze"):
        if isinstance(module.source, Frozen):
            inner = module.source.inner
            module.source = None if isinstance(module, Preset) and module.default_source() == inner else inner
    return model


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


def _hold(model: nn.Module, frozen: bool) -> None:
    check_module(model, "freeze" if frozen else "unfreeze")
    for module in model.modules():
        if isinstance(module, OWN):
            module.frozen = frozen


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


def _remembering(model: nn.Module, verb: str) -> list[Any]:
    """Our layers with memory. torch's own would be undone by the next `.train()`, so they are refused."""
    check_module(model, verb)
    theirs = [
        name or "the model itself"
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and not isinstance(module, Preset) and module.running_mean is not None
    ]
    if theirs:
        raise TypeError(
            f"homeostat.{verb} cannot hold the statistics of torch.nn layers ({', '.join(theirs[:5])}"
            f"{', ...' if len(theirs) > 5 else ''}); make them ours first: homeostat.adopt(model)."
        )
    return [m for m in model.modules() if isinstance(m, Norm | Preset) and m.source.names]
