"""stale-statistics: what a norm remembers is not what it is given, and answers suffer from it.

What it is. Stored means and variances are set beside those of the batches, group by group.

    z = rms((mean - stored mean) / stored std)        l = rms(ln(var / stored var))        off = max(z, l / (2 ln 2))

What chance adds to the squares, in samples of this number and in what the average remembers, is taken away. It is 0.5
where means are half a standard deviation off, or variances twice or half of what they should be. Samples drawn again
from those that were seen give the null: its 99th percentile, of the worst norm. Even so a norm is only named where
answers by these batches' own statistics differ (HS102): networks forgive a change of scale.

Why it matters. The network is asked something it has not learned. Published: on corrupted images, statistics measured
anew brought the mean corruption error of a ResNet-50 from 76.7 to 62.2.

Known false alarms. Batches that are not as the model will meet them: all of one class, of one patient, of
one day.

Fix. hs.recalibrate(model, batches); prior=N lets what is stored count as N samples. It is safe and can be undone.

References. Schneider et al. 2020, arXiv 2006.16971. Wu and Johnson 2021, arXiv 2105.07576.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.doctor.facts import Array, Facts
from homeostat.doctor.pooled import Beside, beside
from homeostat.doctor.rule import SAFE, SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured
from homeostat.doctor.rules import hs102_train_eval_gap as gap

GROUP, LIMITS, SAFETY = SUSPICIOUS, Limits(0.5, 1.0), SAFE
ADVICE = "hs.recalibrate(model, batches) with batches as the model will meet them"


def judge(facts: Facts) -> list[Measure]:
    if not any(layer.stored is not None for layer in facts.layers):
        raise NotApplicable("no norm remembers statistics")
    (answers,) = gap.judge(facts)
    found = [one for layer in facts.layers if (one := beside(layer, min(facts.sizes)))]
    if not found:
        raise NotMeasured("what is stored is not finite, or not of the groups that were measured")
    nulls = [_off(one, one.again(), one.remembered()) for one in found]
    null = float(np.quantile(np.maximum.reduce([np.maximum(z, s) for z, s in nulls]), 0.99))
    return [_measure(one, chance, null, answers) for one, chance in zip(found, nulls, strict=True)]


def _measure(one: Beside, chance: tuple[Array, Array], null: float, answers: Measure) -> Measure:
    stored = one.stored_mean, one.stored_var
    now = _off(one, one.all(), stored)
    z, s = (_beyond(float(part[0]), by_chance) for part, by_chance in zip(now, chance, strict=True))
    value = max(z, s)
    drawn = np.maximum(*_off(one, one.again(), stored))
    low, middle, high = np.quantile(drawn, (0.025, 0.5, 0.975))
    low, high = max(0.0, value - float(high - middle)), value + float(middle - low)
    said = f"its means are {z:.2g} standard deviations off, its variances by {math.exp(2 * math.log(2) * s):.2g} times"
    if answers.speaks(0.01):
        return Measure(one.name, value, null, low, high, f"{said}; {answers.said}")
    return Measure(one.name, value, max(null, value), low, high, f"{said}, and answers do not mind")


def _beyond(now: float, chance: Array) -> float:
    return math.sqrt(max(0.0, now**2 - float(np.square(chance).mean())))


def _off(one: Beside, now: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
    """z and l / (2 ln 2), for every draw."""
    (mean, var), (old_mean, old_var) = now, then
    z = np.square(mean - old_mean) / (old_var + one.eps)
    ratio = np.square(np.log((np.maximum(var, 0) + one.eps) / (old_var + one.eps)))
    return np.sqrt(z.mean(-1)), np.sqrt(ratio.mean(-1)) / (2 * math.log(2))


def cure(
    model: nn.Module, where: list[str], data: list[Any], forward: Any, prior: float | None = None
) -> tuple[nn.Module, Any]:
    """Statistics measured anew; `prior` samples of the old ones stay in."""
    from homeostat.surgery import recalibrate

    return recalibrate(model, data, layers=where, prior=prior, forward=forward)


def bad(seed: int) -> Case:
    """Asked about brighter pictures than it learned from."""
    return _case(seed, 1.5)


def good(seed: int) -> Case:
    return _case(seed, 0.0)


def _case(seed: int, brighter: float) -> Case:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 16, 3, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 16, 10),
        )
        for _ in range(60):
            model(torch.randn(16, 3, 10, 10))
        return Case(model.eval(), [torch.randn(32, 3, 10, 10) + brighter for _ in range(4)])
