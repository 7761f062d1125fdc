"""Domain: one statistic per domain, remembered apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from homeostat.arrays import Array
from homeostat.frame import Frame, FrameError, ShapeError
from homeostat.labels import resolve
from homeostat.sources.base import Call, Regrouped, Source, State, Wrapped
from homeostat.sources.regrouped import labelled, once, pooled_first, samples
from homeostat.sources.running import Running, beside, pool_domains
from homeostat.trust import Trust


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
    refuses: ClassVar = {
        "Frozen": "Frozen goes around Domain: write Frozen(Domain(...))",
        "Domain": "a domain of a domain is one more domain; give each pair a code of its own",
        "Virtual": "its reference is one for all domains; Domain keeps running averages",
        "Mixed": "all domains share what is learned there; put Domain inside it",
        "Partial": "what it learns has no value for a domain that was not seen",
    }

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"n={self.n!r} is how many domains there are, a whole number of at least 1.")
        self.check_inner()
        averages = self.averages and self.n > 1  # of one domain C++ would count a batch without samples
        self.say(asks=(self.name, *self.inner.asks), counts={self.name: self.n}, averages=averages)

    def remembers(self, frame: Frame) -> Frame:
        found = _by_domain(frame, self.name)
        return labelled(frame, self.name, pooled_first(frame, self)) if found is None else found

    def regroup(self, call: Call) -> Regrouped:
        import torch

        codes = call.given.get(self.name)
        if isinstance(codes, tuple):
            codes, n = codes
            if n != self.n:
                raise FrameError(f"{self} remembers {self.n} domains; these labels take {n} values.")
        if codes is None and call.training:
            raise FrameError(f"{self}: in training every sample has a domain; call layer(x, {self.name}=codes).")
        frame, rows = self.remembers(call.frame), self.n + (not call.training)  # the last is all of them, pooled
        codes = torch.full(call.shape[:1], self.n) if codes is None else codes
        if call.training and self.inner.regroups:
            codes = resolve(self.name, (codes, self.n), call.shape[:1], f"{self.name}[{frame.names[0]}]")[0]
        own = Regrouped(frame)
        if self.inner.regroups:
            own = self.inner.regroup(call._replace(frame=frame, apart=codes))
        return own._replace(labels={**own.labels, self.name: (codes, rows)})

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        return self.inner.init(groups, rows=groups[:1], **kind) if self.names else {}

    def held(self, state: State, training: bool) -> tuple[Array, Array]:
        """In evaluation, of an unseen domain and behind the last: all that were seen, pooled."""
        mean, var = self.inner.held(state, training)
        if training:
            return mean, var
        tracked = state["num_batches_tracked"]
        pooled = pool_domains(mean, var, tracked)
        seen = beside(tracked > 0, mean)
        mean, var = (_with_last(part.where(seen, all_), all_) for part, all_ in zip((mean, var), pooled, strict=True))
        return mean, var

    def trust(self, state: State, training: bool) -> Trust:
        if not training and self.names:
            state = {**state, **dict(zip(("running_mean", "running_var"), self.held(state, False), strict=True))}
        return self.inner.trust(state, training)

    def adapt(self, saved: dict[str, Array], fresh: State) -> dict[str, Array]:
        """Of no domains: every domain starts from it. Of fewer: the new ones start from all of them, pooled, unseen."""
        old = {name: saved[name] for name in Running.names if name in saved}
        if not {"running_mean", "running_var"} <= old.keys():
            return saved
        mean, new = old["running_mean"], fresh["running_mean"]
        if mean.shape == new.shape[1:]:
            old = {name: value.expand_as(fresh[name]).clone() for name, value in old.items()}
        elif mean.shape[1:] == new.shape[1:] and len(mean) < self.n:
            pooled = (*pool_domains(mean, old["running_var"], old.get("num_batches_tracked")), 0)
            old = {name: _longer(rows, more, self.n) for (name, rows), more in zip(old.items(), pooled, strict=False)}
        elif mean.shape[1:] == new.shape[1:] and len(mean) > self.n:
            raise ShapeError(
                f"{self} remembers {self.n} domains, and {len(mean)} were saved: make it Domain({len(mean)}), so that "
                f"none is lost."
            )
        return self.inner.adapt(saved | old, fresh)


@once
def _by_domain(frame: Frame, name: str) -> Frame | None:
    """Labelled, if it is not already; None where that cannot be."""
    if any(label.name == name for label in frame.labels):
        return frame
    axis = samples(frame)
    return None if axis is None else labelled(frame, name, axis)


def _with_last(rows: Array, last: Array) -> Array:
    import torch

    return torch.cat([rows, last[None]])


def _longer(rows: Array, more: Array | int, n: int) -> Array:
    """`n` rows, those behind the old ones alike."""
    new = rows.new_empty((n, *rows.shape[1:]))
    new[: len(rows)], new[len(rows) :] = rows, more
    return new
