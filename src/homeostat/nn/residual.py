"""Residual: where a norm stands around a branch f.

    pre        x + s f(N(x))
    post       N(x + s f(x))
    deep       N(n^(1/4) x + s f(x)), n the branches of the network. Wang et al. 2022, arXiv:2203.00555.
    sandwich   x + s N'(f(N(x)))          one norm before the branch, another after it
    peri       x + s N'(f(N(x)))          the same block, in a network that also norms its embedding and its output
    sub        x + s out(N'(inner(N(x)))), f = (inner, out). Wang et al. 2022, arXiv:2210.06423.

A network of L layers has n = 2 L branches, attention and feed-forward; a decoder that reads an encoder has 3 L. Of sub,
`out` is the last linear map of the branch: what it is given must be reached, so the branch comes in two parts.

With `orthogonal=True` the branch adds only what is not there: of its update u, per token and after centring both, the
component along the stream x is taken out, u - x (x.u) / (x.x).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.errors import check_callable, real, said, whole
from homeostat.frame import ShapeError

PLACEMENTS = ("pre", "post", "deep", "sandwich", "peri", "sub")
AFTER = ("post", "deep")  # the norm stands on the stream
TWICE = ("sandwich", "peri", "sub")  # another norm stands after f, or within it

Branch = nn.Module | Callable[..., Tensor]


class Residual(nn.Module):
    """x + s f(N(x)) and its siblings; `scale` is a number, a parameter, or a module such as LayerScale(d) or ReZero().

    `norm` is a norm, copied where the placement needs two, or a pair of them; extra arguments of a call go to the
    branch. `branches` is for "deep" alone.
    """

    def __init__(
        self,
        f: Branch | tuple[Branch, Branch],
        norm: nn.Module | tuple[nn.Module, nn.Module],
        placement: str = "pre",
        scale: float | Tensor | nn.Module = 1.0,
        orthogonal: bool = False,
        branches: int | None = None,
    ) -> None:
        super().__init__()
        _check(f, norm, placement, scale, branches)
        pair = norm if isinstance(norm, tuple) else (norm, copy.deepcopy(norm) if placement in TWICE else None)
        self.f, self.out = f if isinstance(f, tuple) else (f, None)  # type: ignore[var-annotated]
        self.norm, self.after = pair
        self.placement, self.orthogonal = placement, orthogonal
        self.scale: Any
        if isinstance(scale, Tensor) and not isinstance(scale, nn.Parameter):
            self.register_buffer("scale", scale, persistent=False)  # it moves along
        else:
            self.scale = scale
        self.scaled = callable(scale) or isinstance(scale, Tensor) or scale != 1
        self.stream = 1.0 if branches is None else whole("branches", branches) ** 0.25

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        u = self.f(x if self.placement in AFTER else self.norm(x), *args, **kwargs)
        u = u if self.after is None else self.after(u)
        u = u if self.out is None else self.out(u)
        _check_update(u, x)
        u = orthogonal_to(u, x) if self.orthogonal else u
        if self.scaled:
            u = self.scale(u) if callable(self.scale) else u * self.scale
        total: Tensor = (x if self.stream == 1 else x * self.stream) + u
        return self.norm(total) if self.placement in AFTER else total

    def extra_repr(self) -> str:
        stream = "" if self.stream == 1 else f", stream={self.stream:.4g}"
        scale = f", scale={self.scale}" if self.scaled and not isinstance(self.scale, nn.Module | Tensor) else ""
        return f'placement="{self.placement}"{stream}{scale}{", orthogonal=True" if self.orthogonal else ""}'


def initial_gain(placement: str, branches: int) -> float:
    """What the branch's weights begin with, beside Xavier's: (4 n)^(-1/4) for deep, sqrt(log n) for sub, else 1.

    For the values, the output and the feed-forward layers; queries and keys begin with 1.

    torch.nn.init.xavier_normal_(layer.weight, gain=initial_gain("deep", branches=48))
    """
    _check_placement(placement)
    n = whole("branches", branches, 2 if placement == "sub" else 1)  # log 1 = 0: nothing would be learned
    if placement == "deep":
        return math.pow(4 * n, -0.25)
    return math.sqrt(math.log(n)) if placement == "sub" else 1.0


def _check(f: Any, norm: Any, placement: str, scale: Any, branches: int | None) -> None:
    _check_placement(placement)
    if isinstance(f, tuple) != (placement == "sub"):
        raise ValueError(f'"{placement}": f is a pair (inner, out) for "sub", and one branch for every other.')
    if isinstance(norm, tuple) and placement not in TWICE:
        raise ValueError(f'"{placement}" has one norm; a pair is for {", ".join(TWICE)}.')
    for name, given in (("f", f), ("norm", norm)):
        parts = given if isinstance(given, tuple) else (given,)
        if isinstance(given, tuple) and len(given) != 2:
            raise ValueError(f"{name} holds {len(given)} layers: a pair is of two.")
        for part in parts:
            check_callable(name, part)
    if not (isinstance(scale, Tensor) or math.isfinite(real(scale)) or callable(scale)):
        raise TypeError(f"scale={said(scale)}: give a finite number, a parameter, or a layer such as LayerScale(d).")
    if callable(scale):
        check_callable("scale", scale)
    if (branches is None) == (placement == "deep"):
        raise ValueError(f'"{placement}", branches={branches}: "deep" needs them, two per layer; no other takes any.')


def _check_placement(placement: Any) -> None:
    if not isinstance(placement, str) or placement not in PLACEMENTS:
        raise ValueError(f"placement={placement!r} is none of {', '.join(PLACEMENTS)}.")


def _check_update(u: Any, x: Any) -> None:
    if not isinstance(x, Tensor):  # torch.fx traces with stand-ins
        return
    if not isinstance(u, Tensor):
        raise TypeError(f"the branch gives a {type(u).__name__}, and a stream takes a tensor: pick it by a lambda.")
    if u.shape[-1:] != x.shape[-1:]:
        shapes = f"{list(u.shape)} for a stream of {list(x.shape)}"
        raise ShapeError(f"the branch gives {shapes}: the last axes must agree.")


def orthogonal_to(u: Tensor, x: Tensor) -> Tensor:
    """u without its component along x, token by token; both centred along the last axis, and u's mean put back."""
    wide = torch.promote_types(u.dtype, torch.float32)
    v, z = u.to(wide), x.to(wide)
    mean = v.mean(-1, keepdim=True)
    v, z = v - mean, z - z.mean(-1, keepdim=True)
    size = z.abs().amax(-1, keepdim=True)  # squares of z neither vanish nor overflow
    z = z / torch.where(size > 0, size, 1.0)
    square = (z * z).sum(-1, keepdim=True)
    along = (v * z).sum(-1, keepdim=True) / square.clamp_min(torch.finfo(wide).tiny)
    return (v - along * z + mean).to(u.dtype)
