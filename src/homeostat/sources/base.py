"""Sources: where a statistic comes from. Each says what to trust before measuring and what to remember after.

    Batch()         trusts this tensor, remembers nothing
    Running(k)      trusts this tensor in training, b <- (1 - k) b + k new; in evaluation trusts b
    Cumulative()    the same with k = 1 / batches so far: the mean of all batches
    Renorm(r, d)    trusts this tensor as far as bounds let it stray from b, in training; in evaluation b
    Frozen(s)       trusts what s remembered, and nothing new, whatever `.train()` says
    Ghost(n)        measures every n samples apart
    Domain(n)       remembers one statistic per domain, named at the call
    Shrunk(n)       trusts this tensor and n samples' worth of memory together
    Virtual()       trusts each sample together with a reference batch
    Mixed(...)      trusts a learned mixture of several frames

A source is a frozen value without tensors. What it remembers lives on the layer, under torch's names; a variant is a
new class, shaped like its siblings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from homeostat.arrays import Array
from homeostat.frame import Frame
from homeostat.moments import Moments
from homeostat.trust import THROUGH, Trust

State = Mapping[str, Array]


class Call(NamedTuple):
    """What a source may look at to say who is measured."""

    frame: Frame  # of the layer; in evaluation by constants, of its memory
    gain: Frame | None
    shape: tuple[int, ...]
    training: bool
    given: Mapping[str, Any]  # what it asked for


class Regrouped(NamedTuple):
    """Another frame for the same tensor, with the sizes and labels it needs."""

    frame: Frame
    sizes: tuple[tuple[str, int], ...] = ()
    labels: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Source:
    """What every source answers, and the answers of one that trusts what it sees and forgets it."""

    names: ClassVar[tuple[str, ...]] = ()  # what it remembers, named as torch names it
    asks: ClassVar[tuple[str, ...]] = ()  # what must come with the call, by keyword
    learns: ClassVar[tuple[str, ...]] = ()  # which of `names` are parameters
    reads: ClassVar[bool] = False  # does y depend on memory in training?
    regroups: ClassVar[bool] = False  # does it measure other groups than the layer's?
    merges: ClassVar[bool] = False  # are those pooled before memory takes them in (or averaged)?
    averages: ClassVar[bool] = False  # is its step the running average's, which is written in C++ too?

    def regroup(self, call: Call) -> Regrouped:
        """Who is measured."""
        return Regrouped(call.frame)

    def remembers(self, frame: Frame) -> Frame:
        """The groups of memory, where the layer alone would remember those of `frame`."""
        return frame

    @property
    def counts(self) -> dict[str, int]:
        """How many values its own labels take."""
        return {}

    def writes(self, training: bool) -> bool:
        """Does this forward change memory?"""
        return training

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        """Fresh memory for this many groups, one entry per name; `kind` is device and dtype."""
        return {}

    def gather(self, m: Moments) -> Moments:
        """What others measured, added; differentiable."""
        return m

    def trust(self, state: State, training: bool) -> Trust:
        """Decided before measuring."""
        return THROUGH

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        """New memory from old memory and what was measured; pure. `m` is gathered and detached."""
        return {}

    def adapt(self, saved: dict[str, Array], fresh: State) -> dict[str, Array]:
        """Memory saved by another source, for this one: what has the shape of `fresh` stays."""
        return saved


@dataclass(frozen=True)
class Batch(Source):
    """The statistics of this very tensor, in training and evaluation alike."""


BATCH = Batch()


class Wrapped(Source):
    """A source around another: whatever it does not decide itself, `inner` does."""

    inner: Source

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.names

    @property
    def asks(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.asks

    @property
    def learns(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.learns

    @property
    def regroups(self) -> bool:  # type: ignore[override]
        return self.inner.regroups

    @property
    def reads(self) -> bool:  # type: ignore[override]
        return self.inner.reads

    @property
    def merges(self) -> bool:  # type: ignore[override]
        return self.inner.merges

    @property
    def averages(self) -> bool:  # type: ignore[override]
        return type(self).step is Wrapped.step and self.names == self.inner.names and self.inner.averages

    @property
    def counts(self) -> dict[str, int]:
        return self.inner.counts

    @property
    def momentum(self) -> Any:
        return getattr(self.inner, "momentum", None)

    def regroup(self, call: Call) -> Regrouped:
        return self.inner.regroup(call)

    def remembers(self, frame: Frame) -> Frame:
        return self.inner.remembers(frame)

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        return self.inner.init(groups, **kind)

    def writes(self, training: bool) -> bool:
        return self.inner.writes(training)

    def gather(self, m: Moments) -> Moments:
        return self.inner.gather(m)

    def trust(self, state: State, training: bool) -> Trust:
        return self.inner.trust(state, training)

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        return self.inner.step(state, m)

    def adapt(self, saved: dict[str, Array], fresh: State) -> dict[str, Array]:
        return self.inner.adapt(saved, fresh)
