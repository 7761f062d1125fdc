"""Norm = frame + source + gain.

Norm("n c ... -> c", source=Running(0.1), gain=Learned("c"), c=64)       batch norm
Norm("... d -> ...", gain=Learned("d"), d=512)                           layer norm
Norm("b t (h d) -> b t h", center=False, gain=Learned("d"), h=8, d=64)   RMS norm per head
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from homeostat import door, memory, routes
from homeostat.arrays import backend_of, being_compiled
from homeostat.frame import Frame, FrameError, Label, ShapeError, listed
from homeostat.gains import Conditional, Gain
from homeostat.kernels import fused
from homeostat.kernels.reference import Job
from homeostat.labels import is_coded, resolve
from homeostat.moments import Moments
from homeostat.plan import Plan, plan_for
from homeostat.sources import Batch, Source
from homeostat.trust import THROUGH, Fixed, Pulled, Trust

Sizes = tuple[tuple[str, int], ...]  # of named axes
Check = Callable[[Any, Tensor, bool], None]


class Norm(nn.Module):
    """Normalize by a frame, with statistics from a source, and put a gain back.

    Sizes (`c=64`) are needed for what is learned or remembered; `lab=8` says how many values a label takes. Labels
    themselves come with the call: `norm(x, lab=codes)`.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        pattern: str | Frame,
        source: Source | None = None,
        gain: Gain | None = None,
        eps: float | str = 1e-5,
        center: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **sizes: int,
    ) -> None:
        super().__init__()
        door.check_eps(eps)
        _check_parts(source, gain)
        self.frame = pattern if isinstance(pattern, Frame) else Frame.parse(pattern)
        sizes = {name: _whole(n) for name, n in sizes.items()}
        self.source = Batch() if source is None else source
        self.gain, self.eps, self.center = gain, eps, center
        learned = None if gain is None else gain.frame_in(self.frame)
        labels = {label.name for f in (self.frame, learned) if f is not None for label in f.labels}
        self.sizes = {name: n for name, n in sizes.items() if name not in labels}
        self.counts = {name: n for name, n in sizes.items() if name in labels}
        _check_declared(self.frame, self.sizes, self.counts)
        kind = {"device": device, "dtype": dtype}
        self.learned_frame = learned  # the groups of weight and bias; and of what is applied
        self.gain_frame = None if gain is None else gain.applied_in(self.frame)
        self._make_gain(kind)
        self.state_frame = _remembered_groups(self.frame, sizes) if self.source.names else self.frame
        if self.source.names:
            hold(self, self.source.init(_extent(self.state_frame, sizes), **kind), device)

    def _make_gain(self, kind: dict[str, Any]) -> None:
        sizes = {**self.sizes, **self.counts} if isinstance(self.gain, Conditional) else self.sizes
        shape = None if self.learned_frame is None else _extent(self.learned_frame, sizes)
        bias = self.gain is not None and self.gain.bias
        self.weight = None if shape is None else nn.Parameter(torch.ones(shape, **kind))
        self.bias = nn.Parameter(torch.zeros(shape, **kind)) if shape is not None and bias else None

    def reset_parameters(self) -> None:
        """Gains back to the identity, memory back to its beginning."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        forget(self)

    def forward(self, x: Tensor, where: Tensor | None = None, **labels: Any) -> Tensor:
        gain = self._conditioned(x, labels) if isinstance(self.gain, Conditional) else None
        return run(self, x, self.frame, tuple(self.sizes.items()), where, labels, gain=gain)

    def _conditioned(self, x: Tensor, given: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """weight and bias of each labelled position; their labels are taken out of `given`."""
        assert self.learned_frame is not None
        label = self.learned_frame.labels[0]
        name, n = label.name, self.counts[label.name]
        if not is_coded(given.get(name)) or given[name][1] != n:
            raise FrameError(f"{self.gain} needs the {name} of each {' '.join(label.axes)}: pass {name}=(codes, {n}).")
        counts = {one.name: self.counts[one.name] for one in self.frame.labels}
        plan = plan_for(self.frame, tuple(x.shape), self.sizes, counts)
        extent = tuple(plan.shape[plan.names.index(axis)] for axis in label.axes)
        codes, _ = resolve(name, given.pop(name), extent, str(label))
        at = torch.as_tensor(codes, dtype=torch.int64, device=x.device).reshape(-1)

        def of(p: Tensor | None) -> Tensor | None:
            return None if p is None else p.index_select(0, at).reshape(*extent, *p.shape[1:])

        return of(self.weight), of(self.bias)

    def add(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """x + other, and that normalized: a residual stream in one pass over memory."""
        if isinstance(self.gain, Conditional):
            raise TypeError(f"{self.gain} needs labels; call the norm itself on the sum, with them.")
        return add(self, x, other, self.frame, tuple(self.sizes.items()))

    def extra_repr(self) -> str:
        sizes = "".join(f", {name}={n}" for name, n in {**self.sizes, **self.counts}.items())
        center = "" if self.center else ", center=False"
        gain = "" if self.gain is None else f", gain={self.gain}"
        return f'"{self.frame}", source={self.source}{gain}, eps={self.eps}{center}{sizes}'


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
    """One forward of a layer that has source, state_frame, gain_frame, weight, bias, eps and center.

    trust = source.trust(recall(state))     y, m = ops.normalize(x, trust)     remember(source.step(state, m))

    `check(layer, x, fixed)` says what is wrong with a shape; without it, groups of one are refused. `gain` is weight
    and bias of this call, where they are not the layer's own.
    """
    source: Source = layer.source
    training = layer.training
    trust: Trust = THROUGH
    writes = False
    state: dict[str, Any] = {}
    if source.names:
        writes = training and getattr(layer, "track_running_stats", True)
        state = _state(layer, source.names, x)
        trust = source.trust(memory.recall(state, writes), training)
    frame = layer.state_frame if isinstance(trust, Fixed) else source.frame(frame, training)
    weight, bias = _learned(layer) if gain is None else gain
    if where is None and not labels and not being_compiled():
        job, told = _known(layer, x, frame, sizes, check, trust, weight, bias)
    else:
        job = _job(layer, x, frame, sizes, where, labels, check, trust, weight, bias)
        told = routes.UNKNOWN
    y, m = routes.normalize(x, weight, bias, where, job, writes, told)
    if m is not None and not (isinstance(m.count, float) and m.count == 0):
        memory.remember(
            source, state, layer.num_batches_skipped, _average(m, job.plan, layer.state_frame), _name(layer)
        )
    return y


def add(
    layer: Any, x: Tensor, other: Tensor, frame: Frame, sizes: Sizes, check: Check | None = None
) -> tuple[Tensor, Tensor]:
    """x + other, and what the layer makes of it; in one pass where the kernels can."""
    alike = x.shape == other.shape and x.dtype is other.dtype and x.stride() == other.stride()
    if alike and not layer.source.names and not layer.frame.labels and not being_compiled():
        weight, bias = _learned(layer)
        job, told = _known(layer, x, frame, sizes, check, THROUGH, weight, bias)
        if told is not None and told.adds and type(other) is type(x):
            name, task = routes.route(x, weight, bias, other, job, task=told)  # `other` must be as plain as weights
            if name == "fused":
                total, y = fused.add(x, other, weight, bias, job, task)
                return total, y
    total = x + other
    return total, layer(total)


def _state(layer: Any, names: tuple[str, ...], x: Tensor) -> dict[str, Any]:
    buffers = layer._buffers
    state = {name: buffers[name] for name in names}
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
    )
    found = _KNOWN.get(key)
    if found is None:
        job = _job(layer, x, frame, sizes, None, None, check, trust, weight, bias)
        found = job, routes.told(x, weight, bias, None, job)
        if len(_KNOWN) >= 4096:
            _KNOWN.clear()
        _KNOWN[key] = job._replace(trust=THROUGH), found[1]  # tensors are not kept
        return found
    return found if trust is THROUGH else (found[0]._replace(trust=trust), found[1])


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
) -> Job:
    """The job of this call, all its shapes checked."""
    fixed = isinstance(trust, Fixed)
    eps, center = layer.eps, layer.center
    if eps is None and not center:
        eps = _spacing(x)
    if eps != "auto" and (eps is None or not 0 <= eps < math.inf):
        door.check_eps(eps)
    if check is not None:
        check(layer, x, fixed)
    refuses_one = center and check is None and not fixed
    plan, codes = _planned(x, frame, dict(sizes), labels or {}, where, refuses_one, layer)
    gain_frame = layer.gain_frame
    gain = None if gain_frame is None else plan.keep(gain_frame)
    _check_fit(layer, gain, weight, bias, plan, trust)
    return Job(plan, gain, codes, trust, eps, center)


def _check_fit(
    layer: nn.Module, gain: Plan | None, weight: Tensor | None, bias: Tensor | None, plan: Plan, trust: Any
) -> None:
    """Parameters and memory may have been exchanged since the layer was made."""
    named = (("weight", weight, gain), ("bias", bias, gain))
    if isinstance(trust, Fixed | Pulled):
        named = (*named, ("running_mean", trust.mean, plan), ("running_var", trust.var, plan))  # type: ignore[assignment]
    for name, t, groups in named:
        if t is not None and groups is not None and tuple(t.shape) != groups.groups:
            raise ShapeError(
                f"{_name(layer)}.{name} has shape {tuple(t.shape)}; this input needs {groups.groups}, one per "
                f"{listed([str(item) for item in groups.frame.kept])}."
            )


def _spacing(x: Tensor) -> float:
    """RMSNorm's eps where none is given: that of the dtype torch works in."""
    return torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps


