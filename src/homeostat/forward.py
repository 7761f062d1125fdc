"""Forward: one call of a layer, from its parts and a tensor to what it gives and what it remembers.

    trust = source.trust(recall(state))     y, m = normalize(x, trust)     remember(source.step(state, m))

A layer is whatever has source, frame, state_frame, gain_frame, weight, bias, eps and center.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from homeostat import door, memory, routes
from homeostat.arrays import backend_of, being_compiled
from homeostat.frame import ELLIPSIS, Frame, FrameError, Label, ShapeError, listed
from homeostat.kernels import fused
from homeostat.kernels.reference import Job
from homeostat.labels import counts_in, is_coded, resolve
from homeostat.moments import Moments
from homeostat.plan import Plan, plan_for
from homeostat.sources import BATCH, Batch, Call, Source
from homeostat.trust import THROUGH, Fixed, Pulled, Rule, Trust

Sizes = tuple[tuple[str, int], ...]  # of named axes
Check = Callable[[Any, Tensor, bool], None]


def run(
    layer: Any,
    x: Tensor,
    frame: Frame,
    sizes: Sizes,
    where: Tensor | None = None,
    labels: Mapping[str, Any] | None = None,
    check: Check | None = None,
    gain: tuple[Tensor | None, Tensor | None] | None = None,
) -> Tensor:
    """One forward.

    `check(layer, x, fixed)` says what is wrong with a shape; without it, groups of one are refused. `gain` is weight
    and bias of this call, where they are not the layer's own.
    """
    source: Source = layer.source
    training = layer.training
    trust: Trust = THROUGH
    writes = False
    state: dict[str, Any] = {}
    if source.names:
        state = _state(layer, source, x)
        kept = getattr(layer, "track_running_stats", True) or "running_mean" not in state
        writes = kept and source.writes(training)
        held = memory.recall(state, writes, source.reads)
        held.update((name, layer._parameters[name]) for name in source.learns)
        trust = source.trust(held, training)
    elif source is not BATCH:
        trust = source.trust({}, training)
    frame = layer.state_frame if isinstance(trust, Fixed) else frame
    if source.regroups:
        call = Call(frame, layer.gain_frame, tuple(x.shape), training, labels or {})
        frame, more, own = source.regroup(call)
        sizes, labels = (*sizes, *more), {**(labels or {}), **own}
    weight, bias = _learned(layer) if gain is None else gain
    ranks = source.ranks(layer) if training and not isinstance(trust, Fixed) else None
    counts = counts_in(labels) if labels else ()
    if ranks is None and where is None and counts is not None and not being_compiled():
        job, told = _known(layer, x, frame, sizes, check, trust, weight, bias, labels, counts)
    else:
        job = _job(layer, x, frame, sizes, where, labels, check, trust, weight, bias, ranks)
        told = routes.UNKNOWN
    if source.regroups and isinstance(trust, Pulled):
        job = job._replace(trust=trust.beside(job.plan.groups))
    y, m = routes.normalize(x, weight, bias, where, job, writes, told)
    if m is not None and (0 not in x.shape or not isinstance(m.count, float) or m.count > 0):
        m = _remembered(m, job.plan, source.remembers(layer.state_frame), source.merges)
        memory.remember(source, state, layer.num_batches_skipped, m, _name(layer))
    return y


def add(
    layer: Any, x: Tensor, other: Tensor, frame: Frame, sizes: Sizes, check: Check | None = None
) -> tuple[Tensor, Tensor]:
    """x + other, and what the layer makes of it; in one pass where the kernels can."""
    alike = x.shape == other.shape and x.dtype is other.dtype and x.stride() == other.stride()
    if alike and isinstance(layer.source, Batch) and not layer.frame.labels and not being_compiled():
        weight, bias = _learned(layer)
        job, told = _known(layer, x, frame, sizes, check, THROUGH, weight, bias)
        if told is not None and told.adds and type(other) is type(x):
            name, task = routes.route(x, weight, bias, other, job, task=told)  # `other` must be as plain as weights
            if name == "fused":
                total, y = fused.add(x, other, weight, bias, job, task)
                return total, y
    total = x + other
    return total, layer(total)


# What `given` passes to layers deep inside a model.
_GIVEN: dict[str, Any] = {}


@contextmanager
def given(**values: Any) -> Iterator[None]:
    """Within, every layer that asks for one of these by name gets it: labels, cond=, style=, map=.

    with hs.given(lab=(codes, 8)):
        model(x)

    What is checkpointed is computed again in the backward pass, which must then run within it too.
    """
    before = dict(_GIVEN)
    _GIVEN.update(values)
    try:
        yield
    finally:
        _GIVEN.clear()
        _GIVEN.update(before)


def asked(names: tuple[str, ...], values: dict[str, Any]) -> dict[str, Any]:
    """What came with this call and, of what a layer asks for, what `given` holds."""
    if not _GIVEN or not names:
        return values
    return {name: _GIVEN[name] for name in names if name in _GIVEN} | values


def _state(layer: Any, source: Source, x: Tensor) -> dict[str, Any]:
    buffers, learns = layer._buffers, source.learns
    state = {name: buffers[name] for name in source.names if name not in learns}
    if state.get("num_batches_tracked", 0) is None:  # torch lets it be absent
        state["num_batches_tracked"] = torch.zeros((), dtype=torch.int64, device=x.device)
    return state


def _learned(layer: Any) -> tuple[Tensor | None, Tensor | None]:
    """weight and bias, without asking the module where its dictionary has them."""
    own = layer._parameters
    if "weight" in own and "bias" in own:
        return own["weight"], own["bias"]
    return layer.weight, layer.bias


# What was checked, planned and laid out for a kind of layer and a kind of input.
_KNOWN: dict[Any, tuple[Job, Any]] = {}


def _known(
    layer: Any,
    x: Tensor,
    frame: Frame,
    sizes: Sizes,
    check: Check | None,
    trust: Trust,
    weight: Tensor | None,
    bias: Tensor | None,
    labels: Mapping[str, Any] | None = None,
    counts: Sizes = (),
) -> tuple[Job, Any]:
    """The everyday call finds what was found before: its job, and what the compiled kernels are told."""
    key = (
        type(layer),
        frame,
        layer.gain_frame,
        sizes,
        x.shape,
        x.stride() if x.layout is torch.strided else x.layout,
        x.dtype,
        layer.eps,
        layer.center,
        None if weight is None else (weight.shape, weight.dtype),
        None if bias is None else (bias.shape, bias.dtype),
        type(trust) if trust is THROUGH else trust.kind(),  # type: ignore[union-attr]
        counts,
        tuple(layer.__dict__.get("counts", {}).items()) if counts else (),
    )
    found = _KNOWN.get(key)
    if found is None:
        job = _job(layer, x, frame, sizes, None, labels, check, trust, weight, bias)
        found = job, routes.told(x, weight, bias, None, job)
        if len(_KNOWN) >= 4096:
            _KNOWN.clear()
        _KNOWN[key] = job._replace(trust=THROUGH, codes=()), found[1]  # tensors are not kept
        return found
    if counts and labels:
        return found[0]._replace(trust=trust, codes=_codes(x, found[0].plan, labels)), found[1]
    return found if trust is THROUGH else (found[0]._replace(trust=trust), found[1])


def _codes(x: Tensor, plan: Plan, labels: Mapping[str, Any]) -> tuple[Any, ...]:
    """The codes of this call, for a plan that was made for others."""
    found = []
    for label, span in zip(plan.frame.labels, plan.spans, strict=True):
        (codes, n), extent = labels[label.name], tuple(plan.shape[p] for p in span)
        if not (type(codes) is Tensor and codes.shape == extent and x.is_cpu and _are_usual(codes, n)):
            codes = backend_of(x).codes(resolve(label.name, (codes, n), extent, str(label))[0], x)
        found.append(codes)
    return tuple(found)


def _are_usual(codes: Tensor, n: Any) -> bool:
    """Integers from 0 to n - 1, seen in a fifth of the time that reading them takes."""
    if codes.dtype is not torch.int64 or type(n) is not int or not fused.is_plain(codes) or not codes.numel():
        return False
    if codes.dim() == 1 and len(codes) <= 128:
        seen = codes.tolist()  # between two large tensors NumPy's code comes from far away: 15 us, this 3
        return bool(min(seen) >= 0 and max(seen) < n)
    every = codes.numpy()
    return bool(every.min() >= 0 and every.max() < n)


def _job(
    layer: Any,
    x: Tensor,
    frame: Frame,
    sizes: Sizes,
    where: Tensor | None,
    labels: Mapping[str, Any] | None,
    check: Check | None,
    trust: Trust,
    weight: Tensor | None,
    bias: Tensor | None,
    ranks: Any = None,
) -> Job:
    """The job of this call, all its shapes checked."""
    fixed = isinstance(trust, Fixed)
    alone = not isinstance(trust, Rule) and ranks is None  # with others, this rank may have one value, or none
    eps, center = layer.eps, layer.center
    if eps is None and not center:
        eps = _spacing(x)
    if eps != "auto" and (eps is None or not 0 <= eps < math.inf):
        door.check_eps(eps)
    if check is not None:
        check(layer, x, fixed or not alone)
    refuses_one = center and check is None and not fixed and alone
    plan, codes = _planned(x, frame, dict(sizes), labels or {}, where, refuses_one, layer)
    gain_frame = layer.gain_frame
    gain = None if gain_frame is None else plan.keep(gain_frame)
    _check_fit(layer, gain, weight, bias, plan, trust)
    return Job(plan, gain, codes, trust, eps, center, ranks)


def _check_fit(
    layer: Any, gain: Plan | None, weight: Tensor | None, bias: Tensor | None, plan: Plan, trust: Any
) -> None:
    """Parameters and memory may have been exchanged since the layer was made."""
    named = (("weight", weight, gain), ("bias", bias, gain))
    if isinstance(trust, Fixed | Pulled):
        named = (*named, ("running_mean", trust.mean, plan), ("running_var", trust.var, plan))  # type: ignore[assignment]
    for name, t, groups in named:
        if t is None or groups is None:
            continue
        # parts of a batch stand first, and share what is remembered
        want = groups.groups[-t.dim() :] if groups is plan and layer.source.regroups and t.dim() else groups.groups
        if tuple(t.shape) != want:
            raise ShapeError(
                f"{_name(layer)}.{name} has shape {tuple(t.shape)}; this input needs {want}, one per "
                f"{listed([str(item) for item in groups.frame.kept])}."
            )


def _spacing(x: Tensor) -> float:
    """RMSNorm's eps where none is given: that of the dtype torch works in."""
    return torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps


