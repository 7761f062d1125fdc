"""Evidence: how far two runs are apart, and in what interval a share or a mean lies."""

from __future__ import annotations

import math

import numpy as np

from homeostat.doctor.facts import Array, Seen
from homeostat.doctor.rule import NotMeasured

Z = 1.96  # 95 of 100


def share(hits: int, of: int) -> tuple[float, float, float]:
    """hits / of, and Wilson's interval."""
    p, z2 = hits / of, Z * Z / of
    middle, half = (p + z2 / 2) / (1 + z2), Z * math.sqrt(p * (1 - p) / of + z2 / of / 4) / (1 + z2)
    return p, max(0.0, middle - half), min(1.0, middle + half)


def flips(a: Seen, b: Seen) -> Array:
    """For each sample, in the order of a: is another class on top?"""
    found: Array = a.rows.argmax(1) != b.of(a.order).argmax(1)
    return found


def moved(a: Seen, b: Seen) -> Array:
    """For each sample, in the order of a: the squared distance of b's output, in the variance of a's outputs."""
    if not (np.isfinite(a.rows).all() and np.isfinite(b.rows).all()):
        raise NotMeasured("the model's outputs are not finite")
    spread = a.rows.var(0).mean()
    gap: Array = np.square(b.of(a.order) - a.rows).mean(1)
    return gap / spread if spread > 0 else np.where(gap > 0, np.inf, 0.0)


def rms(squares: Array) -> tuple[float, float, float]:
    """The root of their mean, and the interval of resampled samples."""
    if not np.isfinite(squares).all():  # outputs without spread that move all the same
        return math.inf, math.inf, math.inf
    draws = np.random.default_rng(0).integers(0, len(squares), (200, len(squares)))
    low, high = np.quantile(np.sqrt(squares[draws].mean(1)), (0.025, 0.975))
    return math.sqrt(squares.mean()), float(low), float(high)
