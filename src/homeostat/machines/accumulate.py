"""Accumulate: one batch in several parts, whose running statistics are those of the whole.

    for x in hs.accumulate(model, batch.chunk(4)):
        loss(model(x)).backward()
    optimizer.step()

Memory takes one step, with the Moments of all parts added. What stays different from one batch:

    y         each part is normalized by its own mean and variance
    dx        flows through the part's own statistics: r (g - (sum g + xhat sum g xhat) / n) with sums and n of the part
    deeper    layers measure what earlier ones made of each part

`as_one` (whole.py) has none of these differences, at a cost.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import nn

from homeostat import memory
from homeostat.arrays import Array
from homeostat.machines.convert import is_shared, of_its_own
from homeostat.moments import Moments
from homeostat.nn.adopt import OURS, plain_class
from homeostat.nn.batch import _Batch
from homeostat.nn.preset import Preset
from homeostat.nn.states import check_module
from homeostat.norm import Norm
from homeostat.sources import Ghost, Source, State, Wrapped

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Held(Wrapped):
    """`inner`, but what is measured is kept instead of remembered."""

    inner: Source
    seen: list[Moments] = field(default_factory=list)  # call by call, of this part
    parts: list[list[Moments]] = field(default_factory=list)

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        self.seen.append(m)
        return dict(state)

    def turn(self) -> None:
        """The part is over."""
        self.parts.append(self.seen.copy())
        self.seen.clear()


def accumulate(model: nn.Module, microbatches: Iterable[T]) -> Iterator[T]:
    """Each part in turn; after the last, running statistics take one step with all parts together.

    A part that is not finite is left out, and a layer that is called several times takes as many steps. Where the loop
    ends early, nothing is remembered. Instance norm, Ghost and others that remember an average over groups average the
    parts, which is exact for parts of one size. Layers that are not ours go on by themselves, and a warning names them.
    """
    check_module(model, "accumulate")
    theirs = not_ours(model)
    if theirs:
        warnings.warn(f"homeostat.accumulate leaves {len(theirs)} alone: " + "; ".join(theirs), stacklevel=2)
    with held(model, lambda layer, source: Held(source)) as layers:
        for part in microbatches:
            yield part
            for _, _, one in layers:
                one.turn()
    for layer, source, one in layers:
        for call in zip_longest(*one.parts):
            settle(layer, source, [m for m in call if m is not None])


def not_ours(model: nn.Module) -> list[str]:
    """Layers that share a statistic between samples, and that nobody can hold."""
    found = []
    for name, layer in model.named_modules():
        ours = OURS.get(plain_class(layer))
        why = "torch's, hs.adopt makes it ours" if ours is not None and issubclass(ours, _Batch) else of_its_own(layer)
        if why and layer.training:
            found.append(f"{name or 'the model itself'} ({type(layer).__name__}): {why}")
    return found


@contextmanager
def held(model: nn.Module, make: Callable[[Any, Source], Held]) -> Iterator[list[tuple[Any, Source, Held]]]:
    """Within, every norm has the source that `make` puts around its own."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, Norm | Preset)]
    found = [(layer, layer.source, make(layer, layer.source)) for layer in layers]
    given = [layer._given if isinstance(layer, Preset) else layer.source for layer in layers]
    for layer, _, one in found:
        layer.source = one
    try:
        yield found
    finally:
        for layer, own in zip(layers, given, strict=True):
            layer.source = own


def settle(layer: Any, source: Source, seen: list[Moments]) -> None:
    """One step of a layer's memory with all that was seen and is finite."""
    seen = [m for m in seen if bool((torch.isfinite(m.mean) & torch.isfinite(m.m2)).all())]
    state = {name: layer._buffers[name] for name in source.names if name not in source.learns}
    if not state or not seen:
        return
    if state.get("num_batches_tracked", 0) is None:
        state["num_batches_tracked"] = torch.zeros((), dtype=torch.int64, device=seen[0].mean.device)
    m = sum(seen[1:], seen[0]) if is_shared(layer) and not measures_parts(source) else _average(seen)
    memory.remember(source, state, layer.num_batches_skipped, m, type(layer).__name__)


def _average(seen: list[Moments]) -> Moments:
    """Of means and of unbiased variances, over the parts that somebody was measured in."""
    n = torch.stack([m.count + 0.0 * m.mean for m in seen])
    some, two = (n > 0).double(), (n > 1).double()
    mean = (torch.stack([m.mean for m in seen]) * some).sum(0) / some.sum(0).clamp_min(1)
    var = torch.stack([m.m2 for m in seen]) / (n - 1).clamp_min(1e-30) * two
    var = var.sum(0) / two.sum(0).clamp_min(1)
    return Moments(some.amax(0) * (1 + two.amax(0)), mean, var)  # at count 2, M2 / (count - 1) is that variance


def measures_parts(source: Source, kinds: tuple[type, ...] = (Ghost,)) -> bool:
    """Does it measure parts of a batch apart?"""
    return isinstance(source, kinds) or (isinstance(source, Wrapped) and measures_parts(source.inner, kinds))
