"""Certificate: what surgery changed, by how much, and what it left alone and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Change:
    """One layer's; each act says more of its own."""

    layer: str
    kind: str


@dataclass(frozen=True)
class Shifted(Change):
    """`mean` and `var` are the largest steps of its statistics, in stored spreads and as a ratio."""

    mean: float  # largest |mean' - mean| / std over its groups
    var: float  # the ratio var' / var furthest from 1

    def __str__(self) -> str:
        return f"{self.layer} ({self.kind}): mean moves {self.mean:.3g} std, var by {self.var:.3g} times"


@dataclass(frozen=True)
class Certificate:
    """`drift` is the largest change of an output on the batches, in root mean squares of that output before.

    It is NaN where outputs are, or where there was no tensor among them.
    """

    act: str
    changed: tuple[Change, ...]
    left: tuple[tuple[str, str], ...]  # layer, why
    drift: float
    samples: int

    def __str__(self) -> str:
        lines = [f"{self.act}: {len(self.changed)} layers on {self.samples} samples; outputs move {self.drift:.3g} rms"]
        lines += [f"  {change}" for change in self.changed]
        return "\n".join(lines + [f"  left {layer}: {why}" for layer, why in self.left])


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of fractions in an output, whatever holds them."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = value.values()
    elif hasattr(value, "__dict__") and not _is_nest(value):
        value = vars(value).values()
    return [t for item in value for t in tensors_in(item)] if _is_nest(value) else []


def _is_nest(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes)


class Drift:
    """The largest |after - before|, in root mean squares of `before`; NaN where there is nothing to compare."""

    def __init__(self) -> None:
        self.worst = math.nan
        self.none = True

    def take(self, before: list[Tensor], after: list[Tensor]) -> None:
        for old, new in zip(before, after, strict=True):
            if self.none:
                self.worst, self.none = 0.0, False
            if old.numel():
                step = (new.double() - old.double()).abs().max()
                size = old.double().square().mean().sqrt().clamp_min(torch.finfo(old.dtype).tiny)
                ratio = (step / size).cpu()
                self.worst = float(torch.maximum(torch.tensor(self.worst, dtype=torch.float64), ratio))  # keeps NaN


def drift_of(before: list[Tensor], after: list[Tensor]) -> float:
    drift = Drift()
    drift.take(before, after)
    return drift.worst
