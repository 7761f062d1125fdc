"""frozen-or-unused: a norm that is never called, half frozen, frozen only until model.train(), or without effect.

What it is. Four things that are seen, not guessed.

    unused        no batch reaches it
    undone        it stands in evaluation mode in a model in training mode, and model.train() puts it back
    half frozen   its gain takes no gradient, yet a training step updates its statistics
    dead          the share of channels whose gain is 0 and gets no gradient from a training step

Why it matters. A norm that was frozen by .eval() learns again from the next .train() on, unnoticed. One that is half
frozen changes what a frozen gain means. An unused one is in the checkpoint and the optimizer for nothing.

Known false alarms. Branches that only some inputs take. Gains that begin at 0 on purpose get a gradient and are not
counted.

Fix. hs.freeze(model): a frozen norm that survives .train(), its gain with it on affine=False. It is safe, and
hs.unfreeze takes it back. What is unused or dead is taken out by hand.

References. Goyal et al. 2017, arXiv 1706.02677, on gains that begin at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.doctor.facts import Facts, Layer
from homeostat.doctor.rule import SAFE, SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured

GROUP, LIMITS, SAFETY = SUSPICIOUS, Limits(0.1), SAFE
ADVICE = "hs.freeze(model, layers=...) for what shall be frozen; by hand, take out what is unused or dead"
ZERO = 1e-8


def judge(facts: Facts) -> list[Measure]:
    if not facts.layers and not facts.never:
        raise NotApplicable("there is no norm")
    found = [_of(name, 1.0, "no batch reaches it") for name in facts.never]
    for layer in facts.layers:
        if layer.step is not None:
            value, said = max(_wrong(layer, facts.training), key=lambda pair: pair[0])
            found.append(_of(layer.name, value, said))
    if not found:
        raise NotMeasured(facts.because("step"))
    return found


def _wrong(layer: Layer, model_trains: bool) -> Iterator[tuple[float, str]]:
    step = layer.step
    assert step is not None
    moves = step.ahead + step.back > 0
    undone = model_trains and not layer.training and step.wakes and layer.stored is not None and moves
    yield float(undone), "it was put into evaluation mode, and the next model.train() puts it back"
    half = layer.training and layer.gain is not None and not layer.learns and moves
    yield float(half), "its gain is frozen, and its statistics are not"
    yield _dead(layer), f"{_dead(layer):.0%} of its gains are 0 and get no gradient"


def _dead(layer: Layer) -> float:
    pull = layer.step.pull if layer.step else None
    if layer.gain is None or pull is None or len(pull) != len(layer.gain):
        return 0.0
    return float(np.mean((np.abs(layer.gain) < ZERO) & (pull == 0)))


def _of(name: str, value: float, said: str) -> Measure:
    return Measure(name, value, 0.0, value, value, said)


def cure(model: nn.Module, where: list[str], data: list[Any], forward: Any) -> tuple[nn.Module, Any]:
    """Frozen so that .train() does not undo it; a gain that took no gradient still takes none."""
    from homeostat.surgery import freeze

    return freeze(model, data, layers=where, forward=forward)


def bad(seed: int) -> Case:
    """Put to sleep until the next .train(); or half frozen."""
    model, batches, _ = good(seed)
    norm: Any = model.get_submodule("1")
    if seed % 2 == 0:
        norm.eval()
    else:
        norm.requires_grad_(False)
    return Case(model, batches)


def good(seed: int) -> Case:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        batches = [torch.randn(32, 8) for _ in range(4)]
        for x in batches:
            model(x)
        return Case(model, batches)
