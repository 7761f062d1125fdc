"""symmetry-broken: the model does not follow a motion that it is meant to follow.

What it is. g moves the input (turns a picture, renames the nodes of a graph), and rho is what should then become of the
answer:

    broken = |f(g x) - rho f(x)| / |f(x)|

Said of the model and of each norm for which roles={'group_action': ...} tells what g does to its input. The null is
what rounding may do: 1e-9 in float64, 1e-3 in float32, a few hundredths below.

Why it matters. A norm with a gain or a statistic of its own for each element of an orbit takes from the network what
its layers were built to keep.

Known false alarms. Padding breaks translation at the edges, and striding does so everywhere. The answer is as good as
the rho that is told.

Fix. One statistic and one gain for each orbit: hs.nn.OrbitNorm.

References. Cohen and Welling 2016, arXiv:1602.07576. Weiler and Cesa 2019, arXiv:1911.08251.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from homeostat.doctor.facts import Facts
from homeostat.doctor.parts import Moved
from homeostat.doctor.rule import CORRECTNESS, Case, Limits, Measure, NotMeasured

GROUP, LIMITS = CORRECTNESS, Limits(1e-9)
ASKS = ("roles: group_action",)
ADVICE = "one statistic and one gain for each orbit: hs.nn.OrbitNorm"
DIGITS = {"float64": 1e-9, "float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}


def judge(facts: Facts) -> list[Measure]:
    if "group_action" not in facts.roles:
        raise NotMeasured("no tool can guess a symmetry: roles={'group_action': {'batch': g, 'output': rho}}")
    finite = [one for one in facts.parts.symmetry if np.isfinite(one.off).all() and np.isfinite(one.size).all()]
    if not finite or not all(one.size.sum() > 0 for one in finite):
        raise NotMeasured("outputs are zero or not finite")
    return [_measure(one) for one in finite]


def _measure(one: Moved) -> Measure:
    value = float(np.sqrt(one.off.sum() / one.size.sum()))
    draws = np.random.default_rng(0).integers(0, len(one.off), (200, len(one.off)))
    low, high = np.quantile(np.sqrt(one.off[draws].sum(1) / one.size[draws].sum(1)), (0.025, 0.975))
    said = f"of the moved input it makes what is {value:.2g} of its size off from the moved output"
    return Measure(one.name, value, DIGITS.get(one.dtype, 1e-3), float(low), float(high), said)


class _Sets(nn.Module):
    """Elements of a set, whose order must not matter."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(3, 8), norm, nn.Linear(8, 2)
        nn.init.uniform_(norm.get_parameter("weight"), 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.first(x)).relu().mean(1))
        return out


def bad(seed: int) -> Case:
    """A gain for each element of the set."""
    return _case(seed, (5, 8))


def good(seed: int) -> Case:
    return _case(seed, (8,))


def _case(seed: int, shape: tuple[int, ...]) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, batches = _Sets(nn.LayerNorm(shape)), [torch.randn(8, 5, 3) for _ in range(2)]

    def other_order(x: Tensor) -> Tensor:
        return x.flip(1)

    return Case(model, batches, {"roles": {"group_action": {"batch": other_order, "norm": other_order}}})
