"""Growth: time against elements. A kernel that does the same for every element gives a straight line of slope 1.

Layer norm of rows of 1024, forward, through the public module and kernel alone. Slope and R^2 are those of
log time against log elements, from the size on where a call takes PAST times as long as the smallest.
"""

import math
import statistics
from collections.abc import Iterator, Sequence

import torch
from torch import nn

import homeostat as hs
from bench import inside
from bench.cases import LARGE
from bench.clock import Clock
from bench.contenders import Calls
from bench.records import Record, Task

WIDTH = 1024
POWERS = (10, 27)
PAST = 4.0


def tasks(clock: Clock, threads: int, quick: bool) -> Iterator[Task]:
    last = 20 if quick else POWERS[1]
    key = {"kind": "growth", "case": f"LayerNorm width {WIDTH}", "dtype": "float32", "threads": threads}
    yield Task(key | {"what": "forward"}, lambda: _measure(clock, threads, range(POWERS[0], last + 1)))


def _measure(clock: Clock, threads: int, powers: range) -> Record:
    torch.set_num_threads(threads)
    memory = torch.randn(1 << powers[-1])
    series: dict[str, list[float]] = {}
    for k in powers:
        with torch.no_grad():
            found = clock.medians(_calls(memory[: 1 << k].view(-1, WIDTH)), threads)
        for name, timing in found.items():
            series.setdefault(name, []).append(timing["ms"])
    elements = [1 << k for k in powers]
    return {"elements": elements, "series": {name: _line(elements, ms) for name, ms in series.items()}}


def _calls(x: torch.Tensor) -> Calls:
    ours, theirs = hs.nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
    calls: Calls = {"homeostat": lambda: ours(x), "torch": lambda: theirs(x)}
    alone = inside.kernel_alone(ours, x, x)
    return calls if alone is None else calls | {"kernel": alone[0]}


def _line(elements: Sequence[int], ms: list[float]) -> Record:
    """Slope and R^2 past the overhead, and on both sides of where outputs get fresh pages each time."""
    first = next((i for i, t in enumerate(ms) if t >= PAST * ms[0]), len(ms))
    cut = next((i for i, n in enumerate(elements) if 4 * n >= LARGE), len(ms))
    x, y = ([math.log(v) for v in values] for values in (elements, ms))
    parts = {"all": slice(first, None), "below": slice(first, cut), "large": slice(max(first, cut), None)}
    return {"ms": ms, "past": elements[min(first, len(ms) - 1)], **{k: _fit(x[s], y[s]) for k, s in parts.items()}}


def _fit(x: list[float], y: list[float]) -> list[float] | None:
    if len(x) < 3:
        return None
    return [statistics.linear_regression(x, y).slope, statistics.correlation(x, y) ** 2]
