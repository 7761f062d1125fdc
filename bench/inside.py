"""Inside: all that the benchmark takes from inside homeostat, in one place, each absent where homeostat lacks it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import homeostat as hs
from homeostat.kernels import cpu, fused

Call = Callable[[], object]


def has(path: str) -> bool:
    """Does homeostat have `path`, for instance "nn.LayerNorm.add"?"""
    found: Any = hs
    for name in path.split("."):
        found = getattr(found, name, None)
    return found is not None


def instructions() -> str:
    """The instruction set that serves, or "none"."""
    return str(hs.kernels.info().get("instructions", "none"))


def pool(size: int) -> AbstractContextManager[object] | None:
    """Outputs from a pool of so many bytes."""
    return hs.kernels.pool(size) if has("kernels.pool") else None


def native_copy(dst: Tensor, src: Tensor) -> Call | None:
    """A copy past the cache by homeostat's threads."""
    copy = getattr(cpu.native, "copy_limit", None)
    if copy is None:
        return None
    size = src.numel() * src.element_size()
    return lambda: copy(dst.data_ptr(), src.data_ptr(), size, torch.get_num_threads())


def kernel_alone(layer: nn.Module, x: Tensor, dy: Tensor) -> tuple[Call, Call] | None:
    """Forward and backward of the layer's kernel on tensors that are there already; None where no kernel serves."""
    seen = _call_of(layer, x)
    if seen is None:
        return None
    x, weight, bias, where, job, task = seen
    rest = fused._Rest(where, job)
    w, b = (None if p is None else p.detach() for p in (weight, bias))
    dw, db = (None if p is None else torch.empty_like(p) for p in (w, b))
    y, dx, stats = torch.empty_like(x), torch.empty_like(x), torch.empty(3 * task.groups, dtype=torch.float64)
    # Addresses are taken per call, so that the calls below keep the tensors alive.

    def forward() -> None:
        at = (_at(t) for t in (x, w, b, y, stats, None))
        task.forward(*at, rest.mean, rest.var, torch.get_num_threads(), rest.where, rest.key, 0, 0)

    def backward() -> None:
        at = (_at(t) for t in (x, dy, w, stats, dx, dw, db))
        task.backward(*at, torch.get_num_threads(), rest.where, rest.key, 0)

    forward()
    return forward, backward


def _call_of(layer: nn.Module, x: Tensor) -> tuple[Any, ...] | None:
    """What one call of the layer hands to the compiled kernels; None if that is not one call on all of x."""
    seen: list[tuple[Any, ...]] = []

    def look(*call: Any) -> Any:
        seen.append(call[:-1])
        return plain(*call)

    plain = fused.normalize
    with mock.patch.object(fused, "normalize", look), torch.no_grad():
        layer(x)
    return seen[0] if len(seen) == 1 and seen[0][0].shape == x.shape else None


def _at(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
