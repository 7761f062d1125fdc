"""Keyed: mean and variance of every column of a table per label, beside NumPy's loop and pandas."""

from collections.abc import Iterator

import numpy as np
import torch

import homeostat as hs
from bench.clock import Clock
from bench.contenders import Calls
from bench.records import Record, Task

ROWS, COLUMNS, LABELS = 50_000, 2_000, 8
SMALL = (2_000, 200)


def tasks(clock: Clock, threads: int, limit: float, quick: bool) -> Iterator[Task]:
    rows, columns = SMALL if quick else (ROWS, COLUMNS)
    key = {"kind": "cell", "case": f"moments by label {rows}x{columns}", "dtype": "float32", "threads": threads}
    yield Task(key | {"what": "measure"}, lambda: _measure(clock, threads, limit, rows, columns))


def _measure(clock: Clock, threads: int, limit: float, rows: int, columns: int) -> Record:
    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, columns), dtype=np.float32)
    labels = random.integers(0, LABELS, rows)
    found = clock.longer(4).medians(_calls(x, labels), threads)
    for timing in found.values():
        timing["gb_s"] = 1e-6 * x.nbytes / timing["ms"]
        timing["share"] = timing["gb_s"] / limit
    return {"family": "moments by label", "bytes": x.nbytes, "output_bytes": 0, "contenders": found}


def _calls(x: np.ndarray, labels: np.ndarray) -> Calls:
    def ours() -> object:
        m = hs.measure(x, "cell gene -> lab[cell] gene", lab=labels)
        return m.mean, m.var()

    def loop() -> object:
        parts = (x[labels == k] for k in range(LABELS))
        return [(part.mean(0), part.var(0)) for part in parts]

    return {"homeostat": ours, "numpy": loop, **_pandas(x, labels)}


def _pandas(x: np.ndarray, labels: np.ndarray) -> Calls:
    try:
        import pandas as pd
    except ModuleNotFoundError:
        return {}
    table = pd.DataFrame(x)

    def grouped() -> object:
        groups = table.groupby(labels)
        return groups.mean(), groups.var()

    return {"pandas": grouped}
