"""Outputs: a row per sample, of a few columns, as soon as they come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from homeostat.doctor.facts import Array, Seen
from homeostat.surgery.certificate import tensors_in

COLUMNS, CLASSES = 4096, 10_000  # columns kept at most; as many classes as they can be


@dataclass(frozen=True)
class Rows:
    """Of one batch. `shape` is that of a sample's whole output."""

    values: Array  # [samples, columns] in float64
    shape: tuple[int, ...]

    @property
    def classes(self) -> bool:
        return len(self.shape) == 1 and 2 <= self.shape[0] <= CLASSES


def rows(out: Any, samples: int | None) -> Rows | None:
    """Of the first tensor of fractions that has a row per sample, if there is one."""
    first = next((t.detach() for t in tensors_in(out) if t.dim() and len(t) == samples), None)
    if first is None:
        return None
    found = Rows(np.empty(0), tuple(first.shape[1:]))
    flat = first.reshape(len(first), -1)
    if not found.classes:
        pick = np.linspace(0, flat.shape[1] - 1, min(flat.shape[1], COLUMNS)).astype(int)
        flat = flat[:, torch.as_tensor(pick, device=flat.device)]
    return Rows(flat.to("cpu", torch.float64, copy=True).numpy(), found.shape)


def seen(parts: list[Rows | None], order: Array | None, why: dict[str, str]) -> Seen | None:
    """All batches of one way to run the model, or why there is nothing to compare."""
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or not found:
        why.setdefault("outputs", why.get("company", "the model gives no tensor with a row per sample"))
        return None
    if len({part.values.shape[1] for part in found}) > 1:
        why["outputs"] = "outputs of different batches differ in shape"
        return None
    every = np.concatenate([part.values for part in found])
    return Seen(np.arange(len(every)) if order is None else order, every, found[-1].classes)
