"""Registered: the compiled kernels as torch operators, for torch.compile, which would otherwise look into them.

    homeostat::normalize -> y, scratch        homeostat::gradient -> dx, dweight, dbias
    homeostat::measure -> scratch             homeostat::pull -> sums over each group      (measured.py)

A graph may be kept on disk and run by another process, so an operator is told its job in words (a pattern, names and
sizes of axes), and finds its plan where it runs. There too, what the kernels do not take goes through the reference.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from homeostat.frame import Frame
from homeostat.kernels import fused, reference
from homeostat.kernels.eager import _B, by_closed_form
from homeostat.kernels.groups import groups_of
from homeostat.kernels.reference import Job
from homeostat.plan import Plan, plan_for
from homeostat.trust import THROUGH, Fixed, Pulled, Trust

_WORDS = "str frame, str gain, str[] names, SymInt[] sizes, float eps, bool center, float[] bounds"
_LIBRARY = torch.library.Library("homeostat", "FRAGMENT")  # type: ignore[no-untyped-call]
_ANY_LAYOUT = (torch.Tag.flexible_layout,)
_LIBRARY.define(  # type: ignore[no-untyped-call]
    f"normalize(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, {_WORDS}) -> (Tensor, Tensor)",
    tags=_ANY_LAYOUT,
)
_LIBRARY.define(f"pull(Tensor dy, Tensor x, Tensor scratch, {_WORDS}) -> Tensor", tags=_ANY_LAYOUT)  # type: ignore[no-untyped-call]
_LIBRARY.define(f"measure(Tensor x, {_WORDS}) -> Tensor", tags=_ANY_LAYOUT)  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "gradient(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, Tensor scratch, "
    f"{_WORDS}) -> (Tensor, Tensor, Tensor)",
    tags=_ANY_LAYOUT,
)


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, job: Job) -> tuple[Tensor, Tensor]:
    """y, and [6 groups]: statistics as applied, then mean, M2 and count."""
    trust = job.trust
    mean, var = (None, None) if trust is THROUGH else (trust.mean, trust.var)  # type: ignore[union-attr]
    y, scratch = torch.ops.homeostat.normalize(x, weight, bias, mean, var, *_words(job))
    return y, scratch


def measure(x: Tensor, job: Job) -> Tensor:
    """[6 groups], as `normalize` leaves them."""
    found: Tensor = torch.ops.homeostat.measure(x.detach(), *_words(job))
    return found


def pull(dy: Tensor, x: Tensor, scratch: Tensor, job: Job) -> Tensor:
    """[2, groups]: the sums of dy and of dy xhat; `scratch` is what `measure` gave."""
    found: Tensor = torch.ops.homeostat.pull(dy, x, scratch, *_words(job))
    return found


def _words(job: Job) -> tuple[Any, ...]:
    plan, trust = job.plan, job.trust
    bounds = [trust.r_max, trust.d_max] if isinstance(trust, Pulled) else []
    # every axis of a split is said; what fits the split is then no question
    names = [name for axis in plan.frame.axes if isinstance(axis, tuple) for name in axis]
    sizes = [plan.shape[plan.names.index(name)] for name in names]
    gain = "" if job.gain is None else str(job.gain.frame)
    return str(plan.frame), gain, names, sizes, float(job.eps), job.center, bounds


def _found(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    words: tuple[Any, ...],
) -> tuple[Job, Any]:
    """The job these words say, and the kernels' task for it, looked up where the same was said before."""
    frame, gain, names, sizes, eps, center, bounds = words
    said = (frame, gain, tuple(names), tuple(sizes), eps, center, tuple(bounds))
    kinds = (p if p is None else p.dtype for p in (weight, bias, mean))
    key = (said, x.shape, x.stride(), x.dtype, *kinds)
    trust: Trust = THROUGH
    if mean is not None and var is not None:
        trust = Pulled(mean, var, *bounds) if bounds else Fixed(mean, var)
    known = _KNOWN.get(key)
    if known is None:
        plan, gain_plan = _plans(x.shape, frame, gain, *said[2:4])
        job = Job(plan, gain_plan, (), trust, eps, center)
        if len(_KNOWN) >= 4096:
            _KNOWN.clear()
        known = _KNOWN[key] = job._replace(trust=THROUGH), fused.task_of(x, weight, bias, None, job)
    return known if trust is THROUGH else (known[0]._replace(trust=trust), known[1])


_KNOWN: dict[Any, tuple[Job, Any]] = {}


def _plans(shape: Any, frame: str, gain: str, names: tuple[str, ...], sizes: Any) -> tuple[Plan, Plan | None]:
    if all(type(n) is int for n in (*shape, *sizes)):
        return _plans_cached(shape, frame, gain, names, sizes)
    return _plans_made(shape, frame, gain, names, sizes)


def _plans_made(shape: Any, frame: str, gain: str, names: tuple[str, ...], sizes: Any) -> tuple[Plan, Plan | None]:
    plan = plan_for(Frame.parse(frame), tuple(shape), dict(zip(names, sizes, strict=True)))
    return plan, plan.keep(Frame.parse(gain)) if gain else None


