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
from homeostat.kernels.outputs import output_like
from homeostat.kernels.reference import Job
from homeostat.moments import Moments
from homeostat.trust import THROUGH, Fixed, Pulled

DTYPES = {
    torch.float32: task.FLOAT,
    torch.bfloat16: task.BRAIN,
    torch.float16: task.HALF,
}
_PARAMETER = torch.nn.Parameter
_KINDS = (Tensor, _PARAMETER)
# What a tensor is to torch's dispatcher where its address is where its values are: not a subclass, not on another
# device, not a lazy negation, not a symbolic zero. The second is an inference tensor's.
_PLAIN = {torch._C._dispatch_keys(torch.empty(0)).raw_repr()}
with torch.inference_mode():
    _PLAIN.add(torch._C._dispatch_keys(torch.empty(0)).raw_repr())

_empty, _empty_like, _threads = torch.empty, torch.empty_like, torch.get_num_threads
_keys, _CPU, _F64 = torch._C._dispatch_keys, torch.device("cpu"), torch.float64


def is_plain(t: Tensor | None) -> bool:
    """Is its address where its values are?"""
    return t is None or (type(t) in _KINDS and _keys(t).raw_repr() in _PLAIN)


def all_plain(x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, trust: Any) -> bool:
    """May the kernels be given these addresses? x is known to be a plain tensor on the CPU."""
    if x.is_neg() or x._is_zerotensor():
        return False
    if (weight is not None and not _is_usual(weight)) or (bias is not None and not _is_usual(bias)):
        return False
    if trust is not THROUGH and not (is_plain(trust.mean) and is_plain(trust.var)):
        return False
    return where is None or is_plain(where)


def _is_usual(p: Tensor) -> bool:
    """is_plain, in a third of the time for a parameter."""
    if type(p) is _PARAMETER:
        return p.is_cpu and not p.is_neg()
    return is_plain(p)


def task_of(x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job) -> Any:
    """The kernels' task for x, or None where they do not apply."""
    trust, dtype, plan = job.trust, DTYPES.get(x.dtype), job.plan
    first = bias if weight is None else weight
    gain_dtype = task.FLOAT if first is None else DTYPES.get(first.dtype)
    if (
        dtype is None
        or gain_dtype is None
        or (bias is not None and first is not None and bias.dtype is not first.dtype)
    ):
        return None
    wide = isinstance(trust, Fixed | Pulled) and trust.mean.dtype is torch.float64
    strides = x.stride() if len(plan.shape) == x.dim() else x.detach().view(plan.shape).stride()
    steps = None
    if where is not None:
        if job.codes:
            return None
        steps = where.expand(x.shape).view(plan.shape).stride()
        # an axis of length 1 may have any stride
        steps = tuple(0 if n == 1 else k for n, k in zip(plan.shape, steps, strict=True))
    return task.task_for(job, strides, steps, dtype, x.numel() * x.element_size(), wide, gain_dtype)


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    where: Tensor | None,
    job: Job,
    told: Any,
    wanted: bool,
) -> tuple[Tensor, Measured | None]:
    """y, and the moments if wanted and measured. `told` is the task."""
    learns = torch.is_grad_enabled() and (
        x.requires_grad or (weight is not None and weight.requires_grad) or (bias is not None and bias.requires_grad)
    )
    scratch = None  # 3 doubles are the 6 floats of a statistic as applied
    if learns or wanted:
        n = told.groups
        scratch = _empty(6 * n if wanted else 3 * n, dtype=_F64, device=_CPU)
    if learns:
        y: Tensor = _node(x, weight, bias, (where, told, job, scratch))  # type: ignore[no-untyped-call]
    else:
        y = forward(x, weight, bias, where, told, job, scratch)
    if not wanted or scratch is None:
        return y, None
    plan = job.plan
    return y, Measured(scratch, plan.groups, float(plan.pool) if where is None and not job.codes else None)


