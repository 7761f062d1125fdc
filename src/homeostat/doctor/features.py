"""Features: how large each is at norms that share a statistic among them, and how blocks of tokens turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from homeostat.doctor.hooks import harmless
from homeostat.doctor.parts import Array, Features, Turns
from homeostat.doctor.roles import Blocks, blocks_at
from homeostat.frame import ELLIPSIS, FrameError
from homeostat.plan import Plan, plan_for
from homeostat.recognising.found import Found
from homeostat.surgery.flow import given

SAMPLES = 64  # looked at by each norm


class Gauge:
    """One norm's features, sample by sample."""

    def __init__(self, found: Found) -> None:
        self.found, self.rows = found, list[tuple[Array, ...]]()
        self.pools: Array | None = None
        self.left = SAMPLES

    def take(self, x: Tensor) -> None:
        if self.left <= 0 or x.dim() < 2 or self.found.frame.labels:
            return
        axis = feature_axis(self.found, x)
        try:
            plan = plan_for(self.found.frame, tuple(x.shape), dict(self.found.sizes))
        except (FrameError, TypeError):
            return
        pools = pools_of(plan, axis)
        if len(np.unique(pools)) == len(pools) or (self.pools is not None and len(pools) != len(self.pools)):
            return  # every feature by itself
        x, self.pools = x[: self.left].double(), pools
        self.left -= len(x)
        flat = _by_feature(x, axis)
        energy = flat.square().mean(1)
        if self.found.center is not None:
            parts = x.reshape(len(x), *plan.shape[1:])
            energy = (
                _by_feature((parts - parts.mean(plan.pooled, keepdim=True)).reshape(x.shape), axis).square().mean(1)
            )
        kept = flat.mean(1), flat.var(1, correction=0), energy, (flat == 0).double().mean(1)
        self.rows.append(tuple(t.to("cpu", torch.float32).numpy() for t in kept))

    @property
    def seen(self) -> Features | None:
        if self.pools is None:
            return None
        mean, var, energy, zeros = (np.concatenate(column) for column in zip(*self.rows, strict=True))
        return Features(self.found.name, mean, var, energy, zeros.mean(0), self.pools)


class Turning:
    """Blocks of tokens from norm to norm: only the last tensor is held."""

    def __init__(self) -> None:
        self.last: tuple[str, Tensor] | None = None
        self.first: str | None = None
        self.rows: dict[str, list[tuple[Array, Array]]] = {}
        self.blocks: dict[str, Blocks] = {}

    def take(self, name: str, x: Tensor, blocks: Blocks) -> None:
        if x.dim() != 3 or x.shape[1] != len(blocks.codes):
            return
        self.first = self.first or name
        if name != self.first and self.last is not None and self.last[1].shape == x.shape:
            before, old = self.last
            angle = torch.acos(torch.cosine_similarity(old.double(), x.double(), dim=2).clamp(-1, 1))
            rows = tuple(_by_block(t, blocks.codes) for t in (old.double().norm(dim=2), angle))
            self.rows.setdefault(before, []).append((rows[0], rows[1]))
            self.blocks[before] = blocks
        self.last = name, x.clone()  # what comes next may work in place

    @property
    def seen(self) -> tuple[Turns, ...]:
        found = []
        for name, rows in self.rows.items():
            length, angle = (np.concatenate(column) for column in zip(*rows, strict=True))
            found.append(Turns(name, self.blocks[name].names, length, angle))
        return tuple(found)


@contextmanager
def gauging(norms: dict[str, tuple[Found, nn.Module]], told: Any) -> Iterator[tuple[list[Gauge], Turning]]:
    """Hooks on what the norms are given."""
    gauges, turning, hooks = list[Gauge](), Turning(), list[Any]()

    def look(gauge: Gauge, blocks: Blocks | None) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            x = given(args, kwargs)
            if isinstance(x, Tensor) and x.is_floating_point():
                gauge.take(x.detach())
                if blocks is not None and blocks.tokens:
                    turning.take(gauge.found.name, x.detach(), blocks)

        return harmless(hook)

    try:
        for name, (found, module) in norms.items():
            gauges.append(Gauge(found))
            hook = look(gauges[-1], blocks_at(told, name))
            hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield gauges, turning
    finally:
        for hook in hooks:
            hook.remove()


def feature_axis(found: Found, x: Tensor) -> int:
    """Where a frame has its features: last, or behind the samples where places follow."""
    last = found.frame.axes[-1]
    places = last == ELLIPSIS or (isinstance(last, str) and last in ("t", "h", "w") and x.dim() > 2)
    return 1 if places and len(found.frame.axes) > 1 else x.dim() - 1


def pools_of(plan: Plan, axis: int) -> Array:
    """For each position along an axis the number of the pool it is in."""
    axes = plan.frame.axes
    extra = len(plan.shape) - sum(len(a) if isinstance(a, tuple) else 1 for a in axes)
    counts: list[int] = []
    for a in axes:
        counts += [1] * (1 + extra) if a == ELLIPSIS else [len(a) if isinstance(a, tuple) else 1]
    start = sum(counts[:axis])
    parts = range(start, start + counts[axis])
    sizes = [plan.shape[p] for p in parts]
    at = np.unravel_index(np.arange(int(np.prod(sizes))), sizes)
    kept = [(i, n) for p, i, n in zip(parts, at, sizes, strict=True) if p in plan.kept]
    if not kept:
        return np.zeros(int(np.prod(sizes)), dtype=int)
    found: Array = np.ravel_multi_index([i for i, _ in kept], [n for _, n in kept])
    return found


def _by_feature(x: Tensor, axis: int) -> Tensor:
    """[samples, places, features]"""
    return x.movedim(axis, -1).reshape(len(x), -1, x.shape[axis])


def _by_block(t: Tensor, codes: Array) -> Array:
    """The mean over the tokens of each block, [samples, blocks]."""
    where = torch.as_tensor(codes, device=t.device)
    found: Array = torch.stack([t[:, where == b].mean(1) for b in range(int(codes.max()) + 1)], 1).cpu().numpy()
    return found
