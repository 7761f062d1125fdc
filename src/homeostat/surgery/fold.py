"""Fold: a norm whose statistics are constants goes into the linear layer or convolution before it, or those after it.

    before    ((W x + b) - mean) s + t      always exact
    after     W (x s + d) + b               exact unless d meets a border of zeros; one of x's own values is no border

That one feeds the other and nothing else is seen while the model runs (flow.py), and what a norm does is checked by its
numbers (constants.py); what was not seen is not folded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from homeostat.affine import Affine
from homeostat.nn.states import check_module
from homeostat.recognising.watching import put_back
from homeostat.surgery import constants
from homeostat.surgery.calling import Forward, asked, call, compared, copied, evaluating, listed, samples_in
from homeostat.surgery.certificate import Certificate, Change
from homeostat.surgery.flow import Flow
from homeostat.surgery.pairs import MEASURES, Pair, hooked, pair_of, places
from homeostat.surgery.weights import LINEAR, Weights, is_stored

M = TypeVar("M", bound=nn.Module)
Pairs = dict[Pair, Affine]


@dataclass(frozen=True)
class Folded(Change):
    """`drift` is how far the output of the two together moves, in root mean squares of it before."""

    into: tuple[str, ...]
    scale: float  # the largest |s| a weight was multiplied by
    drift: float

    def __str__(self) -> str:
        into = ", ".join(self.into)
        return f"{self.layer} ({self.kind}) into {into}: scaled by up to {self.scale:.3g}, moves {self.drift:.3g} rms"


def fold(
    model: M,
    batches: Iterable[Any],
    *,
    layers: str | Iterable[str] = "*",
    gains: bool = False,
    forward: Forward = call,
    inplace: bool = False,
) -> tuple[M, Certificate]:
    """A copy of the model, for evaluation, without the norms that a linear layer or convolution beside them can do.

    Batches show what feeds what; a path they do not take is not seen. `layers` are names of norms, with * and ?. Norms
    that measure what they are given stay; with `gains=True` their w and b go into the layers after them. In place of a
    norm is an `Identity`, or what it did besides (an activation). `forward` calls the model on a batch; without it a
    tensor is the input, of a sequence the first is, a dict is keywords.
    """
    check_module(model, "fold")
    data = listed(batches)
    old, new = copied(model), copied(model)
    done, weights, left = _fold(new, data, layers, gains, forward)
    places = {into: _place(into, done) for pair in done for into in pair.into}
    drift, moved = compared(old, new, data, forward, list(places.values()))
    changed = tuple(
        _change(pair, affine, old, [moved[places[into]] for into in pair.into]) for pair, affine in done.items()
    )
    if inplace:
        _apply(model, done, weights)
    return model if inplace else new, Certificate("folded", changed, tuple(left.items()), drift, samples_in(data))


def unfolded(model: nn.Module, batches: Iterable[Any], *, forward: Forward = call) -> dict[str, str]:
    """Norms that `fold` would leave where they are, and why; the model is not copied."""
    return _found(model, listed(batches), "*", False, forward)[1]


def _fold(
    new: nn.Module, data: list[Any], layers: str | Iterable[str], gains: bool, forward: Forward
) -> tuple[Pairs, dict[str, Weights], dict[str, str]]:
    """Until there is no pair: a norm may follow another that has just been folded."""
    done: Pairs = {}
    weights: dict[str, Weights] = {}
    refused: dict[str, str] = {}
    while True:
        found, left = _found(new, data, layers, gains, forward)
        left |= refused
        found = {pair: affine for pair, affine in found.items() if pair.norm not in left and pair not in done}
        if not found:
            folded = {pair.norm for pair in done}
            order = [
                name for name, _ in new.named_modules(remove_duplicate=False) if name in left and name not in folded
            ]
            return done, weights, {name: left[name] for name in order}
        for pair, affine in found.items():
            both = {into: _both(pair, affine, new.get_submodule(into), weights.get(into)) for into in pair.into}
            if not all(one.fit() for one in both.values()):
                refused[pair.norm] = f"the weights of {' and '.join(both)} would not be finite in their dtype"
                continue
            weights |= both
            done[pair] = affine
            _apply(new, [pair], both)


def _found(
    model: nn.Module, data: list[Any], layers: str | Iterable[str], gains: bool, forward: Forward
) -> tuple[Pairs, dict[str, str]]:
    """Norms that can be folded now, with what they apply; those that cannot, and why."""
    known, left = _norms(model, layers, gains)
    norms = {name: model.get_submodule(name) for name in known}
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, LINEAR) and is_stored(layer)}
    look = lambda name, x, y: constants.acts_along(norms[name], known[name], x, y)  # noqa: E731
    with put_back(model), evaluating(model):
        flow = Flow(norms, linear, look).watch(model, data, forward)
    found: Pairs = {}
    held = places(model)
    for name, affine in known.items():
        pair = pair_of(name, affine, flow, model, held)
        if isinstance(pair, str):
            left[name] = pair
        else:
            found[pair] = affine
    return found, left


def _norms(model: nn.Module, layers: str | Iterable[str], gains: bool) -> tuple[dict[str, Affine], dict[str, str]]:
    known: dict[str, Affine] = {}
    left: dict[str, str] = {}
    for name, layer in asked(model, layers):
        if not constants.is_norm(layer):
            continue
        applied = constants.applied(layer)
        why = applied if isinstance(applied, str) else hooked(layer)
        if not why and constants.measures(layer) and not gains:
            why = f"{MEASURES}; gains=True folds its gain where layers after it can take it"
        if why:
            left[name] = why
        elif isinstance(applied, Affine):
            known[name] = applied
    return known, left


def _both(pair: Pair, affine: Affine, layer: nn.Module, weights: Weights | None) -> Weights:
    """The layer's weights, with what was folded into them before, and now this."""
    both = copy.copy(weights) if weights else Weights(layer)
    both.put_last(affine) if pair.follows else both.put_first(affine)
    return both


def _place(into: str, done: Pairs) -> str:
    """Where it shows what went into a layer: at the last norm that followed it, or at the layer."""
    return next((pair.norm for pair in reversed(done) if pair.follows and pair.into == (into,)), into)


def _change(pair: Pair, affine: Affine, old: nn.Module, moved: list[float]) -> Folded:
    kind, scale = type(old.get_submodule(pair.norm)).__name__, float(affine.s.abs().max())
    return Folded(pair.norm, kind, pair.into, scale, max(moved, key=lambda m: (m != m, m)))  # NaN, where there is one


def _apply(model: nn.Module, pairs: Iterable[Pair], weights: dict[str, Weights]) -> None:
    for into, both in weights.items():
        both.write(model.get_submodule(into))
    for pair in pairs:
        layer = model.get_submodule(pair.norm)
        constants.strip(layer) if constants.measures(layer) else constants.vanish(layer)
