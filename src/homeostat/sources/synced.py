"""Synced: what every process of a group measured, as if their batches had been one."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from homeostat.arrays import being_compiled
from homeostat.frame import Frame, FrameError
from homeostat.sources.base import Source, Wrapped
from homeostat.sources.regrouped import kept_names
from homeostat.sources.running import Running


@dataclass(frozen=True)
class Synced(Wrapped):
    """In training, the statistics of all processes of a group together; memory goes on as `inner` has it.

    The Moments of all ranks, added: one exchange forward and one backward per layer, whoever has how many samples, or
    none. `group` is a process group, or its name; without one it is everybody. Alone, or before torch.distributed is
    initialized, it is `inner`. `name` is what errors call the layer.
    """

    inner: Source = field(default_factory=Running)
    group: Any = None
    name: str = ""
    refuses: ClassVar = {
        "Synced": "its statistics are everybody's already",
        "Ghost": "parts of a batch are measured apart, and put together they were no parts",
        "Virtual": "it measures every sample by itself, and nobody shares that",
        "Mixed": "it measures every sample by itself first, and those are not shared",
    }

    def __post_init__(self) -> None:
        self.check_inner()
        object.__setattr__(self, "group", name_of(self.group))  # a name can be copied and compared, a group cannot

    def ranks(self, layer: Any) -> Any:
        import torch.distributed as dist

        if not being_compiled():  # a graph takes no cache in
            check_shared(layer.frame, self)
        if not (dist.is_available() and dist.is_initialized()):
            return None
        from homeostat.kernels.exchange import size_of
        from homeostat.kernels.ranks import Ranks

        size = size_of(self.group)
        return Ranks(self.group, size, self.name or type(layer).__name__) if size > 1 else None


def name_of(group: Any) -> str:
    if group is None or isinstance(group, str):
        return group or ""
    if hasattr(group, "get_group"):  # a device mesh of one dimension
        group = group.get_group()
    name = getattr(group, "group_name", None)
    if name is None:
        raise ValueError(
            f"group={group!r} is no process group that this process belongs to; give every process the group it is in."
        )
    return str(name)


@cache
def check_shared(frame: Frame, source: Source) -> None:
    axis = frame.axes[0]
    names = axis if isinstance(axis, tuple) else (str(axis),)
    if set(names) & kept_names(frame):
        raise FrameError(
            f'{source} shares the statistics of samples, the first axis, and "{frame}" keeps {" ".join(names)}: no '
            f"process needs what another one measured. Use {getattr(source, 'inner', source)}."
        )
