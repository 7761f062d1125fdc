"""Momentum, chosen: the steady gain of a Kalman filter that follows a drifting mean through noisy batches.

    batch mean x_t = m_t + noise of variance r          m_t = m_{t-1} + drift of variance q          l = q / r

    K = (-l + sqrt(l^2 + 4 l)) / 2 = 2 / (1 + sqrt(1 + 4 / l))

>>> round(optimal_momentum(0.01, 1.0), 4)
0.0951
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from homeostat.arrays import Array
from homeostat.moments import Moments
from homeostat.sources.base import State
from homeostat.sources.running import Running

LONG = 1000  # batches over which candidates are judged
OWN = ("candidates", "errors")  # what it remembers to choose by
GAINS = 11  # from 1 to 1/1024: between two of them the error is at most 6 % too large


def optimal_momentum(drift: Any, noise: Any) -> Any:
    """The share of a new batch with the least squared error of the running mean.

    `drift` is the variance of the true mean's step from batch to batch, `noise` that of a batch's mean about it.
    Without drift the best is 1 / t, `Cumulative()`; with nothing but drift it is 1.
    """
    if not isinstance(drift, int | float) or not isinstance(noise, int | float):
        return 2 / (1 + (1 + 4 * noise / drift) ** 0.5)
    if drift < 0 or noise < 0 or drift == noise == 0:
        raise ValueError(f"drift={drift!r} and noise={noise!r} are variances: at least 0, and not both 0.")
    return 2 / (1 + (1 + 4 * noise / drift) ** 0.5) if drift else 0.0


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

    def init(self, groups: tuple[int, ...], **kind: Any) -> dict[str, Array]:
        import torch

        own = {"candidates": (GAINS, *groups), "errors": (GAINS,)}
        return super().init(groups, **kind) | {name: torch.zeros(shape, **kind) for name, shape in own.items()}

    def adapt(self, saved: dict[str, Array], fresh: State) -> dict[str, Array]:
        """Of a plain memory: every candidate starts from its mean."""
        saved = super().adapt(saved, fresh)
        if "running_mean" not in saved or "candidates" in saved:
            return saved
        candidates, errors = fresh["candidates"], fresh["errors"]
        return saved | {"candidates": saved["running_mean"].expand_as(candidates).clone(), "errors": errors * 0}

    def step(self, state: State, m: Moments) -> dict[str, Array]:
        import torch

        tracked = state["num_batches_tracked"] + 1
        t, means, errors = (v.to(m.mean.dtype) for v in (tracked, state["candidates"], state["errors"]))
        column = (-1, *(1,) * m.mean.dim())
        some = m.count > 0
        off, spread = (m.mean - means) * some, m.m2 / (m.count + (m.count == 0))
        found = (off * off / (spread + (spread == 0))).reshape(GAINS, -1).mean(1)
        errors = errors + (found - errors) * (t > 1) / (t - 1).clamp(1, LONG)
        halves = torch.arange(GAINS, dtype=t.dtype, device=t.device)
        gains = (0.5**halves).clamp_min(1 / t)  # while young all are the mean of what was seen
        means = means + gains.reshape(column) * off
        k = _lowest(errors, gains).clamp_min(1 / t).clamp_max(1)
        return self.blend(state, m, k) | {"num_batches_tracked": tracked, "candidates": means, "errors": errors}


def _lowest(errors: Array, gains: Array) -> Array:
    """The gain of least error: of the parabola, in log gain, through the best candidate and its neighbours."""
    lowest = errors.argmin()
    best = lowest.clamp(1, GAINS - 2)
    left, here, right = (errors.gather(0, (best + i).reshape(1)) for i in (-1, 0, 1))
    bend = left - 2 * here + right
    step = ((left - right) / (2 * bend + (bend <= 0))).clamp(-1, 1) * (bend > 0)
    at_end = (lowest != best) | (bend <= 0)
    step = step.where(~at_end, (lowest - best).to(step.dtype))
    return (gains.gather(0, best.reshape(1)) * 2.0**-step).reshape(())
