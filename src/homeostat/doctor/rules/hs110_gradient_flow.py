"""gradient-flow: from the last norm to the first the gradient grows or shrinks by a factor of hundreds.

What it is. With g_l the root mean square of the loss's gradient at what the l-th norm is given, in the order of the
calls, a straight line is laid through ln g_l:

    flow = exp(|slope| (norms - 1))

Its null is the flow that the scatter about the line would give by chance. Asked for are a `loss` and four norms.

Why it matters. Layers that get a gradient hundreds of times smaller learn hundreds of times slower, or all the others
too fast. Where norms stand decides: after the sum (post) each divides the gradient by what the branch has added; before
the branch (pre) the gradient passes by.

Known false alarms. Nets without residuals: there it is the depth, not the norm. Just initialized, with warm-up to come,
a slope is to be expected of post-norm. The gradient of one batch is that of one batch.

Fix. Norms before the branches, or before and after (hs.nn.Residual, "pre", "sandwich"), or warm-up; it needs training.

References. Xiong et al. 2020, arXiv:2002.04745. Wang et al. 2022, arXiv:2203.00555, DeepNorm. Ding et al. 2021,
arXiv:2105.13290, sandwich.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.doctor.facts import Facts
from homeostat.doctor.rule import SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured

GROUP, LIMITS = SUSPICIOUS, Limits(100.0, 1e4)
ASKS = ("loss",)
ADVICE = 'norms before the branches, hs.nn.Residual(f, norm, "pre") or "sandwich", or warm-up; then train'
FEW, MOST = 4, 700.0  # norms; what exp can take


def judge(facts: Facts) -> list[Measure]:
    if "gradients" in facts.why:
        raise NotMeasured(facts.why["gradients"])
    if len(facts.layers) < FEW:
        raise NotApplicable("less than four norms show no slope")
    seen = facts.parts.gradients
    g = np.array([one.rms for one in seen])
    if len(g) < FEW:
        raise NotMeasured(f"the gradient reached {len(g)} calls of norms; four show a slope")
    if not (np.isfinite(g).all() and (g > 0).all()):
        where = next(one.name for one in seen if not (math.isfinite(one.rms) and one.rms > 0))
        raise NotMeasured(f"the gradient at {where or 'the model'} is zero or not finite")
    depth, height = np.arange(len(g)) - (len(g) - 1) / 2, np.log(g)
    slope = float(depth @ height / (depth @ depth))
    rest = height - height.mean() - slope * depth
    error = math.sqrt(float(rest @ rest) / (len(g) - 2) / float(depth @ depth))
    total, off = abs(slope) * (len(g) - 1), error * (len(g) - 1)
    value, null, low, high = (
        math.exp(min(MOST, t)) for t in (total, 2.58 * off, max(0.0, total - 1.96 * off), total + 1.96 * off)
    )
    first, last = seen[0].name or "the model", seen[-1].name or "the model"
    way = "shrinks" if slope > 0 else "grows"
    each = math.exp(abs(slope))
    said = f"from {last} back to {first}, {len(g)} norms, the gradient {way} {value:.3g} times, {each:.3g} times a norm"
    return [Measure(seen[0].name, value, null, low, high, said)]


class _Blocks(nn.Module):
    """Residual blocks; `post`: norms after the sums, and branches that drown what they are added to."""

    def __init__(self, d: int, depth: int, post: bool) -> None:
        super().__init__()
        self.post = post
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(depth))
        self.branches = nn.ModuleList(nn.Linear(d, d) for _ in range(depth))
        self.head = nn.Linear(d, 4)
        if post:
            for branch in self.branches:
                nn.init.normal_(branch.get_parameter("bias"), std=3)

    def forward(self, x: Tensor) -> Tensor:
        for norm, branch in zip(self.norms, self.branches, strict=True):
            x = norm(x + branch(x)) if self.post else x + branch(norm(x))
        out: Tensor = self.head(x)
        return out


def bad(seed: int) -> Case:
    return _case(seed, True)


def good(seed: int) -> Case:
    return _case(seed, False)


def _case(seed: int, post: bool) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        batches = [(torch.randn(32, 16), torch.randint(4, (32,))) for _ in range(2)]
        return Case(_Blocks(16, 10, post), batches, {"loss": F.cross_entropy})
