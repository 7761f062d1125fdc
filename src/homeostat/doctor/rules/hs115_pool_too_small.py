"""pool-too-small: a norm measures so few values that normalizing takes most of what they say.

What it is. Of m values, taking away their mean and dividing by their spread leaves m - 2 free; without the mean, m - 1.

    taken = 2 / m        1 / m where no mean is taken away

Of 2 values, layer and instance norm leave the sign of their difference. Looked at are norms that measure whenever they
run; those that remember are HS101's, where it is noise.

Why it matters. Instance norm on a feature map of 1 x 1 gives its bias alone, whatever came in; group norm has (channels
/ groups) x height x width values, which shrink with every stage.

Known false alarms. Toy sizes: give pictures as large as the model will meet.

Fix. Fewer groups, no norm there, or layer norm over all channels. It needs training.

References. Wu and He 2018, Group Normalization, arXiv 1803.08494.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from homeostat.doctor.facts import Facts, Layer
from homeostat.doctor.rule import NEEDS_TRAINING, SUSPICIOUS, Case, Limits, Measure, NotApplicable
from homeostat.recognising.found import RUNNING

GROUP, LIMITS, SAFETY = SUSPICIOUS, Limits(2 / 32, 0.99), NEEDS_TRAINING
ADVICE = "fewer groups, layer norm over all channels, or no norm at that place"


def judge(facts: Facts) -> list[Measure]:
    layers = [layer for layer in facts.layers if layer.found.source != RUNNING and 0 < layer.pool < float("inf")]
    if not layers:
        raise NotApplicable("no norm measures what it is given when deployed")
    return [_measure(layer) for layer in layers]


def _measure(layer: Layer) -> Measure:
    m, gone = layer.pool, 1 if layer.found.center is None else 2
    taken = min(1.0, gone / m)
    said = f"{m:.0f} value{'s' * (m != 1)} share a statistic, and normalizing takes {taken:.0%} of what they say"
    return Measure(layer.name, taken, 0.0, taken, taken, said)


def cure(model: nn.Module, where: list[str], data: list[Any], forward: Any) -> tuple[nn.Module, Any]:
    """One group of all channels in place of several."""
    from homeostat.nn import GroupNorm
    from homeostat.surgery.replace import replace

    def made(old: Any) -> nn.Module:
        width = getattr(old, "num_channels", None) or getattr(old, "num_features", None)
        if not width:
            raise ValueError(f"{type(old).__name__} has no groups to put together: {ADVICE}.")
        return GroupNorm(1, width)

    return replace(model, dict.fromkeys(where, made), data, forward=forward)


def bad(seed: int) -> Case:
    return _case(seed, 16)


def good(seed: int) -> Case:
    return _case(seed, 1)


def _case(seed: int, groups: int) -> Case:
    """The last stage is 1 x 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=4),
            nn.GroupNorm(groups, 32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 4),
        )
        return Case(model, [torch.randn(8, 3, 4, 4) for _ in range(4)])
