"""Coupling: which input gradients touch which outputs, axis by axis."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.errors import check_callable, said
from homeostat.nn.inputs import check_awake


@dataclass(frozen=True)
class Coupling:
    """For every axis of x, [length, length]: does the output at position i depend on the input at position j?"""

    axes: tuple[str, ...]
    touches: tuple[Tensor, ...]

    def groups(self, axis: str) -> int:
        """How many parts of an axis do not see each other, directly or through others: 1 couples all of it."""
        if axis not in self.axes:
            raise ValueError(f"axis={said(axis)} is none of {', '.join(self.axes)}.")
        seen = self.touches[self.axes.index(axis)].cpu()
        reach = (seen | seen.T | torch.eye(len(seen), dtype=torch.bool)).double()
        for _ in range(len(seen).bit_length()):
            reach = (reach @ reach > 0).double()
        return len({tuple(row.tolist()) for row in reach})

    @property
    def kept(self) -> tuple[str, ...]:
        """Axes along which no position sees another."""
        return tuple(a for a, seen in zip(self.axes, self.touches, strict=True) if self.groups(a) == len(seen) > 1)

    def __str__(self) -> str:
        said = []
        for axis, seen in zip(self.axes, self.touches, strict=True):
            n, length = self.groups(axis), len(seen)
            said.append(f"{axis}: " + ("apart" if n == length else "all together" if n == 1 else f"{n} groups"))
        return ", ".join(said)


@torch.inference_mode(False)
@torch.enable_grad()
def coupling(norm: nn.Module | Callable[[Tensor], Tensor], x: Tensor, axes: str = "") -> Coupling:
    """Which input gradients touch which outputs, axis by axis. `axes` are names for those of x, as "n c h w".

    >>> str(coupling(nn.GroupNorm(2, 4), torch.randn(2, 4, 3), "n c t"))
    'n: apart, c: 2 groups, t: all together'
    """
    check_callable("norm", norm)
    names = _names(x, axes)
    check_awake("coupling", norm)
    f = copy.deepcopy(norm).double() if isinstance(norm, nn.Module) else norm
    z = x.detach().to(torch.float64, copy=True).requires_grad_()
    y = f(z)
    if not isinstance(y, Tensor):
        raise TypeError(f"coupling follows a tensor, and the norm gives a {type(y).__name__}: pick one by a lambda.")
    if y.shape != x.shape:
        raise ValueError(f"coupling compares positions of x and y; y is {tuple(y.shape)} where x is {tuple(x.shape)}.")
    # no symmetry that could cancel
    w = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).view_as(y).sin()
    found = []
    for axis, length in enumerate(x.shape):
        rows = [_gradient((y * w).select(axis, i).sum(), z) for i in range(length)]
        sizes = torch.stack([row.abs().movedim(axis, 0).flatten(1).amax(1) for row in rows])
        found.append(sizes > 1e-12 * sizes.max())
    return Coupling(names, tuple(found))


def _names(x: Any, axes: Any) -> tuple[str, ...]:
    """A name for every axis of x, which must have values to differentiate by."""
    if not isinstance(x, Tensor) or x.is_complex() or not x.numel() or not x.dim():
        raise TypeError(f"coupling follows gradients: give x, a torch tensor of numbers, not {said(x)}.")
    if not torch.isfinite(x).all():
        raise ValueError("coupling follows gradients, and x has values that are not finite.")
    if not isinstance(axes, str):
        raise TypeError(f'axes={said(axes)}: give names in a text, as in "n c h w".')
    names = tuple(axes.split()) or tuple(f"axis{i}" for i in range(x.dim()))
    if len(names) != x.dim() or len(set(names)) != len(names):
        raise ValueError(f'axes="{axes}" names {len(set(names))} axes; x has {x.dim()}.')
    return names


def _gradient(total: Tensor, z: Tensor) -> Tensor:
    g = torch.autograd.grad(total, z, retain_graph=True, allow_unused=True)[0] if total.requires_grad else None
    if g is None or not torch.isfinite(g).all():
        why = "no gradient leads from y back to x" if g is None else "the gradient has values that are not finite"
        raise ValueError(f"coupling follows gradients, and {why}: give a layer that can be differentiated at x.")
    return g
