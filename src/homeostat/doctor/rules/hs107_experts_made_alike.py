"""experts-made-alike: experts differ in what the norm behind them takes away.

What it is. Experts e_k are given the same tokens, and one norm, given nothing but their sum, divides by its length.
What sets them apart along their common direction, that one says the same as another but louder, is then gone:

    lost = sum_k |P (e_k - mean e)|^2 / sum_k |e_k - mean e|^2

P projects on the mean of the experts and, where the norm centres, on the mean of the features. Said is what is lost
beyond what a random direction would lose, and the null is that of shuffled features.

Why it matters. A router that weighs experts by how much they say is overruled: after the norm they are one expert.

Known false alarms. Experts that differ in loudness alone may be meant to. Norms behind a residual sum lose less and are
not looked at; nor are experts whose weights are stored as one tensor, which cannot be asked one by one.

Fix. A gain of its own for each expert behind the norm (hs.nn.ExpertNorm), or a norm of each expert's answer; it needs
training.

References. Shazeer et al. 2017, arXiv:1701.06538. Kornblith et al. 2019, arXiv:1905.00414, on comparing answers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from homeostat.doctor.facts import Array, Facts
from homeostat.doctor.parts import Experts
from homeostat.doctor.rule import SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured

GROUP, LIMITS = SUSPICIOUS, Limits(0.1)
ADVICE = "hs.nn.ExpertNorm, a gain of its own for each expert; then train"
DRAWS = 100


def judge(facts: Facts) -> list[Measure]:
    if not facts.parts.banks:
        raise NotApplicable("no modules of one shape are given the same tokens")
    if not facts.parts.experts:
        raise NotApplicable("no norm is given the sum of experts and nothing else")
    finite = [one for one in facts.parts.experts if np.isfinite(one.given).all()]
    if not finite:
        raise NotMeasured("what the experts answer is not finite")
    return [_measure(one) for one in finite]


def _measure(one: Experts) -> Measure:
    middle = one.given.mean(0)
    apart = one.given - middle
    basis = _taken(middle, one.centered)
    along = np.square(np.einsum("ktd,btd->kbt", apart, basis)).sum((0, 1))
    whole = np.square(apart).sum((0, 2))
    rng = np.random.default_rng(0)
    chance = np.array([_share(apart[..., rng.permutation(apart.shape[2])], basis, whole) for _ in range(DRAWS)])
    again = rng.integers(0, len(whole), (200, len(whole)))
    value = _of(along.sum(), whole.sum())
    low, high = np.quantile([_of(along[i].sum(), whole[i].sum()) for i in again], (0.025, 0.975))
    mean = float(chance.mean())
    said = (
        f"{one.norm or 'the model'} takes away {value:.0%} of what sets its {len(apart)} experts apart; "
        f"of a random difference it takes {mean:.0%}"
    )
    return Measure(
        one.name, value - mean, float(np.quantile(chance, 0.99)) - mean, float(low) - mean, float(high) - mean, said
    )


def _taken(middle: Array, centered: bool) -> Array:
    """Directions that the norm takes away at each token, [directions, tokens, features], of length 1."""
    found = []
    if centered:
        found.append(np.full_like(middle, middle.shape[1] ** -0.5))
        middle = middle - middle.mean(1, keepdims=True)
    length = np.linalg.norm(middle, axis=1, keepdims=True)
    return np.stack([*found, middle / np.where(length > 0, length, 1)])


def _share(apart: Array, basis: Array, whole: Array) -> float:
    return _of(np.square(np.einsum("ktd,btd->kbt", apart, basis)).sum(), whole.sum())


def _of(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0


class _Mixture(nn.Module):
    """Experts, weighed by a router, and a norm of their sum."""

    def __init__(self, d: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(d, experts)
        self.experts = nn.ModuleList(nn.Linear(d, d) for _ in range(experts))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        said = torch.stack([expert(x) for expert in self.experts], -1)
        out: Tensor = self.head(self.norm((said * weights[..., None, :]).sum(-1)))
        return out


def bad(seed: int) -> Case:
    """Experts that say the same, each louder than the last."""
    case = _case(seed)
    first, *others = case.model.get_submodule("experts").children()
    with torch.no_grad():
        for k, other in enumerate(others, 2):
            for mine, p in zip(first.parameters(), other.parameters(), strict=True):
                p.copy_(k * mine + 0.1 * p)
    return case


def good(seed: int) -> Case:
    return _case(seed)


def _case(seed: int) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Case(_Mixture(24, 4), [torch.randn(32, 24) for _ in range(2)])
