"""Sync and unsync: every layer that shares a statistic between samples shares it between processes too, and back."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from homeostat.frame import FrameError
from homeostat.nn.adopt import OURS, like, plain_class
from homeostat.nn.batch import FRAME, _Batch
from homeostat.nn.preset import Preset
from homeostat.nn.states import OWN, check_module
from homeostat.norm import Norm
from homeostat.sources import Batch, Frozen, Running, Source, Synced
from homeostat.sources.synced import check_shared

M = TypeVar("M", bound=nn.Module)


class BatchNorm(_Batch, _BatchNorm):
    """w_c (x - mean_c) / sqrt(var_c + eps) + b_c of any number of axes: what torch.nn.SyncBatchNorm becomes."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 axes, n and c; got {input.dim()}.")


def sync(model: M, group: Any = None) -> M:
    """Statistics of all processes together, in place: torch's batch norms, its SyncBatchNorm, and every norm of ours.

    `group` is a process group; without one it is what a layer had, or everybody. Layers that keep every sample
    apart (layer, group, instance norm) have nothing to share and stay. What could not be shared is named in a warning.
    """
    check_module(model, "sync")
    left = []
    for name, layer in model.named_modules():
        why, theirs = of_its_own(layer), _become(layer)
        ours: Any = layer
        if not why and (not isinstance(layer, Norm | Preset) or not is_shared(layer)):
            continue
        if any(is_lazy(t) for t in (*ours._buffers.values(), *ours._parameters.values()) if t is not None):
            why = "it has not seen an input yet; run one forward first"
        if not why:
            try:
                ours.source = _synced(ours.source, theirs if group is None else group, name)
            except TypeError as refusal:
                why = str(refusal)
        left += [f"{name or 'the model itself'} ({type(layer).__name__}): {why}"] if why else []
    if left:
        warnings.warn(f"homeostat.sync left {len(left)} alone: " + "; ".join(left), stacklevel=2)
    return model


def unsync(model: M) -> M:
    """Every process by itself again, in place, with the memory it has. A SyncBatchNorm becomes a batch norm of ours."""
    check_module(model, "unsync")
    layer: Any
    for layer in model.modules():
        if plain_class(layer) is nn.SyncBatchNorm:
            _become(layer)
        if isinstance(layer, Norm | Preset):
            inner = _apart(layer.source)
            if inner is not layer.source:
                layer.source = None if _is_own(layer, inner) else inner
    return model


def _is_own(layer: Any, source: Source) -> bool:
    """Is it what this layer has where none is given? Then its momentum rules again, changed or not."""
    return (
        isinstance(layer, Preset) and type(source) in (Running, Batch) and type(layer.default_source()) is type(source)
    )


def _become(layer: Any) -> Any:
    """A batch norm of torch's becomes ours; the group that it had, if any."""
    kind = plain_class(layer)
    ours = BatchNorm if kind is nn.SyncBatchNorm else OURS.get(kind)
    if ours is not None and issubclass(ours, _BatchNorm):
        layer.__class__ = like(layer, ours)
        layer.prepare()
    return layer.__dict__.pop("process_group", None) if kind is nn.SyncBatchNorm else None


def of_its_own(layer: nn.Module) -> str:
    """Why a layer that shares a statistic between samples does so in a way that nobody can join; or nothing."""
    if isinstance(layer, torch.jit.ScriptModule):
        return "compiled by torch.jit.script" if "BatchNorm" in str(getattr(layer, "original_name", "")) else ""
    kinds = (*OURS, nn.SyncBatchNorm)
    if isinstance(layer, _BatchNorm) and not isinstance(layer, Preset) and plain_class(layer) not in kinds:
        return f"a subclass of {next(k.__name__ for k in type(layer).__mro__ if k in kinds)} whose forward may differ"
    return "it measures in code of its own" if isinstance(layer, OWN) else ""


def is_shared(layer: Any) -> bool:
    """Does it measure several samples together, whatever they are named?"""
    frame = FRAME if isinstance(layer, _Batch) else layer.frame
    try:
        check_shared(frame, layer.source)
    except FrameError:
        return False
    return True


def _synced(source: Source, group: Any, name: str) -> Source:
    if isinstance(source, Frozen):  # so that what is thawed is shared
        return replace(source, inner=_synced(source.inner, group, name))
    if isinstance(source, Synced):
        return replace(source, group=source.group if group is None else group, name=source.name or name)
    return Synced(source, group, name)


def _apart(source: Source) -> Source:
    if isinstance(source, Synced):
        return source.inner
    if isinstance(source, Frozen) and isinstance(source.inner, Synced):
        return replace(source, inner=source.inner.inner)
    return source
