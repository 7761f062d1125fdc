"""loud-head: one head of an attention says more than all the others together.

What it is. Heads are added up by the output projection; the norm that follows divides by what they say together, so a
loud one turns all others down. With a_h what head h gives, W_h its part of the projection,

    share_h = |W_h (a_h - mean)|^2 / sum over heads     N_eff = 1 / sum share_h^2

What a head says to every token alike is a bias and does not count. The null is the loudest share when heads are
shuffled within each sample.

A head that is loud is taken away, and the outputs have to move by a hundredth of their spread: otherwise nobody listens
to it, and it is told as quiet.

Why it matters. The model has paid for H heads and hears N_eff.

Known false alarms. Less than four heads: one has half the say easily. Heads that were pruned on purpose. Attentions
that do not say how many heads they have, or whose output projection goes by no usual name, are not seen.

Fix. A gain or a norm per head before the projection (hs.nn.HeadScale, hs.nn.HeadNorm), norms of queries and keys
(hs.nn.QKNorm), or another initialization; all need training.

References. Shleifer et al. 2021, arXiv:2110.09456. Henry et al. 2020, arXiv:2010.04245. Michel et al. 2019,
arXiv:1905.10650.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.doctor.facts import Array, Facts
from homeostat.doctor.parts import Heads
from homeostat.doctor.rule import SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured

GROUP, LIMITS = SUSPICIOUS, Limits(0.5)
ADVICE = "hs.nn.HeadScale or hs.nn.HeadNorm before the output projection, hs.nn.QKNorm on queries and keys; then train"
FEW, DRAWS, HEARD = 4, 200, 0.01


def judge(facts: Facts) -> list[Measure]:
    some = [one for one in facts.parts.heads if one.energy.shape[1] >= FEW]
    if not some:
        raise NotApplicable("no attention of four heads or more was found")
    finite = [one for one in some if np.isfinite(one.energy).all() and one.energy.sum() > 0]
    if not finite:
        raise NotMeasured("what the heads say is zero, or not finite")
    null = max(_null(one.energy) for one in finite)
    return [_measure(one, null) for one in finite]


def _measure(one: Heads, null: float) -> Measure:
    shares = _shares(one.energy)
    loud = int(shares.argmax())
    again = np.random.default_rng(1).integers(0, len(one.energy), (DRAWS, len(one.energy)))
    value = float(shares[loud])
    low, high = np.quantile([_shares(one.energy[i])[loud] for i in again], (0.025, 0.975))
    effective = 1 / np.square(shares).sum()
    said = f"head {loud} has {value:.0%} of what its {len(shares)} heads say: worth {effective:.1f} heads"
    if one.moved is not None and one.moved < HEARD:
        return Measure(one.name, 0.0, null, 0.0, 0.0, f"{said}, but without it outputs stay as they are")
    if one.moved is not None:
        said += (
            f"; without it outputs move by {one.moved:.2g} of their spread, as the norm after it turns the others up "
        )
        said += f"{one.louder:.2g} times ({one.held:.2g} if it did not)"
    return Measure(one.name, value, null, min(float(low), value), max(float(high), value), said)


def _shares(energy: Array) -> Array:
    total: Array = energy.mean(0)
    return total / total.sum() if total.sum() > 0 else total


def _null(energy: Array) -> float:
    rng = np.random.default_rng(0)
    return float(np.quantile([_shares(rng.permuted(energy, axis=1)).max() for _ in range(DRAWS)], 0.99))


def bad(seed: int) -> Case:
    return _case(seed, 8.0)


def good(seed: int) -> Case:
    return _case(seed, 1.0)


def _case(seed: int, gain: float) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer: Any = nn.TransformerEncoderLayer(32, 8, 64, dropout=0.0, batch_first=True)
        with torch.no_grad():
            layer.self_attn.out_proj.weight[:, :4] *= gain
        return Case(layer, [torch.randn(8, 10, 32) for _ in range(3)])
