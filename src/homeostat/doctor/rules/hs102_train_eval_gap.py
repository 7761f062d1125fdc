"""train-eval-gap: in evaluation the model answers otherwise than it did in training.

What it is. While it trains, a batch norm uses the batch at hand; deployed, what it remembers. The same samples are
given to both, with dropout off; what moves is due to the norms alone.

    gap = share of samples whose predicted class differs     of other outputs: rms(trained - evaluated) / std(evaluated)

The null is how far answers in training move when only the company of a sample changes.

Why it matters. The loss that was trained is not the loss that is deployed.

Known false alarms. Running statistics that no batch has updated yet: then nothing is measured. Few batches so far:
HS105 says whether they are warm.

Fix. hs.recalibrate(model, batches): statistics measured anew, pooled. It is safe and can be undone.

References. Wu and Johnson 2021, arXiv 2105.07576. Singh and Shrivastava 2019, EvalNorm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from homeostat.doctor.evidence import flips, moved, rms, share
from homeostat.doctor.facts import Facts
from homeostat.doctor.rule import SAFE, SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured
from homeostat.recognising.found import RUNNING

GROUP, LIMITS, SAFETY = SUSPICIOUS, Limits(0.05, 0.2), SAFE
ADVICE = "hs.recalibrate(model, batches) with batches as the model will meet them"


def judge(facts: Facts) -> list[Measure]:
    running = [layer for layer in facts.layers if layer.found.source == RUNNING]
    if not running:
        raise NotApplicable("no norm uses other statistics in evaluation than in training")
    if facts.trained is None or facts.evaluated is None or not facts.mixed:
        raise NotMeasured(facts.because("trained", "outputs", "company"))
    if len(facts.sizes) < 2:
        raise NotMeasured("one batch has one company only, and so no null: give several")
    if all(layer.tracked == 0 for layer in running):
        raise NotMeasured("the running statistics have seen no batch yet")
    old, new = facts.evaluated, facts.trained
    if old.classes:
        changed = flips(old, new)
        null = max(float(flips(new, other).mean()) for other in facts.mixed)
        value, low, high = share(int(changed.sum()), len(changed))
        said = f"{value:.0%} of predictions differ between training and evaluation; company alone changes {null:.0%}"
    else:
        value, low, high = rms(moved(old, new))
        null = max(rms(moved(new, other))[0] for other in facts.mixed)
        said = (
            f"outputs move by {value:.2g} of their spread between training and evaluation; by company alone {null:.2g}"
        )
    return [Measure("", value, null, low, high, said)]


def cure(model: nn.Module, where: list[str], data: list[Any], forward: Any) -> tuple[nn.Module, Any]:
    """Statistics measured anew."""
    from homeostat.surgery import recalibrate

    return recalibrate(model, data, forward=forward)


def bad(seed: int) -> Case:
    """Statistics of data at another level and scale."""
    model, batches, _ = _case(seed)
    with torch.no_grad():
        for x in batches * 8:
            model.train()(3 * x + 2)
    return Case(model.eval(), batches)


def good(seed: int) -> Case:
    model, batches, _ = _case(seed)
    with torch.no_grad():
        for x in batches * 8:
            model.train()(x)
    return Case(model.eval(), batches)


def _case(seed: int) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
        return Case(model, [torch.randn(64, 8) for _ in range(8)])
