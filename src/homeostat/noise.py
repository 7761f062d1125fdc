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

from homeostat.arrays import Array, to_numpy


class Noise(NamedTuple):
    """Relative standard errors of what m elements say; `mean` in standard deviations."""

    mean: float
    var: float
    std: float


def expected_noise(m: float) -> Noise:
    """What to expect of m independent Gaussian elements. Elements of one picture are not independent: m is less."""
    if not m > 0:
        raise ValueError(f"m={m!r} is how many elements share a statistic, a number above 0.")
    var = math.sqrt(2 / (m - 1)) if m > 1 else math.inf
    return Noise(1 / math.sqrt(m), var, var / 2)


def groups_for(channels: int, spatial: int = 1, batch: int = 1, budget: float = 0.1) -> int:
    """The most groups of channels whose variances are known to within `budget`, so that group norm stays quiet.

    A group has channels / groups * spatial elements of a sample. What is left of its noise in a gradient averages over
    the batch. Where even one group is noisier, 1: layer norm is the quietest there is.
    """
    for name, n in (("channels", channels), ("spatial", spatial), ("batch", batch)):
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"{name}={n!r} is a number of elements, at least 1.")
    if not budget > 0:
        raise ValueError(f"budget={budget!r} is the relative error allowed, above 0.")
    fits = (g for g in range(channels, 0, -1) if channels % g == 0)
    quiet = (g for g in fits if expected_noise(channels // g * spatial).var <= budget * math.sqrt(batch))
    return next(quiet, 1)


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
    if len(weights) != 2 or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"weights={weights!r} are how much each modality counts: two numbers of at least 0.")
    share = np.asarray(weights, float) / sum(weights)
    h, g = (w * _gram(np.asarray(to_numpy(x), float)) for w, x in zip(share, (one, other), strict=True))
    d = np.subtract(ideal_one, ideal_other)
    return float(d @ h @ np.linalg.pinv(h + g) @ g @ d)


def _gram(x: np.ndarray) -> np.ndarray:
    x = x.ravel()
    return np.array([[np.mean(x * x), np.mean(x)], [np.mean(x), 1.0]])
