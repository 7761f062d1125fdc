"""Norm = frame + source + gain.

Norm("n c ... -> c", source=Running(0.1), gain=Learned("c"), c=64)       batch norm
Norm("... d -> ...", gain=Learned("d"), d=512)                           layer norm
Norm("b t (h d) -> b t h", center=False, gain=Learned("d"), h=8, d=64)   RMS norm per head
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from homeostat import door
from homeostat.forward import add, run
from homeostat.frame import Frame, FrameError, Label
from homeostat.gains import Conditional, Gain
from homeostat.labels import is_coded, resolve
from homeostat.plan import plan_for
from homeostat.sources import Batch, Source


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
