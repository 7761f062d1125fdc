"""Bare: the compiled kernels on NumPy arrays, forward only."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from homeostat.arrays import Array, backend_of
from homeostat.kernels import cpu, task
from homeostat.kernels.groups import KeyedGroups
from homeostat.kernels.reference import Job
from homeostat.moments import Moments
from homeostat.trust import THROUGH

DTYPES = {np.dtype(np.float32): task.FLOAT, np.dtype(np.float16): task.HALF}
Real = np.ndarray[Any, Any]


class Prepared(NamedTuple):
    """One call: what the kernels are told, the weights and the group of each labelled position."""

    job: Job
    task: Any
    where: Real | None
    key: Real | None


def prepare(x: Array, where: Array | None, job: Job) -> Prepared | None:
    """None where the kernels do not apply."""
    if cpu.native is None or type(x) is not np.ndarray or job.trust is not THROUGH or job.eps == "auto":
        return None
    dtype = DTYPES.get(x.dtype)
    if dtype is None or not x.flags.aligned or (where is not None and job.codes):
        return None
    plan = job.plan
    view = x.view()
    try:
        view.shape = plan.shape  # an error where it would be a copy
    except AttributeError:
        return None
    weights, steps = None, None
    if where is not None:
        weights = np.broadcast_to(where, x.shape).reshape(plan.shape).astype(np.float32, order="C")
        steps = tuple(0 if n == 1 else s // 4 for n, s in zip(plan.shape, weights.strides, strict=True))
    found = task.task_for(job, tuple(s // x.itemsize for s in view.strides), steps, dtype, x.nbytes)
    if found is None:
        return None
    key = np.ascontiguousarray(KeyedGroups(backend_of(x), plan, job.codes).key) if job.codes else None
    return Prepared(job, found, weights, key)


def normalize(x: Real, call: Prepared) -> tuple[Real, Moments]:
    y = np.empty_like(x)
    return y, _run(x, y.ctypes.data, call)


def measure(x: Real, call: Prepared) -> Moments:
    return _run(x, 0, call)


def _run(x: Real, y: int, call: Prepared) -> Moments:
    plan, where, key = call.job.plan, call.where, call.key
    sums = np.empty((3, *plan.groups), np.float64)
    weights = 0 if where is None else where.ctypes.data
    keys = 0 if key is None else key.ctypes.data
    call.task.forward(x.ctypes.data, 0, 0, y, 0, sums.ctypes.data, 0, 0, _threads(), weights, keys, 0, 0)
    mean, m2, count = sums
    return Moments(float(plan.pool) if where is None and key is None else count, mean, m2)


def _threads() -> int:
    """torch's number where torch is in use; else 0, which leaves it to OpenMP."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None and hasattr(torch, "get_num_threads") else 0
