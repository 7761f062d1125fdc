"""company-leaks: in evaluation an answer depends on who else is in the batch.

What it is. Every sample is asked twice in evaluation, each time in other company, in batches of the same size.

    leak = rms(answer in other company - answer) / std(answers)

Why it matters. An answer that changes with strangers' data is not reproducible, and tells one user about another.

Known false alarms. Sums of another order differ in the last digits: the limit is far above them. Models that mix
samples on purpose (contrastive losses, graphs in one batch) leak by design: ignore the rule there.

Fix. Statistics that are remembered (running averages) or each sample's own (group or layer norm).

References. torch's batch norm without running statistics; Ioffe 2017, Batch Renormalization.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from homeostat.doctor.evidence import moved, rms
from homeostat.doctor.facts import Facts
from homeostat.doctor.rule import CORRECTNESS, Case, Limits, Measure, NotMeasured

GROUP, LIMITS = CORRECTNESS, Limits(1e-4)
ADVICE = "a norm that remembers its statistics (track_running_stats=True), or one of each sample's own"
DIGITS = {"float16": 1e-2, "bfloat16": 1e-1}  # what the order of sums may do in these


def judge(facts: Facts) -> list[Measure]:
    if facts.evaluated is None or facts.again is None:
        raise NotMeasured(facts.because("company", "outputs"))
    if len(facts.sizes) < 2:
        raise NotMeasured("one batch has one company only: give several")
    value, low, high = rms(moved(facts.evaluated, facts.again))
    null = max((DIGITS.get(layer.dtype, 0.0) for layer in facts.layers), default=0.0)
    said = f"in evaluation answers move by {value:.2g} of their spread when only the other samples of the batch change"
    return [Measure("", value, null, low, high, said)]


def bad(seed: int) -> Case:
    return _case(seed, False)


def good(seed: int) -> Case:
    return _case(seed, True)


def _case(seed: int, tracks: bool) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norm: Any = nn.BatchNorm1d(16, track_running_stats=tracks)
        model = nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Linear(16, 3))
        return Case(model, [torch.randn(8, 8) for _ in range(4)])
