"""Preset: what turns a class of torch.nn into a sentence over frame, source and gain.

A preset *is* the torch class (isinstance holds, so weight-decay filters and averaging utilities keep working); only
`forward` differs. Its source follows torch's attributes, which users change after construction (`bn.momentum = None`),
unless one was given.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from homeostat.arrays import being_compiled
from homeostat.norm import adapt, check_memory, count_skipped, forget, hold
from homeostat.sources import BATCH, Running, Source

# What a given source decides itself.
DECIDED = ("momentum", "track_running_stats")


class Preset:
    """Mixed in before a torch.nn norm."""

    _given: Source | None = None  # the source= of the constructor, or what freezing put there
    center = True

    def __init__(self, *args: Any, source: Source | None = None, **kwargs: Any) -> None:
        if source is not None:
            _refuse_both(type(self), source, args, kwargs)
            if _takes(type(self), "track_running_stats"):
                kwargs["track_running_stats"] = "running_mean" in source.names
        super().__init__(*args, **kwargs)
        self.prepare(source)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        torch_class = next((c for c in cls.__mro__ if c.__module__.startswith("torch.nn.modules.")), None)
        if torch_class is not None:  # its signature, and a source
            own = inspect.signature(torch_class)
            source = inspect.Parameter("source", inspect.Parameter.KEYWORD_ONLY, default=None)
            cls.__signature__ = own.replace(parameters=[*own.parameters.values(), source])  # type: ignore[attr-defined]

    def prepare(self: Any, source: Source | None = None) -> None:
        """Add what torch's class lacks: the given source, and the counter of skipped batches."""
        if source is not None:
            check_memory(source, self.frame, self.state_frame)
            self._given = source
            if hasattr(self, "momentum"):
                self.momentum = getattr(source, "momentum", None)
        self.add_memory()

    def add_memory(self: Any) -> None:
        """What the source remembers, where torch's class did not make it, and the counter of skipped batches."""
        made, given = getattr(self, "running_mean", None), self._given
        if made is not None and is_lazy(made):
            return
        if given is None or not given.names:
            return None if made is None else count_skipped(self, made.device)
        like = self.weight if made is None else made
        kind = {} if like is None else {"device": like.device, "dtype": like.dtype}
        fresh = given.init((*given.counts.values(), self.num_features), **kind)
        held = {name: tuple(b.shape) for name, b in self.named_buffers(recurse=False)}
        hold(self, {name: new for name, new in fresh.items() if held.get(name) != tuple(new.shape)}, kind.get("device"))
        for name in [name for name, b in self._buffers.items() if b is None]:
            self._buffers[name] = self._buffers.pop(name)  # last: torch.export counts buffers, the absent ones too

    @property
    def source(self) -> Source:
        given = self._given
        return self.default_source() if given is None else given

    @source.setter
    def source(self, source: Source | None) -> None:
        missing = [name for name in source.names if getattr(self, name, None) is None] if source is not None else []
        if missing:
            raise TypeError(
                f"{source} remembers {', '.join(missing)}, which this {type(self).__name__} was made without; "
                f"pass source= to its constructor."
            )
        if source is not None and source.counts and self.running_mean.dim() == 1:  # type: ignore[attr-defined]
            raise TypeError(
                f"{source} remembers more than this {type(self).__name__} has; pass source= when making it."
            )
        if source is not None:
            check_memory(source, self.frame, self.state_frame)  # type: ignore[attr-defined]
        self._given = source

    def default_source(self: Any) -> Source:
        return BATCH

    def _load_from_state_dict(self: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        adapt(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def extra_repr(self) -> str:
        own: str = super().extra_repr()  # type: ignore[misc]
        return own if self._given is None else f"{own}, source={self._given}"


class Remembering(Preset):
    """Presets whose torch class has running statistics."""

    def default_source(self: Any) -> Source:
        if self._buffers["running_mean"] is None:
            return BATCH
        running: Running | None = self.__dict__.get("_running")  # made once, and again when the momentum is changed
        if running is None or running.momentum != self.momentum:
            running = Running(self.momentum)
            if not being_compiled():
                self.__dict__["_running"] = running
        return running

    def reset_running_stats(self: Any) -> None:
        if self._given is not None and self._given.names and "num_batches_skipped" in self._buffers:
            return forget(self)
        super().reset_running_stats()  # type: ignore[misc]
        if getattr(self, "num_batches_skipped", None) is not None:
            self.num_batches_skipped.zero_()


def lazily(self: Any, input: Tensor) -> None:
    """After a lazy class has learned its size, from its first input or from a state_dict before that."""
    if self.num_features == 0:  # torch leaves it so after a state_dict
        learned = self.running_mean if self.weight is None else self.weight
        self.num_features = input.shape[1] if learned is None else learned.shape[0]
    self.add_memory()


def _takes(cls: type, name: str) -> bool:
    return name in inspect.signature(cls).parameters


def _refuse_both(cls: type, source: Source, args: Any, kwargs: Any) -> None:
    if not isinstance(source, Source):
        raise TypeError(f"source={source!r} is not a source; pass for instance Running(0.1), Batch() or Frozen().")
    given = inspect.signature(cls).bind(*args, **kwargs).arguments
    both = [f"{name}=" for name in DECIDED if name in given]
    if both:
        raise TypeError(f"{cls.__name__}: source={source} decides {' and '.join(both)} itself; give one or the other.")
    if source.names and not issubclass(cls, Remembering):
        raise TypeError(
            f"{cls.__name__} has new groups in every call, so {type(source).__name__} would have nothing to remember; "
            f"its source is Batch()."
        )
