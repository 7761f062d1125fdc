"""Task: what the compiled kernels are told about a call, apart from its arrays; found once per layout and kept.

A task is everything that stays the same from call to call: extents and strides, dtype, eps, whom a source trusts.
"""

from __future__ import annotations

from typing import Any

from homeostat.kernels import cpu
from homeostat.kernels.layout import extents
from homeostat.kernels.reference import Job
from homeostat.plan import Plan
from homeostat.trust import Fixed, Pulled, Through

GAIN, CENTER, STREAM, FIXED, PULLED, WIDE = 1, 2, 4, 8, 16, 32
TRUST = {Through: 0, Fixed: FIXED, Pulled: PULLED}
FLOAT, BRAIN, HALF, DOUBLE = range(4)
# Outputs from here on are written past the cache: a quarter of a common last-level cache.
STREAMED = 8 << 20


def task_for(
    job: Job,
    strides: tuple[int, ...],
    where: tuple[int, ...] | None,
    dtype: int,
    nbytes: int,
    wide: bool = False,
    gain_dtype: int = FLOAT,
) -> Any:
    """The task of an array with these strides (in elements, of the plan's shape), or None where none applies."""
    trust = job.trust
    bounds = (trust.r_max, trust.d_max) if isinstance(trust, Pulled) else (1.0, 0.0)
    key = (
        strides,
        where,
        dtype,
        job.gain and job.gain.frame,
        job.eps,
        job.center,
        type(trust),
        bounds,
        wide,
        gain_dtype,
    )
    memo = job.plan.memo
    if key not in memo:
        memo[key] = _make(job, strides, where, dtype, nbytes, bounds, wide, gain_dtype)
    return memo[key]


def _make(
    job: Job,
    strides: tuple[int, ...],
    where: tuple[int, ...] | None,
    dtype: int,
    nbytes: int,
    bounds: tuple[float, float],
    wide: bool,
    gain_dtype: int,
) -> Any:
    plan: Plan = job.plan
    if cpu.native is None or 0 in plan.shape or not isinstance(job.eps, float | int):
        return None
    found = extents(plan, strides, job.gain, where)
    if found is None:
        return None
    flags = (
        (GAIN if job.gain is not None else 0)
        + (CENTER if job.center else 0)
        + (STREAM if nbytes >= STREAMED else 0)
        + (WIDE if wide else 0)
        + TRUST[type(job.trust)]
    )
    return cpu.native.task(*found, job.eps, dtype, gain_dtype, flags, *bounds)
