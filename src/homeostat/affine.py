"""Affine: what is applied, y = (x - c) s + t.

The centre c is subtracted before anything is multiplied: at mean 1e4, `x * s + (t - c * s)` would lose four digits.
Affines compose and invert without leaving the form:

    then:     (x - c) s s' + (t - c') s' + t'
    inverse:  (y - t) / s + c

>>> a = Affine(c=3.0, s=2.0, t=1.0)
>>> a(5.0), a.inverse()(a(5.0)), a.then(a)(5.0)
(5.0, 5.0, 5.0)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from homeostat.arrays import Array, is_at_hand, to_numpy


@dataclass(frozen=True, eq=False, slots=True)
class Affine:
    """A centre, a scale and an offset; arrays that broadcast against x."""

    c: Array = 0.0
    s: Array = 1.0
    t: Array = 0.0

    def __call__(self, x: Array) -> Array:
        return (x - self.c) * self.s + self.t

    def then(self, after: Affine) -> Affine:
        """First this one, then `after`."""
        return Affine(self.c, self.s * after.s, after(self.t))

    def inverse(self) -> Affine:
        if _flattens(self.s):
            raise ValueError(
                "this affine has a scale of 0 or NaN or infinity somewhere: "
                "what it maps to one point cannot be told apart."
            )
        return Affine(self.t, 1 / self.s, self.c)

    def fold_into(self, weight: Array, bias: Array | None = None) -> tuple[Array, Array]:
        """Weight and bias of the layer that does both: y = (W x + b - c) s + t. Outputs are weight's first axis."""
        s = self.s if isinstance(self.s, float | int) else self.s.reshape(-1, *(1,) * (weight.ndim - 1))
        return weight * s, self(0.0 if bias is None else bias)


def _flattens(s: Array) -> bool:
    if not isinstance(s, float | int | np.generic):
        if not is_at_hand(s):
            return False
        s = to_numpy(s)
    return not bool(np.all(np.isfinite(s) & (s != 0)))
