"""Refit: the gain that brings a new norm nearest to what the old one made, by least squares per group of the gain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.nn.adopt import OURS, adopt, release
from homeostat.nn.identity import identity_on
from homeostat.recognising.watching import put_back
from homeostat.surgery.apart import Apart, normed
from homeostat.surgery.calling import Forward, evaluating


def refit(
    old_model: nn.Module, new_model: nn.Module, name: str, data: list[Any], forward: Forward
) -> tuple[float, float, str]:
    """Fit the norm of this name to its outputs in the old model: how far off it was and is, or why it was not fitted.

    It is given what comes to it in the new model, where those before it have changed already.
    """
    new: Any = new_model.get_submodule(name)
    now, then = (seen_by(model, name, data, forward) for model in (new_model, old_model))
    if not all(len(args) == 1 for args, _ in now) or not all(isinstance(y, Tensor) for _, y in then):
        return math.nan, math.nan, "not refitted: it is given more than one tensor"
    wanted, made = [y for _, y in then], [y for _, y in now]
    if isinstance(new, Apart):
        new, old = new.norm, old_model.get_submodule(name)
        with evaluating(old, new):
            wanted, made = [normed(old, args[0]) for args, _ in then], [new(args[0]) for args, _ in now]
    theirs = type(new) in OURS
    if theirs:
        adopt(new)
    try:
        targets = iter(wanted)
        after = identity_on(new, [args[0] for args, _ in now], lambda _: next(targets))
        return _off(made, wanted), after, ""
    except (TypeError, ValueError) as error:
        return math.nan, math.nan, f"not refitted: {str(error).rstrip('.')}"
    finally:
        if theirs:
            release(new)


def _off(made: list[Tensor], wanted: list[Tensor]) -> float:
    """The root of |y - wanted|^2 / |wanted - its mean|^2."""
    y, t = (torch.cat([part.double().flatten() for part in parts]) for parts in (made, wanted))
    size = float((t - t.mean()).square().sum())
    return math.sqrt(float((y - t).square().sum()) / size) if size > 0 else 0.0


def seen_by(model: nn.Module, name: str, data: Iterable[Any], forward: Forward) -> list[tuple[tuple[Any, ...], Any]]:
    """Of every call of a layer, what it was given and what it gave; copies, for what comes next may work in place."""
    seen: list[tuple[tuple[Any, ...], Any]] = []
    given: list[tuple[Any, ...]] = []

    def before(_layer: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(tuple(v.clone() if isinstance(v, Tensor) else v for v in (*args, *kwargs.values())))

    def after(_layer: nn.Module, _args: Any, y: Any) -> None:
        seen.append((given.pop(), y.clone() if isinstance(y, Tensor) else y))

    layer = model.get_submodule(name)
    with hooked(layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)):
        _run(model, data, forward)
    return seen


def order_of(model: nn.Module, names: Iterable[str], data: Iterable[Any], forward: Forward) -> list[str]:
    """These layers as they first run."""
    ran: dict[str, None] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: ran.setdefault(name)

    with hooked(*(model.get_submodule(name).register_forward_pre_hook(note(name)) for name in names)):
        _run(model, data, forward)
    return list(ran)


@contextmanager
def hooked(*hooks: Any) -> Iterator[None]:
    """These hooks, and none of them afterwards."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _run(model: nn.Module, data: Iterable[Any], forward: Forward) -> None:
    with put_back(model), evaluating(model):
        for batch in data:
            forward(model, batch)
