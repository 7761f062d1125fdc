"""Measured: the kernels measure, a compiler applies. For compiled graphs, where the batch shares a statistic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from homeostat.kernels import reference, registered
from homeostat.kernels.eager import _B
from homeostat.kernels.groups import groups_of
from homeostat.kernels.reference import Job, Seen
from homeostat.trust import Pulled


class Measured(torch.autograd.Function):
    """y, from [6 groups] of sums: the kernels measure, forward and backward; the compiler applies, and fuses it.

    With S = sum dy and Q = sum dy xhat of a group, g = w ratio:    dx = g r (dy - (S + xhat Q) / n)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, scratch: Tensor, job: Job) -> Tensor:
        g = groups_of(_B, job.plan)
        z = x.reshape(job.plan.shape).to(_B.work_dtype(x))
        mean, m2 = (g.inner(row.view(job.plan.groups)) for row in scratch.view(6, -1)[3:5].unbind(0))
        hi, lo = (mean.to(z.dtype), mean - mean.to(z.dtype)) if job.center else (None, 0.0)
        seen = Seen(float(job.plan.pool), 0.0 if hi is None else hi, lo, m2)
        pull = reference.pulled(_B, g, job.trust, seen, job.eps) if isinstance(job.trust, Pulled) else None
        r = reference.scale(_B, seen, job.eps)
        parts = (lo, r) if pull is None else (lo, r, *pull)
        kept = (hi, *(p.to(z.dtype) if isinstance(p, Tensor) else None for p in parts))
        gain, shift = reference.gains(_B, z, weight, bias, job)
        y: Tensor = reference.apply(_B, z, g, seen.hi, lo, r, gain, shift, pull).reshape(x.shape).to(x.dtype)
        ctx.job, ctx.learns = job, bias is not None
        ctx.save_for_backward(x, weight, scratch, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scratch, *kept = ctx.saved_tensors
        job = ctx.job
        g = groups_of(_B, job.plan)
        work = _B.work_dtype(x)
        z, dz = x.reshape(job.plan.shape).to(work), dy.reshape(job.plan.shape).to(work)
        pulls = registered.pull(dy, x, scratch, job)
        s, q = (row.view(job.plan.groups) for row in pulls.unbind(0))
        hi, lo, r, ratio, off = (*kept, None, None)[:5]
        gain = torch.ones_like(r) if weight is None else g.inner(weight.to(work))
        gain = gain if ratio is None else gain * ratio
        xhat = reference.apply(_B, z, g, 0.0 if hi is None else hi, 0.0 if lo is None else lo, r)
        back = xhat * (g.inner(q) / job.plan.pool).to(work)
        if job.center:
            back = back + (g.inner(s) / job.plan.pool).to(work)
        dx = ((dz - back) * (gain * r)).reshape(x.shape).to(x.dtype)
        if weight is None:
            return dx, None, s.to(work) if ctx.learns else None, None, None
        if ratio is not None:
            q = q * g.result(ratio) + (0.0 if off is None else s * g.result(off))
        return dx, q.to(weight.dtype), s.to(weight.dtype) if ctx.learns else None, None, None
