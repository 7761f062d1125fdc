"""Freeze: running statistics become constants, (x - mean) / sqrt(var + eps) w + b in training too; and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from homeostat.nn.adopt import adopt, cannot_adopt, plain_class
from homeostat.nn.preset import Preset
from homeostat.nn.states import OWN, check_module
from homeostat.norm import Norm
from homeostat.sources import Frozen
from homeostat.surgery.calling import Forward, asked, call, compared, copied, listed, samples_in
from homeostat.surgery.certificate import Certificate, Change

M = TypeVar("M", bound=nn.Module)
FREEZING = ("freeze", "frozen")


@dataclass(frozen=True)
class Held(Change):
    """`drift` is how far its output moves, in root mean squares of it before; NaN where no batch reached it."""

    drift: float

    def __str__(self) -> str:
        return f"{self.layer} ({self.kind}): moves {self.drift:.3g} rms"


def freeze(
    model: M,
    batches: Iterable[Any] = (),
    *,
    layers: str | Iterable[str] = "*",
    affine: bool = True,
    forward: Forward = call,
    inplace: bool = False,
) -> tuple[M, Certificate]:
    """A copy of the model that holds every running statistic as it is, whatever `.train()` says; `unfreeze` lets go.

    Frozen layers normalize by what they remembered, in training too; torch's become ours for it. Their gains go on
    learning; with `affine=False` they are held as well. Layers that remember nothing (layer, group, RMS norm) have
    nothing to freeze. The certificate compares frozen layers in training with what they were in evaluation.
    """
    return _turned(model, batches, layers, forward, inplace, FREEZING, lambda layer: _hold(layer, affine))


def unfreeze(
    model: M,
    batches: Iterable[Any] = (),
    *,
    layers: str | Iterable[str] = "*",
    forward: Forward = call,
    inplace: bool = False,
) -> tuple[M, Certificate]:
    """A copy of the model whose frozen statistics run again, from where they were; held gains learn again."""
    return _turned(model, batches, layers, forward, inplace, ("unfreeze", "unfrozen"), _let_go)


def _turned(
    model: M,
    batches: Iterable[Any],
    layers: str | Iterable[str],
    forward: Forward,
    inplace: bool,
    verb: tuple[str, str],
    turn: Callable[[Any], str],
) -> tuple[M, Certificate]:
    """`turn` every layer that remembers; it says why where it does not."""
    check_module(model, verb[0])
    data = listed(batches)
    new = model if inplace else copied(model)
    old = copied(model) if inplace and data else model
    kinds: dict[str, str] = {}
    left: list[tuple[str, str]] = []
    for name, layer in asked(new, layers):
        kind, why = type(layer).__name__, turn(layer) if _remembers(layer) else None
        if why:
            left.append((name, why))
        elif why is not None:
            kinds[name] = kind
    drift, each = compared(old, new, data, forward, kinds, awake=kinds if verb is FREEZING else ())
    changed = tuple(Held(name, kind, each[name]) for name, kind in kinds.items())
    return new, Certificate(verb[1], changed, tuple(left), drift, samples_in(data))


def _remembers(layer: Any) -> bool:
    if isinstance(layer, Norm | Preset):
        return bool(layer.source.names)
    return isinstance(layer, OWN) or getattr(layer, "running_mean", None) is not None


def _hold(layer: Any, affine: bool) -> str:
    if isinstance(layer, _NormBase) and not isinstance(layer, Preset):
        why = cannot_adopt(layer, plain_class(layer))
        if why:
            return why
        adopt(layer)
    if isinstance(layer, OWN):
        layer.frozen = True
    elif not isinstance(layer, Norm | Preset):
        return f"{type(layer).__name__} is no norm that is known"
    elif not isinstance(layer.source, Frozen):
        layer.source = Frozen(layer.source)
    if not affine:
        held = [name for name, p in layer.named_parameters(recurse=False) if p.requires_grad]
        layer.__dict__["held_gains"] = (*layer.__dict__.get("held_gains", ()), *held)
        for name in held:
            getattr(layer, name).requires_grad_(False)
    return ""


def _let_go(layer: Any) -> str:
    if isinstance(layer, OWN):
        layer.frozen = False
    elif isinstance(layer, Norm | Preset) and isinstance(layer.source, Frozen):
        inner = layer.source.inner
        layer.source = None if isinstance(layer, Preset) and layer.default_source() == inner else inner
    else:
        return "it is not frozen"
    for name in layer.__dict__.pop("held_gains", ()):
        getattr(layer, name).requires_grad_(True)
    return ""
