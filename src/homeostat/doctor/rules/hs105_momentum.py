"""momentum: the running average still holds what it started from, or hardly more than the last batch.

What it is. After t batches the start, mean 0 and variance 1, has the share (1 - a)^t of the average, the last batch the
share a: it is worth (2 - a) / a batches. Of the start it is also measured how much is there, in what is stored,

    stored = (1 - s) measured + s start        s by least squares over the groups

and the smaller of the two counts, so that statistics measured anew are never blamed. The null is what s comes to by
chance: its 99th percentile over samples drawn again, of the worst norm.

Why it matters. With a = 0.1 it takes 44 batches until less than 1 % of the start is left; with 0.001, 4603. And Keras
calls momentum what torch calls 1 - momentum: its 0.99 given to torch remembers one batch.

Known false alarms. momentum=1.0 is taken to be meant. Where all data is near mean 0 and variance 1 a start does no harm
and is not seen.

Fix. hs.recalibrate(model, batches), and 1 - a in place of a; or momentum=None, the mean of all batches, or a source
that finds its own, hs.Running("auto"). It is safe.

References. Ioffe and Szegedy 2015, arXiv 1502.03167. Wu and Johnson 2021, arXiv 2105.07576.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.doctor.facts import Array, Facts, Layer
from homeostat.doctor.pooled import Beside, beside
from homeostat.doctor.rule import SAFE, SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured

GROUP, LIMITS, SAFETY = SUSPICIOUS, Limits(0.01, 0.5), SAFE
ADVICE = "hs.recalibrate(model, batches), 1 - momentum where it was meant as Keras means it, or momentum=None"
USUAL, KERAS = 0.1, 0.5  # torch's default; from here on it is more likely meant the other way round


def judge(facts: Facts) -> list[Measure]:
    layers = [layer for layer in facts.layers if layer.stored is not None and layer.momentum is not None]
    if not layers:
        raise NotApplicable("no norm has a running average with a momentum")
    if all(layer.tracked == 0 for layer in layers):
        raise NotMeasured("the running statistics have seen no batch yet")
    seen = {one.name: one for layer in layers if facts.sizes and (one := beside(layer, min(facts.sizes)))}
    chances = [_start(one, one.again(), one.remembered()) for one in seen.values()]
    null = float(np.quantile(np.maximum.reduce(chances), 0.99)) if chances else 0.0
    found = [m for layer in layers if (m := _measure(layer, seen.get(layer.name), null))]
    if not found:
        raise NotMeasured(facts.because("trained", "company", otherwise="batches are not counted"))
    return found


def _measure(layer: Layer, one: Beside | None, null: float) -> Measure | None:
    a, t = float(layer.momentum or 0), layer.tracked
    if KERAS <= a < 1:
        said = f"momentum={a:.3g} gives the last batch {a:.0%} of what is remembered; in Keras it would be {1 - a:.3g}"
        return Measure(layer.name, a, USUAL, a, a, said)
    if one is None or t is None:
        return None
    stored = one.stored_mean, one.stored_var
    most = (1 - a) ** t
    s = min(most, max(0.0, float(_start(one, one.all(), stored)[0])))
    low, high = (min(most, max(0.0, float(q))) for q in np.quantile(_start(one, one.again(), stored), (0.025, 0.975)))
    said = f"after {t} batches with momentum={a:.3g}, {s:.2%} of what is remembered is what it began with, 0 and 1"
    return Measure(layer.name, s, null, min(low, s), max(high, s), said)


def _start(one: Beside, now: tuple[Array, Array], then: tuple[Array, Array]) -> Array:
    """s, for every draw; spreads and their logarithms count alike."""
    (mean, var), (old_mean, old_var) = now, then
    room = np.maximum(var, 0) + one.eps
    way = np.concatenate([-mean / np.sqrt(room), (1 - var) / (2 * room)], -1)
    gone = np.concatenate([(old_mean - mean) / np.sqrt(room), (old_var - var) / (2 * room)], -1)
    found: Array = (way * gone).sum(-1) / np.maximum(np.square(way).sum(-1), 1e-12)
    return found


def cure(model: nn.Module, where: list[str], data: list[Any], forward: Any) -> tuple[nn.Module, Any]:
    """Statistics measured anew; a momentum that Keras would write becomes torch's."""
    from homeostat.surgery import recalibrate

    new, certificate = recalibrate(model, data, layers=where, forward=forward)
    for layer in map(new.get_submodule, where):
        _turn(layer)
    return new, certificate


def _turn(layer: Any) -> None:
    a = getattr(layer, "momentum", None)
    if a is not None and KERAS <= a < 1:
        layer.momentum = 1 - a
    source = getattr(layer, "_given", None) or layer.__dict__.get("source")  # of ours, the source decides
    a = getattr(source, "momentum", None)
    if isinstance(a, float) and KERAS <= a < 1:
        layer.source = replace(source, momentum=1 - a)


def bad(seed: int) -> Case:
    """Too slow for so few batches; or as in Keras."""
    return _case(seed, 0.01 if seed % 2 == 0 else 0.9)


def good(seed: int) -> Case:
    return _case(seed, 0.1)


def _case(seed: int, momentum: float) -> Case:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32, momentum=momentum), nn.ReLU(), nn.Linear(32, 4))
        for _ in range(64):
            model(3 * torch.randn(64, 8) + 2)
        return Case(model.eval(), [3 * torch.randn(64, 8) + 2 for _ in range(8)])
