"""Virtual: each sample beside a reference batch, chosen once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from homeostat.arrays import Array, being_compiled
from homeostat.frame import Frame, FrameError, ShapeError
from homeostat.moments import Moments
from homeostat.sources.base import Call, Look, Regrouped, Source, State
from homeostat.sources.regrouped import pooled_first
from homeostat.trust import THROUGH, Rule, Trust

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

    The Moments of the sample and of the reference, added. `reference` is a batch as the layer is given them, or its
    Moments; the layer that is made with it measures it and keeps no more than that. A whole network records its
    references, each layer what the layers before make of the batch, by a forward within `hs.recording()`, and again
    whenever these have changed. Until then, and after a reset, a sample stands alone.
    Salimans et al. 2016, arXiv:1606.03498.
    """

    reference: Any = field(default=None, repr=False, compare=False)
    names = ("reference_count", "reference_mean", "reference_var")
    regroups = True

    def regroup(self, call: Call) -> Regrouped:
        if self.reference is not None:
            raise TypeError(f"{self} brings a reference, which a layer takes in when it is made with source=.")
        return Regrouped(call.frame if _RECORDING else _by_sample(call.frame, self))

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        import torch

        count = torch.zeros(groups, dtype=torch.int64, device=kind.get("device"))  # whole, so that half() spares it
        return dict(zip(self.names, (count, torch.zeros(groups, **kind), torch.ones(groups, **kind)), strict=True))

    def placed(self, fresh: dict[str, Array], frame: Frame, look: Look) -> tuple[Source, dict[str, Array]]:
        if self.reference is None:
            return self, fresh
        pooled_first(frame, self)
        new = self.step(fresh, self._measured(frame, look, fresh["reference_mean"]))
        return Virtual(), {name: new[name].to(old) for name, old in fresh.items()}

    def writes(self, training: bool) -> bool:
        return bool(_RECORDING)

    def trust(self, state: State, training: bool) -> Trust:
        if _RECORDING:
            return THROUGH
        count, mean, var = (state[name].clone() for name in self.names)

        def rule(m: Moments, each: Any, eps: Any, frame: Frame) -> tuple[Array, Array]:
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

    def _measured(self, frame: Frame, look: Look, like: Array) -> Moments:
        """The reference's moments, as tensors; refused where they are not those of this layer."""
        import torch

        given: Any = self.reference
        if not isinstance(given, Moments):
            if not torch.is_tensor(given):
                raise TypeError(f"{self}: a reference is a tensor or Moments; this is {type(given).__name__}.")
            if frame.labels:
                raise FrameError(f'"{frame}" has labels: give the reference as Moments, hs.measure(x, pattern, ...).')
            given = look(given.detach())
        parts = (torch.as_tensor(part, dtype=torch.float64) for part in (given.count, given.mean, given.m2))
        count, mean, m2 = (part.detach().to(like.device) for part in parts)
        if mean.shape != like.shape or m2.shape != like.shape or count.dim() > like.dim():
            raise ShapeError(
                f'{self}: the reference has {tuple(mean.shape)} groups and a layer of "{frame}" {tuple(like.shape)}; '
                f"measure a batch as it comes to this layer."
            )
        m = Moments(count.expand_as(mean), mean, m2)
        if not mean.is_meta and not all(part.to(like.dtype).isfinite().all() for part in (m.mean, m.m2 / m.count)):
            raise ValueError(f"{self}: the reference is empty or has values that are not finite in {like.dtype}.")
        return m


def _by_sample(frame: Frame, source: Source) -> Frame:
    return frame.keep((pooled_first(frame, source), *frame.kept))
