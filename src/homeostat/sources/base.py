"""Sources: where a statistic comes from. Each says what to trust before measuring and what to remember after.

    Batch()         trusts this tensor, remembers nothing
    Running(k)      trusts this tensor in training, b <- (1 - k) b + k new; in evaluation trusts b
    Cumulative()    the same with k = 1 / batches so far: the mean of all batches
    Renorm(r, d)    trusts this tensor as far as bounds let it stray from b, in training; in evaluation b
    Frozen(s)       trusts what s remembered, and nothing new, whatever `.train()` says
    Ghost(n, s)     measures every n samples apart
    Domain(n, s)    remembers one statistic per domain, named at the call
    Shrunk(n, s)    trusts this tensor and n samples' worth of memory together
    Virtual(x)      trusts each sample together with a reference batch
    Mixed(..., s)   trusts a learned mixture of several frames

A source is a frozen value without tensors. What it remembers lives on the layer, under torch's names; a variant is a
new class, shaped like its siblings. One around another (`Wrapped`) decides one thing and leaves the rest to it: who is
measured (Ghost, Domain, Mixed), which memory belongs to whom (`held`), what is trusted (Shrunk, Mixed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from homeostat.arrays import Array
from homeostat.frame import Frame
from homeostat.moments import Moments
from homeostat.trust import THROUGH, Trust

State = Mapping[str, Array]
Look = Callable[[Array], Moments]


class Call(NamedTuple):
    """What a source may look at to say who is measured."""

    frame: Frame  # of the layer; in evaluation by constants, of its memory
    gain: Frame | None
    shape: tuple[int, ...]
    training: bool
    given: Mapping[str, Any]  # what it asked for
    apart: Array | None = None  # codes of samples that are not measured together anyway


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
    counts: ClassVar[Mapping[str, int]] = {}  # how many values its own labels take

    def regroup(self, call: Call) -> Regrouped:
        """Who is measured."""
        return Regrouped(call.frame)

    def remembers(self, frame: Frame) -> Frame:
        """The groups of memory, where the layer alone would remember those of `frame`."""
        return frame

    def writes(self, training: bool) -> bool:
        """Does this forward change memory?"""
        return training

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        """Fresh memory for this many groups, one entry per name; `kind` is device and dtype."""
        return {}

    def ranks(self, layer: Any) -> Any:
        """The processes that measure together with this one (kernels/ranks.py), if there are any."""
        return None

    def placed(self, fresh: dict[str, Array], frame: Frame, look: Look) -> tuple[Source, dict[str, Array]]:
        """As a layer of this frame keeps it, which measures by `look`: what was brought along has become memory."""
        return self, fresh

    def held(self, state: State, training: bool) -> tuple[Array, Array]:
        """The mean and variance that are remembered, as they stand beside the groups of this call."""
        return state["running_mean"], state["running_var"]

    def trust(self, state: State, training: bool) -> Trust:
        """Decided before measuring."""
        return THROUGH

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        """New memory from old memory and what was measured; pure. `m` is detached, and of all ranks."""
        return {}

    def adapt(self, saved: dict[str, Array], fresh: State) -> dict[str, Array]:
        """Memory saved by another source, for this one: what has the shape of `fresh` stays."""
        return saved


@dataclass(frozen=True)
class Batch(Source):
    """The statistics of this very tensor, in training and evaluation alike."""

    def writes(self, training: bool) -> bool:
        return False


BATCH = Batch()
INHERITED = ("names", "asks", "learns", "regroups", "reads", "merges", "counts", "momentum")


class Wrapped(Source):
    """A source around another: whatever it does not decide itself, `inner` does."""

    inner: Source
    refuses: ClassVar[Mapping[str, str]] = {}  # what it does not go around, and why
    momentum: ClassVar[Any] = None

    def __post_init__(self) -> None:
        self.check_inner()

    def check_inner(self) -> None:
        """May this go around all that is inside? Then what goes for `inner` goes for this, unless it says otherwise."""
        name, part = type(self).__name__, self.inner
        while True:
            if not isinstance(part, Source):
                raise TypeError(f"{name} goes around a source, such as Running(); {part!r} is none.")
            kinds = [kind.__name__ for kind in type(part).__mro__]
            why = next((self.refuses[kind] for kind in kinds if kind in self.refuses), None)
            if why is not None:
                raise TypeError(f"{name} does not go around {self.inner}: {why}.")
            if not isinstance(part, Wrapped):
                break
            part = part.inner
        kinds_below = type(self).__mro__[: type(self).__mro__.index(Wrapped)]
        said = {name for kind in kinds_below for name in vars(kind)}
        self.say(**{name: getattr(self.inner, name, None) for name in INHERITED if name not in said})
        if "averages" not in said:
            plain = type(self).step is Wrapped.step and self.names == self.inner.names
            self.say(averages=plain and self.inner.averages)

    def say(self, **facts: Any) -> None:
        """Kept as they are: every forward asks, and a property that asks the next one inside takes its time."""
        for name, value in facts.items():
            object.__setattr__(self, name, value)

    def regroup(self, call: Call) -> Regrouped:
        return self.inner.regroup(call)

    def remembers(self, frame: Frame) -> Frame:
        return self.inner.remembers(frame)

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        return self.inner.init(groups, **kind)

    def writes(self, training: bool) -> bool:
        return self.inner.writes(training)

    def placed(self, fresh: dict[str, Array], frame: Frame, look: Look) -> tuple[Source, dict[str, Array]]:
        inner, fresh = self.inner.placed(fresh, frame, look)
        return self if inner is self.inner else replace(self, inner=inner), fresh  # type: ignore[call-arg]

    def held(self, state: State, training: bool) -> tuple[Array, Array]:
        return self.inner.held(state, training)

    def ranks(self, layer: Any) -> Any:
        return self.inner.ranks(layer)

    def trust(self, state: State, training: bool) -> Trust:
        return self.inner.trust(state, training)

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        return self.inner.step(state, m)

    def adapt(self, saved: dict[str, Array], fresh: State) -> dict[str, Array]:
        return self.inner.adapt(saved, fresh)
