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
from functools import partial
from typing import Any

import torch
from torch import nn

from homeostat.doctor.closely import closely
from homeostat.doctor.company import NotSamples, regrouped, size
from homeostat.doctor.facts import Array, Facts, Seen
from homeostat.doctor.layers import Looked, layer, taking
from homeostat.doctor.outputs import Rows, rows, seen
from homeostat.doctor.roles import checked
from homeostat.doctor.stepping import step
from homeostat.recognising import recognise
from homeostat.recognising.found import RUNNING, SAMPLE
from homeostat.recognising.watching import Forward, call, eagerly, put_back
from homeostat.surgery.fold import unfolded

COMPANIES = 2


def probe(
    model: nn.Module,
    batches: list[Any],
    forward: Forward = call,
    roles: dict[str, Any] | None = None,
    loss: Any = None,
    labels: Any = None,
) -> Facts:
    """Facts; the model is afterwards as it was."""
    start = time.perf_counter()
    why: dict[str, str] = {}
    known = recognise(model, batches, forward)
    modules = dict(model.named_modules())
    looked = {found.name: Looked(found, modules[found.name]) for found in known}
    sizes = _sizes(batches, why)
    run = partial(_run, model, looked, forward=forward)
    told = checked(roles)
    with closely(model, {name: (one.found, one.module) for name, one in looked.items()}, told) as close:
        evaluated = seen(run(batches, sizes, "asked"), None, why)
    trained = again = None
    mixed: list[Seen] = []
    passes = 1.0
    if any(one.found.source != SAMPLE for one in looked.values()):
        try:
            trained, passes = seen(run(batches, sizes, "samples", train=True), None, why), passes + 1
        except Exception as error:  # such as torch's of a batch of one
            why["trained"] = f"by the batch's statistics the model raises: {str(error).strip().splitlines()[0]}"
    if sizes and evaluated is not None:
        try:
            companies = [regrouped(batches, seed) for seed in range(1 + (COMPANIES if trained else 0))]
        except NotSamples as reason:
            why["company"] = str(reason)
        else:
            again = seen(run(companies[0][0], sizes), companies[0][1], why)
            mixed = [s for new, order in companies[1:] if (s := seen(run(new, sizes, train=True), order, why))]
            passes += len(companies)

    def apart(new: list[Any], order: Array, train: bool) -> Seen | None:
        return seen(run(new, (min(sizes),) * len(new), train=train), order, why)

    parts = close.parts(batches, forward, told, loss, labels, sizes, apart, evaluated, trained, why)
    passes += close.passes / len(batches)
    norms = {name: one.module for name, one in looked.items()}
    for name, one in (_tried("step", lambda: step(model, norms, batches[0], forward), why) or {}).items():
        looked[name].step = one
    remembers = any(one.found.source == RUNNING for one in looked.values())
    folds = _tried("unfolded", lambda: unfolded(model, batches[:1], forward=forward), why) if remembers else None
    passes += (3 * ("step" not in why) + (folds is not None)) / len(batches)  # a step is a pass ahead and two back
    reached = [one for one in looked.values() if one.most]
    return Facts(
        layers=tuple(layer(one) for one in reached),
        left=known.left,
        never=tuple(name for name, one in looked.items() if not one.most),
        sizes=sizes,
        evaluated=evaluated,
        again=again,
        trained=trained,
        mixed=tuple(mixed),
        training=model.training,
        unfolded=folds,
        parts=parts,
        why=why,
        roles=told,
        passes=passes,
        seconds=time.perf_counter() - start,
    )


def _run(
    model: nn.Module,
    looked: dict[str, Looked],
    batches: list[Any],
    sizes: tuple[int, ...],
    into: str | None = None,
    train: bool = False,
    *,
    forward: Forward,
) -> list[Rows | None]:
    """Outputs, batch by batch, as the model would give them had it been like this from the start."""
    outputs = []
    with put_back(model), eagerly(), torch.no_grad(), _looking(looked, into):
        model.eval()
        if train:
            for one in looked.values():
                one.module.train(one.found.source != SAMPLE)
        for batch, samples in zip(batches, sizes or [None] * len(batches), strict=True):
            outputs.append(rows(forward(model, batch), samples))
            for one in looked.values():
                one.most, one.calls = max(one.most, one.calls), 0
    return outputs


@contextmanager
def _looking(looked: dict[str, Looked], into: str | None) -> Iterator[None]:
    hooks = []
    try:
        for one in looked.values() if into else ():
            hooks.append(one.module.register_forward_pre_hook(taking(one, into or ""), with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tried(what: str, run: Callable[[], Any], why: dict[str, str]) -> Any:
    """None where the model will not have it: in training mode, say, or with operators that cannot be watched."""
    try:
        return run()
    except Exception as reason:
        why[what] = str(reason).strip().partition("\n")[0] or type(reason).__name__


def _sizes(batches: list[Any], why: dict[str, str]) -> tuple[int, ...]:
    try:
        return tuple(size(batch) for batch in batches)
    except NotSamples as reason:
        why["company"] = str(reason)
        return ()