def hold(layer: nn.Module, state: Mapping[str, Tensor], device: Any = None) -> None:
    """Register a source's memory on a layer: buffers under torch's names, and a counter of skipped batches."""
    for name, buffer in state.items():
        layer.register_buffer(name, buffer)
    count_skipped(layer, device)


def count_skipped(layer: nn.Module, device: Any = None) -> None:
    """Not in the state_dict, whose keys are torch's."""
    counter = torch.zeros((), dtype=torch.int64, device=device)
    layer.register_buffer("num_batches_skipped", counter, persistent=False)


def forget(layer: Any) -> None:
    """Memory back to its beginning, in place."""
    if layer.source.names:
        shape = tuple(layer.running_mean.shape)
        for name, fresh in layer.source.init(shape).items():
            getattr(layer, name).copy_(fresh)
        layer.num_batches_skipped.zero_()


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
    if layer.source.names:
        for name, given in labels.items():
            if not is_coded(given):
                raise FrameError(
                    f"{name}: a layer that remembers one statistic per label must know which is which in every batch; "
                    f"pass {name}=(codes, {layer.counts.get(name, 'n')})."
                )
    bound = door.bind(x, frame, {**sizes, **labels})
    for label, n in zip(frame.labels, bound.plan.counts, strict=True):
        if layer.counts.get(label.name, n) != n:
            raise FrameError(f"{label.name} takes {layer.counts[label.name]} values here; these labels take {n}.")
    if check_pool:
        door.check_pool(bound, where)
    return bound.plan, bound.codes


