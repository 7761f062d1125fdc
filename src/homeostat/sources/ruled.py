"""Sources that trust a rule: any function of what was measured and what is remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from homeostat.arrays import Array, being_compiled
from homeostat.frame import Frame, FrameError, Label
from homeostat.moments import Moments
from homeostat.sources.base import Call, Regrouped, Source, State, Wrapped
from homeostat.sources.regrouped import pooled_first
from homeostat.sources.running import Running, is_average
from homeostat.trust import THROUGH, Rule, Trust


@dataclass(frozen=True)
class Shrunk(Wrapped):
    """This tensor's statistics and memory's together, memory counting as much as `samples` samples.

    mean = (n m + s m') / (n + s), and the variance of both pooled: the Moments of a batch and of a prior, added. With
    few samples memory speaks, with many they do, in training and evaluation alike; memory goes on as `inner` has it.
    Schneider et al. 2020, arXiv:2006.16971.
    """

    samples: float = 16.0
    inner: Source = field(default_factory=Running)
    reads = True

    def __post_init__(self) -> None:
        if not (isinstance(self.samples, int | float) and self.samples >= 0):
            raise ValueError(f"samples={self.samples!r} is how many samples memory counts as, a number from 0 on.")
        if not is_average(self.inner):
            raise TypeError(f"Shrunk shrinks towards a running average; {self.inner} is none.")

    def trust(self, state: State, training: bool) -> Trust:
        mean, var = (state[name].clone() for name in ("running_mean", "running_var"))

        def rule(m: Moments, samples: int, eps: Any, kept: Any) -> tuple[Array, Array]:
            prior = (m.count + (m.count == 0)) / max(samples, 1) * self.samples
            both = m + Moments(prior, mean.to(m.mean.dtype), var.to(m.mean.dtype) * prior)
            return both.mean, both.var()

        return Rule(rule, empty=self.samples > 0)


_RECORDING: list[bool] = []


@contextmanager
def recording() -> Iterator[None]:
    """Within, layers with a Virtual source measure the whole batch and keep it as their reference.

    with hs.recording():
        model(reference)

    What is checkpointed is computed again in the backward pass, which must then run within it too.
    """
    _RECORDING.append(True)
    try:
        yield
    finally:
        _RECORDING.pop()


@dataclass(frozen=True)
class Virtual(Source):
    """Each sample together with a reference batch, chosen once: no sample sees its companions (virtual batch norm).

    The Moments of the sample and of the reference, added. The reference is measured by a forward within
    `hs.recording()`, and again whenever the layers before it have changed; until then a sample stands alone.
    Salimans et al. 2016, arXiv:1606.03498.
    """

    names = ("reference_count", "reference_mean", "reference_var")
    regroups = True

    def regroup(self, call: Call) -> Regrouped:
        return Regrouped(call.frame if _RECORDING else _by_sample(call.frame, self))

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        import torch

        count = torch.zeros(groups, dtype=torch.int64, device=kind.get("device"))  # whole, so that half() spares it
        return dict(zip(self.names, (count, torch.zeros(groups, **kind), torch.ones(groups, **kind)), strict=True))

    def writes(self, training: bool) -> bool:
        return bool(_RECORDING)

    def trust(self, state: State, training: bool) -> Trust:
        if _RECORDING:
            return THROUGH
        count, mean, var = (state[name].clone() for name in self.names)

        def rule(m: Moments, samples: int, eps: Any, kept: Any) -> tuple[Array, Array]:
            if isinstance(m.count, float) and m.count == 1 and not being_compiled() and not count.any():
                raise RuntimeError(f"{self}: one value per sample says nothing; record a reference, hs.recording().")
            wide = m.mean.dtype
            n = count.to(wide).expand_as(m.mean)
            both = m + Moments(n, mean.to(wide).expand_as(m.mean), var.to(wide) * n)
            return both.mean, both.m2 / (both.count + (both.count == 0))

        return Rule(rule, empty=True)

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        count = (state["reference_count"] * 0 + m.count).round()
        some = m.count + (m.count == 0)
        return {"reference_count": count, "reference_mean": m.mean, "reference_var": m.m2 / some}


@dataclass(frozen=True)
class Mixed(Wrapped):
    """A learned mixture of the statistics of several frames (switchable norm).

    mean = sum of p_k mean_k, var = sum of q_k var_k, p and q softmax of learned numbers. `keeps` are the frames, by
    what they keep: Mixed(("n c", "n", "c")) is instance, layer and batch norm. In evaluation the one that pools the
    batch alone is taken from memory. One measurement, of the finest frame, serves them all: Moments add.
    Luo et al. 2018, arXiv:1806.10779.
    """

    keeps: tuple[str, ...] = ("n c", "n", "c")
    inner: Source = field(default_factory=Running)
    learns: ClassVar[tuple[str, ...]] = ("mix_mean", "mix_var")
    regroups = True
    merges = True

    def __post_init__(self) -> None:
        if len(self.keeps) < 1 or not is_average(self.inner):
            name = type(self).__name__
            raise TypeError(f"{name} mixes one frame or more, and remembers a running average; {self.inner} is none.")

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.inner.names, *self.learns)

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        import torch

        mix = {name: torch.nn.Parameter(torch.zeros(len(self.keeps), **kind)) for name in self.learns}
        return self.inner.init(groups, **kind) | mix

    def regroup(self, call: Call) -> Regrouped:
        names = call.frame.names
        memory = tuple(item for item in call.frame.kept if item != names[0])
        parts = [set(keep.split()) for keep in self.keeps]
        finest = tuple(name for name in names if name in memory or any(name in part for part in parts))
        known = all(part <= set(names) and (names[0] in part or part == set(memory)) for part in parts)
        if not known or memory != finest[len(finest) - len(memory) :]:
            raise FrameError(
                f'{self} does not fit "{call.frame}": each of its keeps names axes of that, no labels, and one that '
                f'pools over {names[0]} is what is remembered, "{" ".join(map(str, memory))}", the last axes of all.'
            )
        return Regrouped(call.frame.keep(finest))

    def trust(self, state: State, training: bool) -> Trust:
        held = None if training else tuple(state[name].clone() for name in ("running_mean", "running_var"))
        return Rule(lambda m, samples, eps, kept: self._mix(m, state, held, eps, kept))

    def parts(self, m: Moments, held: tuple[Array, Array] | None, kept: tuple[str, ...]) -> list[tuple[Array, Array]]:
        """Mean and variance of each frame, beside the finest one's groups."""
        found = []
        for keep in self.keeps:
            gone = tuple(i for i, name in enumerate(kept) if name not in keep.split())
            if held is not None and gone == tuple(range(len(kept) - held[0].dim())):
                found.append((held[0].to(m.mean.dtype), held[1].to(m.mean.dtype)))
                continue
            whole = m.over(gone)
            found.append((whole.mean, whole.m2 / whole.count))
        return found

    def _mix(
        self, m: Moments, state: State, held: tuple[Array, Array] | None, eps: Any, kept: tuple[str, ...]
    ) -> tuple[Array, Array]:
        p, q = (state[name].to(m.mean.dtype).softmax(0) for name in self.learns)
        parts = self.parts(m, held, kept)
        mean = sum(p[k] * part for k, (part, _) in enumerate(parts))
        var = sum(q[k] * part for k, (_, part) in enumerate(parts))
        return mean.expand_as(m.mean), var.expand_as(m.mean)


@dataclass(frozen=True)
class Blended(Mixed):
    """y = rho y_batch + (1 - rho) y_instance, rho learned per channel within 0 and 1 (batch-instance norm).

    Nam & Kim 2018, arXiv:1805.07925.
    """

    keeps: tuple[str, ...] = ("c", "n c")
    learns: ClassVar[tuple[str, ...]] = ("rho",)

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        import torch

        return self.inner.init(groups, **kind) | {"rho": torch.nn.Parameter(torch.ones(groups, **kind))}

    def _mix(
        self, m: Moments, state: State, held: tuple[Array, Array] | None, eps: Any, kept: tuple[str, ...]
    ) -> tuple[Array, Array]:
        rho = state["rho"].to(m.mean.dtype)
        rho = rho + (rho.clamp(0, 1) - rho).detach()  # with a gradient beyond the bounds too, so that it finds back
        (mean_b, var_b), (mean_i, var_i) = self.parts(m, held, kept)
        of_b, of_i = rho * (var_b + eps) ** -0.5, (1 - rho) * (var_i + eps) ** -0.5
        rate = of_b + of_i
        return (of_b * mean_b + of_i * mean_i) / rate, rate**-2 - eps


def _by_sample(frame: Frame, source: Source) -> Frame:
    return frame.keep((pooled_first(frame, source), *frame.kept))


@dataclass(frozen=True)
class By(Source):
    """Any rule of what is measured: `of(moments)` gives mean and variance, one per group, with or without a gradient.

    By(lambda m: (0 * m.mean, m.var())) scales without centring.
    """

    of: Callable[[Moments], tuple[Array, Array]]

    def trust(self, state: State, training: bool) -> Trust:
        return Rule(lambda m, samples, eps, kept: self.of(m))


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
        def rule(m: Moments, samples: int, eps: Any, kept: Any) -> tuple[Array, Array]:
            a = state["mean_scale"].to(m.mean.dtype)
            return a * m.mean, m.var() + ((1 - a) * m.mean) ** 2

        return Rule(rule)
