"""Ranks: processes that measure together; one exchange of moments forward, one of sums backward.

    n = sum n_r        mean = sum n_r mean_r / n        M2 = sum M2_r + n_r (mean_r - mean)^2

Every rank gets every part and adds them in the order of ranks, so that all have the same bits. A part that is not
finite counts 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homeostat.arrays import being_compiled
from homeostat.kernels.exchange import exchange
from homeostat.kernels.groups import Groups
from homeostat.kernels.reference import Seen
from homeostat.moments import Moments


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a group, by the group's name, and the layer that asks."""

    group: str
    size: int
    layer: str

    def join(self, seen: Seen, g: Groups, samples: int, dtype: torch.dtype) -> Seen:
        """What all of them saw; the gradient flows to every rank."""
        return joined(self, seen, g, samples, dtype)

    def added(self, m: Moments, samples: int) -> tuple[Moments, Any]:
        """The moments of all, and their samples."""
        said = self.at("forward", m.mean.shape, torch.is_grad_enabled() and m.m2.requires_grad)
        parts = packed(m.count, m.mean, m.m2, samples)
        *found, total = Gathered.apply(parts.detach(), m.mean, m.m2, self, said)  # type: ignore[no-untyped-call]
        return Moments(*found), total

    def largest(self, e: Tensor) -> Tensor:
        """The largest exponent of each group, of those that are numbers."""
        every = self.exchange(e.double().reshape(-1), self.at("exponents", e.shape))
        return every.amax(0).reshape(e.shape).to(e.dtype)

    def at(self, way: str, groups: Any, learns: bool = False) -> str:
        return f"{way} of {self.layer} {tuple(groups)}{', with gradient' if learns else ''}"

    def exchange(self, parts: Tensor, said: str) -> Tensor:
        """[ranks, parts]: everyone's, in the order of ranks."""
        if being_compiled():
            found: Tensor = torch.ops.homeostat.exchange(parts, self.group, self.size, said)
            return found
        return exchange(parts, self.group, self.size, said)

    def total(self, sums: Tensor, said: str) -> Tensor:
        """[2, ...], the sum over ranks: a pair counts where both are finite."""
        found: Tensor = Total.apply(sums, self, said)  # type: ignore[no-untyped-call]
        return found


def joined(others: Any, seen: Seen, g: Groups, samples: int, dtype: torch.dtype) -> Seen:
    """`seen`, with all that was `added` to it."""
    m, total = others.added(seen.moments(g), samples)
    n, m2 = g.inner(m.count), g.inner(m.m2)
    if isinstance(seen.hi, float):
        return Seen(n, 0.0, 0.0, m2, total)
    mean = g.inner(m.mean)
    hi = mean.detach().to(dtype).to(mean.dtype)
    return Seen(n, hi, mean - hi, m2, total)


def packed(count: Any, mean: Tensor, m2: Tensor, samples: int) -> Tensor:
    """[samples, count (one for all groups, or each its own), means, M2s] in double."""
    n = count.expand_as(m2).reshape(-1) if isinstance(count, Tensor) else m2.new_full((1,), count)
    return torch.cat([n.new_full((1,), samples), n, mean.reshape(-1), m2.reshape(-1)]).double()


def merged(every: Tensor, groups: tuple[int, ...]) -> tuple[Moments, Tensor]:
    """Everyone's moments added, and the samples of all."""
    size = 1
    for k in groups:
        size = size * k
    n = every[:, 1 : every.shape[1] - 2 * size]
    mean, m2 = torch.split(every[:, every.shape[1] - 2 * size :], size, 1)
    fine = torch.isfinite(mean) & torch.isfinite(m2)
    counts = torch.where(fine, n.expand_as(mean), 0.0)
    m = Moments(counts, torch.where(fine, mean, 0.0), torch.where(fine, m2, 0.0)).over((0,))
    count, mean = m.count[0], m.mean[0]
    # where all that was measured is not finite, no number stands for it: memory refuses it, as on one rank
    mean = torch.where((count == 0) & (~fine & (n > 0)).any(0), torch.nan, mean)
    shaped = (part.reshape(groups) for part in (count, mean, m.m2[0]))
    return Moments(*shaped), every[:, 0].sum()


class Gathered(torch.autograd.Function):
    """Count, mean and M2 of all ranks, and their samples. d is the sum over ranks of what arrives:

    d mean_r = n_r / n d mean + 2 n_r (mean_r - mean) d M2        d M2_r = d M2
    """

    @staticmethod
    def forward(
        ctx: Any, parts: Tensor, mean: Tensor, m2: Tensor, ranks: Ranks, said: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        m, samples = merged(ranks.exchange(parts, said), tuple(mean.shape))
        own = parts[1 : len(parts) - 2 * mean.numel()].expand(mean.numel()).reshape(mean.shape)
        own = torch.where(torch.isfinite(mean) & torch.isfinite(m2), own, 0.0)
        ctx.ranks = ranks
        found = m.count, m.mean, m.m2, samples
        ctx.save_for_backward(mean, m.mean, own, m.count)
        ctx.mark_non_differentiable(m.count, samples)
        return found

    @staticmethod
    def backward(ctx: Any, _n: Any, d_mean: Tensor, d_m2: Tensor, _samples: Any) -> tuple[Tensor | None, ...]:
        mean, whole, own, n = ctx.saved_tensors
        ranks = ctx.ranks
        d_mean, d_m2 = ranks.total(torch.stack([d_mean, d_m2]), ranks.at("backward", mean.shape)).unbind(0)
        some = n + (n == 0)
        d = own / some * d_mean + 2 * own * torch.where(own > 0, mean - whole, 0.0) * d_m2
        return None, d, torch.where(own > 0, d_m2, 0.0), None, None


class Total(torch.autograd.Function):
    """The sum over ranks, which every rank gets; so its adjoint is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, ranks: Ranks, said: str) -> Tensor:
        ctx.ranks, ctx.said = ranks, said
        every = ranks.exchange(sums.detach().double().reshape(-1), said).reshape(ranks.size, *sums.shape)
        fine = torch.isfinite(every).all(1, keepdim=True)
        return torch.where(fine, every, 0.0).sum(0).to(sums.dtype)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.ranks.total(d, f"second {ctx.said}"), None, None
