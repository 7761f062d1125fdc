"""Fused: the compiled kernels on torch tensors, by address, as one autograd node.

They measure, apply and descend in one pass over memory each; x and 6 floats per group are saved. `task_of` says where
they do not apply, and the reference serves. A gradient of the gradient differentiates the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from homeostat.kernels import task
from homeostat.kernels.eager import through_the_reference
from homeostat.kernels.groups import KeyedGroups
from homeostat.kernels.reference import Job
from homeostat.trust import Fixed, Pulled

DTYPES = {
    torch.float32: task.FLOAT,
    torch.bfloat16: task.BRAIN,
    torch.float16: task.HALF,
}
_KINDS = (Tensor, torch.nn.Parameter)
# What a tensor is to torch's dispatcher where its address is where its values are: not a subclass, not on another
# device, not a lazy negation, not a symbolic zero. The second is an inference tensor's.
_PLAIN = {torch._C._dispatch_keys(torch.empty(0)).raw_repr()}
with torch.inference_mode():
    _PLAIN.add(torch._C._dispatch_keys(torch.empty(0)).raw_repr())

_empty, _empty_like, _threads = torch.empty, torch.empty_like, torch.get_num_threads
_keys = torch._C._dispatch_keys


def is_plain(t: Tensor | None) -> bool:
    """Is its address where its values are?"""
    return t is None or (type(t) in _KINDS and _keys(t).raw_repr() in _PLAIN)


def task_of(x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job) -> Any:
    """The kernels' task for x, or None where they do not apply."""
    trust, dtype = job.trust, DTYPES.get(x.dtype)
    if dtype is None or job.eps == "auto" or not (is_plain(x) and is_plain(weight) and is_plain(bias)):
        return None
    wide = False
    if isinstance(trust, Fixed | Pulled):
        if not (is_plain(trust.mean) and is_plain(trust.var)):
            return None
        wide = trust.mean.dtype is torch.float64
    plan = job.plan
    strides = x.stride() if len(plan.shape) == x.dim() else x.detach().view(plan.shape).stride()
    steps = None
    if where is not None:
        if not is_plain(where) or job.codes:
            return None
        steps = where.expand(x.shape).view(plan.shape).stride()
        # an axis of length 1 may have any stride
        steps = tuple(0 if n == 1 else k for n, k in zip(plan.shape, steps, strict=True))
    return task.task_for(job, strides, steps, dtype, x.numel() * x.element_size(), wide)


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    where: Tensor | None,
    job: Job,
    told: Any,
    wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    """y, and [3, groups] mean, M2 and count if wanted and measured. `told` is the task."""
    scratch = _empty((6 if wanted else 3, told.groups), dtype=torch.float64, device="cpu")  # 3 doubles are 6 floats
    if torch.is_grad_enabled() and (
        x.requires_grad or (weight is not None and weight.requires_grad) or (bias is not None and bias.requires_grad)
    ):
        y: Tensor = Fused.apply(x, weight, bias, where, told, job, scratch)  # type: ignore[no-untyped-call]
    else:
        y = forward(x, weight, bias, where, told, job, scratch)
    return y, scratch[3:] if wanted else None


class Fused(torch.autograd.Function):
    """y; what was measured is written to `scratch`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        where: Tensor | None,
        told: Any,
        job: Job,
        scratch: Tensor,
    ) -> Tensor:
        y = forward(x, weight, bias, where, told, job, scratch)
        ctx.told, ctx.job = told, job
        ctx.save_for_backward(x, weight, bias, where, scratch)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, where, scratch = ctx.saved_tensors
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad
            return (*through_the_reference(dy, x, weight, bias, where, ctx.job, needed), None, None, None, None)
        return (*backward(dy, x, weight, bias, where, ctx.told, ctx.job, scratch), None, None, None, None)


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    where: Tensor | None,
    told: Any,
    job: Job,
    scratch: Tensor,
) -> Tensor:
    """y; statistics as applied, and behind them moments if there is room, to `scratch`."""
    y = _empty_like(x)
    w, b = _single(weight), _single(bias)
    mean, var = _given(job.trust)
    m, key = _single(where), _key(job)
    at = scratch.data_ptr()
    told.forward(
        x.data_ptr(),
        0 if w is None else w.data_ptr(),
        0 if b is None else b.data_ptr(),
        y.data_ptr(),
        at,
        at + 24 * told.groups if scratch.shape[0] > 3 else 0,
        0 if mean is None else mean.data_ptr(),
        0 if var is None else var.data_ptr(),
        _threads(),
        0 if m is None else m.data_ptr(),
        0 if key is None else key.data_ptr(),
        0,
        0,
    )
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    where: Tensor | None,
    told: Any,
    job: Job,
    scratch: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dx, dweight, dbias"""
    if dy.stride() != x.stride() or dy.dtype is not x.dtype or not is_plain(dy):
        dy = _empty_like(x).copy_(dy)
    dx = _empty_like(x)
    w, m, key = _single(weight), _single(where), _key(job)
    dw = None if weight is None else _empty(weight.shape, dtype=torch.float32, device="cpu")
    db = None if bias is None else _empty(bias.shape, dtype=torch.float32, device="cpu")
    told.backward(
        x.data_ptr(),
        dy.data_ptr(),
        0 if w is None else w.data_ptr(),
        scratch.data_ptr(),
        dx.data_ptr(),
        0 if dw is None else dw.data_ptr(),
        0 if db is None else db.data_ptr(),
        _threads(),
        0 if m is None else m.data_ptr(),
        0 if key is None else key.data_ptr(),
        0,
    )
    return dx, _cast(dw, weight), _cast(db, bias)


def _cast(grad: Tensor | None, p: Tensor | None) -> Tensor | None:
    return grad if grad is None or p is None or p.dtype is torch.float32 else grad.to(p.dtype)


def _single(p: Tensor | None) -> Tensor | None:
    """Gains and weights are float32 to the kernels."""
    if p is None or (p.dtype is torch.float32 and p.is_contiguous()):
        return p
    return p.detach().to(torch.float32).contiguous()


def _given(trust: Any) -> tuple[Tensor | None, Tensor | None]:
    if not isinstance(trust, Fixed | Pulled):
        return None, None
    mean, var = trust.mean, trust.var
    if mean.dtype is var.dtype and mean.dtype in (torch.float32, torch.float64):
        return mean.contiguous(), var.contiguous()
    kind = mean.dtype if mean.dtype is torch.float64 else torch.float32
    return mean.to(kind).contiguous(), var.to(kind).contiguous()


def _key(job: Job) -> Tensor | None:
    """The group of each labelled position."""
    if not job.codes:
        return None
    from homeostat.kernels.eager import _B

    key: Tensor = KeyedGroups(_B, job.plan, job.codes).key
    return key.contiguous()
