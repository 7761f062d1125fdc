"""Routes: which code normalizes a torch tensor, and why; the choice is `route`.

fused      CPU in plain eager mode, float32 and bfloat16: the compiled kernels             (kernels/fused.py)
eager      CPU in plain eager mode, what they do not take: one autograd node               (kernels/eager.py)
aten       exported graphs, and devices without kernels of ours, where torch has the same operator
composite  everything else: torch.compile, functorch, forward AD, subclasses, eps="auto"   (kernels/reference.py)
"""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.arrays import backend_of
from homeostat.kernels import aten, fused, reference
from homeostat.kernels.eager import Eager
from homeostat.kernels.groups import groups_of
from homeostat.kernels.reference import Job, Seen
from homeostat.moments import Moments
from homeostat.trust import Through

Result = tuple[Tensor, Moments | None]
_B = backend_of(torch.empty(0))


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    """y, and the moments if `wanted` and measured."""
    return _ROUTES[route(x, weight, bias, where, job, wanted)](x, weight, bias, where, job, wanted)


def route(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool = False
) -> str:
    """Which code computes this job on this torch tensor."""
    cpu = x.is_cpu
    exporting = torch.compiler.is_exporting()
    if (exporting or not cpu) and where is None and aten_equals(job, wanted):
        return "aten"
    if job.eps == "auto" or exporting or torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return "composite"
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return "composite"  # vmap, func.grad and jvp go through the reference line by line
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or torch._C._len_torch_dispatch_stack():
        return "composite"  # a subclass (DTensor, a fake tensor) or a dispatch mode (a FLOP counter) sees operators
    if cpu and where is None and fused.layout_of(x, job) is not None and fused.all_plain(x, weight, bias, job):
        return "fused"
    return "eager"


def aten_equals(job: Job, wanted: bool) -> bool:
    name = aten.name_of(job)
    return name is not None and (not wanted or name == "batch_norm" or not isinstance(job.trust, Through))


def _composite(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    y, seen, g = reference.normalize(_B, x, weight, bias, where, job)
    return y, seen.moments(g) if wanted and seen is not None else None


def _fused(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    y, sums = fused.normalize(x, weight, bias, job, wanted)
    return y, None if sums is None else Moments(float(job.plan.pool), *sums.unbind(0))


def _eager(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    y, *sums = Eager.apply(x, weight, bias, where, job)  # type: ignore[no-untyped-call]
    return y, Seen(*sums).moments(groups_of(_B, job.plan, job.codes)) if wanted and sums else None


def _aten(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    y, seen = aten.normalize(x, weight, bias, job)
    return y, seen.moments(groups_of(_B, job.plan)) if wanted and seen is not None else None


_ROUTES = {"fused": _fused, "composite": _composite, "eager": _eager, "aten": _aten}
