"""Synced: normalizing by what several ranks measured together, as one autograd node.

    forward    measure -> exchange moments -> y = z w + b          z = (x - c) s, the statistics of all, pulled if so
    backward   S = sum dy w, Q = sum dy w z -> exchange them -> dx = s dy w - m (a + b z)

The compiled kernels measure and apply where they can, and the reference elsewhere. What one node does not serve, and a
gradient of the gradient, goes through the reference line by line, with exchanges of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from homeostat.kernels import fused, reference
from homeostat.kernels.eager import _B, _gain_gradients, through_the_reference
from homeostat.kernels.groups import groups_of
from homeostat.kernels.ranks import Ranks, merged, packed
from homeostat.kernels.reference import Job, Seen
from homeostat.moments import Moments
from homeostat.trust import THROUGH, Fixed, Pulled, Rule

KINDS = (torch.Tensor, torch.nn.Parameter)


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job
) -> tuple[Tensor, Moments]:
    """y, and the moments of all ranks."""
    if _is_one_node(x, job):
        said = job.ranks.at("forward", job.plan.groups, x.requires_grad and torch.is_grad_enabled())
        y, samples, *parts = Synced.apply(x, weight, bias, where, job, said)  # type: ignore[no-untyped-call]
        m = Moments(*parts)
    else:
        _check_differentiable()
        y, seen, g = reference.normalize(_B, x, weight, bias, where, job)
        assert seen is not None
        m, samples = seen.moments(g), seen.samples
    if not x.is_cpu or torch.compiler.is_compiling():  # nobody waits: memory refuses a batch that is empty on all ranks
        return y, Moments(m.count, torch.where(torch.as_tensor(samples) == 0, torch.nan, m.mean), m.m2)
    if where is None and not job.codes and job.center and (m.count == 1).any() and not isinstance(job.trust, Rule):
        raise ValueError(
            f"{job.ranks.layer}: all ranks together have a single value per group, which minus its own mean is 0; "
            f"use a larger batch, or model.eval()."
        )
    return y, m if samples > 0 else Moments(0.0, m.mean, m.m2)


def _check_differentiable() -> None:
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        raise RuntimeError(
            "torch.func and forward AD do not pass through an exchange between processes; differentiate by backward(), "
            "or let every process measure by itself, homeostat.unsync(model)."
        )


def _is_one_node(x: Tensor, job: Job) -> bool:
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or isinstance(job.trust, Rule):
        return False
    if not isinstance(job.ranks, Ranks):
        return False  # someone else's way to join moments
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return job.eps != "auto" and type(x) in KINDS and not torch._C._len_torch_dispatch_stack()


class Synced(torch.autograd.Function):
    """y; samples, count, mean and M2 of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job, said: str
    ) -> tuple[Tensor, ...]:
        hand = _hand(x, weight, bias, where, job)
        count, mean, m2 = hand.measure()
        m, samples = merged(job.ranks.exchange(packed(count, mean, m2, x.shape[0]), said), job.plan.groups)
        c, s, ratio, off = applied(m, job)
        y = hand.apply(c, s)
        ctx.job = job
        counted = torch.isfinite(mean) & torch.isfinite(m2)
        ctx.save_for_backward(x, weight, bias, where, m.count, c, s, ratio, off, counted)
        ctx.mark_non_differentiable(samples, m.count, m.mean, m.m2)
        return y, samples, m.count, m.mean, m.m2

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, where, n, c, s, ratio, off, counted = ctx.saved_tensors
        job, needed = ctx.job, ctx.needs_input_grad
        if torch.is_grad_enabled():
            return (*through_the_reference(dy, x, weight, bias, where, job, needed), None, None, None)
        hand = _hand(x, weight, bias, where, job)
        sums, dw, db = hand.sums(dy, c, s)
        if not needed[0]:
            return None, dw, db, None, None, None
        # from z = xhat ratio + off back to xhat: dx = s (dy w - m / n (S + xhat Q / ratio)), Q of all ranks
        own = sums[1] - off * sums[0]
        said = job.ranks.at("backward", job.plan.groups)
        own = torch.where(counted, torch.stack([sums[0], own]), torch.nan)
        total = torch.where(counted, job.ranks.total(own, said), 0.0)  # constants to who did not count
        some = n + (n == 0)
        rate = s * total[1] / (some * ratio * ratio)
        shift = s * total[0] / some - rate * off if job.center else -rate * off
        return hand.descend(dy, c, s, shift, rate), dw, db, None, None, None


