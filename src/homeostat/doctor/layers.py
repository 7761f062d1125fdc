"""Layers: what norms are given, reduced to Moments as it comes, and what they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from homeostat.arrays import to_numpy
from homeostat.doctor.digits import lost
from homeostat.doctor.facts import Array, Layer, Step
from homeostat.frame import Frame, FrameError, Label
from homeostat.moments import Moments
from homeostat.reading import measure
from homeostat.recognising.found import RUNNING, SAMPLE, Found
from homeostat.surgery.flow import given

POOLS = 4096  # of a norm, kept at most


@dataclass
class Looked:
    """What the hooks of one norm have seen so far."""

    found: Found
    module: nn.Module
    calls: int = 0
    most: int = 0
    dtype: str = ""
    pool: float = float("inf")
    samples: list[Moments] = field(default_factory=list)
    asked: list[Moments] = field(default_factory=list)
    lost: float | None = None
    step: Step | None = None


def taking(one: Looked, into: str) -> Callable[..., None]:
    """Takes in what it is given, as it comes."""

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        one.calls += 1
        x = given(args, kwargs)
        one.dtype = str(x.dtype).removeprefix("torch.")
        if into == "asked" and one.most + one.calls == 1:
            one.lost = lost(module, args, kwargs)
        if found := _moments(one.found, x.detach()):
            getattr(one, into).append(found[0])
            one.pool = min(one.pool, found[1])

    return look


def alone(found: Found) -> Frame | None:
    """The frame of each sample by itself; None where samples share no statistic."""
    first, kept = found.frame.names[0], found.frame.kept
    held = {
        word for item in kept if not isinstance(item, Label) for word in ([item] if isinstance(item, str) else item)
    }
    return None if first in held else found.frame.keep((first, *kept))


def _moments(found: Found, x: Tensor) -> tuple[Moments, float] | None:
    """[samples, groups] in float64, and how many elements share a statistic; None where labels come with the call."""
    if found.frame.labels or not x.numel():
        return None
    frame, sizes = alone(found), dict[str, Any](found.sizes)
    try:
        m = measure(x, frame or found.frame, **sizes)
    except (FrameError, TypeError):
        return None
    count = float(to_numpy(m.count).reshape(-1)[0]) if not isinstance(m.count, float | int) else float(m.count)
    mean, m2 = (to_numpy(part).astype(np.float64) for part in (m.mean, m.m2))
    if frame is not None:
        rows = len(x)
        return Moments(count, mean.reshape(rows, -1), m2.reshape(rows, -1)), count * rows
    pick = np.linspace(0, mean.size - 1, min(mean.size, POOLS)).astype(int)
    return Moments(count, mean.reshape(-1, 1)[pick], m2.reshape(-1, 1)[pick]), count


def layer(one: Looked) -> Layer:
    """All that was seen of it, as a value."""
    module: Any = one.module
    momentum = getattr(module, "momentum", getattr(getattr(module, "source", None), "momentum", None))
    tracked = getattr(module, "num_batches_tracked", None)
    gain = getattr(module, "weight", None)
    parameters = list(module.parameters(recurse=False))
    return Layer(
        found=one.found,
        calls=one.most,
        training=module.training,
        learns=any(p.requires_grad for p in parameters),
        momentum=momentum if isinstance(momentum, float | int) else None,
        tracked=int(tracked) if isinstance(tracked, Tensor) and tracked.numel() == 1 else None,
        gain=_numbers(gain) if isinstance(gain, Tensor) else None,
        stored=_stored(module) if one.found.source == RUNNING else None,
        dtype=one.dtype,
        pool=one.pool,
        together=one.found.source != SAMPLE and (bool(one.found.frame.labels) or alone(one.found) is not None),
        samples=tuple(one.samples),
        asked=tuple(one.asked),
        lost=one.lost,
        step=one.step,
    )


def _stored(module: Any) -> Moments | None:
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return Moments(1.0, _numbers(mean), _numbers(var)) if isinstance(mean, Tensor) and isinstance(var, Tensor) else None


def _numbers(t: Tensor) -> Array:
    return to_numpy(t.detach().to("cpu", torch.float64)).reshape(-1)
