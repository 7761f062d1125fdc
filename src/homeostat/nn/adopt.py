"""Adopt and release: a model's torch.nn norms become ours, and back, without a new module or tensor anywhere.

Only the class of each module changes: the object, its parameters, buffers, hooks, mode, parametrizations and every
reference to it (an optimizer's, a shared layer's) stay what they were.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch
from torch import nn

from homeostat import nn as ours
from homeostat.nn.preset import Preset
from homeostat.nn.states import check_module

M = TypeVar("M", bound=nn.Module)

NAMES = tuple(name for name in ours.__all__ if hasattr(nn, name))  # those that torch.nn has
OURS: dict[type, type] = {getattr(nn, name): getattr(ours, name) for name in NAMES}
THEIRS = {mine: theirs for theirs, mine in OURS.items()}


def adopt(model: M) -> M:
    """Make every torch.nn norm of the model ours, in place. What had to stay is named in one warning."""
    return _swap(model, OURS, "adopt", cannot_adopt)


def release(model: M) -> M:
    """Make every norm of ours torch's again, in place: bit for bit what it was."""
    return _swap(model, THEIRS, "release", _cannot_release)


def _swap(model: M, table: dict[type, type], verb: str, cannot: Any) -> M:
    check_module(model, verb)
    left: list[str] = []
    for name, module in model.named_modules():
        kind = plain_class(module)
        reason = cannot(module, kind)
        if reason:
            left.append(f"{name or 'the model itself'} ({type(module).__name__}): {reason}")
        elif kind in table:
            module.__class__ = like(module, table[kind])
            _settle(module, verb)
    if left:
        warnings.warn(f"homeostat.{verb} left {len(left)} alone: " + "; ".join(left), stacklevel=3)
    return model


def plain_class(module: nn.Module) -> type:
    """The class a parametrization was wrapped around, or just the class."""
    kind = type(module)
    return kind.__bases__[0] if nn.utils.parametrize.is_parametrized(module) else kind


def like(module: nn.Module, kind: type) -> type:
    """`kind`, under the parametrization's properties if there are any."""
    if not nn.utils.parametrize.is_parametrized(module):
        return kind
    own = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__", "__doc__")}
    return type(f"Parametrized{kind.__name__}", (kind,), own)


def _settle(module: Any, verb: str) -> None:
    """Add the counter of skipped batches, or take it away."""
    if verb == "adopt":
        module.prepare()
        return
    module._buffers.pop("num_batches_skipped", None)
    module._non_persistent_buffers_set.discard("num_batches_skipped")
    for name in ("_given", "_running"):
        module.__dict__.pop(name, None)


def cannot_adopt(module: nn.Module, kind: type) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit.script" if "Norm" in str(getattr(module, "original_name", "")) else ""
    if kind in OURS or isinstance(module, Preset) or not isinstance(module, tuple(OURS)):
        if isinstance(module, nn.SyncBatchNorm):
            return "its statistics span processes; hs.sync makes it ours"
        return "computes a local response, not a group statistic" if isinstance(module, nn.LocalResponseNorm) else ""
    return f"a subclass of {_base(module)} whose forward may differ"


def _base(module: nn.Module) -> str:
    return next(c.__name__ for c in type(module).__mro__ if c in OURS)


def _cannot_release(module: nn.Module, kind: type) -> str:
    if isinstance(module, ours.Norm):
        return "torch.nn has no such norm"
    for word, given in (("source", getattr(module, "_given", None)), ("gain", getattr(module, "gain", None))):
        if kind in THEIRS and given is not None:
            return f"torch.nn has no {word} {given}"
    return ""
