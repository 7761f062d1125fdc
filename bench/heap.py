"""Heap: freed memory is kept, so that no contender pays for fresh pages because of where the heap happens to end.

glibc hands memory back to the system when what is free at the heap's top exceeds a threshold. Whether a layer's output
lies there depends on what was allocated before it; of two equal layers one then pays hundreds of page faults in each
call, and the other none. Outputs of 32 MiB and more are mapped anew in any case: they are reported apart.
"""

import ctypes
import sys

TRIM, MAPPED = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
LARGEST = 32 << 20  # the most that glibc allows for the second


def keep() -> bool:
    """For the rest of the process, where the C library knows how."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MAPPED, LARGEST)) and bool(mallopt(TRIM, 2**31 - 1))
