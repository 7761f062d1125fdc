"""mixed-critic: what a critic says of a real sample depends on the fakes that stand beside it.

What it is. A norm that shares statistics in a batch of real and fake samples tells each kind about the other. Real
samples are asked in their batches, and then, by the batch's statistics again, among real ones alone:

    gap = rms(D(real among fakes) - D(real among real)) / std(D(real among real))

The latter in five random groupings: their mean counts. How far each is from the mean of the others is a draw of the
null, which is where a sixth would lie 99 times of 100; batches of a few samples, drawn from those few, differ by less
than new ones would, and that is made up for. Where no batch holds both kinds, real ones are compared with what the
critic says in evaluation: running statistics are then those of both by turns.

Why it matters. The critic answers for the batch, not for the sample: it tells fakes by their company, and the generator
gets the gradient of that.

Known false alarms. Mixing on purpose (a critic that is to judge batches). Real and fake that are alike by now: then
nothing is found, which is right.

Fix. Real and fake in batches of their own, and a norm of each sample alone (group norm) in the critic; it needs
training.

References. Radford et al. 2015, arXiv:1511.06434. Salimans et al. 2016, arXiv:1606.03498. Gulrajani et al. 2017,
arXiv:1704.00028.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.doctor.evidence import rms
from homeostat.doctor.facts import Array, Facts
from homeostat.doctor.rule import NEEDS_TRAINING, SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured

GROUP, LIMITS, SAFETY = SUSPICIOUS, Limits(0.1), NEEDS_TRAINING
ASKS = ("roles: real_fake",)
ADVICE = "real and fake in batches of their own, and group norm in place of norms that share statistics"
T99 = 3.75  # Student's t of four degrees of freedom: of five groupings


def judge(facts: Facts) -> list[Measure]:
    if "real_fake" not in facts.roles:
        raise NotMeasured("no tool can guess which samples are real: roles={'real_fake': a mask for each batch}")
    if not facts.shared:
        raise NotApplicable("no norm shares statistics among samples")
    seen = facts.parts.critic
    if seen is None:
        raise NotMeasured(facts.because("critic", "trained", "outputs", "company"))
    if not all(np.isfinite(part).all() for part in (seen.among, *seen.alone)):
        raise NotMeasured("the model's outputs are not finite")
    value, low, high = rms(_moved(np.mean(seen.alone, 0), seen.among))
    null = _null(seen.alone) / math.sqrt(1 - seen.part)
    among = "with fakes in the batch" if seen.mixed else "by running statistics, of real and fake by turns,"
    said = f"{among} answers to real samples move by {value:.2g} of their spread; by other real ones alone {null:.2g}"
    return [Measure("", value, null, low, high, said)]


def _null(alone: tuple[Array, ...]) -> float:
    off = [rms(_moved(np.mean(alone[:i] + alone[i + 1 :], 0), one))[0] for i, one in enumerate(alone)]
    return float(np.mean(off) + T99 * math.sqrt(1 + 1 / len(off)) * np.std(off, ddof=1))


def _moved(a: Array, b: Array) -> Array:
    """Squared distance of each sample's answer, in the variance of the answers."""
    spread = a.var(0).mean()
    gap: Array = np.square(a - b).mean(1)
    return gap / spread if spread > 0 else np.where(gap > 0, np.inf, 0.0)


def bad(seed: int) -> Case:
    return _case(seed, 3.0)


def good(seed: int) -> Case:
    return _case(seed, 0.0)


def _case(seed: int, shift: float) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        critic = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        real = torch.arange(64) < 32
        batches = [torch.randn(64, 8) + shift * ~real[:, None] for _ in range(8)]
        return Case(critic, batches, {"roles": {"real_fake": [real] * 8}})


def cure(model: nn.Module, where: list[str], data: list[Any], forward: Any, roles: Any = None) -> tuple[nn.Module, Any]:
    """Group norm in place of every batch norm, refitted."""
    from homeostat.nn import GroupNorm
    from homeostat.surgery.replace import replace

    return replace(model, {"*BatchNorm*": GroupNorm}, data, forward=forward)
