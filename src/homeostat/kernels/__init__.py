"""Kernels: the arithmetic of measuring and applying, on extents and arrays alone. `info()` says which code serves."""

from __future__ import annotations

from typing import Any

from homeostat.kernels.cpu import info as info

__all__ = ["info", "pool"]


def pool(size: int) -> Any:
    """A context in which outputs of 32 MiB and more reuse memory, at most `size` bytes of it."""
    from homeostat.kernels.outputs import Pool

    return Pool(size)
