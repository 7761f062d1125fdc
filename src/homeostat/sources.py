"""Sources: where a statistic comes from. Each says what to trust before measuring and what to remember after.

    Batch()      trusts this tensor, remembers nothing
    Running(k)   trusts this tensor in training, b <- (1 - k) b + k new; in evaluation trusts b
    Renorm(r, d) trusts this tensor as far as bounds let it stray from b, in training; in evaluation b
    Frozen(s)    trusts what s remembered, and nothing new, whatever `.train()` says

A source is a frozen value without tensors. What it remembers lives on the layer, under torch's names; a variant is a
new class here, shaped like its siblings. `frame` and `gather` are for sources that measure others' elements too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from homeostat.arrays import Array
from homeostat.frame import Frame
from homeostat.moments import Moments
from homeostat.trust import THROUGH, Fixed, Pulled, Trust

State = Mapping[str, Array]


@dataclass(frozen=True)
class Source:
    """What every source answers, and the answers of one that trusts what it sees and forgets it."""

    names: ClassVar[tuple[str, ...]] = ()  # what it remembers, named as torch names it

    def frame(self, frame: Frame, training: bool) -> Frame:
        """Who is measured."""
        return frame

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        """Fresh memory for this many groups, one entry per name; `kind` is device and dtype."""
        return {}

    def gather(self, m: Moments) -> Moments:
        """What others measured, added; differentiable."""
        return m

    def trust(self, state: State, training: bool) -> Trust:
        """Decided before measuring."""
        return THROUGH

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        """New memory from old memory and what was measured; pure. `m` is gathered and detached."""
        return {}


@dataclass(frozen=True)
class Batch(Source):
    """The statistics of this very tensor, in training and evaluation alike."""


BATCH = Batch()


@dataclass(frozen=True)
class Running(Source):
    """An exponential average of what was seen; `momentum=None` averages all batches alike.

    b <- (1 - k) b + k new, with the unbiased variance, k = momentum or 1 / (batches so far)
    """

    momentum: float | None = 0.1
    names = ("running_mean", "running_var", "num_batches_tracked")

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

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        tracked = state["num_batches_tracked"] + 1
        k = 1.0 / tracked.to(m.mean.dtype) if self.momentum is None else self.momentum
        old_mean, old_var = (state[name].to(m.mean.dtype) for name in ("running_mean", "running_var"))
        mean, var = m.mean, m.m2 / _at_least_one(m.count - 1)
        if not isinstance(m.count, float):  # a group nobody was measured in keeps what it had
            mean, var = mean.where(m.count > 0, old_mean), var.where(m.count > 1, old_var)
        return {
            "running_mean": (1 - k) * old_mean + k * mean,
            "running_var": (1 - k) * old_var + k * var,
            "num_batches_tracked": tracked,
        }


@dataclass(frozen=True)
class Renorm(Running):
    """Batch renormalization: as the running statistics would have it, in training too, as far as bounds allow.

    y = xhat r + d    r = clip(sigma / sigma', 1 / r_max, r_max)    d = clip((mean - mean') / sigma', -d_max, d_max)

    mean', sigma' are remembered, r and d constants to the gradient. With r_max=1 and d_max=0 it is Running.
    """

    r_max: float = 3.0
    d_max: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.r_max >= 1 and self.d_max >= 0):
            raise ValueError(f"r_max={self.r_max!r} must be at least 1 and d_max={self.d_max!r} at least 0.")

    def trust(self, state: State, training: bool) -> Trust:
        if not training:
            return super().trust(state, training)
        # copies: a second derivative would read them again, after this forward has written
        return Pulled(state["running_mean"].clone(), state["running_var"].clone(), self.r_max, self.d_max)


@dataclass(frozen=True)
class Frozen(Source):
    """What `inner` remembered, unchanged: it neither measures nor learns, in training and evaluation alike."""

    inner: Source = field(default_factory=Running)

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.names

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        return self.inner.init(groups, **kind)

    def trust(self, state: State, training: bool) -> Trust:
        return self.inner.trust(state, False)


def _at_least_one(left: Array | float) -> Array | float:
    return max(left, 1.0) if isinstance(left, float) else left.clamp_min(1.0)
