"""unlike-units: features of unlike scale, metres beside millimetres, share one statistic.

What it is. A statistic over features is that of the largest of them. With sigma_f the spread of feature f over samples
and places,

    spread = largest sigma_f / smallest sigma_f in a pool

Constant features are left out, and of twenty features or more the outermost twentieth at either end. Where
roles={'units': ...} tells the unit of each feature, sigma is that of all features of one unit. The null is the spread
that features of one scale would show, resampled from the samples that were seen.

Why it matters. Write one column in other units, times 1000: the answer should follow, and the norm instead divides
every other column by 1000. What is small is lost in the epsilon, or in the last digits.

Known false alarms. Trained transformers carry a few features that are much larger than all others and serve as biases:
they are among the outermost. Sparse features are small on average.

Fix. Bring each column to its own scale before (batch norm of a table, hs.data), a norm per unit (hs.nn.ModalityNorm),
or quantities without dimension.

References. LeCun et al. 1998, Efficient BackProp. Wang et al. 2021, arXiv:2001.04536, on terms of unlike size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from homeostat.doctor.facts import Array, Facts
from homeostat.doctor.parts import Features
from homeostat.doctor.roles import Blocks, blocks_at
from homeostat.doctor.rule import SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured

GROUP, LIMITS = SUSPICIOUS, Limits(100.0)
ADVICE = "bring each column to its own scale before the norm, or give each unit a norm of its own (hs.nn.ModalityNorm)"
DRAWS, TRIM = 200, 20


def judge(facts: Facts) -> list[Measure]:
    told = facts.roles.get("units")
    some = [(one, blocks_at(told, one.name)) for one in facts.parts.features]
    if not some:
        raise NotApplicable("no norm shares a statistic among features")
    if told is not None:
        some = [(one, units) for one, units in some if units is not None]
        wrong = next((one for one, units in some if units and len(units.codes) != len(one.pools)), None)
        if not some or wrong:
            name = f"of {wrong.name}, which has {len(wrong.pools)} features," if wrong else "of any such norm"
            raise NotMeasured(f"roles['units'] does not tell the units {name} one by one")
    rows = [(one, q, sigma) for one, units in some for q, sigma in _scales(one, units) if len(sigma) > 1]
    if not rows:
        raise NotMeasured("what the norms are given is constant, or not finite")
    null = max(_null(q) for _, q, _ in rows)
    return [_measure(one, q, sigma, null) for one, q, sigma in rows]


def _scales(one: Features, units: Blocks | None) -> list[tuple[Array, Array]]:
    """Of each pool: for every sample and feature or unit its square off its mean, in that feature's own; and sigma."""
    square = one.var.astype(float) + np.square(one.mean - one.mean.astype(float).mean(0))
    if not np.isfinite(square).all():
        return []
    found = []
    for pool in np.unique(one.pools):
        at = one.pools == pool
        part = square[:, at]
        if units is not None:
            codes = units.codes[at]
            part = np.stack([part[:, codes == unit].mean(1) for unit in np.unique(codes)], 1)
        mean = part.mean(0)
        alive = mean > 1e-20 * mean.max()
        found.append((part[:, alive] / mean[alive], np.sqrt(mean[alive])))
    return found


def spread(sigma: Array) -> Array:
    """Largest over smallest along the last axis, the outermost left out where there are many."""
    ordered, trim = np.sort(sigma, -1), sigma.shape[-1] // TRIM
    found: Array = ordered[..., -1 - trim] / np.maximum(ordered[..., trim], 1e-300)
    return found


def _measure(one: Features, q: Array, sigma: Array, null: float) -> Measure:
    value = float(spread(sigma))
    low, high = np.quantile(spread(np.sqrt(_again(q, 1)) * sigma), (0.025, 0.975))
    said = f"of {len(sigma)} scales that share a statistic the largest is {value:.3g} times the smallest"
    return Measure(one.name, value, null, min(float(low), value), max(float(high), value), said)


def _null(q: Array) -> float:
    return float(np.quantile(spread(np.sqrt(_again(q, 0))), 0.99))


def _again(q: Array, seed: int) -> Array:
    """Means over resampled samples, [draws, features]: as one product of matrices."""
    n = len(q)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS)
    found: Array = counts @ q / n
    return found


def bad(seed: int) -> Case:
    return _case(seed, 1e3)


def good(seed: int) -> Case:
    return _case(seed, 1.0)


def _case(seed: int, unit: float) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        scale = torch.tensor([unit, 1.0, 1.0, 1.0, 1.0, 1.0])
        model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        return Case(model, [torch.randn(32, 6) * scale for _ in range(3)])
