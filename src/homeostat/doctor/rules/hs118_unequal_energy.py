"""unequal-energy: a block of features has less than half its share in the statistic it is divided by.

What it is. Features of several modalities stand side by side and share a norm. With E_b the energy of block b, the mean
square off what the norm subtracts, summed over its n_b of n features,

    lack_b = (n_b / n) / (E_b / sum E)

2: it has half of what its width would give it. The largest is told. The null is that of blocks of the same widths made
of features at random.

Why it matters. The statistic is that of the loud block. The faint one comes out of the norm as faint as it went in, and
is heard as little by the layer behind it.

Known false alarms. One-hot and other sparse features have little energy as they are meant to: blocks of which three
quarters are exactly 0 are left out. A gain that was learned may have made up for it.

Fix. A statistic for each block (hs.nn.ModalityNorm), or gains that balance them; it needs training.

References. Ba et al. 2016, arXiv:1607.06450, on sharing a statistic. Wang et al. 2020, arXiv:1905.12681, on modalities
that are left behind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.doctor.facts import Array, Facts
from homeostat.doctor.parts import Features
from homeostat.doctor.roles import Blocks, blocks_at
from homeostat.doctor.rule import NEEDS_TRAINING, SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured

GROUP, LIMITS, SAFETY = SUSPICIOUS, Limits(2.0), NEEDS_TRAINING
ASKS = ("roles: blocks",)
ADVICE = "a statistic for each block, hs.nn.ModalityNorm(widths); then train"
DRAWS, SPARSE = 200, 0.75


def judge(facts: Facts) -> list[Measure]:
    told = facts.roles.get("blocks")
    if told is None:
        raise NotMeasured("no tool can guess what is whose: roles={'blocks': {norm: {'image': 48, 'text': 16}}}")
    said = [(layer.name, blocks_at(told, layer.name)) for layer in facts.layers]
    named = {name: blocks for name, blocks in said if blocks and not blocks.tokens}
    if not named:
        raise NotApplicable("no norm has features in the blocks that are told")
    some = [(one, named[one.name]) for one in facts.parts.features if one.name in named]
    if not some:
        raise NotApplicable("in the norms that are told every block, or every feature, has statistics of its own")
    for one, blocks in some:
        if len(blocks.codes) != len(one.pools):
            raise NotMeasured(
                f"blocks of {one.name} add up to {len(blocks.codes)}, and it has {len(one.pools)} features"
            )
    rows = [(one, blocks, pool) for one, blocks in some for pool in _pools(one, blocks)]
    if not rows:
        raise NotMeasured("its blocks are sparse, or not finite, or of no common pool")
    null = max(_null(*row) for row in rows)
    return [_measure(*row, null) for row in rows]


def _pools(one: Features, blocks: Blocks) -> list[Array]:
    """Features of each pool that blocks share, sparse blocks left out."""
    if not np.isfinite(one.energy).all():
        return []
    full = [b for b in range(len(blocks.names)) if one.zeros[blocks.codes == b].mean() < SPARSE]
    found = []
    for pool in np.unique(one.pools):
        at = np.flatnonzero((one.pools == pool) & np.isin(blocks.codes, full))
        if len(np.unique(blocks.codes[at])) > 1 and one.energy[:, at].sum() > 0:
            found.append(at)
    return found


def lack(energy: Array, codes: Array) -> Array:
    """Of every block: its share of the features over its share of the energy."""
    several = np.unique(codes)
    shares = np.array([energy[codes == b].sum() for b in several]) / energy.sum()
    widths = np.array([(codes == b).mean() for b in several])
    found: Array = widths / np.maximum(shares, 1e-300)
    return found


def _measure(one: Features, blocks: Blocks, at: Array, null: float) -> Measure:
    energy, codes = one.energy[:, at].astype(float), blocks.codes[at]
    each = lack(energy.mean(0), codes)
    worst = int(each.argmax())
    again = np.random.default_rng(1).integers(0, len(energy), (DRAWS, len(energy)))
    value = float(each[worst])
    low, high = np.quantile([lack(energy[i].mean(0), codes)[worst] for i in again], (0.025, 0.975))
    block = int(np.unique(codes)[worst])
    width = float((codes == block).mean())
    said = (
        f"{blocks.names[block]} has {width / value:.2%} of the energy in the statistic with {width:.0%} of its features"
    )
    return Measure(one.name, value, null, min(float(low), value), max(float(high), value), said)


def _null(one: Features, blocks: Blocks, at: Array) -> float:
    rng, energy, codes = np.random.default_rng(0), one.energy[:, at].astype(float).mean(0), blocks.codes[at]
    return float(np.quantile([lack(energy, rng.permutation(codes)).max() for _ in range(DRAWS)], 0.99))


def cure(
    model: nn.Module, where: list[str], data: list[Any], forward: Any, roles: dict[str, Any]
) -> tuple[nn.Module, Any]:
    """A norm of each block's own, refitted to what stood there."""
    from homeostat.nn import ModalityNorm
    from homeostat.surgery.replace import replace

    def of(name: str) -> Any:
        blocks = blocks_at(roles["blocks"], name)
        if blocks is None or (np.diff(blocks.codes) < 0).any():
            raise ValueError(f"{name}: its blocks are not one after the other; ModalityNorm takes widths.")
        return lambda old: ModalityNorm(np.bincount(blocks.codes).tolist())

    return replace(model, {name: of(name) for name in where}, data, forward=forward)


def bad(seed: int) -> Case:
    return _case(seed, 6.0)


def good(seed: int) -> Case:
    return _case(seed, 1.0)


def _case(seed: int, loud: float) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 3))
        scale = torch.ones(64)
        scale[:48] = loud
        told = {"roles": {"blocks": {"0": {"image": 48, "text": 16}}}}
        return Case(model, [torch.randn(32, 64) * scale for _ in range(3)], told)
