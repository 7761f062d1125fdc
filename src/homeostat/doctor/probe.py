"""Probe: look at a model on batches without touching it, once, for all rules.

    pass                    norms         dropout    batches
    evaluated               as deployed   off        as given
    again                   as deployed   off        in other company
    trained                 by the batch  off        as given
    mixed, COMPANIES times  by the batch  off        in other company

Inputs of norms are reduced to Moments as they come. Nothing is kept of the model but numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from homeostat.arrays import to_numpy
from homeostat.doctor.company import NotSamples, regrouped, size
from homeostat.doctor.facts import Array, Facts, Layer, Seen
from homeostat.frame import Frame, FrameError, Label
from homeostat.moments import Moments
from homeostat.reading import measure
from homeostat.recognising import recognise
from homeostat.recognising.found import RUNNING, SAMPLE, Found
from homeostat.recognising.watching import Forward, call, eagerly, put_back
from homeostat.surgery.certificate import tensors_in
from homeostat.surgery.flow import given

COMPANIES = 2
POOLS, COLUMNS, CLASSES = 4096, 4096, 10_000  # kept at most: pools of a norm, columns of an output; classes it can be


@dataclass
class Looked:
    """What the hooks of one norm have seen so far."""

    found: Found
    module: nn.Module
    calls: int = 0
    most: int = 0
    dtype: str = ""
    pool: float = float("inf")
    samples: list[Moments] = field(default_factory=list)
    asked: list[Moments] = field(default_factory=list)


def probe(
    model: nn.Module, batches: list[Any], forward: Forward = call, roles: dict[str, object] | None = None
) -> Facts:
    """Facts; the model is afterwards as it was."""
    start = time.perf_counter()
    why: dict[str, str] = {}
    known = recognise(model, batches, forward)
    modules = dict(model.named_modules())
    looked = {found.name: Looked(found, modules[found.name]) for found in known}
    sizes = _sizes(batches, why)
    run = partial(_run, model, looked, forward=forward)
    evaluated = _seen(run(batches, "asked"), sizes, None, why)
    trained = again = None
    mixed: list[Seen] = []
    passes = 1.0
    if any(one.found.source != SAMPLE for one in looked.values()):
        trained, passes = _seen(run(batches, "samples", train=True), sizes, None, why), passes + 1
    if sizes and evaluated is not None:
        try:
            companies = [regrouped(batches, seed) for seed in range(1 + (COMPANIES if trained else 0))]
        except NotSamples as reason:
            why["company"] = str(reason)
        else:
            again = _seen(run(companies[0][0], None), sizes, companies[0][1], why)
            mixed = [s for new, order in companies[1:] if (s := _seen(run(new, None, train=True), sizes, order, why))]
            passes += len(companies)
    reached = [one for one in looked.values() if one.most]
    return Facts(
        layers=tuple(_layer(one) for one in reached),
        left=known.left,
        never=tuple(name for name, one in looked.items() if not one.most),
        sizes=sizes,
        evaluated=evaluated,
        again=again,
        trained=trained,
        mixed=tuple(mixed),
        why=why,
        roles=dict(roles or {}),
        passes=passes,
        seconds=time.perf_counter() - start,
    )


def _run(
    model: nn.Module,
    looked: dict[str, Looked],
    batches: list[Any],
    into: str | None,
    train: bool = False,
    *,
    forward: Forward,
) -> list[Any]:
    """Outputs, batch by batch, as the model would give them had it been like this from the start."""
    outputs = []
    with put_back(model), eagerly(), torch.no_grad(), _looking(looked, into):
        model.eval()
        if train:
            for one in looked.values():
                one.module.train(one.found.source != SAMPLE)
        for batch in batches:
            outputs.append(forward(model, batch))
            for one in looked.values():
                one.most, one.calls = max(one.most, one.calls), 0
    return outputs


@contextmanager
def _looking(looked: dict[str, Looked], into: str | None) -> Iterator[None]:
    hooks = []
    try:
        for one in looked.values() if into else ():
            hooks.append(one.module.register_forward_pre_hook(_hook(one, into or ""), with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(one: Looked, into: str) -> Callable[..., None]:
    def look(_module: nn.Module, args: Any, kwargs: Any) -> None:
        one.calls += 1
        x = given(args, kwargs)
        one.dtype = str(x.dtype).removeprefix("torch.")
        if found := _moments(one.found, x.detach()):
            getattr(one, into).append(found[0])
            one.pool = min(one.pool, found[1])

    return look


def alone(found: Found) -> Frame | None:
    """The frame of each sample by itself; None where samples share no statistic."""
    first, kept = found.frame.names[0], found.frame.kept
    held = {
        word for item in kept if not isinstance(item, Label) for word in ([item] if isinstance(item, str) else item)
    }
    return None if first in held else found.frame.keep((first, *kept))


def _moments(found: Found, x: Tensor) -> tuple[Moments, float] | None:
    """[samples, groups] in float64, and how many elements share a statistic; None where labels come with the call."""
    if found.frame.labels:
        return None
    frame, sizes = alone(found), dict[str, Any](found.sizes)
    try:
        m = measure(x, frame or found.frame, **sizes)
    except (FrameError, TypeError):
        return None
    count = float(to_numpy(m.count).reshape(-1)[0]) if not isinstance(m.count, float | int) else float(m.count)
    mean, m2 = (to_numpy(part).astype(np.float64) for part in (m.mean, m.m2))
    if frame is not None:
        rows = len(x)
        return Moments(count, mean.reshape(rows, -1), m2.reshape(rows, -1)), count * rows
    pick = np.linspace(0, mean.size - 1, min(mean.size, POOLS)).astype(int)
    return Moments(count, mean.reshape(-1, 1)[pick], m2.reshape(-1, 1)[pick]), count


def _sizes(batches: list[Any], why: dict[str, str]) -> tuple[int, ...]:
    try:
        return tuple(size(batch) for batch in batches)
    except NotSamples as reason:
        why["company"] = str(reason)
        return ()


def _seen(outputs: list[Any], sizes: tuple[int, ...], order: Array | None, why: dict[str, str]) -> Seen | None:
    """The first tensor of fractions that has a row per sample."""
    if not sizes:
        why.setdefault("outputs", why.get("company", "batches have no samples"))
        return None
    rows = []
    for out, n in zip(outputs, sizes, strict=True):
        first = next((t for t in tensors_in(out) if t.dim() and len(t) == n), None)
        if first is None:
            why["outputs"] = "the model gives no tensor with a row per sample"
            return None
        rows.append(first.detach().to("cpu", torch.float64).reshape(n, -1))
        shape = first.shape
    if len({row.shape[1] for row in rows}) > 1:
        why["outputs"] = "outputs of different batches differ in shape"
        return None
    every = torch.cat(rows).numpy()
    pick = np.linspace(0, every.shape[1] - 1, min(every.shape[1], COLUMNS)).astype(int)
    classes = len(shape) == 2 and 2 <= shape[1] <= CLASSES
    return Seen(np.arange(len(every)) if order is None else order, every if classes else every[:, pick], classes)


def _layer(one: Looked) -> Layer:
    module: Any = one.module
    momentum, tracked = getattr(module, "momentum", None), getattr(module, "num_batches_tracked", None)
    gain = getattr(module, "weight", None)
    parameters = list(module.parameters(recurse=False))
    return Layer(
        found=one.found,
        calls=one.most,
        training=module.training,
        learns=any(p.requires_grad for p in parameters),
        momentum=momentum if isinstance(momentum, float | int) else None,
        tracked=int(tracked) if isinstance(tracked, Tensor) and tracked.numel() == 1 else None,
        gain=_numbers(gain) if isinstance(gain, Tensor) else None,
        stored=_stored(module) if one.found.source == RUNNING else None,
        dtype=one.dtype,
        pool=one.pool,
        together=one.found.source != SAMPLE and (bool(one.found.frame.labels) or alone(one.found) is not None),
        samples=tuple(one.samples),
        asked=tuple(one.asked),
    )


def _stored(module: Any) -> Moments | None:
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return Moments(1.0, _numbers(mean), _numbers(var)) if isinstance(mean, Tensor) and isinstance(var, Tensor) else None


def _numbers(t: Tensor) -> Array:
    return to_numpy(t.detach().to("cpu", torch.float64)).reshape(-1)
