"""Ops: the seam to the kernels.

    measure(x, job, where) -> Moments                 normalize(x, weight, bias, where, job) -> (y, Moments | None)

A torch tensor takes one of several routes (routes.py); NumPy arrays the compiled kernels, where they apply; everything
else the reference, which is written once for all four libraries.
"""

from __future__ import annotations

from homeostat.arrays import Array, backend_of
from homeostat.kernels import bare, reference
from homeostat.kernels.groups import groups_of
from homeostat.kernels.reference import Job
from homeostat.moments import Moments


def measure(x: Array, job: Job, where: Array | None = None) -> Moments:
    """What each group shows."""
    b = backend_of(x)
    call = bare.prepare(x, where, job) if b.name == "numpy" else None
    if call is not None:
        return bare.measure(x, call)
    if where is not None:
        x, where, _odd = reference.cleaned(b, x, where)
    g = groups_of(b, job.plan, job.codes)
    z = b.reshape(b.cast(x, b.work_dtype(x)), job.plan.shape)
    mask = where if where is None else b.reshape(b.cast(where, z.dtype), job.plan.shape)
    return reference.measure(b, z, g, mask, job.center).moments(g)


def normalize(
    x: Array, weight: Array | None, bias: Array | None, where: Array | None, job: Job, wanted: bool = False
) -> tuple[Array, Moments | None]:
    """y, and the moments if `wanted` and measured."""
    b = backend_of(x)
    if b.name == "torch":
        from homeostat import routes

        return routes.normalize(x, weight, bias, where, job, wanted)
    call = bare.prepare(x, where, job) if b.name == "numpy" and weight is None and bias is None else None
    if call is not None:
        return bare.normalize(x, call)
    odd = None
    if where is not None:
        x, where, odd = reference.cleaned(b, x, where)
    y, seen, g = reference.normalize(b, x, weight, bias, where, job)
    m = seen.moments(g) if wanted and seen is not None else None
    return (y if odd is None else b.fill(y, odd, float("nan"))), m