def applied(m: Moments, job: Job) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre and rate of z, and how far they are pulled; the identity where nobody was measured."""
    some = m.count + (m.count == 0)
    s = torch.where(m.count == 0, 1.0, (m.m2 / some + job.eps) ** -0.5)
    s = s + 0.0 * m.mean
    c, ratio, off = m.mean, torch.ones_like(s), torch.zeros_like(s)
    if isinstance(job.trust, Pulled):
        g = groups_of(_B, job.plan, job.codes)
        center = g.inner(m.mean) if job.center else 0.0
        seen = Seen(g.inner(m.count), center, 0.0, g.inner(m.m2))
        found = reference.pulled(_B, g, job.trust, seen, job.eps)
        ratio, off = (torch.zeros_like(s) + (p if isinstance(p, float) else g.result(p)) for p in found)
        c, s = c - off / (ratio * s), s * ratio
    return c, s, ratio, off


def _hand(x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job) -> Any:
    """Who measures and applies here."""
    native = where is None and not job.codes and (job.gain is None or job.gain.frame == job.plan.frame)
    if native and x.is_cpu and fused.all_plain(x, weight, bias, None, THROUGH):
        one = job._replace(gain=job.plan, trust=THROUGH)
        told = fused.task_of(x, None, None, None, one)
        if told is not None:
            return _Kernels(x, weight, bias, one, told)
    return _Arithmetic(x, weight, bias, where, job)


class _Arithmetic:
    """By the reference."""

    def __init__(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, job: Job) -> None:
        self.x, self.job, self.plan = x, job, job.plan
        self.g = groups_of(_B, job.plan, job.codes)
        self.z = x.reshape(job.plan.shape).to(_B.work_dtype(x))
        self.where = None if where is None else where.reshape(job.plan.shape).to(self.z.dtype)
        self.weight, self.bias = weight, bias
        self.gain, self.shift = reference.gains(_B, self.z, weight, bias, job)

    def measure(self) -> tuple[Any, Tensor, Tensor]:
        m = reference.measure(_B, self.z, self.g, self.where, self.job.center).moments(self.g)
        return m.count, m.mean, m.m2

    def standing(self, c: Tensor, s: Tensor) -> Tensor:
        """z"""
        g = self.g
        c, s = g.inner(c), g.inner(s)
        hi = c.to(self.z.dtype).to(c.dtype)
        z: Tensor = reference.apply(_B, self.z, g, hi, c - hi, s)
        return z

    def apply(self, c: Tensor, s: Tensor) -> Tensor:
        z = self.standing(c, s)
        z = z if self.gain is None else z * self.gain
        z = z if self.shift is None else z + self.shift
        return z.reshape(self.x.shape).to(self.x.dtype)

    def sums(self, dy: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[2, groups], sum dy w and sum dy w z; dw, db"""
        z, dz = self.standing(c, s), self._like(dy)
        dw, db = _gain_gradients(dz, z, self.weight, self.bias, self.job)
        dz = dz if self.gain is None else dz * self.gain
        z = z if self.where is None else reference._bounded(_B, z, self.where)
        return torch.stack([self.g.result(self.g.total(p)) for p in (dz, dz * z)]), dw, db

    def descend(self, dy: Tensor, c: Tensor, s: Tensor, shift: Tensor, rate: Tensor) -> Tensor:
        """s dy w - m (shift + rate z)"""
        g, work = self.g, self.z.dtype
        dz, z = self._like(dy), self.standing(c, s)
        dz = dz if self.gain is None else dz * self.gain
        z = z if self.where is None else reference._bounded(_B, z, self.where)
        s, shift, rate = (g.spread(g.inner(p).to(work)) for p in (s, shift, rate))
        back = shift + rate * z
        back = back if self.where is None else torch.where(self.where > 0, back * self.where, 0.0)
        return (dz * s - back).reshape(self.x.shape).to(self.x.dtype)

    def _like(self, dy: Tensor) -> Tensor:
        return dy.reshape(self.plan.shape).to(self.z.dtype)


class _Kernels:
    """By the compiled kernels, where w and b are one per group."""

    def __init__(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, job: Job, told: Any) -> None:
        self.x, self.weight, self.bias, self.job, self.told = x, weight, bias, job, told

    def measure(self) -> tuple[float, Tensor, Tensor]:
        plan = self.job.plan
        scratch = torch.empty(6 * self.told.groups, dtype=torch.float64)
        fused.look(self.x, self.told, scratch)
        sums = scratch.view(6, *plan.groups)
        return float(plan.pool), sums[3], sums[4]

    def apply(self, c: Tensor, s: Tensor) -> Tensor:
        return self._standing(c, s, self.weight, self.bias)

    def _standing(self, c: Tensor, s: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """z weight + bias"""
        job, told = self._fixed(c, s, weight, bias)
        return fused.forward(self.x, weight, bias, None, told, job, None)

    def _fixed(self, c: Tensor, s: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> tuple[Job, Any]:
        job = self.job._replace(trust=Fixed(c, s**-2), eps=0.0)
        return job, fused.task_of(self.x, weight, bias, None, job)

    def sums(self, dy: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        _job, told = self._fixed(c, s)
        hi, rate = c.float(), s.float()
        lo = (c - hi).float()
        stats = torch.stack([part.reshape(-1) for part in (hi, lo, rate, lo, rate, 0 * rate)], 1)  # Stat of norm.hpp
        found = fused.pull(dy, self.x, told, stats).view(2, *c.shape)
        dw, db = (None if p is None else f.to(p.dtype) for p, f in ((self.weight, found[1]), (self.bias, found[0])))
        return found.double() * self._gain(), dw, db

    def descend(self, dy: Tensor, c: Tensor, s: Tensor, shift: Tensor, rate: Tensor) -> Tensor:
        plan = self.job.plan
        back = self._standing(c, s, -rate.float(), -shift.float())
        scale = groups_of(_B, plan).inner((s * self._gain()).float())
        dx = torch.addcmul(back.reshape(plan.shape), dy.reshape(plan.shape), scale)
        return dx.reshape(self.x.shape).to(self.x.dtype)

    def _gain(self) -> Tensor | float:
        return 1.0 if self.weight is None else self.weight.double()
