"""Running averages, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

from homeostat.arrays import Array, being_compiled
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

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        import torch

        return {
            "running_mean": torch.zeros(groups, **kind),
            "running_var": torch.ones(groups, **kind),
            "num_batches_tracked": torch.zeros((), dtype=torch.int64, device=kind.get("device")),
        }

    def trust(self, state: State, training: bool) -> Trust:
        return THROUGH if training else Fixed(state["running_mean"], state["running_var"])

    @property
    def averages(self) -> bool:  # type: ignore[override]
        return type(self).step is Running.step

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        tracked = state["num_batches_tracked"] + 1
        k = 1.0 / tracked.to(m.mean.dtype) if self.momentum is None else self.momentum
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


def is_average(source: Source) -> bool:
    """Does it trust this tensor in training and an average in evaluation, and nothing else?"""
    return isinstance(source, Running) and not source.reads


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
        if not (self.r_max >= 1 and self.d_max >= 0):
            raise ValueError(f"r_max={self.r_max!r} must be at least 1 and d_max={self.d_max!r} at least 0.")
        steps = [step for step, _, _ in self.schedule]
        if steps != sorted(set(steps)) or any(r < 1 or d < 0 for _, r, d in self.schedule):
            raise ValueError(
                f"schedule={self.schedule!r} is (step, r_max, d_max), steps rising, r_max >= 1, d_max >= 0."
            )

    def bounds(self, step: Array) -> tuple[Any, Any]:
        """r_max and d_max after so many batches."""
        if not self.schedule:
            return self.r_max, self.d_max
        t = step if being_compiled() or step.device.type != "cpu" else float(step)  # a number can take the kernels
        return tuple(_along(t, [(p[0], p[i]) for p in self.schedule]) for i in (1, 2))

    def trust(self, state: State, training: bool) -> Trust:
        if not training:
            return super().trust(state, training)
        # copies: a second derivative would read them again, after this forward has written
        bounds = self.bounds(state["num_batches_tracked"])
        return Pulled(state["running_mean"].clone(), state["running_var"].clone(), *bounds)


# The paper's (Ioffe 2017): batch norm for 5000 steps, then bounds that open to r_max = 3 and d_max = 5.
PAPER = ((5000, 1.0, 0.0), (25000, 1.0 + 2.0 * 20 / 35, 5.0), (40000, 3.0, 5.0))


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

    def trust(self, state: State, training: bool) -> Trust:
        return self.inner.trust(state, False)


def _at_least_one(left: Array | float) -> Array | float:
    return max(left, 1.0) if isinstance(left, float) else left.clamp_min(1.0)
