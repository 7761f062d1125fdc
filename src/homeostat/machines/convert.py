"""Sync and unsync: every layer that shares a statistic between samples shares it between processes too, and back."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from homeostat.frame import FrameError
from homeostat.nn.adopt import OURS
from homeostat.nn.batch import FRAME, _Batch
from homeostat.nn.preset import Preset
from homeostat.nn.states import check_module
from homeostat.norm import Norm
from homeostat.sources import Frozen, Source, Synced
from homeostat.sources.synced import check_shared

M = TypeVar("M", bound=nn.Module)


class BatchNorm(_Batch, _BatchNorm):
    """w_c (x - mean_c) / sqrt(var_c + eps) + b_c of any number of axes: what torch.nn.SyncBatchNorm becomes."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 axes, n and c; got {input.dim()}.")


def sync(model: M, group: Any = None) -> M:
    """Statistics of all processes together, in place: torch's batch norms, its SyncBatchNorm, and every norm of ours.

    `group` is a process group; without one it is everybody, or what a SyncBatchNorm had. Layers that keep every sample
    apart (layer, group, instance norm) have nothing to share and stay. What could not be shared is named in a warning.
    """
    check_module(model, "sync")
    left = []
    for name, layer in model.named_modules():
        own = group
        if type(layer) is nn.SyncBatchNorm:
            own = layer.__dict__.pop("process_group", None) if group is None else group
            _become(layer, BatchNorm)
        elif type(layer) in OURS and isinstance(layer, _BatchNorm):
            _become(layer, OURS[type(layer)])
        ours: Any = layer
        if not isinstance(layer, Norm | Preset) or not is_shared(layer):
            continue
        if any(is_lazy(t) for t in (*ours._buffers.values(), *ours._parameters.values()) if t is not None):
            left.append(f"{name}: it has not seen an input yet")
            continue
        try:
            ours.source = _synced(layer.source, own, name)
        except TypeError as refusal:
            left.append(f"{name}: {refusal}")
    if left:
        warnings.warn(f"homeostat.sync left {len(left)} alone: " + "; ".join(left), stacklevel=2)
    return model


def unsync(model: M) -> M:
    """Every process by itself again, in place, with the memory it has. A SyncBatchNorm becomes a batch norm of ours."""
    check_module(model, "unsync")
    layer: Any
    for layer in model.modules():
        if type(layer) is nn.SyncBatchNorm:
            _become(layer, BatchNorm)
            layer.__dict__.pop("process_group", None)
        if isinstance(layer, Norm | Preset):
            inner = _apart(layer.source)
            if inner is not layer.source:
                layer.source = None if isinstance(layer, Preset) and layer.default_source() == inner else inner
    return model


def _become(layer: Any, kind: type) -> None:
    layer.__class__ = kind
    layer.prepare()


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
    return Synced(source.inner if isinstance(source, Synced) else source, group, name)


def _apart(source: Source) -> Source:
    if isinstance(source, Synced):
        return source.inner
    if isinstance(source, Frozen) and isinstance(source.inner, Synced):
        return replace(source, inner=source.inner.inner)
    return source
