"""Constants: what a norm applies that does not depend on what it is given, per channel.

    its statistics and its gain    (x - mean) / sqrt(var + eps) w + b    where they are remembered
    its gain alone                 u w + b                               where u is measured in every call

No class is taken at its word: a layer counts as such where it was seen to do just that.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from homeostat.affine import Affine
from homeostat.nn.preset import Preset
from homeostat.norm import Norm

MEASURING = Norm | Preset | _NormBase | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm


def is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, MEASURING) or hasattr(layer, "running_mean") or by_hand(layer)


def by_hand(layer: Any) -> bool:
    """A class of somebody else's that says so, with a gain, such as LlamaRMSNorm."""
    called = "norm" in type(layer).__name__.lower() and not isinstance(layer, MEASURING) and not list(layer.children())
    weight = layer._parameters.get("weight") if called else None
    return weight is not None and not is_lazy(weight) and weight.dim() == 1


def measures(layer: Any) -> bool:
    """Does it measure what it is given, in evaluation too?"""
    return getattr(layer, "running_mean", None) is None


def applied(layer: Any) -> Affine | str:
    """In float64, along one axis; or why there is no such thing."""
    if isinstance(layer, torch.jit.ScriptModule):
        return "it was compiled by torch.jit.script"
    if nn.utils.parametrize.is_parametrized(layer):
        return "its gain is parametrized"
    learned = _gain(layer)
    if isinstance(learned, str):
        return learned
    c: Any = 0.0
    r: Any = 1.0
    if not measures(layer):
        eps = getattr(layer, "eps", 1e-5)  # some frozen ones write it into their forward
        if not isinstance(eps, float | int):
            return f"its eps is {eps!r}, not a number"
        c = layer.running_mean.double() if getattr(layer, "center", True) else 0.0
        r = 1 / (layer.running_var.double() + eps).sqrt()
    parts = [torch.as_tensor(part, dtype=torch.float64) for part in (c, r, *learned)]
    vectors = [part for part in parts if part.dim()]
    if any(part.dim() > 1 or part.shape != vectors[0].shape for part in vectors):
        return "its numbers are not one per channel"
    c, r, w, b = (part.to(vectors[0].device).expand_as(vectors[0]).clone() for part in parts)
    return Affine(c, r * w, b)


def _gain(layer: Any) -> tuple[Any, Any] | str:
    gain = getattr(layer, "gain", None) if isinstance(layer, Norm | Preset) else None
    if gain is not None and (gain.asks or getattr(layer, "counts", None)):
        return "its gain is made anew at every call"
    w, b = (getattr(layer, "weight", None), getattr(layer, "bias", None)) if gain is None else gain.at(layer, None, {})
    if w is not None and by_hand(layer) and torch.equal(w, torch.ones_like(w)) and (b is None or not b.any()):
        w = b = None
    if measures(layer) and w is None and b is None:
        return "it measures what it is given, and has no gain"
    return 1.0 if w is None else w.detach().double(), 0.0 if b is None else b.detach().double()


def acts_along(layer: Any, affine: Affine, x: Tensor, y: Tensor) -> frozenset[int]:
    """The axes of x along which the layer was seen to apply this, up to rounding."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return frozenset()
    u = bare(layer).forward(x) if measures(layer) else x
    return frozenset(i for i, n in enumerate(x.shape) if n == len(affine.s) and _acts(layer, affine, u, y, i))


def _acts(layer: Any, affine: Affine, x: Tensor, y: Tensor, axis: int) -> bool:
    c, s, t = (part.reshape(-1, *(1,) * (x.dim() - 1 - axis)) for part in (affine.c, affine.s, affine.t))
    want = Affine(c, s, t)(x.double())
    if rest := list(layer.children()):
        want = nn.Sequential(*rest)(want.to(x.dtype)).double()
    room = ((x.double().abs() + c.abs()) * s.abs() + t.abs()) * (32 * torch.finfo(x.dtype).eps)
    return bool(((y.double() - want).abs() <= room).all())


def bare(layer: Any) -> Any:
    """The same layer without its gain."""
    twin = copy.copy(layer)
    twin.__dict__["_parameters"] = dict(layer._parameters)
    strip(twin)
    return twin


def strip(layer: Any) -> None:
    """Take its gain away; one written by hand needs it, and multiplies by 1."""
    if by_hand(layer):
        for name, value in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
            if (p := layer._parameters.get(name)) is not None:
                layer._parameters[name] = nn.Parameter(value(p), p.requires_grad)
        return
    for flag in ("affine", "elementwise_affine"):
        if hasattr(layer, flag):
            setattr(layer, flag, False)
    if isinstance(layer, Norm):
        layer.gain = layer.gain_frame = None
    elif isinstance(layer, Preset):
        layer.gain = layer.own_gain_frame = None
    layer.weight = None
    if hasattr(layer, "bias"):
        layer.bias = None


def vanish(layer: Any) -> None:
    """Leave of a norm what it does besides: its children, such as an activation, or nothing.

    The object stays, so that every reference to it, however held, sees the same.
    """
    rest = list(layer.named_children())
    fresh = nn.Sequential(OrderedDict(rest)) if rest else nn.Identity()
    fresh.training = layer.training
    layer.__class__, layer.__dict__ = type(fresh), fresh.__dict__
