"""Mixed: learned mixtures of the statistics of several frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from homeostat.arrays import Array
from homeostat.frame import Frame, FrameError
from homeostat.moments import Moments
from homeostat.sources.base import Call, Regrouped, Source, State, Wrapped
from homeostat.sources.running import Running
from homeostat.trust import Fixed, Rule, Trust


@dataclass(frozen=True)
class Mixed(Wrapped):
    """A learned mixture of the statistics of several frames (switchable norm).

    mean = sum of p_k mean_k, var = sum of q_k var_k, p and q softmax of learned numbers. `keeps` are the frames, by
    what they keep: Mixed(("n c", "n", "c")) is instance, layer and batch norm. The one that pools the batch alone is
    as `inner` has it: in evaluation from memory, per domain, of parts, shrunk. One measurement, of the finest frame,
    serves them all: Moments add. Luo et al. 2018, arXiv:1806.10779.
    """

    keeps: tuple[str, ...] = ("n c", "n", "c")
    inner: Source = field(default_factory=Running)
    learns: ClassVar[tuple[str, ...]] = ("mix_mean", "mix_var")
    regroups = True
    merges = True
    refuses: ClassVar = {
        "Renorm": "Renorm corrects what was normalized, and only statistics mix",
        "Mixed": "one mixture names all its frames in keeps",
        "Synced": "it measures every sample by itself first, and those are not shared",
        "Virtual": "its statistic is of single samples, and the batch's part is wanted",
        "By": "it is a rule of its own, and the batch's part is wanted",
        "Partial": "it is a rule of its own, and the batch's part is wanted",
    }

    def __post_init__(self) -> None:
        if len(self.keeps) < 1:
            raise TypeError(f"{type(self).__name__} mixes one frame or more; keeps is empty.")
        self.check_inner()

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
        frame = call.frame.keep(finest)
        own = self.inner.regroup(call._replace(gain=frame))  # as if every sample had a gain: parts are labels then
        return own._replace(frame=frame.keep((*own.frame.labels, *finest)))

    def trust(self, state: State, training: bool) -> Trust:
        batch = self.inner.trust(state, training)
        if isinstance(batch, Fixed):
            batch = Fixed(batch.mean.clone(), batch.var.clone())
        return Rule(lambda m, each, eps, frame: self._mix(self.parts(m, batch, each, eps, frame), m, state, eps))

    def parts(self, m: Moments, batch: Trust, each: Any, eps: Any, frame: Frame) -> list[tuple[Array, Array]]:
        """Mean and variance of each frame, beside the finest one's groups."""
        found, samples, kept = [], frame.names[0], [str(item) for item in frame.kept]
        labels = [str(label) for label in frame.labels]
        for words in (keep.split() for keep in self.keeps):
            apart = samples not in words  # then labels part the samples; one that is by itself needs none
            stay = [*words, *labels] if apart else words
            whole = m.over(tuple(i for i, item in enumerate(kept) if item not in stay))
            at = kept.index(samples) - len(kept) if apart and samples in kept else None
            found.append(_of_batch(whole, batch, each, eps, frame, at) if apart else _of(whole))
        return found

    def _mix(self, parts: list[tuple[Array, Array]], m: Moments, state: State, eps: Any) -> tuple[Array, Array]:
        p, q = (state[name].to(m.mean.dtype).softmax(0) for name in self.learns)
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

        own = groups[len(self.counts) :]  # domains share it
        return self.inner.init(groups, **kind) | {"rho": torch.nn.Parameter(torch.ones(own, **kind))}

    def _mix(self, parts: list[tuple[Array, Array]], m: Moments, state: State, eps: Any) -> tuple[Array, Array]:
        rho = state["rho"].to(m.mean.dtype)
        rho = rho + (rho.clamp(0, 1) - rho).detach()  # with a gradient beyond the bounds too, so that it finds back
        (mean_b, var_b), (mean_i, var_i) = parts
        of_b, of_i = rho * (var_b + eps) ** -0.5, (1 - rho) * (var_i + eps) ** -0.5
        rate = of_b + of_i
        return (of_b * mean_b + of_i * mean_i) / rate, rate**-2 - eps


def _of(m: Moments) -> tuple[Array, Array]:
    return m.mean, m.m2 / (m.count + (m.count == 0))


def _of_batch(m: Moments, batch: Trust, each: Any, eps: Any, frame: Frame, at: int | None) -> tuple[Array, Array]:
    """The batch's part as its source has it, whose groups have no axis of samples; there it stands at `at`."""

    def without(part: Any) -> Any:
        return part if at is None or isinstance(part, float) else part.squeeze(at)

    if isinstance(batch, Fixed):
        found = tuple(part.to(m.mean.dtype) for part in (batch.mean, batch.var))
    elif isinstance(batch, Rule):
        groups = Moments(without(m.count), without(m.mean), without(m.m2))
        found = batch.of(groups, without(each), eps, frame)
    else:
        return _of(m)
    return found if at is None else tuple(part.unsqueeze(at) for part in found)
