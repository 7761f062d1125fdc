"""ATen: torch's own operator for the frames it knows, for devices without a kernel of ours and for exported graphs.

"n c ... -> c"            batch_norm            "n (g c) ... -> n g"    group_norm
"a b d e -> a b"          layer_norm, rms_norm  "n c ... -> n c"        instance_norm
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from homeostat.arrays import backend_of
from homeostat.kernels.groups import groups_of
from homeostat.kernels.reference import Job, Seen
from homeostat.trust import Fixed, Pulled, Rule

Tensor = torch.Tensor


def name_of(job: Job) -> str | None:
    """Which operator of torch computes this very job, if any."""
    plan, fixed = job.plan, isinstance(job.trust, Fixed)
    if job.codes or not isinstance(job.eps, float) or isinstance(job.trust, Pulled | Rule):
        return None
    rank, kept = len(plan.shape), plan.kept
    split = plan.frame.axes[1] if len(plan.frame.axes) > 1 and isinstance(plan.frame.axes[1], tuple) else ()
    plain = not any(isinstance(axis, tuple) for axis in plan.frame.axes)
    if kept == (1,) and plain and job.center and _gain_on(job, (1,)):
        return "batch_norm"
    if fixed:
        return None
    if plain and kept == tuple(range(len(kept))) and len(kept) < rank and _gain_on(job, tuple(range(len(kept), rank))):
        return "layer_norm" if job.center else "rms_norm"
    if kept == (0, 1) and job.center and len(split) == 2 and _gain_on(job, (1, 2)):
        return "group_norm"
    if kept == (0, 1) and job.center and plain and rank >= 3 and _gain_on(job, (1,)):
        return "instance_norm"
    return None


def _gain_on(job: Job, positions: tuple[int, ...]) -> bool:
    return job.gain is None or tuple(i for kind, i in job.gain.atoms if kind == "axis") == positions


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, job: Job) -> tuple[Tensor, Seen | None]:
    """The job by torch's operator; only batch norm can say what it saw."""
    name, plan, eps = name_of(job), job.plan, float(job.eps)
    if name == "batch_norm":
        return _batch_norm(x, weight, bias, job, eps)
    if name == "group_norm":
        return F.group_norm(x, plan.shape[1], weight, bias, eps), None
    if name == "instance_norm":
        return F.instance_norm(x, weight=weight, bias=bias, eps=eps), None
    inner = list(plan.shape[len(plan.kept) :])
    w, t = (p if p is None else p.reshape(inner) for p in (weight, bias))
    if name == "layer_norm":
        return F.layer_norm(x, inner, w, t, eps), None
    y = F.rms_norm(x, inner, w, eps)
    return (y if t is None else y + t), None


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, job: Job, eps: float
) -> tuple[Tensor, Seen | None]:
    if isinstance(job.trust, Fixed):
        return F.batch_norm(x, job.trust.mean, job.trust.var, weight, bias, False, 0.0, eps), None
    y, mean, rstd = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
    b = backend_of(x)
    g = groups_of(b, job.plan)
    n = float(job.plan.pool)
    wide = b.group_dtype(x)
    m2 = (rstd.to(wide) ** -2 - eps).clamp_min(0) * n
    return y, Seen(n, g.inner(mean.to(wide)), g.inner(0 * m2), g.inner(m2))
