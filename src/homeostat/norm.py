"""Norm = frame + source + gain.

Norm("n c ... -> c", source=Running(0.1), gain=Learned("c"), c=64)       batch norm
Norm("... d -> ...", gain=Learned("d"), d=512)                           layer norm
Norm("b t (h d) -> b t h", center=False, gain=Learned("d"), h=8, d=64)   RMS norm per head
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from homeostat import door
from homeostat.forward import add, asked, run
from homeostat.frame import Frame, FrameError
from homeostat.gains import Gain, declares, extent
from homeostat.reading import measure
from homeostat.sources import Batch, Source
from homeostat.sources.kalman import OWN as CHOOSING


class Norm(nn.Module):
    """Normalize by a frame, with statistics from a source, and put a gain back.

    Sizes (`c=64`) are needed for what is learned or remembered; `lab=8` says how many values a label takes. Labels
    themselves come with the call: `norm(x, lab=codes)`.
    """

    weight: Tensor | None
    bias: Tensor | None
    _version = 1  # of its buffers, in the metadata of a state_dict

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
        own_sizes = {} if gain is None else gain.sizes_in(self.frame)
        sizes = {**own_sizes, **{name: _whole(n) for name, n in sizes.items()}}
        self.source = Batch() if source is None else source
        self.gain, self.eps, self.center = gain, eps, center
        self.gain_frame = None if gain is None else gain.applied_in(self.frame)
        own = () if gain is None else gain.labels_in(self.frame)
        labels = {label.name for label in (*self.frame.labels, *own)}
        self.sizes = {name: n for name, n in sizes.items() if name not in labels}
        self.counts = {name: n for name, n in sizes.items() if name in labels}
        self.asks = (*labels, *self.source.asks, *(() if gain is None else gain.asks))
        _check_declared(self.frame, self.sizes, self.counts)
        kind = {"device": device, "dtype": dtype}
        (Gain("") if gain is None else gain).make(self, self.frame, sizes, kind)
        self.state_frame = self.frame
        if self.source.names:
            sizes = {**sizes, **self.source.counts}
            groups = self.source.remembers(self.frame)
            self.state_frame = _remembered_groups(groups, sizes)
            check_memory(self.source, groups, self.state_frame)
            fresh = self.source.init(extent(self.state_frame, sizes), **kind)
            look = partial(measure, pattern=self.frame, center=center, **self.sizes)
            self.source, fresh = self.source.placed(fresh, self.frame, look)
            hold(self, fresh, device)

    def reset_parameters(self) -> None:
        """Gains back to the identity, memory back to its beginning."""
        if self.gain is not None:
            self.gain.reset(self)
        forget(self)

    def forward(self, x: Tensor, where: Tensor | None = None, **given: Any) -> Tensor:
        given = asked(self.asks, given)
        gain = None if self.gain is None or self.gain.constant else self.gain.at(self, x, given)
        return run(self, x, self.frame, tuple(self.sizes.items()), where, given, gain=gain)

    def add(self, x: Tensor, other: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        """x + other, and that normalized: a residual stream in one pass over memory."""
        if self.asks or given or not (self.gain is None or self.gain.constant):
            total = x + other
            return total, self(total, **given)
        return add(self, x, other, self.frame, tuple(self.sizes.items()))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        adapt(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        sizes = "".join(f", {name}={n}" for name, n in {**self.sizes, **self.counts}.items())
        center = "" if self.center else ", center=False"
        gain = "" if self.gain is None else f", gain={self.gain}"
        return f'"{self.frame}", source={self.source}{gain}, eps={self.eps}{center}{sizes}'


def hold(layer: nn.Module, state: Mapping[str, Tensor], device: Any = None) -> None:
    """Register a source's memory on a layer: buffers under torch's names, and a counter of skipped batches."""
    for name, value in state.items():
        if isinstance(value, nn.Parameter):
            layer.register_parameter(name, value)
        else:
            layer.register_buffer(name, value)
    count_skipped(layer, device)


def adapt(layer: Any, state_dict: dict[str, Any], prefix: str) -> None:
    """Memory that another source saved, for this one: domains start from a plain one, a plain one pools domains.

    What is learned beside it stays as it is; what only served to choose a momentum is not needed elsewhere.
    """
    own = {name: layer._buffers.get(name) for name in layer.source.names if name not in layer.source.learns}
    saved = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
    if "running_mean" not in saved or any(b is None or is_lazy(b) for b in own.values()):
        return
    for name in set(CHOOSING) - own.keys():
        state_dict.pop(prefix + name, None)
    for name in layer.source.learns:
        state_dict.setdefault(prefix + name, layer._parameters[name].detach())
    if saved.keys() == own.keys() and all(v.shape == own[n].shape for n, v in saved.items()):
        return
    state_dict.update({prefix + name: value for name, value in layer.source.adapt(saved, own).items()})


def count_skipped(layer: nn.Module, device: Any = None) -> None:
    """Not in the state_dict, whose keys are torch's."""
    counter = torch.zeros((), dtype=torch.int64, device=device)
    layer.register_buffer("num_batches_skipped", counter, persistent=False)


