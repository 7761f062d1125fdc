"""eps-and-precision: eps or rounding decides what comes out of a norm, not what goes in.

What it is. A pool of variance v comes out with a spread of sqrt(v / (v + eps)) in place of 1. And numbers near a mean
far from 0 are rounded, with u the spacing of their type at 1, by about u |mean| / sqrt(12). A pool counts as lost
where either takes more than a tenth:

    1 - sqrt(v / (v + eps)) > 0.1        u |mean| / sqrt(12 v) > 0.1        lost = share of such pools

What the arithmetic of the norm itself costs is measured beside it: it is run on the same input in double precision.

    lost = rms(y - y in double) / rms(y in double)        null: u

That shows squares beyond 65504 in float16 (|x| > 255.9), an eps such as 1e-8 that is 0 in float16, and E[x^2] - E[x]^2.

Why it matters. Such a norm passes small signals on small, or gives noise the size of a signal; and scale is no longer
taken away, so that learning rates and weight decay mean something else.

Known false alarms. Pools that do not vary at all (padding, dead channels) are not counted. A large eps may be meant, to
keep silence silent.

Fix. eps="auto" (the rounding of what came in, and no more) with ours; statistics in float32; a mean taken away
earlier. The network then has to be trained on.

References. Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.doctor.evidence import share
from homeostat.doctor.facts import Array, Facts, Layer
from homeostat.doctor.rule import NEEDS_TRAINING, SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured
from homeostat.moments import Moments

GROUP, LIMITS, SAFETY = SUSPICIOUS, Limits(0.01, 0.5), NEEDS_TRAINING
ADVICE = 'eps="auto" with hs.adopt(model), statistics in float32, or a smaller mean before the norm'
TENTH = 0.1


def judge(facts: Facts) -> list[Measure]:
    if not facts.layers:
        raise NotApplicable("there is no norm")
    found = [m for layer in facts.layers if (m := _measure(layer))]
    if not found:
        raise NotMeasured("the groups of its norms come with the call, by label")
    return found


def _measure(layer: Layer) -> Measure | None:
    pools = [_pools(layer, m) for m in (layer.samples or layer.asked) if np.isfinite(m.m2).all()]
    if not pools:
        return None
    centred = layer.found.center is not None
    mean, var = (np.concatenate(parts) for parts in zip(*pools, strict=True))
    u = torch.finfo(getattr(torch, layer.dtype)).eps
    eps = layer.found.eps if isinstance(layer.found.eps, float) else 0.0
    noise = np.square(u * mean) / 12 * centred
    alive = var > noise / 100  # else it does not vary
    mean, var, noise = mean[alive], var[alive], noise[alive]
    damped, rounded = 1 - np.sqrt(var / (var + eps)) > TENTH, noise > TENTH**2 * var
    lost = damped | rounded
    value, low, high = share(int(lost.sum()), len(lost)) if len(lost) else (0.0, 0.0, 0.0)
    if layer.lost is not None and layer.lost > max(value, u):
        said = f"computed in {layer.dtype}, {layer.lost:.2g} of its output is rounding"
        return Measure(layer.name, layer.lost, u, layer.lost, layer.lost, said)
    why = f"eps={eps:.3g} shrinks" if damped.sum() >= rounded.sum() else f"{layer.dtype} cannot hold"
    said = f"{why} {value:.0%} of its pools by more than a tenth; their median variance is {_median(var):.2g}"
    return Measure(layer.name, value, 0.0, low, high, said)


def _pools(layer: Layer, m: Moments) -> tuple[Array, Array]:
    """Mean and variance of each pool; samples that share one are put together."""
    mean, var = m.mean, m.m2 / float(m.count)
    if layer.together:
        mean, var = mean.mean(0), var.mean(0) + mean.var(0)
    return mean.reshape(-1), var.reshape(-1)


def _median(values: Array) -> float:
    return float(np.median(values)) if len(values) else 0.0


def cure(model: nn.Module, where: list[str], data: list[Any], forward: Any) -> tuple[nn.Module, Any]:
    """Ours in their place, with an eps that follows the size of what comes in."""
    from homeostat.nn.adopt import adopt
    from homeostat.surgery.replace import replace

    def made(old: Any) -> nn.Module:
        new: Any = adopt(copy.deepcopy(old))
        new.eps = "auto"
        return new  # type: ignore[no-any-return]

    return replace(model, dict.fromkeys(where, made), data, forward=forward)


def bad(seed: int) -> Case:
    """A signal that is as small as eps."""
    return _case(seed, 1e-3)


def good(seed: int) -> Case:
    return _case(seed, 1.0)


def _case(seed: int, size: float) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        return Case(model, [size * torch.randn(16, 64) for _ in range(4)])
