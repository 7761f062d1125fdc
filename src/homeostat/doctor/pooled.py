"""Pooled: what samples measure together, and how that scatters if they are drawn again.

    mean = sum w m        var = sum w (v + m^2) - mean^2

w is the share of each sample among those drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from homeostat.doctor.facts import Array, Layer

DRAWS, GROUPS = 200, 64


@dataclass(frozen=True)
class Beside:
    """A norm's samples beside what it has stored, of a few of its groups. `window` samples made what is stored."""

    name: str
    mean: Array  # [samples, groups]
    var: Array
    stored_mean: Array  # [groups]
    stored_var: Array
    eps: float
    window: int

    def of(self, shares: Array) -> tuple[Array, Array]:
        """Means and variances, [draws, groups]."""
        middle = self.mean.mean(0)
        d = self.mean - middle
        mean = shares @ d
        return middle + mean, shares @ (self.var + d * d) - mean * mean

    def all(self) -> tuple[Array, Array]:
        return self.of(np.full((1, len(self.mean)), 1 / len(self.mean)))

    def again(self) -> tuple[Array, Array]:
        """As many samples, drawn again."""
        return self.of(_shares(len(self.mean), len(self.mean), 1))

    def remembered(self) -> tuple[Array, Array]:
        """What would be stored of such samples."""
        return self.of(_shares(len(self.mean), self.window, 2))


def beside(layer: Layer, size: int) -> Beside | None:
    """None where what is stored is not of the groups that were measured, is not finite, or has seen no batch."""
    stored, samples = layer.stored, layer.samples
    if stored is None or not samples or layer.tracked == 0 or not layer.together:
        return None
    mean, m2 = (np.concatenate([getattr(m, part) for m in samples]) for part in ("mean", "m2"))
    old_mean, old_var = stored.mean, stored.m2
    parts = (mean, m2, old_mean, old_var)
    if mean.shape[1] != len(old_mean) or not all(np.isfinite(part).all() for part in parts) or (old_var < 0).any():
        return None
    pick = np.linspace(0, mean.shape[1] - 1, min(GROUPS, mean.shape[1])).astype(int)
    eps = layer.found.eps if isinstance(layer.found.eps, float) else 1e-12
    var = m2[:, pick] / float(samples[0].count)
    return Beside(layer.name, mean[:, pick], var, old_mean[pick], old_var[pick], eps, window(layer, size))


def window(layer: Layer, size: int) -> int:
    """Samples that an average of batches of `size` is worth: size (2 - a) / a, and no more than went into it."""
    batches = layer.tracked or 1000
    a = layer.momentum
    return max(1, int(size * (batches if not a else min(batches, (2 - a) / a))))


@lru_cache(8)
def _shares(samples: int, drawn: int, seed: int) -> Array:
    found: Array = np.random.default_rng(seed).multinomial(drawn, np.full(samples, 1 / samples), DRAWS) / drawn
    return found
