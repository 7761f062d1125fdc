"""Clock: the median of clean samples, the contenders taking turns in an order that changes from round to round.

A sample is clean if nobody else wanted a core before and after it, and none of our threads was taken off its core while
it ran. Others' work costs a parallel kernel milliseconds at every barrier, so an unclean sample says nothing.
"""

import gc
import math
import random
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

LOAD = Path("/proc/loadavg")
SHORTEST = 2e-3  # seconds: a quicker call is repeated within its sample, and as often before it
MOST_REPEATS = 400
WARMED = 0.02  # seconds: a slower call does not notice what lay in the cache before it
FEWEST = 3  # clean samples; below that the others are counted too

Call = Callable[[], object]


@dataclass(frozen=True)
class Clock:
    """How many clean samples, how long to wait for an idle machine before each, and how long for all (seconds)."""

    samples: int = 11
    patience: float = 1.0
    budget: float = 20.0

    def longer(self, times: float) -> "Clock":
        """For calls of a second."""
        return replace(self, budget=times * self.budget)

    def medians(self, calls: dict[str, Call], threads: int = 1) -> dict[str, dict[str, float]]:
        """{"ms", "clean", "dropped"} per contender."""
        found = {name: _Samples(call) for name, call in calls.items()}
        until, order = time.monotonic() + self.budget, random.Random(0)
        gc.collect()
        gc.disable()
        try:
            while short := [s for s in found.values() if len(s.clean) < self.samples]:
                order.shuffle(short)
                for s in short:
                    s.take(self.patience, threads)
                if time.monotonic() > until:
                    break
        finally:
            gc.enable()
        return {name: s.result() for name, s in found.items()}


@dataclass
class _Samples:
    call: Call
    clean: list[float] = field(default_factory=list)
    dropped: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        for _ in range(2):
            seconds = _seconds(self.call, 1)
        self.warm = seconds < WARMED
        self.repeats = min(MOST_REPEATS, max(1, math.ceil(SHORTEST / seconds)))

    def take(self, patience: float, threads: int) -> None:
        quiet = wait_until_idle(patience)
        if self.warm:  # after a pause, code and data come from far away: that is no steady state
            _seconds(self.call, self.repeats)
        switches = _switches()
        seconds = _seconds(self.call, self.repeats)
        # Our own workers still spin for the next parallel region, so as many as we use may want a core.
        clean = quiet and _switches() == switches and running() <= threads
        (self.clean if clean else self.dropped).append(seconds)

    def result(self) -> dict[str, float]:
        counted = self.clean if len(self.clean) >= FEWEST else self.clean + self.dropped
        return {"ms": 1e3 * statistics.median(counted), "clean": len(self.clean), "dropped": len(self.dropped)}


def running() -> int:
    """How many tasks of this machine want a core now, this one included."""
    return int(LOAD.read_text().split()[3].split("/")[0]) if LOAD.exists() else 1


def wait_until_idle(patience: float) -> bool:
    """Were we alone, twice in a row, within so many seconds?"""
    until, alone = time.monotonic() + patience, 0
    while alone < 2:
        time.sleep(0.001)
        alone = alone + 1 if running() <= 1 else 0
        if alone == 0 and time.monotonic() > until:
            return False
    return True


def _seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
