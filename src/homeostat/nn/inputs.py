"""Inputs: what layers with arithmetic of their own must be given; the others ask at the door."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.parameter import is_lazy

from homeostat.door import DtypeError
from homeostat.errors import said
from homeostat.frame import ShapeError


def check_input(layer: Any, x: Any, length: int | None = None, axis: int = -1) -> None:
    """A tensor of fractions, `length` of them along an axis; one entry would broadcast to any number."""
    if isinstance(x, Proxy):  # torch.fx traces with stand-ins
        return
    kind = type(layer).__name__
    if not isinstance(x, Tensor):
        raise TypeError(f"{kind} takes a torch tensor; x is {said(x)}.")
    if not x.is_floating_point():
        raise DtypeError(f"{kind} takes fractions; x is {x.dtype}: pass x.float().")
    least = axis + 1 if axis >= 0 else -axis
    if length is not None and (x.dim() < least or x.shape[axis] != length):
        raise ShapeError(f"{kind} was made for length {length} of axis {axis}; this tensor is {list(x.shape)}.")


def check_awake(verb: str, layer: Any) -> None:
    """Lazy layers learn their size from their first input."""
    if isinstance(layer, nn.Module) and any(is_lazy(p) for p in (*layer.parameters(), *layer.buffers())):
        raise ValueError(f"{verb}: {type(layer).__name__} has no size yet: call it once first.")
