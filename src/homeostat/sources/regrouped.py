"""Sources that measure other groups than the layer's: parts of a batch; and how samples are parted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, TypeVar

from homeostat.arrays import Array, being_compiled
from homeostat.frame import ELLIPSIS, Frame, FrameError, Label
from homeostat.sources.base import Call, Regrouped, Source, Wrapped
from homeostat.sources.running import Running

T = TypeVar("T")


def once(of: Callable[..., T]) -> Callable[..., T]:
    """Found once per frame; not while a graph is traced, which takes no cache in."""
    found = cache(of)
    return lambda *args: of(*args) if being_compiled() else found(*args)


@once
def kept_names(frame: Frame) -> frozenset[str]:
    return frozenset(name for item in frame.kept for name in (item if isinstance(item, tuple) else (str(item),)))


@once
def labelled(frame: Frame, name: str, axis: str) -> Frame:
    """Each label of the samples by itself, too; it stands first."""
    return frame.keep((Label(name, (axis,)), *frame.kept))


@once
def _split(frame: Frame, axis: str) -> Frame:
    return frame.split(axis, "ghost", axis).keep(("ghost", *frame.kept))


@once
def samples(frame: Frame) -> str | None:
    axis = frame.axes[0]
    return axis if isinstance(axis, str) and axis != ELLIPSIS and axis not in kept_names(frame) else None


def pooled_first(frame: Frame, source: Source) -> str:
    """The axis of the samples: the first, which all of them share a statistic along."""
    axis = samples(frame)
    if axis is None:
        raise FrameError(f'{source} parts the samples, the first axis, and "{frame}" does not pool over that.')
    return axis


@dataclass(frozen=True)
class Ghost(Wrapped):
    """In training every `size` samples are a batch of their own; what is left over is a smaller one.

    The noise of small batches at the speed of large ones (a regularizer). Memory, which all parts share, takes their
    mean moments in. Hoffer et al. 2017, arXiv:1705.08741.
    """

    size: int = 32
    inner: Source = field(default_factory=Running)
    regroups = True
    refuses: ClassVar = {
        "Frozen": "what is frozen measures nothing in training that could be parted; write Frozen(Ghost(...))",
        "Ghost": "parts of parts are smaller parts; give one size",
        "Virtual": "it measures every sample by itself already",
        "Synced": "what all processes measure together has no parts",
    }

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(
                f"size={self.size!r} is how many samples are measured together, a whole number of at least 1."
            )
        self.check_inner()

    def regroup(self, call: Call) -> Regrouped:
        own, n = self.inner.regroup(call), call.shape[0]
        if not call.training or n <= self.size:
            return own
        axis = pooled_first(call.frame, self)
        # a split axis would leave its labels and its gain behind, and what is kept of it
        spanned = axis in kept_names(own.frame) or any(axis in label.axes for label in own.frame.labels)
        if not spanned and n % self.size == 0 and (call.gain is None or axis not in kept_names(call.gain)):
            return own._replace(frame=_split(own.frame, axis), sizes=(*own.sizes, ("ghost", n // self.size)))
        frame, labels = labelled(own.frame, "ghost", axis), {**own.labels, "ghost": self._parts(call)}
        return own._replace(frame=frame, labels=labels)

    def _parts(self, call: Call) -> tuple[Array, int]:
        """The part of each sample, and how many parts there are at most."""
        import torch

        n = call.shape[0]
        place = torch.arange(n) if call.apart is None else _rank(torch.as_tensor(call.apart))
        return place // self.size, -(-n // self.size)


def _rank(codes: Array) -> Array:
    """How many samples of the same code stand before each."""
    import torch

    order = codes.argsort(stable=True)
    line = codes[order]
    before = torch.arange(len(codes), device=codes.device) - torch.searchsorted(line, line)
    return before[order.argsort()]
