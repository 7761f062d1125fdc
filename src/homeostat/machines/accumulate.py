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

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from homeostat import memory
from homeostat.arrays import Array
from homeostat.machines.convert import is_shared
from homeostat.moments import Moments
from homeostat.nn.preset import Preset
from homeostat.nn.states import check_module
from homeostat.norm import Norm
from homeostat.sources import Ghost, Source, State, Wrapped

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Held(Wrapped):
    """`inner`, but what is measured is kept instead of remembered."""

    inner: Source
    seen: list[Moments] = field(default_factory=list)

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        if bool((torch.isfinite(m.mean) & torch.isfinite(m.m2)).all()):
            self.seen.append(m)
        return dict(state)


def accumulate(model: nn.Module, microbatches: Iterable[T]) -> Iterator[T]:
    """Each part in turn; after the last, running statistics take one step with all parts together.

    A part that is not finite is left out. Where the loop ends early, nothing is remembered. Instance norm, Ghost and
    others that remember an average over groups average the parts, which is exact for parts of one size.
    """
    check_module(model, "accumulate")
    with held(model, lambda layer, source: Held(source)) as layers:
        yield from microbatches
    for layer, source, one in layers:
        if one.seen:
            settle(layer, source, one.seen)


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
    """One step of a layer's memory with all that was seen."""
    state = {name: layer._buffers[name] for name in source.names if name not in source.learns}
    if not state:
        return
    if state.get("num_batches_tracked", 0) is None:
        state["num_batches_tracked"] = torch.zeros((), dtype=torch.int64, device=seen[0].mean.device)
    if is_shared(layer) and not _parts(source):
        m = sum(seen[1:], seen[0])
    else:
        m = Moments(seen[0].count, sum(m.mean for m in seen) / len(seen), sum(m.m2 for m in seen) / len(seen))
    memory.remember(source, state, layer.num_batches_skipped, m, type(layer).__name__)


def _parts(source: Source) -> bool:
    """Does it measure parts of a batch apart?"""
    return isinstance(source, Ghost) or (isinstance(source, Wrapped) and _parts(source.inner))
