"""Noise: how far a statistic of m elements is from the truth, and what follows for groups and for sharing.

    mean: 1 / sqrt(m) standard deviations        variance: sqrt(2 / (m - 1)) of itself, for Gaussian elements

>>> round(expected_noise(129).var, 3)
0.125
>>> groups_for(channels=64, spatial=49, budget=0.1)
8
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from homeostat.arrays import Array
from homeostat.errors import real, reals, said, whole


class Noise(NamedTuple):
    """Relative standard errors of what m elements say; `mean` in standard deviations."""

    mean: float
    var: float
    std: float


def expected_noise(m: float) -> Noise:
    """What to expect of m independent Gaussian elements. Elements of one picture are not independent: m is less."""
    n = real(m)
    if not 0 < n < math.inf:
        raise ValueError(f"m={said(m)} is how many elements share a statistic: give a finite number above 0.")
    var = math.sqrt(2 / (n - 1)) if n > 1 else math.inf
    return Noise(1 / math.sqrt(n), var, var / 2)


def groups_for(channels: int, spatial: int = 1, batch: int = 1, budget: float = 0.1) -> int:
    """The most groups of channels whose variances are known to within `budget`, so that group norm stays quiet.

    A group has channels / groups * spatial elements of a sample. What is left of its noise in a gradient averages over
    the batch. Where even one group is noisier, 1: layer norm is the quietest there is.
    """
    channels, spatial, batch = whole("channels", channels), whole("spatial", spatial), whole("batch", batch)
    if not real(budget) > 0:
        raise ValueError(f"budget={said(budget)} is the relative error allowed: give a number above 0.")
    fits = sorted(divisors(channels), reverse=True)
    quiet = (g for g in fits if expected_noise(channels // g * spatial).var <= budget * math.sqrt(batch))
    return next(quiet, 1)


def divisors(n: int) -> set[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return {*small, *(n // d for d in small)}


def sharing_tax(
    one: Array,
    other: Array,
    ideal_one: tuple[float, float],
    ideal_other: tuple[float, float],
    weights: tuple[float, float] = (0.5, 0.5),
) -> float:
    """What two modalities lose by sharing one affine w x + b where each wants its own, in squared error.

        tax = d' H (H + H')^-1 H' d        H = weight * mean of (x, 1)'(x, 1)        d = (w, b) - (w', b')

    `one` and `other` are what each is fed; for standardized inputs it is weight * weight' * (dw^2 + db^2).
    """
    w = reals(weights)
    if w.shape != (2,) or not (np.isfinite(w).all() and w.min() >= 0 and w.sum() > 0):
        raise ValueError(f"weights={said(weights)} are how much each modality counts: give two numbers of at least 0.")
    w, fed = w / w.sum(), [_fed("one", one), _fed("other", other)]
    dw, db = _line("ideal_one", ideal_one) - _line("ideal_other", ideal_other)
    # in units of what both are fed, (x - c) / s: at mean or size 1e8, H itself would round to a singular matrix
    c = sum(share * x.mean() for share, x in zip(w, fed, strict=True))
    s = math.sqrt(sum(share * np.square(x - c).mean() for share, x in zip(w, fed, strict=True))) or 1.0
    h, g = (share * _gram((x - c) / s) for share, x in zip(w, fed, strict=True))
    d = np.array([dw * s, db + dw * c])
    return float(d @ h @ np.linalg.pinv(h + g) @ g @ d)


def _gram(x: np.ndarray) -> np.ndarray:
    return np.array([[np.mean(x * x), np.mean(x)], [np.mean(x), 1.0]])


def _fed(name: str, given: Array) -> np.ndarray:
    x = reals(given).ravel()
    if not (x.size and np.abs(x).max() < 1e150):  # so NaN is refused too; squares beyond are infinite
        why = "is empty" if not x.size else "has values that are no numbers, or beyond 1e150"
        raise ValueError(f"{name}= {why}: give the finite numbers that this modality is fed.")
    return x


def _line(name: str, given: tuple[float, float]) -> np.ndarray:
    line = reals(given)
    if line.shape != (2,) or not np.isfinite(line).all():
        raise ValueError(f"{name}={said(given)} is the line this modality would have alone: give two numbers, (w, b).")
    return line