def forget(layer: Any) -> None:
    """Memory back to its beginning, in place."""
    if set(layer.source.names) - set(layer.source.learns):
        groups = next(b for name in layer.source.names if (b := getattr(layer, name)).dim())
        with torch.no_grad():
            for name, fresh in layer.source.init(tuple(groups.shape)).items():
                getattr(layer, name).copy_(fresh)
        layer.num_batches_skipped.zero_()


def _check_parts(source: Any, gain: Any) -> None:
    if not (source is None or isinstance(source, Source)):
        raise TypeError(f"source={source!r} is not a source; pass for instance Running(0.1), Batch() or Frozen().")
    if not (gain is None or isinstance(gain, Gain)):
        raise TypeError(f'gain={gain!r} is not a gain; pass for instance Learned("c").')


def check_memory(source: Source, groups: Frame, memory: Frame) -> None:
    """What is set beside memory in training needs one there for each group; what is learned stands last."""
    if source.reads and memory.kept != groups.kept:
        raise FrameError(
            f'{source} sets each group of "{groups}" beside its memory, and only those of "{memory}" have one; the '
            f"others are new in every call. Running() remembers their average."
        )
    if source.learns and memory.kept != groups.kept[len(groups.kept) - len(memory.kept) :]:
        raise FrameError(f'{source} learns one number per group of "{memory}": write these last in "{groups}".')


def _whole(n: Any) -> Any:
    """NumPy's integers are integers."""
    return int(n) if hasattr(n, "__index__") and not isinstance(n, bool) else n


def _remembered_groups(frame: Frame, sizes: Mapping[str, int]) -> Frame:
    """Of the groups of a frame, those that are there in every call: with declared sizes."""
    for label in frame.labels:
        if label.name not in sizes:
            raise FrameError(
                f'"{frame}" is remembered per {label.name}: give how many values it takes, {label.name}=...'
            )
    kept = tuple(item for item in frame.kept if declares(item, sizes))
    if frame.kept and not kept:
        raise FrameError(
            f'"{frame}" has new groups in every call, so there is nothing to remember between calls: '
            f"use source=Batch(), or give the size of an axis it keeps."
        )
    return frame.keep(kept)


def _check_declared(frame: Frame, sizes: Mapping[str, int], counts: Mapping[str, int]) -> None:
    for name, n in {**sizes, **counts}.items():
        if not isinstance(n, int) or isinstance(n, bool) or n <= 0:
            raise FrameError(f'"{frame}": {name}={n!r} is not a size; sizes are positive integers.')
        if name not in frame.names and name not in counts:
            raise FrameError(f'"{frame}" has no axis or label {name}; its axes are {", ".join(frame.names)}.')
