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


class Beside:
    """A copy in turns with what it is compared with: memory is not equally quick all day.

    It moves `moved` bytes, read and written, and goes on through two large buffers, so that no cache has what it reads.
    """

    def __init__(self, moved: int) -> None:
        if not (buffers := _BUFFERS):
            buffers.extend(torch.ones(BYTES, dtype=torch.uint8) for _ in range(2))
        self.size, self.at = min(moved // 2, BYTES // 2) // 64 * 64, 0
        self.times = moved / (2 * self.size)  # as much to move as a copy of so many times the size

    def __call__(self) -> None:
        self.at = 0 if self.at + 2 * self.size > BYTES else self.at + self.size
        here = slice(self.at, self.at + self.size)
        copy = inside.native_copy(_BUFFERS[0][here], _BUFFERS[1][here])
        if copy is None:
            _BUFFERS[0][here].copy_(_BUFFERS[1][here])
        else:
            copy()


_BUFFERS: list[torch.Tensor] = []


def _speeds(clock: Clock, threads: int, size: int) -> dict[str, float]:
    x, y = (torch.ones(size // 4) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {"torch": lambda: y.copy_(x)}
    native = inside.native_copy(y, x)
    if native is not None:
        calls["native"] = native
    return {name: 2e-6 * size / t["ms"] for name, t in clock.medians(calls, threads).items()}
