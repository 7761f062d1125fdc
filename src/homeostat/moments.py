"""Moments: count, mean and squared spread; two of them add.

    n = n_a + n_b        mean = mean_a + d n_b / n        M2 = M2_a + M2_b + d^2 n_a n_b / n        d = mean_b - mean_a

Streams, machines, blocks of a table and recalibration are all `+`; the identity is (0, 0, 0).

>>> import numpy as np
>>> a = Moments(2.0, np.array([1.0]), np.array([2.0]))
>>> (a + Moments(2.0, np.array([5.0]), np.array([2.0]))).var()
array([5.])
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.arrays import Array, backend_of, to_numpy
from homeostat.files import write_whole


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """What was measured, one entry per group. `count` is a number or an array that broadcasts to `mean`."""

    count: Array
    mean: Array
    m2: Array  # sum of squared deviations from the mean (from zero where the frame is not centred)

    @staticmethod
    def identity() -> Moments:
        return Moments(0.0, 0.0, 0.0)

    def __add__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        _check_alike(self.mean, other.mean)
        n = self.count + other.count
        share = other.count / (n + (n == 0))  # 0 / 0 where nobody was measured on either side
        d = other.mean - self.mean
        apart = d * (d * (self.count * share))  # in this order, so that a side without anybody adds 0 however large d
        return Moments(n, self.mean + d * share, self.m2 + other.m2 + apart)

    def __radd__(self, other: Any) -> Moments:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # so that sum(parts) works

    def var(self, ddof: float = 0) -> Array:
        """M2 / (count - ddof); NaN where that leaves nothing to divide by."""
        left = self.count - ddof
        if isinstance(left, float | int | np.number):
            return self.m2 / left if left > 0 else self.m2 * float("nan")
        b = backend_of(left)
        return self.m2 / b.where(left > 0, left, float("nan"))

    def std(self, ddof: float = 0) -> Array:
        var = self.var(ddof)
        return var**0.5

    def over(self, axes: tuple[int, ...]) -> Moments:
        """The moments of groups pooled along these axes, which stay with length 1."""
        if not axes:
            return self
        b, wide = backend_of(self.mean), self.mean + 0.0 * self.m2
        count = self.count + 0.0 * wide
        n = b.sum(count, axes)
        some = n + (n == 0)
        mean = b.sum(count * wide, axes) / some
        return Moments(n, mean, b.sum(self.m2 + count * (wide - mean) ** 2, axes))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all; `load` returns the very same bits as NumPy arrays."""
        from safetensors.numpy import save

        parts = {"count": self.count, "mean": self.mean, "m2": self.m2}
        data = save({name: np.array(to_numpy(part), order="C") for name, part in parts.items()})
        write_whole(Path(path), data)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Moments:
        from safetensors.numpy import load

        parts = load(Path(path).read_bytes())
        if set(parts) != {"count", "mean", "m2"}:
            raise ValueError(f"{path} holds {', '.join(sorted(parts))}; saved Moments hold count, mean and m2.")
        return Moments(parts["count"], parts["mean"], parts["m2"])


def _check_alike(a: Array, b: Array) -> None:
    """Nobody's moments are plain numbers; any others must be of the same groups and the same library."""
    if isinstance(a, float | int) or isinstance(b, float | int):
        return
    if tuple(a.shape) != tuple(b.shape):
        raise ValueError(f"these moments are of groups {tuple(a.shape)} and {tuple(b.shape)}: they do not add.")
    if backend_of(a) is not backend_of(b):
        raise TypeError(f"these moments are {backend_of(a).name} and {backend_of(b).name} arrays; convert one of them.")