class Measured(Moments):
    """Moments where the kernel left them: behind the statistics in `scratch`. They become tensors when asked for."""

    __slots__ = ("groups", "pool", "scratch")
    scratch: Tensor
    groups: tuple[int, ...]
    pool: float | None

    def __init__(self, scratch: Tensor, groups: tuple[int, ...], pool: float | None) -> None:
        for name, value in (("scratch", scratch), ("groups", groups), ("pool", pool)):
            object.__setattr__(self, name, value)

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Of mean, M2 and count."""
        n = self.scratch.numel() // 6 * 8
        at = self.scratch.data_ptr() + 3 * n
        return at, at + n, at + 2 * n

    def _part(self, i: int) -> Tensor:
        n = self.scratch.numel() // 6
        return self.scratch[i * n : (i + 1) * n].view(self.groups)

    @property
    def mean(self) -> Tensor:
        return self._part(3)

    @property
    def m2(self) -> Tensor:
        return self._part(4)

    @property
    def count(self) -> Any:
        return self._part(5) if self.pool is None else self.pool


class Fused(torch.autograd.Function):
    """y; what was measured is written to `scratch`. `rest`: where, task, job, scratch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, rest: tuple[Any, ...]) -> Tensor:
        where, told, job, scratch = rest
        y = forward(x, weight, bias, where, told, job, scratch)
        ctx.rest = told, job
        ctx.save_for_backward(x, weight, bias, where, scratch)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, where, scratch = ctx.saved_tensors
        told, job = ctx.rest
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad
            return (*through_the_reference(dy, x, weight, bias, where, job, needed), None)
        return (*backward(dy, x, weight, bias, where, told, job, scratch), None)


