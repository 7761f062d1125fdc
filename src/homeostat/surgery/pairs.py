"""Pairs: a norm and the linear layers or convolutions it can go into; or the reason why there are none.

before    what it is given comes from one layer alone, and goes nowhere else
after     what it gives goes to such layers alone, and they are given nothing else; no shift meets a border of zeros
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from homeostat.affine import Affine
from homeostat.surgery import constants
from homeostat.surgery.flow import Flow, Use
from homeostat.surgery.weights import shift

MEASURES = "it measures what it is given"


class Pair(NamedTuple):
    """A norm, and the layers it goes into: one that it follows, or those that follow it."""

    norm: str
    into: tuple[str, ...]
    follows: bool


class Place(NamedTuple):
    """Where a parameter or buffer lies in memory: the first byte, and the first after it."""

    start: int
    end: int
    name: str
    module: nn.Module


def places(model: nn.Module) -> list[Place]:
    """Of every parameter and buffer."""
    return [
        Place(*_span(t), f"{name}.{key}".lstrip("."), module)
        for name, module in model.named_modules()
        for key, t in (*module._parameters.items(), *module._buffers.items())
        if t is not None and not is_lazy(t)
    ]


def pair_of(name: str, affine: Affine, flow: Flow, model: nn.Module, held: list[Place]) -> Pair | str:
    """Where it can go; or why nowhere."""
    uses = flow.uses.get(name)
    if not uses:
        return "these batches do not reach it"
    if not all(use.axes for use in uses):
        return "it was not seen to do (x - mean) / sqrt(var + eps) w + b with one number per channel"
    if name in flow.strays:
        return f"{flow.strays[name]} reads its tensors elsewhere"
    layer = model.get_submodule(name)
    before = MEASURES if constants.measures(layer) else _before(name, uses, flow, model, held)
    if isinstance(before, Pair):
        return before
    after = (
        _after(name, uses, affine, flow, model, held) if not list(layer.children()) else "its activation stands between"
    )
    return after if isinstance(after, Pair) else f"{before}; {after}"


def _before(name: str, uses: list[Use], flow: Flow, model: nn.Module, held: list[Place]) -> Pair | str:
    makers = [use.x.made for use in uses]
    names = dict.fromkeys(maker.layer for maker in makers if maker)
    if None in makers or not all(_linear(maker, flow) for maker in makers):
        return "it does not follow a linear layer or convolution"
    if None in names or len(names) > 1:
        return "it follows a weight that is computed" if None in names else f"it follows {_listed(names)}"
    into = str(next(iter(names)))
    others = dict.fromkeys(_name(read) for use in flow.uses[into] for read in use.y.reads if _name(read) != name)
    if others or any(use.y.kept for use in flow.uses[into]):
        return f"the output of {into} also goes to {_listed(others) if others else 'whoever keeps it'}"
    if not all(maker and maker.axis_out in use.axes - use.x.padded for maker, use in zip(makers, uses, strict=True)):
        return f"{into} puts its features on another axis"
    return _refusal(into, flow, model, held) or Pair(name, (into,), True)


def _after(name: str, uses: list[Use], affine: Affine, flow: Flow, model: nn.Module, held: list[Place]) -> Pair | str:
    reads: list[Any] = [read for use in uses for read in use.y.reads]
    others = dict.fromkeys(_name(read) for read in reads if not _linear(read, flow) or read.layer is None)
    if others or not reads or any(use.y.kept for use in uses):
        return f"its output goes to {_listed(others) if others else 'whoever keeps it'}"
    into = tuple(dict.fromkeys(_name(read) for read in reads))
    for read in reads:
        if read.axis_in not in (read.x.made or read).axes - read.x.padded:
            return f"{_name(read)} takes its features from another axis"
    for one in into:
        why = _refusal(one, flow, model, held)
        if why:
            return why
        if any(use.x.made is None or use.x.made.layer != name for use in flow.uses[one]):
            return f"{one} is given other tensors too"
        if bool(shift(affine).any()):
            if any(use.pads for use in flow.uses[one]):
                return f"{one} pads with zeros, and the shift would be missing at the border"
            if any(use.transposed for use in flow.uses[one]):
                return f"{one} is transposed, and the shift would not reach all of its output alike"
    return Pair(name, into, False)


def _refusal(into: str, flow: Flow, model: nn.Module, held: list[Place]) -> str:
    """Why nothing can be folded into this layer."""
    layer: Any = model.get_submodule(into)
    own = [_span(t) for t in (layer.weight, layer.bias) if t is not None]
    others = [one.name for a, b in own for one in held if one.start < b and a < one.end and one.module is not layer]
    if others:
        return f"{into} shares its weight with {_listed(others)}"
    if into in flow.strays:
        return f"{flow.strays[into]} reads the weight of {into} elsewhere"
    if not all(use.as_made for use in flow.uses[into]):
        return f"{into} does not take its bias and groups from where a {type(layer).__name__} has them"
    why = hooked(layer)
    return f"{into}: {why}" if why else ""


def _span(t: Tensor) -> tuple[int, int]:
    """The first byte of its memory, and the first after it."""
    last = sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)) if t.numel() else -1
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def hooked(layer: nn.Module) -> str:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return "it has hooks" if any(hooks) else ""


def _linear(read: Any, flow: Flow) -> bool:
    return isinstance(read, Use) and (read.layer is None or (not read.axes and read.layer in flow.linear))


def _name(read: Use | str) -> str:
    return read if isinstance(read, str) else read.layer or "a weight that is computed"


def _listed(names: Iterable[Any]) -> str:
    return " and ".join(str(name) for name in names)
