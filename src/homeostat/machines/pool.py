"""Pool: running statistics that ranks kept apart, made one; and how far apart they were.

    mean = sum w_r mean_r        var = sum w_r (var_r + (mean_r - mean)^2)        w_r = 1 / ranks that saw a batch

Averaging variances alone would lose what lies between the means. A cumulative mean has w_r its share of all batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from homeostat.kernels.exchange import exchange, size_of
from homeostat.nn.states import check_module
from homeostat.sources.synced import name_of


@dataclass(frozen=True)
class Drift:
    """How far the rank that is furthest off is from the pooled statistics of a layer."""

    layer: str
    kind: str
    mean: float  # largest |mean_r - mean| / std, over ranks and groups
    var: float  # the ratio var_r / var furthest from 1

    def __str__(self) -> str:
        return f"{self.layer} ({self.kind}): mean off by {self.mean:.3g} std, var by {self.var:.3g} times"


def pool(model: nn.Module, group: Any = None) -> tuple[Drift, ...]:
    """Give every rank the running statistics of all, pooled, in place, and say how far they were apart (`drift`).

    To save them and go on as before: `with hs.trial(model): hs.pool(model); torch.save(model.state_dict(), path)`.
    """
    sites = _sites(model, "pool")
    every = _every(sites, group)
    found = _drift(sites, every)
    with torch.no_grad():
        for (_name, layer), rows in zip(sites, _by_layer(sites, every), strict=True):
            for buffer, value in zip(_memory(layer), _pooled(layer, rows), strict=True):
                buffer.copy_(value)
    return found


def drift(model: nn.Module, group: Any = None) -> tuple[Drift, ...]:
    """How far the rank that is furthest off has its statistics from the pooled ones, layer by layer."""
    sites = _sites(model, "drift")
    return _drift(sites, _every(sites, group))


def _sites(model: nn.Module, verb: str) -> list[tuple[str, Any]]:
    check_module(model, verb)
    sites = [(name, layer) for name, layer in model.named_modules() if getattr(layer, "running_mean", None) is not None]
    if not sites:
        raise ValueError(f"homeostat.{verb}: no layer of this model has running statistics.")
    return sites


def _memory(layer: Any) -> list[Tensor]:
    """Mean, variance, what else is remembered, and last the count of batches."""
    names = ["running_mean", "running_var", *(n for n in ("candidates", "errors") if n in layer._buffers)]
    tracked = layer._buffers.get("num_batches_tracked")
    return [layer._buffers[name] for name in names] + ([] if tracked is None else [tracked])


def _every(sites: list[tuple[str, Any]], group: Any) -> Tensor:
    """[ranks, all numbers], in one exchange."""
    mine = torch.cat([part.double().reshape(-1) for _, layer in sites for part in _memory(layer)])
    name = name_of(group)
    if not (dist.is_available() and dist.is_initialized()) or size_of(name) == 1:
        return mine[None]
    said = f'statistics of layers "{sites[0][0]}" to "{sites[-1][0]}"'
    return exchange(mine, name, size_of(name), said)


def _by_layer(sites: list[tuple[str, Any]], every: Tensor) -> list[list[Tensor]]:
    """[ranks, ...] of each part of each layer's memory."""
    parts = [part for _, layer in sites for part in _memory(layer)]
    rows = iter(torch.split(every, [part.numel() for part in parts], 1))
    return [[next(rows).reshape(-1, *part.shape) for part in _memory(layer)] for _, layer in sites]


def _pooled(layer: Any, rows: list[Tensor]) -> list[Tensor]:
    mean, var, *more = rows
    tracked = more.pop() if "num_batches_tracked" in layer._buffers and layer.num_batches_tracked is not None else None
    fine = (torch.isfinite(mean) & torch.isfinite(var)).reshape(len(mean), -1).all(1)
    w = _shares(layer, mean, tracked, fine)
    mean, var = (part.where(w > 0, 0.0) if fine.any() else part for part in (mean, var))
    center = (w * mean).sum(0)
    found = [center, (w * (var + (mean - center) ** 2)).sum(0)]
    found += [(w.reshape(-1, *(1,) * (p.dim() - 1)) * p).sum(0) if w.numel() == len(w) else p.mean(0) for p in more]
    return found if tracked is None else [*found, _batches(layer, tracked)]


def _shares(layer: Any, mean: Tensor, tracked: Tensor | None, fine: Tensor) -> Tensor:
    """Each rank's, per row of memory; all alike where nobody saw a batch. What is not finite has none."""
    seen = torch.ones(len(mean)) if tracked is None else tracked if _counts_all(layer) else (tracked > 0)
    seen = seen.double().to(mean.device)
    seen = seen * fine.double().reshape(-1, *(1,) * (seen.dim() - 1))
    seen = seen + (seen.sum(0) == 0).double()
    w = seen / seen.sum(0)
    return w.reshape(*w.shape, *(1,) * (mean.dim() - w.dim()))


def _batches(layer: Any, tracked: Tensor) -> Tensor:
    return tracked.sum(0) if _counts_all(layer) else tracked.amax(0)


def _counts_all(layer: Any) -> bool:
    """Is its memory the mean of all batches so far?"""
    source = getattr(layer, "source", layer)
    return getattr(source, "momentum", 0.1) is None


def _drift(sites: list[tuple[str, Any]], every: Tensor) -> tuple[Drift, ...]:
    found = []
    for (name, layer), rows in zip(sites, _by_layer(sites, every), strict=True):
        mean, var = _pooled(layer, rows)[:2]
        eps = layer.eps if isinstance(layer.eps, float) else 0.0
        steps = (rows[0] - mean).abs() / (var + eps).sqrt().clamp_min(1e-300)
        ratio = ((rows[1] + eps) / (var + eps).clamp_min(1e-300)).flatten()
        furthest = ratio[ratio.log().abs().argmax()]
        found.append(Drift(name, type(layer).__name__, float(steps.max()), float(furthest)))
    return tuple(found)
