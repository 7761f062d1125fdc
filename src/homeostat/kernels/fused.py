"""Fused: the compiled kernels on torch tensors, by address, as one autograd node.

They measure, apply and descend in one pass over memory each; x and 3 floats per group are saved. `layout_of` says where
they do not apply, and the reference serves. A gradient of the gradient differentiates the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from homeostat.kernels import cpu
from homeostat.kernels.eager import through_the_reference
from homeostat.kernels.layout import extents
from homeostat.kernels.reference import Job
from homeostat.trust import Fixed

DTYPES = (torch.float32, torch.bfloat16)
HALF, GAIN, CENTER, FIXED, STREAM = 1, 2, 4, 8, 16
# Outputs from here on are written past the cache: a quarter of a common last-level cache.
STREAMED = 8 << 20


def is_plain(t: Tensor | None) -> bool:
    """Is its address where its values are? Not for subclasses, other devices, lazy negations and symbolic zeros."""
    if t is None:
        return True
    if type(t) not in (Tensor, torch.nn.Parameter) or not t.is_cpu or t.layout is not torch.strided:
        return False
    return not (t.is_neg() or t.is_complex() or t._is_zerotensor())


def all_plain(x: Tensor, weight: Tensor | None, bias: Tensor | None, job: Job) -> bool:
    """May the kernels be given these addresses?"""
    trust = job.trust
    if isinstance(trust, Fixed) and not (is_plain(trust.mean) and is_plain(trust.var)):
        return False
    return is_plain(x) and is_plain(weight) and is_plain(bias)


def layout_of(x: Tensor, job: Job) -> Any:
    """The kernels' layout of x, or None where they do not apply."""
    if cpu.native is None or x.dtype not in DTYPES or job.codes or job.eps == "auto":
        return None
    key = (x.stride(), job.gain and job.gain.frame)
    memo = job.plan.memo
    if key not in memo:
        memo[key] = _make_layout(x, job)
    return memo[key]


def _make_layout(x: Tensor, job: Job) -> Any:
    if x.numel() == 0:
        return None
    found = extents(job.plan, x.detach().view(job.plan.shape).stride(), job.gain)  # splitting is always a view
    assert cpu.native is not None
    return None if found is None else cpu.native.layout(*found[0], *found[1])


def flags_of(x: Tensor, job: Job, gain: bool) -> int:
    stream = x.numel() * x.element_size() >= STREAMED
    return (
        HALF * (x.dtype == torch.bfloat16)
        + GAIN * gain
        + CENTER * job.center
        + FIXED * isinstance(job.trust, Fixed)
        + STREAM * stream
    )


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, job: Job, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """y, and [2, *groups] mean and M2 if wanted and measured."""
    layout = layout_of(x, job)
    wanted = wanted and not isinstance(job.trust, Fixed)
    if torch.is_grad_enabled() and (
        x.requires_grad or (weight is not None and weight.requires_grad) or (bias is not None and bias.requires_grad)
    ):
        y, sums = Fused.apply(x, weight, bias, layout, job, wanted)  # type: ignore[no-untyped-call]
        return y, sums
    y, sums, _stats = apply(x, weight, bias, layout, job, wanted)
    return y, sums


class Fused(torch.autograd.Function):
    """y, and [2, groups] mean and M2 if wanted."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, layout: Any, job: Job, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        y, sums, stats = apply(x, weight, bias, layout, job, wanted)
        ctx.layout, ctx.job = layout, job
        ctx.save_for_backward(x, weight, bias, stats)
        if sums is not None:
            ctx.mark_non_differentiable(sums)
        return y, sums

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _sums: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, stats = ctx.saved_tensors
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad
            return (*through_the_reference(dy, x, weight, bias, None, ctx.job, needed), None, None, None)
        return (*_descend(dy, x, weight, bias, ctx.layout, ctx.job, stats), None, None, None)


def apply(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, layout: Any, job: Job, wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """y, mean and M2 if wanted, and the [groups, 3] statistics as applied: hi, lo, rstd."""
    assert cpu.native is not None
    y = torch.empty_like(x)
    w, b = _single(weight), _single(bias)
    stats = (
        torch.empty((layout.groups, 3), dtype=torch.float32, device="cpu")
        if not isinstance(job.trust, Fixed)
        else _constants(job.trust, job)
    )
    sums = torch.empty((2, *job.plan.groups), dtype=torch.float64, device="cpu") if wanted else None
    at = 0 if sums is None else sums.data_ptr()
    cpu.native.forward(
        layout,
        x.data_ptr(),
        0 if w is None else w.data_ptr(),
        0 if b is None else b.data_ptr(),
        y.data_ptr(),
        stats.data_ptr(),
        at,
        at and at + 8 * layout.groups,
        job.eps,  # type: ignore[arg-type]
        flags_of(x, job, w is not None or b is not None),
        torch.get_num_threads(),
    )
    return y, sums, stats


def _constants(trust: Fixed, job: Job) -> Tensor:
    """hi, lo and rstd of a mean and a variance that are given."""
    mean, var = trust.mean.detach().reshape(-1).double(), trust.var.detach().reshape(-1).double()
    hi = mean.float() if job.center else torch.zeros_like(mean, dtype=torch.float32)
    lo = (mean - hi).float() if job.center else hi
    return torch.stack([hi, lo, (var + job.eps).rsqrt().float()], 1)


def _descend(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, layout: Any, job: Job, stats: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dx, dweight, dbias"""
    assert cpu.native is not None
    if dy.stride() != x.stride() or dy.dtype != x.dtype or not is_plain(dy):
        dy = torch.empty_like(x).copy_(dy)
    dx = torch.empty_like(x)
    w = _single(weight)
    dw = None if weight is None else torch.empty(weight.shape, dtype=torch.float32, device="cpu")
    db = None if bias is None else torch.empty(bias.shape, dtype=torch.float32, device="cpu")
    cpu.native.backward(
        layout,
        x.data_ptr(),
        dy.data_ptr(),
        0 if w is None else w.data_ptr(),
        stats.data_ptr(),
        dx.data_ptr(),
        0 if dw is None else dw.data_ptr(),
        0 if db is None else db.data_ptr(),
        flags_of(x, job, weight is not None or bias is not None),
        torch.get_num_threads(),
    )
    return dx, _cast(dw, weight), _cast(db, bias)


def _cast(grad: Tensor | None, p: Tensor | None) -> Tensor | None:
    return grad if grad is None or p is None else grad.to(p.dtype)


def _single(p: Tensor | None) -> Tensor | None:
    """Gains are float32 to the kernels."""
    if p is None or (p.dtype is torch.float32 and p.is_contiguous()):
        return p
    return p.detach().to(torch.float32).contiguous()
