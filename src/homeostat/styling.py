"""Styling: a picture in the statistics of another.

    x = sum of x_b       y_bc = sigma(s_bc) (x_bc - mean(x_bc)) / sigma(x_bc) + mean(s_bc)       y = sum of y_b

Bands are windows of frequency, by scale and orientation, that add up to 1, so a picture is the sum of its bands to
rounding; channels c are light and two opponent colours, an orthonormal turn of red, green, blue. So the frame is one
mean and spread per band and channel, "c h w -> c" of each band: palette, contrast at every scale, direction of strokes.
Pictures are [3, h, w] with values 0..1, and need not be of one size.

>>> import numpy as np
>>> x, s = np.random.default_rng(0).random((2, 3, 32, 40))
>>> bool(np.allclose(sum(Basis().bands(x)), x)), bool(np.allclose(restyled(x, x), x))
(True, True)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import comb, log2
from typing import Any

import numpy as np

from homeostat.errors import real, reals, said, whole
from homeostat.frame import ShapeError
from homeostat.reading import normalize

Pixels = np.ndarray[Any, np.dtype[np.float64]]

# Light, red against blue, green against both: nearly uncorrelated in most pictures (Ohta, Kanade & Sakai 1980).
OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3], [2], [6]])
EPS = 1 / 255**2  # a spread of one step of 8 bits: a band with less holds rounding and compression, not contrast


@dataclass(frozen=True)
class Basis:
    """Bands of a picture: octaves from the finest, each by direction, and what is coarser than all of them."""

    scales: int = 5
    orientations: int = 4

    def __post_init__(self) -> None:
        whole("scales", self.scales, 0)
        whole("orientations", self.orientations)

    def __str__(self) -> str:
        count = self.scales * self.orientations + 1
        return f"{count} bands ({self.scales} scales in {self.orientations} orientations, and what is coarser)"

    def within(self, *pictures: Pixels) -> Basis:
        """No scale that would not repeat a few times along the shortest side."""
        side = min(length for picture in pictures for length in picture.shape[1:])
        return replace(self, scales=min(self.scales, max(0, int(log2(side)) - 2)))

    def bands(self, x: Pixels) -> Iterator[Pixels]:
        """The parts of x by frequency, finest first."""
        h, w = x.shape[1:]
        margin = 2 << self.scales  # mirrored around, or the left edge would be the right one's neighbour
        wide = np.pad(x, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
        spectrum = np.fft.rfft2(wide)
        for window in self.windows(*wide.shape[1:]):
            yield np.fft.irfft2(spectrum * window, wide.shape[1:])[:, margin : margin + h, margin : margin + w]

    def windows(self, h: int, w: int) -> Iterator[Pixels]:
        """They add up to 1, because octaves are differences of windows that grow, and for K directions

        sum over k of cos(a - pi k / K)^(2 K - 2) = K binomial(2 K - 2, K - 1) / 4^(K - 1)        at every angle a
        """
        v, u = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)
        octave, angle = np.log2(np.maximum(np.hypot(u, v), 1e-9)), np.arctan2(v, u)
        power = 2 * self.orientations - 2
        whole = self.orientations * comb(power, self.orientations - 1) / 2**power
        above = np.ones_like(octave)
        for scale in range(self.scales):
            below = np.cos(np.pi / 2 * np.clip(octave + scale + 2, 0, 1)) ** 2  # from 1 at 2^-(scale + 2) to 0 at twice
            for k in range(self.orientations):
                yield (above - below) * np.cos(angle - np.pi * k / self.orientations) ** power / whole
            above = below
        yield above


def restyled(content: Pixels, style: Pixels, strength: float = 1.0, basis: Basis | None = None) -> Pixels:
    """Content with the style's mean and spread in every band and channel; `strength` is the share of the way there."""
    if not 0 <= real(strength) <= 1:
        raise ValueError(f"strength={said(strength)} is a share of the way to the style, from 0 to 1.")
    if not (basis is None or isinstance(basis, Basis)):
        raise TypeError(f"basis={said(basis)}: give a Basis(scales, orientations).")
    content, style = _picture("content", content), _picture("style", style)
    basis = (basis or Basis()).within(content, style)
    change = np.zeros_like(content)
    for x, s in zip(*(basis.bands(_turned(picture)) for picture in (content, style)), strict=True):
        _, reading = normalize(s, "c h w -> c", eps=EPS, return_reading=True)
        change += reading.inverse(normalize(x, "c h w -> c", eps=EPS)) - x
    return content + strength * _turned(change, back=True)


def _picture(name: str, given: Any) -> Pixels:
    x = reals(given)
    if x.ndim != 3 or len(x) != 3 or not x.size or not np.isfinite(x).all():
        raise ShapeError(f"{name} is {list(x.shape)}: give a picture [3, h, w], a pixel at least, all values finite.")
    return x


def _turned(x: Pixels, back: bool = False) -> Pixels:
    """Red, green, blue to light and opponent colours, or back."""
    y: Pixels = np.einsum("dc,c...->d...", OPPONENT.T if back else OPPONENT, x)
    return y
