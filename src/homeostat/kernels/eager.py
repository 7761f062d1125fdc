"""Eager: the reference as one autograd node, saving x and the statistics instead of every intermediate.

The forward is the reference; the backward is its closed form (reference.gradient). Asked for a gradient of the
gradient, it differentiates the reference instead.
"""

from __future__ import annotations

from typing import Any

import torch

from homeostat.arrays import Torch, backend_of
from homeostat.kernels import reference
from homeostat.kernels.groups import groups_of
from homeostat.kernels.reference import Job, Seen
from homeostat.trust import Fixed, Pulled

Tensor = torch.Tensor
_B = backend_of(torch.empty(0))
assert isinstance(_B, Torch)


class Eager(torch.autograd.Function):
    """y, and the sums a source may want to remember."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job
    ) -> tuple[Any, ...]:
        g = groups_of(_B, job.plan, job.codes)
        z = x.reshape(job.plan.shape).to(_B.work_dtype(x))
        mask = None if where is None else where.reshape(job.plan.shape).to(z.dtype)
        gain, shift = reference.gains(_B, z, weight, bias, job)
        seen: Seen | None = None
        if isinstance(job.trust, Fixed):
            hi, lo, r = reference.fixed(_B, z, g, job.trust, job)
        else:
            seen = reference.measure(_B, z, g, mask, job.center)
            hi, lo, r = seen.hi, seen.lo, reference.scale(_B, seen, job.eps)
        pull = reference.pulled(_B, g, job.trust, seen, job.eps) if isinstance(job.trust, Pulled) and seen else None
        y = reference.apply(_B, z, g, hi, lo, r, gain, shift, pull).reshape(x.shape).to(x.dtype)
        ctx.job, ctx.n = job, seen and seen.n
        ratio, off = (None, None) if pull is None else pull
        ctx.save_for_backward(x, weight, bias, where, _tensor(hi), _tensor(lo), r, ratio, _tensor(off))
        if seen is None:
            return (y,)
        sums = (seen.n, seen.hi, seen.lo, seen.m2)
        ctx.mark_non_differentiable(*(s for s in sums if isinstance(s, Tensor)))
        return (y, *sums)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, where, hi, lo, r, ratio, off = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*through_the_reference(dy, x, weight, bias, where, ctx.job, ctx.needs_input_grad), None, None)
        job = ctx.job
        g = groups_of(_B, job.plan, job.codes)
        work = _B.work_dtype(x)
        z, dz = x.reshape(job.plan.shape).to(work), dy.reshape(job.plan.shape).to(work)
        mask = None if where is None else where.reshape(job.plan.shape).to(work)
        gain, _shift = reference.gains(_B, z, weight, bias, job)
        seen = None if ctx.n is None else Seen(ctx.n, 0.0, 0.0, r)
        hi, lo = (0.0, 0.0) if hi is None else (hi, lo)
        pull = None if ratio is None else (ratio, 0.0 if off is None else off)
        dx, xhat = reference.gradient(_B, dz, z, g, seen, hi, lo, r, gain, mask, job.center, pull)
        dw, db = _gain_gradients(dz, xhat, weight, bias, job)
        return dx.reshape(x.shape).to(x.dtype), dw, db, None, None


def by_closed_form(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, job: Job
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dx, dweight, dbias where nothing was kept from the forward."""
    g = groups_of(_B, job.plan)
    work = _B.work_dtype(x)
    z, dz = x.reshape(job.plan.shape).to(work), dy.reshape(job.plan.shape).to(work)
    gain, _shift = reference.gains(_B, z, weight, bias, job)
    seen, pull = None, None
    if isinstance(job.trust, Fixed):
        hi, lo, r = reference.fixed(_B, z, g, job.trust, job)
    else:
        seen = reference.measure(_B, z, g, None, job.center)
        hi, lo, r = seen.hi, seen.lo, reference.scale(_B, seen, job.eps)
        if isinstance(job.trust, Pulled):
            pull = reference.pulled(_B, g, job.trust, seen, job.eps)
    dx, xhat = reference.gradient(_B, dz, z, g, seen, hi, lo, r, gain, None, job.center, pull)
    return dx.reshape(x.shape).to(x.dtype), *_gain_gradients(dz, xhat, weight, bias, job)


def _tensor(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None


def _gain_gradients(
    dz: Tensor, xhat: Tensor, weight: Tensor | None, bias: Tensor | None, job: Job
) -> tuple[Tensor | None, Tensor | None]:
    if job.gain is None:
        return None, None
    h = groups_of(_B, job.gain)
    dw = None if weight is None else h.result(h.total(dz * xhat)).to(weight.dtype)
    return dw, None if bias is None else h.result(h.total(dz)).to(bias.dtype)


def through_the_reference(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    where: Tensor | None,
    job: Job,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """The same gradient as a graph that can be differentiated again (create_graph=True)."""
    z, odd = x, None
    if where is not None:
        z, where, odd = reference.cleaned(_B, x, where)
    y, _seen, _g = reference.normalize(_B, z, weight, bias, where, job)
    y = y if odd is None else y.masked_fill(odd, 0)
    inputs = [t for t, need in zip((x, weight, bias), needed, strict=False) if need and t is not None]
    found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
    return tuple(next(found) if need else None for need in needed[:3])
