"""Momentum, chosen: the steady gain of a Kalman filter that follows a drifting mean through noisy batches.

    batch mean x_t = m_t + noise of variance r          m_t = m_{t-1} + drift of variance q          l = q / r

    K = (-l + sqrt(l^2 + 4 l)) / 2 = 2 / (1 + sqrt(1 + 4 / l))

>>> round(optimal_momentum(0.01, 1.0), 4)
0.0951
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from homeostat.arrays import Array
from homeostat.errors import reals, said
from homeostat.moments import Moments
from homeostat.sources.base import State
from homeostat.sources.running import Running, beside, counted

LONG = 1000  # batches over which candidates are judged
OWN = ("candidates", "errors")  # what it remembers to choose by
GAINS = 11  # from 1 to 1/1024: between two of them the error is at most 6 % too large


def optimal_momentum(drift: Any, noise: Any) -> Any:
    """The share of a new batch with the least squared error of the running mean.

    `drift` is the variance of the true mean's step from batch to batch, `noise` that of a batch's mean about it.
    Without drift the best is 1 / t, `Cumulative()`; with nothing but drift it is 1.
    """
    q, r = reals(drift), reals(noise)
    if not ((q >= 0) & (q < math.inf) & (r >= 0) & (r < math.inf) & (q + r > 0)).all():
        given = f"drift={said(drift)} and noise={said(noise)}"
        raise ValueError(f"{given} are variances: give finite numbers of at least 0, and not both 0.")
    return 2 * drift**0.5 / (drift**0.5 + (drift + 4 * noise) ** 0.5)  # no quotient of the two: drift may be 0


@dataclass(frozen=True)
class Kalman(Running):
    """Running with the momentum that the stream itself asks for: the one that would have predicted it best.

    A running mean for each of some momenta goes along, and how far the next batch's mean was from each, squared. The
    true mean is as far from all of them as it is, so the least of these errors is at the Kalman gain. (Drift and noise
    from two moments of the steps need a hundred times as many batches to tell a small drift from none.)
    """

    momentum: Any = "auto"
    names: ClassVar[tuple[str, ...]] = (*Running.names, *OWN)

    def __post_init__(self) -> None:
        if self.momentum != "auto":
            raise ValueError(f"momentum={self.momentum!r}: Kalman finds it by itself; Running takes a number.")

    def init(self, groups: tuple[int, ...], rows: tuple[int, ...] = (), **kind: Any) -> dict[str, Array]:
        import torch

        own = {"candidates": (GAINS, *groups), "errors": (GAINS, *rows)}
        return super().init(groups, rows, **kind) | {name: torch.zeros(shape, **kind) for name, shape in own.items()}

    def adapt(self, saved: dict[str, Array], fresh: State) -> dict[str, Array]:
        """Of memory of other groups, or without candidates: all of these start from its mean."""
        saved, candidates = super().adapt(saved, fresh), fresh["candidates"]
        known = "candidates" in saved and saved["candidates"].shape == candidates.shape
        if known or "running_mean" not in saved or saved["running_mean"].shape != candidates.shape[1:]:
            return saved
        start = saved["running_mean"].expand_as(candidates).clone()
        return saved | {"candidates": start, "errors": fresh["errors"] * 0}

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        import torch

        tracked = counted(state["num_batches_tracked"], m)
        t, means, errors = (v.to(m.mean.dtype) for v in (tracked, state["candidates"], state["errors"]))
        some = m.count > 0
        off, spread = (m.mean - means) * some, m.m2 / (m.count + (m.count == 0))
        found = (off * off / (spread + (spread == 0))).reshape(*errors.shape, -1).mean(-1)
        again = (t > 1) & (tracked > state["num_batches_tracked"])
        errors = errors + (found - errors) * again / (t - 1).clamp(1, LONG)
        halves = torch.arange(GAINS, dtype=t.dtype, device=t.device).reshape(-1, *(1,) * t.dim())
        least = 1 / t.clamp_min(1)  # while young all are the mean of what was seen
        gains = torch.maximum(0.5**halves, least)
        means = means + beside(gains, means) * off
        k = torch.maximum(_lowest(errors, gains), least).clamp_max(1)
        new = {"num_batches_tracked": tracked, "candidates": means, "errors": errors}
        return self.blend(state, m, beside(k, m.mean)) | new


def _lowest(errors: Array, gains: Array) -> Array:
    """The gain of least error: of the parabola, in log gain, through the best candidate and its neighbours."""
    lowest = errors.argmin(0)
    best = lowest.clamp(1, GAINS - 2)
    left, here, right = (errors.gather(0, (best + i)[None])[0] for i in (-1, 0, 1))
    bend = left - 2 * here + right
    step = ((left - right) / (2 * bend + (bend <= 0))).clamp(-1, 1) * (bend > 0)
    at_end = (lowest != best) | (bend <= 0)
    step = step.where(~at_end, (lowest - best).to(step.dtype))
    return gains.gather(0, best[None])[0] * 2.0**-step
