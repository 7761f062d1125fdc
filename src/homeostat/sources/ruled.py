"""Sources that trust a rule: any function of what was measured and what is remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from homeostat.arrays import Array
from homeostat.frame import Frame, Label
from homeostat.moments import Moments
from homeostat.sources.base import Source, State, Wrapped
from homeostat.sources.running import Running
from homeostat.trust import Rule, Trust


@dataclass(frozen=True)
class Shrunk(Wrapped):
    """This tensor's statistics and memory's together, memory counting as much as `samples` samples.

    mean = (n m + s m') / (n + s), and the variance of both pooled: the Moments of a batch and of a prior, added. With
    few samples memory speaks, with many they do, in training and evaluation alike; memory goes on as `inner` has it,
    and each domain or part of a batch is shrunk by itself. Schneider et al. 2020, arXiv:2006.16971.
    """

    samples: float = 16.0
    inner: Source = field(default_factory=Running)
    reads = True
    refuses: ClassVar = {
        **dict.fromkeys(("Batch", "Virtual", "By", "Partial"), "it remembers no average to shrink towards"),
        "Renorm": "both say how far memory is trusted in training; take one",
        "Shrunk": "twice shrunk is once, by the samples of both; add them",
        "Mixed": "put Shrunk inside it, where it shrinks the batch's part",
    }

    def __post_init__(self) -> None:
        if not (isinstance(self.samples, int | float) and self.samples >= 0):
            raise ValueError(f"samples={self.samples!r} is how many samples memory counts as, a number from 0 on.")
        self.check_inner()

    def trust(self, state: State, training: bool) -> Trust:
        mean, var = (part.clone() for part in self.inner.held(state, training))

        def rule(m: Moments, each: Any, eps: Any, frame: Frame) -> tuple[Array, Array]:
            prior, wide = each * self.samples, m.mean.dtype
            both = m + Moments(prior, mean.to(wide).expand_as(m.mean), var.to(wide) * prior)
            return both.mean, both.var()

        return Rule(rule, empty=self.samples > 0)


@dataclass(frozen=True)
class By(Source):
    """Any rule of what is measured: `of(moments)` gives mean and variance, one per group, with or without a gradient.

    By(lambda m: (0 * m.mean, m.var())) scales without centring.
    """

    of: Callable[[Moments], tuple[Array, Array]]

    def trust(self, state: State, training: bool) -> Trust:
        return Rule(lambda m, each, eps, frame: self.of(_somebody(m)))


@dataclass(frozen=True)
class Partial(Source):
    """A learned share a of the mean is taken away, and the spread about that: var + (1 - a)^2 mean^2 (GraphNorm)."""

    names = learns = ("mean_scale",)

    def remembers(self, frame: Frame) -> Frame:
        return frame.keep(tuple(item for item in frame.kept if not isinstance(item, Label)))

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        import torch

        return {"mean_scale": torch.nn.Parameter(torch.ones(groups, **kind))}

    def writes(self, training: bool) -> bool:
        return False

    def trust(self, state: State, training: bool) -> Trust:
        def rule(m: Moments, each: Any, eps: Any, frame: Frame) -> tuple[Array, Array]:
            m = _somebody(m)
            a = state["mean_scale"].to(m.mean.dtype)
            return a * m.mean, m.var() + ((1 - a) * m.mean) ** 2

        return Rule(rule)


def _somebody(m: Moments) -> Moments:
    """A rule divides by the count: of a group nobody was measured in, that of one."""
    return Moments(m.count + (m.count == 0), m.mean, m.m2)
