"""Tools on layers: which gradients touch which outputs, gains that change nothing."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from homeostat import ops
from homeostat.gains import Learned
from homeostat.kernels.reference import Job
from homeostat.plan import plan_for
from homeostat.reading import measure
from homeostat.sources import Batch, Frozen, Renorm, Running

# ---------------------------------------------------------------- coupling


@dataclass(frozen=True)
class Coupling:
    """For every axis of x, [length, length]: does the output at position i depend on the input at position j?"""

    axes: tuple[str, ...]
    touches: tuple[Tensor, ...]

    def groups(self, axis: str) -> int:
        """How many parts of an axis do not see each other, directly or through others: 1 couples all of it."""
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


@torch.enable_grad()
def coupling(norm: nn.Module | Callable[[Tensor], Tensor], x: Tensor, axes: str = "") -> Coupling:
    """Which input gradients touch which outputs, axis by axis. `axes` are names for those of x, as "n c h w".

    >>> str(coupling(nn.GroupNorm(2, 4), torch.randn(2, 4, 3), "n c t"))
    'n: apart, c: 2 groups, t: all together'
    """
    names = tuple(axes.split()) or tuple(f"axis{i}" for i in range(x.dim()))
    if len(names) != x.dim():
        raise ValueError(f'axes="{axes}" names {len(names)} axes; x has {x.dim()}.')
    f = copy.deepcopy(norm).double() if isinstance(norm, nn.Module) else norm
    if not torch.isfinite(x).all():
        raise ValueError("coupling follows gradients, and x has values that are not finite.")
    z = x.detach().double().requires_grad_()
    y = f(z)
    if y.shape != x.shape:
        raise ValueError(f"coupling compares positions of x and y; y is {tuple(y.shape)} where x is {tuple(x.shape)}.")
    w = (
        torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).view_as(y).sin()
    )  # no symmetry that could cancel
    found = []
    for axis, length in enumerate(x.shape):
        rows = [torch.autograd.grad((y * w).select(axis, i).sum(), z, retain_graph=True)[0] for i in range(length)]
        sizes = torch.stack([row.abs().movedim(axis, 0).flatten(1).amax(1) for row in rows])
        found.append(sizes > 1e-12 * sizes.max())
    return Coupling(names, tuple(found))


# ---------------------------------------------------------------- gains that change nothing


def identity_on(norm: Any, batches: Iterable[Tensor], wanted: Callable[[Tensor], Tensor] | None = None) -> float:
    """Set the gain of a norm so that on these batches it gives back what it is given, as nearly as it can.

    Per group of its gain, y w + b is the least-squares line from what the norm makes of x to what is wanted: x itself,
    or wanted(x), such as the layer that this one replaces. A source's memory takes the batches in first, all alike, and
    the fit is for evaluation. Returns what is left: the root of |y - wanted|^2 / |wanted - its mean|^2.
    """
    _check_gain(norm)
    data = [x.detach() for x in batches]
    if not data:
        raise ValueError("identity_on needs at least one batch.")
    target = wanted or (lambda x: x)
    before = copy.deepcopy(norm.state_dict())
    training = norm.training
    try:
        with torch.no_grad():
            norm.weight.fill_(1.0)
            if norm.bias is not None:
                norm.bias.zero_()
            _take_in(norm, data)
            norm.eval()
            pairs = [(norm(x), target(x)) for x in data]
            w, b = _line([_sums(norm, y, t) for y, t in pairs], norm.bias is not None)
            if not (torch.isfinite(w).all() and torch.isfinite(b).all()):
                raise ValueError(
                    "identity_on: these batches have values that are not finite; the norm stays as it was."
                )
            norm.weight.copy_(w)
            if norm.bias is not None:
                norm.bias.copy_(b)
            left = [(norm(x).double() - t.double()).square().sum() for x, (_, t) in zip(data, pairs, strict=True)]
    except BaseException:
        norm.load_state_dict(before)
        raise
    finally:
        norm.train(training)
    whole = torch.cat([t.double().flatten() for _, t in pairs])
    size = float((whole - whole.mean()).square().sum())
    return math.sqrt(float(torch.stack(left).sum()) / size) if size > 0 else 0.0


def _check_gain(norm: Any) -> None:
    if getattr(norm, "weight", None) is None or getattr(norm, "gain_frame", None) is None:
        raise TypeError(f"{type(norm).__name__} has no gain to set: one of ours is wanted, with affine=True or gain=.")
    gain = getattr(norm, "gain", None)
    if gain is not None and type(gain) is not Learned:
        raise TypeError(f"identity_on sets a gain that is learned as it stands; {gain} makes its own.")
    source = norm.source.inner if isinstance(norm.source, Frozen) else norm.source
    if type(source) not in (Batch, Running, Renorm):
        raise TypeError(f"identity_on knows Batch, Running, Renorm and these frozen; {source} remembers otherwise.")


def _take_in(norm: Any, data: list[Tensor]) -> None:
    """Memory becomes that of all these batches, measured together."""
    if "running_mean" not in norm.source.names:
        return
    sizes: dict[str, Any] = _sizes(norm)
    m = reduce(operator.add, [measure(x, norm.state_frame, **sizes) for x in data])
    norm.running_mean.copy_(m.mean)
    norm.running_var.copy_(m.var(ddof=1))


def _sizes(norm: Any) -> dict[str, int]:
    if isinstance(norm, nn.GroupNorm):
        return {"g": norm.num_groups, "c": norm.num_channels // norm.num_groups}
    return dict(getattr(norm, "sizes", {}))


def _sums(norm: Any, y: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    """Per group of the gain: count, and means of y, t, y y, y t."""
    sizes = _sizes(norm)
    plan = plan_for(norm.gain_frame, tuple(y.shape), sizes)
    y, t = y.double(), t.double()
    parts = [ops.measure(z, Job(plan)).mean.reshape(norm.weight.shape) for z in (y, t, y * y, y * t)]
    return torch.full_like(parts[0], float(plan.pool)), *parts


def _line(sums: list[tuple[Tensor, ...]], bias: bool) -> tuple[Tensor, Tensor]:
    n = torch.stack([s[0] for s in sums])
    my, mt, yy, yt = ((n * torch.stack([s[i] for s in sums])).sum(0) / n.sum(0) for i in range(1, 5))
    if not bias:
        return yt / yy.clamp_min(1e-300), torch.zeros_like(my)
    spread = yy - my * my
    w = torch.where(spread > 0, (yt - my * mt) / spread.clamp_min(1e-300), torch.ones_like(my))
    return w, mt - w * my
