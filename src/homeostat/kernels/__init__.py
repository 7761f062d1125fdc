"""Kernels: the arithmetic of measuring and applying, on extents and arrays alone. `info()` says which code serves."""

from __future__ import annotations

from homeostat.kernels.cpu import info as info

__all__ = ["info"]