def _planned(
    x: Tensor,
    frame: Frame,
    sizes: Mapping[str, int],
    labels: Mapping[str, Any],
    where: Tensor | None,
    check_pool: bool,
    layer: Any,
) -> tuple[Plan, tuple[Any, ...]]:
    if not labels:  # the everyday call, kept short
        if not x.is_floating_point() or x.layout is not torch.strided:
            door.check_dtype(backend_of(x), x)
        if where is not None:
            door.check_where(where, x)
        plan = plan_for(frame, tuple(x.shape), sizes)
        if check_pool and plan.pool < 2:
            door.check_pool(door.Bound(frame, plan), where)
        return plan, ()
    counts = getattr(layer, "counts", {})
    if set(layer.source.names) - set(layer.source.learns):
        known = {label.name for label in frame.labels}
        for name, values in labels.items():
            if name in known and not is_coded(values):
                raise FrameError(
                    f"{name}: a layer that remembers one statistic per label must know which is which in every batch; "
                    f"pass {name}=(codes, {counts.get(name, 'n')})."
                )
    bound = door.bind(x, frame, {**sizes, **labels})
    for label, n in zip(frame.labels, bound.plan.counts, strict=True):
        if counts.get(label.name, n) != n:
            raise FrameError(f"{label.name} takes {counts[label.name]} values here; these labels take {n}.")
    if check_pool:
        door.check_pool(bound, where)
    return bound.plan, bound.codes