def _average(m: Moments, plan: Plan, state_frame: Frame) -> Moments:
    """The moments of the groups that are remembered: of the others, which come and go, the average.

    Instance norm measures every channel of every sample and remembers one pair per channel.
    """
    if plan.frame is state_frame:
        return m
    kept = plan.keep(state_frame, dict(zip((k.name for k in state_frame.labels), plan.counts, strict=False)))
    gone = tuple(i for i, atom in enumerate(plan.atoms) if atom not in kept.atoms)
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


def _check_parts(source: Any, gain: Any) -> None:
    if not (source is None or isinstance(source, Source)):
        raise TypeError(f"source={source!r} is not a source; pass for instance Running(0.1), Batch() or Frozen().")
    if not (gain is None or isinstance(gain, Gain)):
        raise TypeError(f'gain={gain!r} is not a gain; pass for instance Learned("c").')


def _whole(n: Any) -> Any:
    """NumPy's integers are integers."""
    return int(n) if hasattr(n, "__index__") and not isinstance(n, bool) else n


def _extent(frame: Frame, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a frame's groups where all of them have declared sizes."""
    out = []
    for item in frame.kept:
        n = 1
        for name in (item.name,) if isinstance(item, Label) else item if isinstance(item, tuple) else (item,):
            if isinstance(item, Label) and name not in sizes:
                raise FrameError(f'"{frame}" keeps one per {name}, which Learned does not: a gain is per axis.')
            if name not in sizes:
                raise FrameError(f'"{frame}" is learned or remembered per {name}: give its size, {name}=...')
            n *= sizes[name]
        out.append(n)
    return tuple(out)


def _remembered_groups(frame: Frame, sizes: Mapping[str, int]) -> Frame:
    """Of the groups of a frame, those that are there in every call: with declared sizes."""
    for label in frame.labels:
        if label.name not in sizes:
            raise FrameError(
                f'"{frame}" is remembered per {label.name}: give how many values it takes, {label.name}=...'
            )
    kept = tuple(item for item in frame.kept if _declared(item, sizes))
    if frame.kept and not kept:
        raise FrameError(
            f'"{frame}" has new groups in every call, so there is nothing to remember between calls: '
            f"use source=Batch(), or give the size of an axis it keeps."
        )
    return frame.keep(kept)


def _declared(item: Any, sizes: Mapping[str, int]) -> bool:
    names = (item.name,) if isinstance(item, Label) else item if isinstance(item, tuple) else (item,)
    return all(name in sizes for name in names)


def _check_declared(frame: Frame, sizes: Mapping[str, int], counts: Mapping[str, int]) -> None:
    for name, n in {**sizes, **counts}.items():
        if not isinstance(n, int) or isinstance(n, bool) or n <= 0:
            raise FrameError(f'"{frame}": {name}={n!r} is not a size; sizes are positive integers.')
        if name not in frame.names and name not in counts:
            raise FrameError(f'"{frame}" has no axis or label {name}; its axes are {", ".join(frame.names)}.')