class FusedAdd(torch.autograd.Function):
    """s = x + other and y, the normalized s; one pass. `rest`: task, job, scratch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, other: Tensor, weight: Tensor | None, bias: Tensor | None, rest: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        told, job, scratch = rest
        total = output_like(x)
        y = forward(x, weight, bias, None, told, job, scratch, other, total)
        ctx.rest = told, job
        ctx.save_for_backward(total, weight, bias, scratch)
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    def backward(ctx: Any, ds: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, bias, scratch = ctx.saved_tensors
        told, job = ctx.rest
        if dy is None:
            return ds, ds, None, None, None
        if torch.is_grad_enabled():
            dx, dw, db = through_the_reference(dy, total, weight, bias, None, job, (True, *ctx.needs_input_grad[2:4]))
            dx = dx if ds is None or dx is None else dx + ds
        else:
            dx, dw, db = backward(dy, total, weight, bias, None, told, job, scratch, ds)
        return dx, dx, dw, db, None


def add(x: Tensor, other: Tensor, weight: Tensor | None, bias: Tensor | None, job: Job, told: Any) -> Any:
    """x + other, and that normalized."""
    scratch = _empty(3 * told.groups, dtype=_F64, device=_CPU)
    return FusedAdd.apply(x, other, weight, bias, (told, job, scratch))  # type: ignore[no-untyped-call]


# Fused.apply without a look for functorch's wrappers, which are not plain and do not come here.
_node = super(torch.autograd.Function, Fused).apply


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    where: Tensor | None,
    told: Any,
    job: Job,
    scratch: Tensor | None,
    other: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """y; statistics as applied, and behind them moments if there is room, to `scratch`; x + other to `total`."""
    y = output_like(x)
    w = weight if weight is None or weight.is_contiguous() else weight.contiguous()
    b = bias if bias is None or bias.is_contiguous() else bias.contiguous()
    at = 0 if scratch is None else scratch.data_ptr()
    room = at + 24 * told.groups if scratch is not None and len(scratch) > 3 * told.groups else 0
    rest = _NOTHING if job.trust is THROUGH and where is None and not job.codes else _Rest(where, job)
    told.forward(
        x.data_ptr(),
        0 if w is None else w.data_ptr(),
        0 if b is None else b.data_ptr(),
        y.data_ptr(),
        at,
        room,
        rest.mean,
        rest.var,
        _threads(),
        rest.where,
        rest.key,
        0 if other is None else other.data_ptr(),
        0 if total is None else total.data_ptr(),
    )
    return y


def look(x: Tensor, told: Any, scratch: Tensor) -> None:
    """Measure, and write no y: `scratch` has room for statistics and moments."""
    at, n = scratch.data_ptr(), told.groups
    told.forward(x.data_ptr(), 0, 0, 0, at, at + 24 * n, 0, 0, _threads(), 0, 0, 0, 0)


def pull(dy: Tensor, x: Tensor, told: Any, scratch: Tensor) -> Tensor:
    """[2, groups]: the sums of dy and of dy xhat, where the task's gain is one per group. No dx is written."""
    dy, sums = _like(dy, x), _empty((2, told.groups), dtype=torch.float32, device=_CPU)
    s, q = sums[0].data_ptr(), sums[1].data_ptr()
    told.backward(x.data_ptr(), dy.data_ptr(), 0, scratch.data_ptr(), 0, q, s, _threads(), 0, 0, 0)
    return sums


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    where: Tensor | None,
    told: Any,
    job: Job,
    scratch: Tensor,
    ds: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dx (and on top of it ds, if there is one), dweight, dbias"""
    dy = _like(dy, x)
    ds = None if ds is None else _like(ds, x)
    dx = output_like(x)
    w = weight if weight is None or weight.is_contiguous() else weight.contiguous()
    dw, db = None if w is None else _empty_like(w), None
    if bias is not None:
        db = _empty_like(bias) if bias.is_contiguous() else _empty_like(bias.contiguous())
    rest = _NOTHING if where is None and not job.codes else _Rest(where, job)
    told.backward(
        x.data_ptr(),
        dy.data_ptr(),
        0 if w is None else w.data_ptr(),
        scratch.data_ptr(),
        dx.data_ptr(),
        0 if dw is None else dw.data_ptr(),
        0 if db is None else db.data_ptr(),
        _threads(),
        rest.where,
        rest.key,
        0 if ds is None else ds.data_ptr(),
    )
    return dx, dw, db


def _like(dy: Tensor, x: Tensor) -> Tensor:
    """A gradient as its tensor lies in memory."""
    if dy.stride() != x.stride() or dy.dtype is not x.dtype or not is_plain(dy):
        return _empty_like(x).copy_(dy)
    return dy


class _Rest:
    """Addresses of what the everyday call has none of; they live as long as this does."""

    def __init__(self, where: Tensor | None, job: Job) -> None:
        mean, var = _given(job.trust)
        key = _key(job)
        self.held = mean, var, where, key
        self.mean = 0 if mean is None else mean.data_ptr()
        self.var = 0 if var is None else var.data_ptr()
        self.where = 0 if where is None else where.data_ptr()
        self.key = 0 if key is None else key.data_ptr()


def as_weights(where: Tensor) -> Tensor:
    """`where` in float32, as small as it was: an axis it is broadcast along has length 1."""
    for axis, (n, step) in enumerate(zip(where.shape, where.stride(), strict=True)):
        if n > 1 and step == 0:
            where = where.narrow(axis, 0, 1)
    return where.to(torch.float32)


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
    plan, memo = job.plan, job.plan.memo
    if "key" not in memo:
        keyed = plan.keyed
        memo["key"] = plan.spans == (keyed,) and not any(kind == "axis" and p in keyed for kind, p in plan.atoms)
    if memo["key"]:
        one: Tensor = job.codes[0]  # the everyday case: one label, and nothing kept along with it
        return one if one.dim() == 1 and one.is_contiguous() else one.reshape(-1).contiguous()
    from homeostat.kernels.eager import _B

    key: Tensor = KeyedGroups(_B, job.plan, job.codes).key
    return key.contiguous()


_NOTHING = _Rest(None, Job(None))  # type: ignore[arg-type]
