"""state-damage: running statistics that are not finite, updated twice for one batch, or mixed of unlike things.

What it is. Three ways for memory to be spoiled without an error.

    not finite    the share of groups whose stored mean or variance is NaN or infinite, or whose variance is negative
    twice         updates while gradients are computed, for each of the forward pass: activation checkpointing runs a
                  part again
    mixed         a norm called k times in one pass on unlike things keeps one average of all: how far its calls' means
                  are apart, in their common spread; the null is the same of samples shuffled among calls

Why it matters. One batch with an overflow makes every later evaluation NaN. Updates that count twice halve the memory.
What is the average of two distributions fits neither.

Known false alarms. Weights shared by calls that see the same kind of thing (both sides of a Siamese network) are not
named: their calls are alike.

Not looked at. Statistics that differ from process to process (hs.drift tells), and weight decay on gains, which the
optimizer has.

Fix. Ours (hs.adopt) skip what is not finite and count a batch once; hs.recalibrate measures anew. Both are safe. A norm
for each of unlike calls is made by hand, or hs.Domain, one memory for each.

References. Chen et al. 2016, arXiv 1604.06174, on checkpointing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from homeostat.doctor.facts import Array, Facts, Layer
from homeostat.doctor.rule import CORRECTNESS, SAFE, Case, Limits, Measure, NotApplicable

GROUP, LIMITS, SAFETY = CORRECTNESS, Limits(0.5), SAFE
ADVICE = "hs.adopt(model) and hs.recalibrate(model, batches); a norm of its own for each of unlike calls"
DRAWS, GROUPS = 200, 64


def judge(facts: Facts) -> list[Measure]:
    layers = [layer for layer in facts.layers if layer.stored is not None]
    if not layers:
        raise NotApplicable("no norm remembers statistics")
    return [_worst(_spoiled(layer), _twice(layer), _mixed(layer)) for layer in layers]


def _worst(*found: Measure) -> Measure:
    return max(found, key=lambda m: (m.low > m.null, m.value))


def _spoiled(layer: Layer) -> Measure:
    stored = layer.stored
    assert stored is not None
    wrong = ~np.isfinite(stored.mean) | ~np.isfinite(stored.m2) | (stored.m2 < 0)
    any_wrong = float(wrong.any())
    said = f"{wrong.mean():.0%} of what it remembers is no finite mean and variance"
    return Measure(layer.name, any_wrong, 0.0, any_wrong, any_wrong, said)


def _twice(layer: Layer) -> Measure:
    ahead, back = (layer.step.ahead, layer.step.back) if layer.step else (0, 0)
    value = back / max(ahead, 1)
    said = f"a training step updates it {ahead + back} times for {ahead} call{'s' * (ahead != 1)}"
    return Measure(layer.name, value, 0.0, value, value, said)


def _mixed(layer: Layer) -> Measure:
    """Calls of one batch beside one another."""
    k = layer.calls
    alike = k > 1 and len(layer.samples) % k == 0 and len({m.mean.shape for m in layer.samples}) == 1
    moves = layer.step is None or layer.step.ahead > 0  # a frozen one keeps what it has
    if not (alike and moves and layer.together and all(np.isfinite(m.m2).all() for m in layer.samples)):
        return Measure(layer.name, 0.0, 0.0, 0.0, 0.0, f"called {k} time{'s' * (k != 1)}")
    pick = np.linspace(0, layer.samples[0].mean.shape[1] - 1, min(GROUPS, layer.samples[0].mean.shape[1])).astype(int)
    mean = np.stack([np.concatenate([m.mean[:, pick] for m in layer.samples[i::k]]) for i in range(k)])
    var = np.concatenate([m.m2[:, pick] / float(m.count) for m in layer.samples]).mean(0)
    spread = np.sqrt(var + mean.reshape(-1, mean.shape[-1]).var(0) + 1e-12)
    draw = np.random.default_rng(0)
    flat = mean.reshape(-1, mean.shape[-1])
    null = [_apart(draw.permutation(flat).reshape(mean.shape), spread) for _ in range(DRAWS)]
    again = [_apart(mean[:, draw.integers(0, mean.shape[1], mean.shape[1])], spread) for _ in range(DRAWS)]
    low, high = (float(q) for q in np.quantile(again, (0.025, 0.975)))
    value = _apart(mean, spread)
    said = f"it is called {k} times in a pass on means {value:.2g} standard deviations apart, and keeps one average"
    return Measure(layer.name, value, float(np.quantile(null, 0.99)), min(low, value), max(high, value), said)


def _apart(mean: Array, spread: Array) -> float:
    """The largest distance of two calls' means; rms over groups."""
    calls = mean.mean(1) / spread
    return float(np.sqrt(np.square(calls[:, None] - calls).mean(-1)).max())


def cure(model: nn.Module, where: list[str], data: list[Any], forward: Any) -> tuple[nn.Module, Any]:
    """Ours, that count a batch once and skip what is not finite; statistics measured anew."""
    from homeostat.nn.adopt import adopt
    from homeostat.surgery import recalibrate

    new, certificate = recalibrate(model, data, layers=where, forward=forward)
    return adopt(new), certificate


class Checkpointed(nn.Sequential):
    """Its activations are computed again on the way back."""

    def forward(self, x: Any) -> Any:
        return checkpoint(super().forward, x, use_reentrant=False)


def bad(seed: int) -> Case:
    """Spoiled by an overflow; or counted twice."""
    return _case(seed, nn.Sequential if seed % 2 == 0 else Checkpointed, seed % 2 == 0)


def good(seed: int) -> Case:
    return _case(seed, nn.Sequential, False)


def _case(seed: int, kind: type[nn.Sequential], spoiled: bool) -> Case:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = nn.Sequential(kind(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU()), nn.Linear(16, 3))
        batches = [torch.randn(32, 8) for _ in range(4)]
        for x in batches:
            model(x)
        if spoiled:
            model(batches[0] * float("inf"))
        return Case(model, batches)
