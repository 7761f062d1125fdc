"""modality-dominance: tokens of one modality are so long that the layers hardly turn them.

What it is. A residual stream adds to a token what a branch makes of its *normalized* value: the same for a short and
for a long token. The long one is turned by less. With |x| the length of a modality's tokens where a norm is given them,
and angle how far they turn until the next norm,

    rho = longest |x| / shortest |x|     tau = largest angle / smallest angle     dominance = min(rho / 10, tau / 2)

Above 1 both are: tokens are ten times as long as others and turn half as far. The null is that of modalities shuffled
in each sample.

Why it matters. The loud modality passes through unread; what comes out of it is what came in.

Known false alarms. Tokens that are padding. Features that are put side by side (rather than tokens) share one pool:
HS118 unequal-energy looks at those, and this rule does not, because a norm of each token by itself cannot mix tokens.

Fix. A norm, or a gain, of each modality's own where its tokens enter; it needs training.

References. Xiong et al. 2020, arXiv:2002.04745, on what a residual adds. Liang et al. 2022, arXiv:2203.02053, on
modalities that stay apart.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from homeostat.doctor.facts import Array, Facts
from homeostat.doctor.parts import Turns
from homeostat.doctor.roles import blocks_at
from homeostat.doctor.rule import SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured

GROUP, LIMITS = SUSPICIOUS, Limits(1.0)
ASKS = ("roles: blocks",)
ADVICE = "a norm of each modality's own where its tokens enter; then train"
LONG, STIFF, DRAWS = 10.0, 2.0, 200


def judge(facts: Facts) -> list[Measure]:
    told = facts.roles.get("blocks")
    if told is None:
        raise NotMeasured("no tool can guess which tokens are whose: roles={'blocks': {norm: {'tokens': widths}}}")
    said = [blocks_at(told, layer.name) for layer in facts.layers]
    if not any(blocks and blocks.tokens for blocks in said):
        raise NotApplicable("the blocks that are told are features, not tokens: HS118 looks at those")
    if not facts.parts.turns:
        raise NotMeasured("no two norms one after the other are given [samples, tokens, features] of the told tokens")
    finite = [one for one in facts.parts.turns if np.isfinite(one.length).all() and np.isfinite(one.angle).all()]
    if not finite:
        raise NotMeasured("what the norms are given is not finite")
    null = max(_null(one) for one in finite)
    return [_measure(one, null) for one in finite]


def _measure(one: Turns, null: float) -> Measure:
    length, angle = one.length.mean(0), one.angle.mean(0)
    long, short = int(length.argmax()), int(length.argmin())
    again = np.random.default_rng(1).integers(0, len(one.length), (DRAWS, len(one.length)))
    value = dominance(one.length, one.angle)
    low, high = np.quantile([dominance(one.length[i], one.angle[i]) for i in again], (0.025, 0.975))
    said = (
        f"tokens of {one.blocks[long]} are {length[long] / max(length[short], 1e-300):.3g} times as long as those of "
        f"{one.blocks[short]} and turn by {np.degrees(angle[long]):.2g} degrees where those turn by "
        f"{np.degrees(angle[short]):.2g}"
    )
    return Measure(one.name, value, null, min(float(low), value), max(float(high), value), said)


def dominance(length: Array, angle: Array) -> float:
    """Of the longest over the shortest, if it is the longest that turns less."""
    size, turn = length.mean(0), angle.mean(0)
    long, short = size.argmax(), size.argmin()
    if size[short] <= 0 or turn[long] <= 0:
        return 0.0
    return float(min(size[long] / size[short] / LONG, turn[short] / turn[long] / STIFF))


def _null(one: Turns) -> float:
    rng, found = np.random.default_rng(0), []
    for _ in range(DRAWS):
        order = rng.permuted(np.tile(np.arange(one.length.shape[1]), (len(one.length), 1)), axis=1)
        found.append(dominance(*(np.take_along_axis(part, order, 1) for part in (one.length, one.angle))))
    return float(np.quantile(found, 0.99))


class _Stream(nn.Module):
    """Tokens of two modalities, side by side, through branches around which they are added."""

    def __init__(self, d: int, loud: float) -> None:
        super().__init__()
        self.loud = loud
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))
        self.branches = nn.ModuleList(nn.Linear(d, d) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :6] * self.loud, x[:, 6:]], 1)
        for norm, branch in zip(self.norms, self.branches, strict=True):
            x = x + branch(norm(x))
        return x.mean(1)


def bad(seed: int) -> Case:
    return _case(seed, 30.0)


def good(seed: int) -> Case:
    return _case(seed, 1.0)


def _case(seed: int, loud: float) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        told = {"roles": {"blocks": {"norms.*": {"tokens": {"image": 6, "text": 4}}}}}
        return Case(_Stream(16, loud), [torch.randn(8, 10, 16) for _ in range(3)], told)
