"""Trust: what a source believes before anything is measured.

Through     the statistics as measured, gradient and all
Fixed       constants; nothing is measured
Pulled      as measured, then brought to a reference mean', sigma' as far as its bounds allow:

            z = xhat r + d    r = clip(sigma / sigma', 1 / r_max, r_max)    d = clip((mean - mean') / sigma', +- d_max)

            r and d are constants to the gradient

Rule        any function of what was measured; the gradient flows through it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from homeostat.arrays import Array
from homeostat.frame import Frame
from homeostat.moments import Moments


@dataclass(frozen=True, eq=False, slots=True)
class Through:
    """Normalize by what is measured in this very tensor; the gradient flows through the statistics."""


@dataclass(frozen=True, eq=False, slots=True)
class Fixed:
    """Normalize by these constants."""

    mean: Array
    var: Array

    def kind(self) -> tuple[Any, ...]:
        """What decides how it is served, apart from its values."""
        return Fixed, self.mean.shape, self.mean.dtype, self.var.shape


@dataclass(frozen=True, eq=False, slots=True)
class Pulled:
    """Normalize by what is measured, as if by these, within bounds."""

    mean: Array
    var: Array
    r_max: Any  # a number, or an array like mean
    d_max: Any

    def kind(self) -> tuple[Any, ...]:
        bounds = (v if isinstance(v, float | int) else None for v in (self.r_max, self.d_max))
        return Pulled, self.mean.shape, self.mean.dtype, self.var.shape, *bounds

    def beside(self, groups: tuple[int, ...]) -> Pulled:
        """One reference for all parts of a batch, which stand first among the groups."""
        parts = (self.mean, self.var, self.r_max, self.d_max)
        return Pulled(*(part if isinstance(part, float | int) else part.expand(groups) for part in parts))


@dataclass(frozen=True, eq=False, slots=True)
class Rule:
    """Normalize by what `of(moments, each, eps, frame)` makes of what is measured: mean and variance, differentiable.

    `each` is how many elements a sample has in a group, `frame` that of the moments. `empty`: does it know what to make
    of a group nobody was measured in?
    """

    of: Callable[[Moments, Any, Any, Frame], tuple[Array, Array]]
    empty: bool = False

    def kind(self) -> tuple[Any, ...]:
        return (Rule,)


Trust = Through | Fixed | Pulled | Rule
THROUGH = Through()
