"""Digits: what rounding costs a norm, on what it was really given.

    lost = rms(y - y in double precision) / rms(y in double precision)

It is 1 where nothing is left, and where y is not finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homeostat.surgery.calling import copied
from homeostat.surgery.certificate import tensors_in

ROWS = 4


def lost(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Of the first samples; None where the norm takes more than a tensor, or will not do without the rest."""
    x = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64 or not x.dim():
        return None
    x = x[:ROWS].detach()
    try:
        narrow, wide = (_first(one.forward(some)) for one, some in _both(module, x))
    except Exception:  # whatever somebody's norm does not like
        return None
    if narrow is None or wide is None or not bool(wide.isfinite().all()):
        return None
    error = float((narrow.double() - wide).square().mean().sqrt() / wide.square().mean().sqrt().clamp_min(1e-300))
    return min(error, 1.0) if error == error else 1.0


def _both(module: nn.Module, x: Tensor) -> list[tuple[Any, Tensor]]:
    return [(copied(module), x.clone()), (copied(module).double(), x.double())]


def _first(y: Any) -> Tensor | None:
    return next(iter(tensors_in(y)), None)
