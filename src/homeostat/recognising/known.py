"""Norms that are known by their class: torch.nn's and ours."""

from __future__ import annotations

from typing import Any

from torch import nn

from homeostat.frame import Frame
from homeostat.nn.adopt import OURS, plain_class
from homeostat.nn.batch import BatchNorm2d
from homeostat.nn.online import OnlineNorm
from homeostat.nn.pictures import EvoNormB0
from homeostat.nn.power import PowerNorm
from homeostat.nn.preset import Preset
from homeostat.norm import Norm
from homeostat.recognising.found import BATCH, RUNNING, SAMPLE, Found

TABLE: dict[type, type] = {**OURS, nn.SyncBatchNorm: BatchNorm2d}
CHANNELS = Frame.parse("n c ... -> c")
MEMORY = {PowerNorm: (CHANNELS, None, False), OnlineNorm: (CHANNELS, CHANNELS, True)}  # frame, center, fused


def by_class(name: str, module: nn.Module, shape: tuple[int, ...] | None = None) -> Found | None:
    """The norm that a class of torch.nn or of ours is; None for any other class, and for subclasses of these."""
    kind = plain_class(module)
    norm: Any = module
    if kind in TABLE:
        norm = nn.Module.__new__(TABLE[kind])  # torch's, read as ours
        norm.__dict__.update(vars(module))
    elif kind in MEMORY:
        frame, center, more = MEMORY[kind]
        return Found(name, kind.__name__, frame, center, RUNNING, "c", norm.eps, more, "class", {}, shape)
    elif not (isinstance(module, Norm | Preset) and kind.__module__.startswith("homeostat.")):
        return None
    frame = norm.frame
    source = RUNNING if norm.source.names else whose(frame)
    gain = None if norm.gain_frame is None else kept_in(norm.gain_frame)
    center = frame if norm.center else None
    more = kind is EvoNormB0
    return Found(name, kind.__name__, frame, center, source, gain, norm.eps, more, "class", dict(norm.sizes), shape)


def whose(frame: Frame) -> str:
    """Does a sample, an entry of the first axis, have statistics of its own?"""
    first = frame.axes[0]
    own = first in frame.kept or any(first in label.axes for label in frame.labels)
    return SAMPLE if own else BATCH


def kept_in(frame: Frame) -> str:
    return str(frame).split("->")[1].strip()
