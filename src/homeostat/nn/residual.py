"""Residual: where a norm stands around a branch f.

    pre        x + s f(N(x))
    post       N(x + s f(x))
    sandwich   x + s N'(f(N(x)))          one norm before the branch, another after it
    peri       x + s N'(f(N(x)))          the same block, in a network that also norms its embedding and its output

With `orthogonal=True` the branch adds only what is not there: of its update u, per token and after centring both, the
component along the stream x is taken out, u - x (x.u) / (x.x).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PLACEMENTS = ("pre", "post", "sandwich", "peri")


class Residual(nn.Module):
    """x + s f(N(x)) and its siblings; `scale` is a number, or a module such as LayerScale(d) or ReZero().

    `norm` is a norm, copied where the placement needs more than one; extra arguments of a call go to the branch.
    """

    def __init__(
        self,
        f: nn.Module | Callable[..., Tensor],
        norm: nn.Module,
        placement: str = "pre",
        scale: float | nn.Module = 1.0,
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        if placement not in PLACEMENTS:
            raise ValueError(f"placement={placement!r} is none of {', '.join(PLACEMENTS)}.")
        self.f, self.norm = f, norm
        self.placement, self.orthogonal = placement, orthogonal
        self.after = copy.deepcopy(norm) if placement in ("sandwich", "peri") else None
        self.scale: Any = scale

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        u = self.f(x if self.placement == "post" else self.norm(x), *args, **kwargs)
        u = u if self.after is None else self.after(u)
        u = orthogonal_to(u, x) if self.orthogonal else u
        u = self.scale(u) if callable(self.scale) else u if self.scale == 1 else u * self.scale
        total: Tensor = x + u
        return self.norm(total) if self.placement == "post" else total

    def extra_repr(self) -> str:
        scale = "" if callable(self.scale) or self.scale == 1 else f", scale={self.scale}"
        return f'placement="{self.placement}"{scale}{", orthogonal=True" if self.orthogonal else ""}'


def orthogonal_to(u: Tensor, x: Tensor) -> Tensor:
    """u without its component along x, token by token; both centred along the last axis, and u's mean put back."""
    wide = torch.promote_types(u.dtype, torch.float32)
    v, z = u.to(wide), x.to(wide)
    mean = v.mean(-1, keepdim=True)
    v, z = v - mean, z - z.mean(-1, keepdim=True)
    square = (z * z).sum(-1, keepdim=True)
    along = (v * z).sum(-1, keepdim=True) / square.clamp_min(torch.finfo(wide).tiny)
    return (v - along * z + mean).to(u.dtype)
