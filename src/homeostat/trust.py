"""Trust: what a source believes before anything is measured.

Through: the statistics as measured, gradient and all.      Fixed: constants; nothing is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.arrays import Array


@dataclass(frozen=True, eq=False, slots=True)
class Through:
    """Normalize by what is measured in this very tensor; the gradient flows through the statistics."""


@dataclass(frozen=True, eq=False, slots=True)
class Fixed:
    """Normalize by these constants."""

    mean: Array
    var: Array


Trust = Through | Fixed
