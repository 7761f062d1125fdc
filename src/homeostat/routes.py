"""Routes: which code normalizes a torch tensor, and why; the choice is `route`.

fused      CPU in plain eager mode, float32, bfloat16 and float16: the compiled kernels    (kernels/fused.py)
           (on a contiguous copy of what lies otherwise than they can walk)
eager      CPU in plain eager mode, what they do not take: one autograd node               (kernels/eager.py)
registered torch.compile on the CPU: the compiled kernels as operators                     (kernels/registered.py)
measured   the same where the batch shares a statistic: they measure, the compiler applies (kernels/measured.py)
constants  torch.compile on the CPU, statistics that are remembered: the compiler fuses them away
aten       exported graphs, and devices without kernels of ours, where torch has the same operator
synced     where several processes measure together: one node on the kernels or the reference   (kernels/synced.py)
composite  everything else: functorch, forward AD, subclasses, eps="auto"                  (kernels/reference.py)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from homeostat.arrays import backend_of
from homeostat.kernels import aten, cpu, fused, reference, registered
from homeostat.kernels.eager import Eager
from homeostat.kernels.groups import groups_of
from homeostat.kernels.measured import Measured
from homeostat.kernels.reference import Job, Seen
from homeostat.moments import Moments
from homeostat.trust import THROUGH, Fixed, Pulled, Rule, Through

# Looked up once: layers of small tensors feel every lookup.
is_exporting, is_compiling = torch.compiler.is_exporting, torch.compiler.is_compiling
tracing, modes = torch._C._get_tracing_state, torch._C._len_torch_dispatch_stack
transforming = torch._C._are_functorch_transforms_active
KINDS = (torch.Tensor, torch.nn.Parameter)

Result = tuple[Tensor, Moments | None]
_B = backend_of(torch.empty(0))


UNKNOWN = object()


def told(x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job) -> Any:
    """What the compiled kernels are told about such a tensor; None where they do not apply."""
    if not x.is_cpu or type(x) not in KINDS or job.eps == "auto" or _needs_arithmetic(job.trust) or is_compiling():
        return None
    return fused.task_of(x, weight, bias, where, job)


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    where: Tensor | None,
    job: Job,
    wanted: bool,
    task: Any = UNKNOWN,
) -> Result:
    """y, and the moments if `wanted` and measured. `task` is what `told` says, where that is known."""
    if where is not None and not is_compiling() and fused.is_plain(where):
        where = fused.as_weights(where)
    name, task = route(x, weight, bias, where, job, wanted, task)
    if name == "eager" and x.dtype in fused.DTYPES and not x.is_contiguous():
        whole = x.contiguous()  # a slice, or axes in an order the kernels do not know: one copy and they apply
        again = route(whole, weight, bias, where, job, wanted)
        if again[0] == "fused":
            x, (name, task) = whole, again
    if name == "fused":
        return _fused(x, weight, bias, where, job, wanted, task)
    odd = None
    if where is not None:
        x, where, odd = reference.cleaned(_B, x, where)
    y, m = _ROUTES[name](x, weight, bias, where, job, wanted)
    return (y if odd is None else _B.fill(y, odd, float("nan"))), m


def route(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    where: Tensor | None,
    job: Job,
    wanted: bool = False,
    task: Any = UNKNOWN,
) -> tuple[str, Any]:
    """Which code computes this job on this torch tensor; for the compiled kernels also their task."""
    if job.ranks is not None:
        return "synced", None
    exporting = is_exporting()
    if (exporting or not x.is_cpu) and where is None and aten_equals(job, wanted):
        return "aten", None
    if job.eps == "auto" or exporting or tracing() or _needs_arithmetic(job.trust):
        return "composite", None
    if transforming() or forward_ad._current_level >= 0:
        return "composite", None  # vmap, func.grad and jvp go through the reference line by line
    if is_compiling():
        return (in_a_graph(x, job) if where is None else "composite"), None
    if type(x) not in KINDS or modes():
        return "composite", None  # a subclass (DTensor, a fake tensor) or a dispatch mode (a FLOP counter)
    if task is UNKNOWN:
        task = told(x, weight, bias, where, job)
    if task is not None and fused.all_plain(x, weight, bias, where, job.trust):
        return "fused", task
    return "eager", None


def _needs_arithmetic(trust: Any) -> bool:
    """A rule, or bounds that are tensors."""
    return type(trust) is Rule or (type(trust) is Pulled and type(trust.r_max) is not float)


SMALL = 1 << 20  # elements


def in_a_graph(x: Tensor, job: Job) -> str:
    """Which route a compiled graph takes on the CPU, by what whole networks take on two cores.

    Constants are the compiler's: it fuses them away. So is applying what the batch shares: a network goes from
    convolution through batch norm to relu, and an operator between them that writes y made a ResNet's step slower.
    Small rows are the compiler's too: their loops cost less than calls from Python. The rest are the operator's. SMALL
    lies above the rows of the networks that `make bench` measures; between those and it nothing was compared with care.
    """
    plan, gain = job.plan, job.gain
    if x.dtype not in fused.DTYPES or job.codes or not x.is_cpu:
        return "composite"
    if isinstance(job.trust, Fixed):
        return "constants" if job.trust.mean.dtype in fused.DTYPES else "composite"
    if cpu.native is None:
        return "composite"
    if 0 not in plan.kept:
        return "measured" if gain is None or gain.frame == plan.frame else "registered"
    rows = gain is not None and not set(gain.kept) & set(plan.kept)
    return "composite" if rows and job.trust is THROUGH and x.numel() < SMALL else "registered"


def aten_equals(job: Job, wanted: bool) -> bool:
    name = aten.name_of(job)
    return name is not None and (not wanted or name == "batch_norm" or not isinstance(job.trust, Through))


def _composite(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    y, seen, g = reference.normalize(_B, x, weight, bias, where, job)
    return y, seen.moments(g) if wanted and seen is not None else None


def _constants(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    """In float32: a compiler computes them anew for every element it fuses them into, and in double that is slow."""
    trust, g = job.trust, groups_of(_B, job.plan)
    assert isinstance(trust, Fixed)
    z = x.reshape(job.plan.shape).float()
    w, b = reference.gains(_B, z, weight, bias, job)
    mean = g.inner(trust.mean).float() + 0.0  # a copy: memory may be written between this forward and its backward
    y = (z - mean if job.center else z) * torch.rsqrt(g.inner(trust.var).float() + job.eps)
    y = y if w is None else y * w
    return (y if b is None else y + b).reshape(x.shape).to(x.dtype), None


def _fused(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool, task: Any
) -> Result:
    return fused.normalize(x, weight, bias, where, job, task, wanted and not isinstance(job.trust, Fixed))


def _registered(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    y, scratch = registered.normalize(x, weight, bias, job)
    return y, _seen(scratch, job) if wanted else None


def _eager(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    y, *sums = Eager.apply(x, weight, bias, where, job)  # type: ignore[no-untyped-call]
    return y, Seen(*sums).moments(groups_of(_B, job.plan, job.codes)) if wanted and sums else None


def _measured(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    scratch = registered.measure(x, job)
    y = Measured.apply(x, weight, bias, scratch, job)  # type: ignore[no-untyped-call]
    return y, _seen(scratch, job) if wanted else None


def _seen(scratch: Tensor, job: Job) -> Moments:
    sums = scratch.view(6, *job.plan.groups)
    return Moments(float(job.plan.pool), sums[3], sums[4])


def _synced(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    from homeostat.kernels import synced

    y, m = synced.normalize(x, weight, bias, where, job)
    return y, m if wanted else None


def _aten(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, wanted: bool
) -> Result:
    y, seen = aten.normalize(x, weight, bias, job)
    return y, seen.moments(groups_of(_B, job.plan)) if wanted and seen is not None else None


_ROUTES = {
    "registered": _registered,
    "measured": _measured,
    "constants": _constants,
    "composite": _composite,
    "eager": _eager,
    "aten": _aten,
    "synced": _synced,
}
