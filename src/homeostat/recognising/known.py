"""Norms that are known by their class: torch.nn's and ours."""

from __future__ import annotations

from typing import Any

from torch import nn

from homeostat.frame import Frame
from homeostat.nn.adopt import OURS, plain_class
from homeostat.nn.batch import BatchNorm2d
from homeostat.nn.preset import Preset
from homeostat.norm import Norm
from homeostat.recognising.found import BATCH, RUNNING, SAMPLE, Found

TABLE: dict[type, type] = {**OURS, nn.SyncBatchNorm: BatchNorm2d}


def by_class(name: str, module: nn.Module, shape: tuple[int, ...] | None = None) -> Found | None:
    """The norm that a class of torch.nn or of ours is; None for any other class, and for subclasses of these."""
    kind = plain_class(module)
    norm: Any = module
    if kind in TABLE:
        norm = nn.Module.__new__(TABLE[kind])  # torch's, read as ours
        norm.__dict__.update(vars(module))
    elif not (isinstance(module, Norm | Preset) and kind.__module__.startswith("homeostat.")):
        return None
    frame: Frame = norm.frame
    source = RUNNING if norm.source.names else whose(frame)
    gain = None if norm.gain_frame is None else kept_in(norm.gain_frame)
    center = frame if norm.center else None
    return Found(name, kind.__name__, frame, center, source, gain, norm.eps, False, "class", dict(norm.sizes), shape)


def whose(frame: Frame) -> str:
    """Does a sample, an entry of the first axis, have statistics of its own?"""
    first = frame.axes[0]
    own = first in frame.kept or any(first in label.axes for label in frame.labels)
    return SAMPLE if own else BATCH


def kept_in(frame: Frame) -> str:
    return str(frame).split("->")[1].strip()
