"""Sources that measure other groups than the layer's: parts of a batch, and domains."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from homeostat.arrays import Array, being_compiled
from homeostat.frame import ELLIPSIS, Frame, FrameError, Label
from homeostat.moments import Moments
from homeostat.sources.base import Batch, Call, Regrouped, Source, State, Wrapped
from homeostat.sources.running import Renorm, Running, is_average, pool_domains
from homeostat.trust import Fixed, Trust


@dataclass(frozen=True)
class Ghost(Wrapped):
    """In training every `size` samples are a batch of their own; what is left over is a smaller one.

    The noise of small batches at the speed of large ones (a regularizer). Memory takes the parts' mean moments in.
    Hoffer et al. 2017, arXiv:1705.08741.
    """

    size: int = 32
    inner: Source = field(default_factory=Running)
    regroups = True

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(
                f"size={self.size!r} is how many samples are measured together, a whole number of at least 1."
            )
        if type(self.inner) is not Batch and not is_average(self.inner):
            raise TypeError(f"Ghost measures parts of a batch; {self.inner} compares or groups them otherwise.")

    def regroup(self, call: Call) -> Regrouped:
        frame, n = call.frame, call.shape[0]
        if not call.training or n <= self.size:
            return Regrouped(frame)
        axis = pooled_first(frame, self)
        spanned = any(axis in label.axes for label in frame.labels)  # a split axis would leave its labels behind
        if n % self.size or spanned or (call.gain is not None and axis in kept_names(call.gain)):
            import torch

            label, codes = Label("ghost", (axis,)), (torch.arange(n) // self.size, -(-n // self.size))
            kept = (*frame.kept, label) if frame.labels else (label, *frame.kept)  # memory's labels stay the first
            return Regrouped(frame.keep(kept), (), {"ghost": codes})
        split = frame.split(axis, "ghost", axis)
        return Regrouped(split.keep(("ghost", *frame.kept)), (("ghost", n // self.size),))


@dataclass(frozen=True)
class Domain(Wrapped):
    """One statistic per domain; the domain of every sample comes with the call, `layer(x, domain=codes)`.

    In training each domain is measured apart, and remembered apart. In evaluation a domain that was never seen, and a
    call without domains, take all those that were, pooled. Chang et al. 2019, arXiv:1906.03950.
    """

    n: int
    inner: Source = field(default_factory=Running)
    name: str = "domain"
    regroups = True

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"n={self.n!r} is how many domains there are, a whole number of at least 1.")
        if type(self.inner) not in (Running, Renorm) or getattr(self.inner, "schedule", None):
            raise TypeError(f"Domain remembers Running or Renorm per domain, without a schedule; not {self.inner}.")

    @property
    def asks(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.name,)

    @property
    def counts(self) -> dict[str, int]:
        return {self.name: self.n}

    def remembers(self, frame: Frame) -> Frame:
        return (
            _by_domain(frame, self) if being_compiled() else _by_domain_cached(frame, self)
        )  # a graph traces no cache

    def regroup(self, call: Call) -> Regrouped:
        import torch

        codes = call.given.get(self.name)
        if isinstance(codes, tuple):
            codes, n = codes
            if n != self.n:
                raise FrameError(f"{self} remembers {self.n} domains; these labels take {n} values.")
        if codes is None and call.training:
            raise FrameError(f"{self}: in training every sample has a domain; call layer(x, {self.name}=codes).")
        frame = self.remembers(call.frame)
        if call.training:
            return Regrouped(frame, (), {self.name: (codes, self.n)})
        codes = torch.full(call.shape[:1], self.n) if codes is None else codes
        return Regrouped(frame, (), {self.name: (codes, self.n + 1)})  # the last is all of them, pooled

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        import torch

        tracked = torch.zeros(self.n, dtype=torch.int64, device=kind.get("device"))
        return self.inner.init(groups, **kind) | {"num_batches_tracked": tracked}

    def trust(self, state: State, training: bool) -> Trust:
        trust = self.inner.trust(state, training)
        if not isinstance(trust, Fixed):
            return trust
        tracked = state["num_batches_tracked"]
        pooled = pool_domains(trust.mean, trust.var, tracked)
        seen = (tracked > 0).reshape(-1, *(1,) * (trust.mean.dim() - 1))
        rows = (part.where(seen, all_) for part, all_ in zip((trust.mean, trust.var), pooled, strict=True))
        mean, var = (_with_last(part, all_) for part, all_ in zip(rows, pooled, strict=True))
        return Fixed(mean, var)

    @property
    def averages(self) -> bool:  # type: ignore[override]
        return self.n > 1  # row by row; of a single domain C++ would count a batch without samples

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        assert isinstance(self.inner, Running)
        count = m.count if not isinstance(m.count, float) else m.mean.new_full(m.mean.shape, m.count)
        seen = (count.reshape(len(count), -1) > 0).any(1)
        tracked = state["num_batches_tracked"] + seen
        k = self.inner.momentum
        k = 1.0 / tracked.clamp_min(1).to(m.mean.dtype).reshape(-1, *(1,) * (m.mean.dim() - 1)) if k is None else k
        return self.inner.blend(state, Moments(count, m.mean, m.m2), k) | {"num_batches_tracked": tracked}

    def adapt(self, saved: dict[str, Array], fresh: State) -> dict[str, Array]:
        """Of a source without domains: every domain starts from it."""
        return {
            name: value.expand_as(fresh[name]).clone() if name in fresh and value.dim() < fresh[name].dim() else value
            for name, value in saved.items()
        }


def _by_domain(frame: Frame, source: Domain) -> Frame:
    labelled = any(label.name == source.name for label in frame.labels)
    return frame if labelled else frame.label(source.name, pooled_first(frame, source))


_by_domain_cached = cache(_by_domain)


def _with_last(rows: Array, last: Array) -> Array:
    import torch

    return torch.cat([rows, last[None]])


def pooled_first(frame: Frame, source: Source) -> str:
    """The axis of the samples: the first, which all of them share a statistic along."""
    axis = frame.axes[0]
    if not isinstance(axis, str) or axis == ELLIPSIS or axis in kept_names(frame):
        raise FrameError(f'{source} parts the samples, the first axis, and "{frame}" does not pool over that.')
    return axis


def kept_names(frame: Frame) -> set[str]:
    return {name for item in frame.kept for name in (item if isinstance(item, tuple) else (str(item),))}
