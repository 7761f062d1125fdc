"""Running averages, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from homeostat.arrays import Array, being_compiled
from homeostat.errors import real, reals, said
from homeostat.moments import Moments
from homeostat.sources.base import Call, Regrouped, Source, State, Wrapped
from homeostat.trust import THROUGH, Fixed, Pulled, Trust


@dataclass(frozen=True)
class Running(Source):
    """b <- (1 - k) b + k new: an average of what was seen, k = momentum, or 1 / (batches so far) where it is None.

    The variance is the unbiased one, as in torch.

    `momentum="auto"` estimates the best k from the stream itself (kalman.py).
    """

    momentum: float | None = 0.1
    names: ClassVar[tuple[str, ...]] = ("running_mean", "running_var", "num_batches_tracked")

    def __new__(cls, momentum: Any = 0.1, *_: Any, **__: Any) -> Running:
        if isinstance(momentum, str) and momentum == "auto" and cls is Running:
            from homeostat.sources.kalman import Kalman

            return object.__new__(Kalman)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        k = self.momentum
        if not (k is None or (isinstance(k, float | int) and 0 <= k <= 1)):
            raise ValueError(
                f"momentum={k!r} is the share of the new batch: a number from 0 to 1, or None for the mean."
            )

    def init(self, groups: tuple[int, ...], rows: tuple[int, ...] = (), **kind: Any) -> dict[str, Array]:
        """`rows`: the first of `groups`, where each of these counts batches of its own."""
        import torch

        return {
            "running_mean": torch.zeros(groups, **kind),
            "running_var": torch.ones(groups, **kind),
            "num_batches_tracked": torch.zeros(rows, dtype=torch.int64, device=kind.get("device")),
        }

    def trust(self, state: State, training: bool) -> Trust:
        return THROUGH if training else Fixed(*self.held(state, training))

    @property
    def averages(self) -> bool:  # type: ignore[override]
        return type(self).step is Running.step

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        tracked = counted(state["num_batches_tracked"], m)
        k = self.momentum
        k = beside(1.0 / tracked.clamp_min(1).to(m.mean.dtype), m.mean) if k is None else k
        return self.blend(state, m, k) | {"num_batches_tracked": tracked}

    def blend(self, state: State, m: Moments, k: Array | float) -> dict[str, Array]:
        """b <- (1 - k) b + k new, of mean and variance."""
        old_mean, old_var = (state[name].to(m.mean.dtype) for name in ("running_mean", "running_var"))
        mean, var = m.mean, m.m2 / _at_least_one(m.count - 1)
        if not isinstance(m.count, float):  # a group nobody was measured in keeps what it had
            mean, var = mean.where(m.count > 0, old_mean), var.where(m.count > 1, old_var)
        return {"running_mean": (1 - k) * old_mean + k * mean, "running_var": (1 - k) * old_var + k * var}

    def adapt(self, saved: dict[str, Array], fresh: State) -> dict[str, Array]:
        """Of a source that remembers per domain: all its domains pooled."""
        mean, var = saved.get("running_mean"), saved.get("running_var")
        if mean is None or var is None or mean.dim() != fresh["running_mean"].dim() + 1:
            return saved
        tracked = saved.get("num_batches_tracked")
        pooled = dict(zip(("running_mean", "running_var"), pool_domains(mean, var, tracked), strict=True))
        return saved | pooled | ({} if tracked is None else {"num_batches_tracked": tracked.sum()})


def pool_domains(mean: Array, var: Array, tracked: Array | None) -> tuple[Array, Array]:
    """Mean and variance over all domains that were seen, each counted alike; over all if none was."""
    wide, kind = mean.double(), mean.dtype  # copies of one domain give back its very bits
    seen = wide.new_ones(len(mean)) if tracked is None or tracked.dim() == 0 else (tracked > 0).double()
    seen = seen + (seen.sum() == 0).double()
    w = (seen / seen.sum()).reshape(-1, *(1,) * (mean.dim() - 1))
    center = (w * wide).sum(0)
    return center.to(kind), (w * (var + (wide - center) ** 2)).sum(0).to(kind)


def counted(tracked: Array, m: Moments) -> Array:
    """One batch more, for every row that somebody was measured in."""
    if tracked.dim() == 0:
        return tracked + 1
    count = m.count + 0.0 * m.mean
    return tracked + (count.reshape(len(tracked), -1) > 0).any(1)


def beside(rows: Array, groups: Array) -> Array:
    """One number per row, or one for all, where it broadcasts with the groups of each."""
    return rows.reshape(*rows.shape, *(1,) * (groups.dim() - rows.dim()))


def Cumulative() -> Running:
    """The mean of all batches so far: Running with momentum 1 / t."""
    return Running(None)


@dataclass(frozen=True)
class Renorm(Running):
    """Batch renormalization: as the running statistics would have it, in training too, as far as bounds allow.

    y = xhat r + d    r = clip(sigma / sigma', 1 / r_max, r_max)    d = clip((mean - mean') / sigma', -d_max, d_max)

    mean', sigma' are remembered, r and d constants to the gradient. With r_max=1 and d_max=0 it is Running. `schedule`
    opens the bounds as batches go by; PAPER is the paper's. Ioffe 2017, arXiv:1702.03275.
    """

    reads = True
    r_max: float = 3.0
    d_max: float = 5.0
    schedule: tuple[tuple[int, float, float], ...] = ()  # (step, r_max, d_max), in between by straight lines

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (real(self.r_max) >= 1 and real(self.d_max) >= 0):
            raise ValueError(f"r_max={said(self.r_max)} must be at least 1 and d_max={said(self.d_max)} at least 0.")
        if not _is_schedule(reals(self.schedule)):
            raise ValueError(
                f"schedule={said(self.schedule)}: give rows (step, r_max, d_max), steps rising from 0 on, r_max of at "
                f"least 1, d_max of at least 0, all finite, as homeostat.sources.running.PAPER has them."
            )
        object.__setattr__(self, "schedule", tuple(map(tuple, self.schedule)))  # hashable, whatever it came as

    def bounds(self, step: Array) -> tuple[Any, Any]:
        """r_max and d_max after so many batches."""
        if not self.schedule:
            return float(self.r_max), float(self.d_max)
        whole = step.dim() == 0 and step.device.type == "cpu" and not being_compiled()
        t = float(step) if whole else step  # a number can take the kernels
        return tuple(_along(t, [(p[0], p[i]) for p in self.schedule]) for i in (1, 2))

    def trust(self, state: State, training: bool) -> Trust:
        if not training:
            return super().trust(state, training)
        # copies: a second derivative would read them again, after this forward has written
        mean, var = (part.clone() for part in self.held(state, training))
        bounds = self.bounds(state["num_batches_tracked"])
        wide = (b if isinstance(b, float) else beside(b, mean).expand_as(mean) for b in bounds)
        return Pulled(mean, var, *wide)


# The paper's (Ioffe 2017): batch norm for 5000 steps, then bounds that open to r_max = 3 and d_max = 5.
PAPER = ((5000, 1.0, 0.0), (25000, 1.0 + 2.0 * 20 / 35, 5.0), (40000, 3.0, 5.0))


def _is_schedule(points: Any) -> bool:
    if points.shape == (0,):
        return True
    if points.shape[1:] != (3,) or not np.isfinite(points).all():
        return False
    return bool((points >= (0, 1, 0)).all() and (np.diff(points[:, 0]) > 0).all())


def _along(t: Any, points: list[tuple[int, float]]) -> Any:
    """The piecewise linear function through these points, constant beyond them."""
    value = points[0][1]
    for (a, low), (b, high) in pairwise(points):
        share = (t - a) / (b - a)
        share = min(max(share, 0.0), 1.0) if isinstance(share, float) else share.clamp(0, 1)
        value = value + (high - low) * share
    return value


@dataclass(frozen=True)
class Frozen(Wrapped):
    """What `inner` remembered, unchanged: it neither measures nor learns, in training and evaluation alike."""

    inner: Source = field(default_factory=lambda: Running())

    def regroup(self, call: Call) -> Regrouped:
        return self.inner.regroup(call._replace(training=False))

    def writes(self, training: bool) -> bool:
        return False

    def held(self, state: State, training: bool) -> tuple[Array, Array]:
        return self.inner.held(state, False)

    def trust(self, state: State, training: bool) -> Trust:
        return self.inner.trust(state, False)


def _at_least_one(left: Array | float) -> Array | float:
    return max(left, 1.0) if isinstance(left, float) else left.clamp_min(1.0)