def _remembered(m: Moments, plan: Plan, state_frame: Frame, merges: bool) -> Moments:
    """The moments of the groups that are remembered: of the others, which come and go, the average.

    Instance norm measures every channel of every sample and remembers one pair per channel. A source may want them
    pooled instead, as if they had been measured together.
    """
    if plan.frame is state_frame or plan.frame == state_frame:
        return m
    rest = len(plan.groups) - len(plan.frame.kept) + 1  # axes that "..." stands for
    items = [item for item in plan.frame.kept for _ in range(rest if item == ELLIPSIS else 1)]
    gone = tuple(i for i, item in enumerate(items) if item not in state_frame.kept)
    if merges:
        pooled = tuple(i for i in gone if not isinstance(items[i], Label))  # labels part a batch, and stand first
        whole = m.over(pooled)
        m = Moments(*(part.squeeze(pooled) for part in (whole.count, whole.mean, whole.m2))) if pooled else m
        gone = tuple(i for i in gone if i not in pooled)
    if not gone:
        return m
    if isinstance(m.count, float):
        return Moments(m.count, m.mean.mean(gone), m.m2.mean(gone))
    # Masked: the average is over the groups somebody was measured in, of their means and of their unbiased variances.
    n = m.count.expand_as(m.mean)
    some, two = n > 0, n > 1
    mean = (m.mean * some).sum(gone) / some.sum(gone).clamp_min(1)
    var = (m.m2 / (n - 1).clamp_min(1e-30) * two).sum(gone) / two.sum(gone).clamp_min(1)
    return Moments(some.any(gone) * (1.0 + two.any(gone)), mean, var)  # at count 2, M2 / (count - 1) is that variance


def _name(layer: nn.Module) -> str:
    return type(layer).__name__
