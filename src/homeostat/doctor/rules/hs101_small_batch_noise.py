"""small-batch-noise: statistics of so few values are noise, which every sample of the batch is given.

What it is. A batch norm divides by the standard deviation of the batch at hand. From a small batch it is a guess, and
the next batch's is another. Neighbouring pixels say the same twice, so the number of values that count is smaller than
batch x height x width: it is measured.

    CV = std(s^2) / mean(s^2) over batches of that size        m_eff = 2 / CV^2        Gaussian: CV = sqrt(2 / (m - 1))

Batches are drawn from the samples that were seen, from their recorded moments; the median of the groups counts.

Why it matters. The noise is multiplied onto every activation, and differs from what the running statistics say in
evaluation. Published: ImageNet errors of a ResNet-50 at 32, 16, 8, 4, 2 images per device were 23.6, 23.7, 24.8, 27.3,
34.7 with batch norm, and near 24.1 throughout with group norm.

Known false alarms. A last short batch: give batches of the size that is trained with. Accumulating gradients does not
enlarge the pool, and in data-parallel training each process has its own. Norms that are frozen are not looked at.

Fix. Share statistics across processes (hs.sync), or normalize each sample by itself (group norm; needs training).

References. Wu and He 2018, Group Normalization. Wu and Johnson 2021, arXiv 2105.07576.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.doctor.facts import Array, Facts, Layer
from homeostat.doctor.rule import NEEDS_TRAINING, SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured

GROUP, LIMITS, SAFETY = SUSPICIOUS, Limits(0.25, 0.5), NEEDS_TRAINING
ADVICE = "hs.sync(model) on several processes, batches of more samples, or group norm in its place"
DRAWS, GROUPS = 256, 64


def judge(facts: Facts) -> list[Measure]:
    layers = [layer for layer in facts.shared if layer.samples]
    if not facts.shared:
        raise NotApplicable("no norm shares statistics among samples")
    if not layers or not facts.sizes:
        raise NotMeasured(facts.because("trained", "company", otherwise="its groups come with the call, by label"))
    finite = [layer for layer in layers if all(np.isfinite(m.m2).all() for m in layer.samples)]
    if not finite:
        raise NotMeasured("what the norms are given is not finite")
    return [_measure(layer, min(facts.sizes)) for layer in finite]


def _measure(layer: Layer, size: int) -> Measure:
    count = float(layer.samples[0].count)
    mean, m2 = (np.concatenate([getattr(m, part) for m in layer.samples]) for part in ("mean", "m2"))
    pick = np.linspace(0, mean.shape[1] - 1, min(GROUPS, mean.shape[1])).astype(int)
    mean, var = mean[:, pick], m2[:, pick] / count
    cv = noise(mean, var, size)
    again = np.random.default_rng(1).integers(0, len(mean), (20, len(mean)))
    rough = _delta(mean, var, size)
    spread = np.array([_delta(mean[i], var[i], size) for i in again]) / rough if rough > 0 else np.ones(20)
    low, high = (cv * float(q) for q in np.quantile(spread, (0.025, 0.975)))
    effective = 2 / cv**2 if cv > 0 else math.inf
    said = (
        f"from {size} sample{'s' * (size != 1)} its variance scatters by {cv:.0%} from batch to batch: worth "
        f"{effective:.0f} values, though {layer.pool:.0f} share it"
    )
    return Measure(layer.name, cv, math.sqrt(2 / max(1.0, len(mean) * count)), min(low, cv), max(high, cv), said)


def noise(mean: Array, var: Array, size: int) -> float:
    """CV of the variance of batches of so many samples drawn from these: the median over groups."""
    draws = np.random.default_rng(0).integers(0, len(mean), (DRAWS, size))
    means = mean[draws]
    s2 = var[draws].mean(1) + means.var(1)
    average = s2.mean(0)
    alive = average > 0
    return float(np.median(s2.std(0)[alive] / average[alive])) if alive.any() else 0.0


def _delta(mean: Array, var: Array, size: int) -> float:
    """The same to first order: what each sample adds to the variance, and how that scatters."""
    middle = mean.mean(0)
    adds = var + np.square(mean - middle)
    average = adds.mean(0)
    alive = average > 0
    return float(np.median(adds.std(0)[alive] / average[alive])) / math.sqrt(size) if alive.any() else 0.0


def cure(model: nn.Module, where: list[str], data: list[Any], forward: Any) -> tuple[nn.Module, Any]:
    """Group norms in their place, refitted to what stood there."""
    from homeostat.nn import GroupNorm
    from homeostat.surgery.replace import replace

    return replace(model, dict.fromkeys(where, GroupNorm), data, forward=forward)


def bad(seed: int) -> Case:
    return _case(seed, 2)


def good(seed: int) -> Case:
    return _case(seed, 64)


def _case(seed: int, size: int) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(4),
        )
        batches = [torch.randn(size, 3, 12, 12) for _ in range(8)]
        model(batches[0])
    return Case(model, batches)