_plans_cached = lru_cache(maxsize=1024)(_plans_made)


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, *words: Any
) -> tuple[Tensor, Tensor]:
    job, told = _found(x, weight, bias, mean, var, words)
    scratch = torch.empty(6 * _groups(job.plan), dtype=torch.float64, device="cpu")
    if told is not None:
        return fused.forward(x, weight, bias, None, told, job, scratch), scratch
    y, seen, g = reference.normalize(_B, x, weight, bias, None, job)
    if seen is not None:
        m = seen.moments(g)
        scratch.view(6, -1)[3:] = torch.stack([m.mean.reshape(-1), m.m2.reshape(-1), 0 * m.m2.reshape(-1) + m.count])
    return torch.empty_like(x).copy_(y), scratch


def _measure(x: Tensor, *words: Any) -> Tensor:
    """Statistics as applied, then mean, M2 and count of each group, as `normalize` leaves them."""
    job, told = _found(x, None, None, None, None, words)
    scratch = torch.empty(6 * _groups(job.plan), dtype=torch.float64, device="cpu")
    if told is not None:
        fused.look(x, told, scratch)
    else:
        g = groups_of(_B, job.plan)
        m = reference.measure(_B, x.reshape(job.plan.shape).to(_B.work_dtype(x)), g, None, job.center).moments(g)
        scratch.view(6, -1)[3:5] = torch.stack([m.mean.reshape(-1), m.m2.reshape(-1)])
    return scratch


def _pull(dy: Tensor, x: Tensor, scratch: Tensor, *words: Any) -> Tensor:
    """[2, groups]: the sums of dy and of dy xhat."""
    frame = words[0]
    job, told = _found(x, None, None, None, None, (frame, frame, *words[2:]))
    if told is not None:
        return fused.pull(dy, x, told, scratch)
    g = groups_of(_B, job.plan)
    work = _B.work_dtype(x)
    z, dz = x.reshape(job.plan.shape).to(work), dy.reshape(job.plan.shape).to(work)
    seen = reference.measure(_B, z, g, None, job.center)
    xhat = reference.apply(_B, z, g, seen.hi, seen.lo, reference.scale(_B, seen, job.eps))
    return torch.stack([g.result(g.total(p)).reshape(-1) for p in (dz, dz * xhat)]).float()


def _gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    scratch: Tensor,
    *words: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    job, told = _found(x, weight, bias, mean, var, words)
    if told is not None:
        found: tuple[Tensor | None, ...] = fused.backward(dy, x, weight, bias, None, told, job, scratch)
    else:
        dx, *gains = by_closed_form(dy, x, weight, bias, job)
        found = (torch.empty_like(x).copy_(dx), *gains)
    return tuple(x.new_empty(0) if t is None else t for t in found)  # type: ignore[return-value]


def _groups(plan: Plan) -> Any:
    n: Any = 1
    for size in plan.groups:
        n = n * size
    return n


_LIBRARY.impl("measure", _measure, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("pull", _pull, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("normalize", _normalize, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("gradient", _gradient, "CPU")  # type: ignore[no-untyped-call]


@torch.library.register_fake("homeostat::normalize", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, *words: Any) -> tuple[Tensor, Tensor]:
    plan, _gain = _plans(x.shape, words[0], words[1], tuple(words[2]), tuple(words[3]))
    return torch.empty_like(x), x.new_empty(6 * _groups(plan), dtype=torch.float64)


@torch.library.register_fake("homeostat::measure", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(x: Tensor, *words: Any) -> Tensor:
    plan, _gain = _plans(x.shape, words[0], words[1], tuple(words[2]), tuple(words[3]))
    return x.new_empty(6 * _groups(plan), dtype=torch.float64)


@torch.library.register_fake("homeostat::pull", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(dy: Tensor, x: Tensor, scratch: Tensor, *words: Any) -> Tensor:
    return scratch.new_empty((2, scratch.shape[0] // 6), dtype=torch.float32)


@torch.library.register_fake("homeostat::gradient", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(dy: Tensor, x: Tensor, weight: Any, bias: Any, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dw, db = (x.new_empty(0) if p is None else torch.empty_like(p) for p in (weight, bias))
    return torch.empty_like(x), dw, db


def _remember_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, mean, var, *words = inputs
    ctx.save_for_backward(x, weight, bias, mean, var, output[1])
    ctx.words = words
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dy: Tensor, _scratch: Any) -> tuple[Any, ...]:
    x, weight, bias, mean, var, scratch = ctx.saved_tensors
    dx, dw, db = torch.ops.homeostat.gradient(dy, x, weight, bias, mean, var, scratch, *ctx.words)
    nothing = (None,) * (2 + len(ctx.words))
    return dx, None if weight is None else dw, None if bias is None else db, *nothing


torch.library.register_autograd("homeostat::normalize", _backward, setup_context=_remember_inputs, lib=_LIBRARY)


def _no_second(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "a second derivative through torch.compile is not there, neither here nor in torch; call the layer uncompiled."
    )


torch.library.register_autograd("homeostat::gradient", _no_second, lib=_LIBRARY)
