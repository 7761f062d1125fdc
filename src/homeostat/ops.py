"""Ops: the seam to the kernels, and the choice of route on one screen.

    measure(x, job, where) -> Moments                 normalize(x, weight, bias, where, job) -> (y, Moments | None)

The routes of a torch tensor:

    fused      CPU in plain eager mode, float32 and bfloat16: the compiled kernels             (kernels/fused.py)
    eager      CPU in plain eager mode, what they do not take: one autograd node               (kernels/eager.py)
    aten       exported graphs, and devices without kernels of ours, where torch has the same operator
    composite  everything else: torch.compile, functorch, forward AD, subclasses, eps="auto"   (kernels/reference.py)

NumPy, JAX and Dask take the composite, which is written once for all of them.
"""

from __future__ import annotations

from typing import Any

from homeostat.arrays import Array, Numpy, backend_of
from homeostat.kernels import reference
from homeostat.kernels.groups import groups_of
from homeostat.kernels.reference import Job, Seen
from homeostat.moments import Moments
from homeostat.trust import Through


def measure(x: Array, job: Job, where: Array | None = None) -> Moments:
    """What each group shows."""
    b = backend_of(x)
    if where is not None:
        x, where, _odd = _clean(b, x, where)
    g = groups_of(b, job.plan, job.codes)
    z = b.reshape(b.cast(x, b.work_dtype(x)), job.plan.shape)
    mask = where if where is None else b.reshape(b.cast(where, z.dtype), job.plan.shape)
    return reference.measure(b, z, g, mask, job.center).moments(g)


def normalize(
    x: Array, weight: Array | None, bias: Array | None, where: Array | None, job: Job, wanted: bool = False
) -> tuple[Array, Moments | None]:
    """y, and the moments if `wanted` and measured."""
    b = backend_of(x)
    odd = None
    if where is not None:
        x, where, odd = _clean(b, x, where)
    way = route(x, where, job, wanted) if b.name == "torch" else "composite"
    y, m = _ROUTES[way](b, x, weight, bias, where, job, wanted)
    return (y if odd is None else b.fill(y, odd, float("nan"))), m


def route(x: Any, where: Any, job: Job, wanted: bool = False) -> str:
    """Which code computes this job on this torch tensor."""
    import torch

    cpu = x.device.type == "cpu"
    exporting = torch.compiler.is_exporting()
    if (exporting or not cpu) and where is None and _aten_equals(job, wanted):
        return "aten"
    if job.eps == "auto" or exporting or torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return "composite"
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return "composite"  # vmap, func.grad and jvp go through the reference line by line
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        return "composite"  # a subclass (DTensor, a quantized or fake tensor) sees plain operators
    return "fused" if cpu and where is None and _has_layout(x, job) else "eager"


def _has_layout(x: Any, job: Job) -> bool:
    from homeostat.kernels import fused

    return fused.layout_of(x, job) is not None


def _aten_equals(job: Job, wanted: bool) -> bool:
    from homeostat.kernels import aten

    name = aten.name_of(job)
    return name is not None and (not wanted or name == "batch_norm" or not isinstance(job.trust, Through))


def _composite(
    b: Numpy, x: Any, weight: Any, bias: Any, where: Any, job: Job, wanted: bool
) -> tuple[Any, Moments | None]:
    y, seen, g = reference.normalize(b, x, weight, bias, where, job)
    return y, seen.moments(g) if wanted and seen is not None else None


def _fused(b: Numpy, x: Any, weight: Any, bias: Any, where: Any, job: Job, wanted: bool) -> tuple[Any, Moments | None]:
    from homeostat.kernels import fused

    y, sums = fused.normalize(x, weight, bias, job, wanted)
    return y, None if sums is None else Moments(float(job.plan.pool), *sums.unbind(0))


def _eager(b: Numpy, x: Any, weight: Any, bias: Any, where: Any, job: Job, wanted: bool) -> tuple[Any, Moments | None]:
    from homeostat.kernels.eager import Eager

    y, *sums = Eager.apply(x, weight, bias, where, job)  # type: ignore[no-untyped-call]
    return y, Seen(*sums).moments(groups_of(b, job.plan, job.codes)) if wanted and sums else None


def _aten(b: Numpy, x: Any, weight: Any, bias: Any, where: Any, job: Job, wanted: bool) -> tuple[Any, Moments | None]:
    from homeostat.kernels import aten

    y, seen = aten.normalize(x, weight, bias, job)
    return y, seen.moments(groups_of(b, job.plan)) if wanted and seen is not None else None


_ROUTES = {"fused": _fused, "composite": _composite, "eager": _eager, "aten": _aten}


def _clean(b: Numpy, x: Array, where: Array) -> tuple[Array, Array, Array]:
    """0 in place of what is neither measured nor finite, a weight per element, and where that was."""
    where = b.broadcast(where, x.shape)
    odd = ~((where > 0) | b.xp.isfinite(x))
    return b.fill(x, odd, 0), where, odd
