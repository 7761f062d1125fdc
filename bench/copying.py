"""Copying: how fast memory can be read and written at all, the limit that other figures are a share of.

The limit is the faster of torch's copy of a tensor beyond every cache and, where homeostat exposes one, a copy whose
stores go past the caches. Bytes are those read and those written.
"""

from collections.abc import Callable

import torch

from bench import inside
from bench.clock import Clock
from bench.records import Record

BYTES = 256 << 20
CURVE = tuple(1 << k for k in range(14, 28))


def limit(clock: Clock, threads: int, size: int = BYTES) -> Record:
    """{"torch", "native", "limit"} in GB/s, and torch's copy by size."""
    torch.set_num_threads(threads)
    found = _speeds(clock, threads, size)
    sizes = [n for n in CURVE if n <= size]
    curve = [[2 * n, _speeds(clock, threads, n)["torch"]] for n in sizes]
    return {**found, "limit": max(found.values()), "bytes": 2 * size, "curve": curve}


def _speeds(clock: Clock, threads: int, size: int) -> dict[str, float]:
    x, y = (torch.ones(size // 4) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {"torch": lambda: y.copy_(x)}
    native = inside.native_copy(y, x)
    if native is not None:
        calls["native"] = native
    return {name: 2e-6 * size / t["ms"] for name, t in clock.medians(calls, threads).items()}
