"""Preset: what turns a class of torch.nn into a sentence over frame, source and gain.

A preset *is* the torch class (isinstance holds, so weight-decay filters and averaging utilities keep working); only
`forward` differs. Its source follows torch's attributes, which users change after construction (`bn.momentum = None`),
unless one was given. A gain that was given stands in place of torch's own w and b.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from homeostat.arrays import being_compiled
from homeostat.forward import Check, asked, run
from homeostat.frame import Frame
from homeostat.gains import Gain
from homeostat.moments import Moments
from homeostat.norm import adapt, check_memory, count_skipped, forget, hold
from homeostat.reading import measure
from homeostat.sources import BATCH, Running, Source

# What a given source decides itself, and what a given gain does.
BY_SOURCE = ("momentum", "track_running_stats")
BY_GAIN = ("affine", "elementwise_affine", "bias")


class Preset:
    """Mixed in before a torch.nn norm."""

    _given: Source | None = None  # the source= of the constructor, or what freezing put there
    gain: Gain | None = None  # the gain= of the constructor, in place of torch's w and b
    own_gain_frame: Frame | None = None
    center = True

    def __init__(self, *args: Any, source: Source | None = None, gain: Gain | None = None, **kwargs: Any) -> None:
        if source is not None:
            _check_source(type(self), source, args, kwargs)
            if _takes(type(self), "track_running_stats"):
                kwargs["track_running_stats"] = "running_mean" in source.names
        if gain is not None:
            _check_gain(type(self), gain, args, kwargs)
            kwargs["affine" if _takes(type(self), "affine") else "elementwise_affine"] = False
        super().__init__(*args, **kwargs)
        self.prepare(source)
        if gain is not None:
            given = inspect.signature(type(self)).bind(*args, **kwargs).arguments
            self.put_back(gain, {name: given.get(name) for name in ("device", "dtype")})

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        torch_class = next((c for c in cls.__mro__ if c.__module__.startswith("torch.nn.modules.")), None)
        if torch_class is not None:  # its signature, a source and a gain
            own = inspect.signature(torch_class)
            more = (
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ("source", "gain")
            )
            cls.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]

    def prepare(self: Any, source: Source | None = None) -> None:
        """Add what torch's class lacks: the given source, and the counter of skipped batches."""
        if source is not None:
            check_memory(source, self.frame, self.state_frame)
            self._given = source
            if hasattr(self, "momentum"):
                self.momentum = getattr(source, "momentum", None)
        self.add_memory()

    def put_back(self: Any, gain: Gain, kind: dict[str, Any]) -> None:
        """From now on this gain says what is put back."""
        sizes = {**self.sizes, **gain.sizes_in(self.frame)}
        self.counts = {label.name: sizes[label.name] for label in gain.labels_in(self.frame) if label.name in sizes}
        self.gain, self.own_gain_frame = gain, gain.applied_in(self.frame)
        gain.make(self, self.frame, sizes, kind)

    def reset_parameters(self: Any) -> None:
        super().reset_parameters()  # type: ignore[misc]
        if self.gain is not None:
            self.gain.reset(self)

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
        if self.num_features:  # a lazy layer has none yet
            self._given, fresh = given.placed(fresh, self.frame, self._look)
        held = {name: tuple(b.shape) for name, b in self.named_buffers(recurse=False)}
        hold(self, {name: new for name, new in fresh.items() if held.get(name) != tuple(new.shape)}, kind.get("device"))
        for name in [name for name, b in self._buffers.items() if b is None]:
            self._buffers[name] = self._buffers.pop(name)  # last: torch.export counts buffers, the absent ones too

    def _look(self: Any, x: Tensor) -> Moments:
        self._check_input_dim(x)
        return measure(x, self.frame, center=self.center, **self.sizes)

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
        own = own if self._given is None else f"{own}, source={self._given}"
        return own if self.gain is None else f"{own}, gain={self.gain}"


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


def gained(layer: Any, x: Tensor, given: dict[str, Any], check: Check) -> Tensor:
    """The forward of a preset whose gain was given."""
    given = asked((*layer.counts, *layer.source.asks, *layer.gain.asks), given)
    gain = None if layer.gain.constant else layer.gain.at(layer, x, given)
    return run(layer, x, layer.frame, tuple(layer.sizes.items()), None, given, check, gain)


def lazily(self: Any, input: Tensor) -> None:
    """After a lazy class has learned its size, from its first input or from a state_dict before that."""
    if self.num_features == 0:  # torch leaves it so after a state_dict
        learned = self.running_mean if self.weight is None else self.weight
        self.num_features = input.shape[1] if learned is None else learned.shape[0]
    self.add_memory()


def _takes(cls: type, name: str) -> bool:
    return name in inspect.signature(cls).parameters


def _check_source(cls: type, source: Source, args: Any, kwargs: Any) -> None:
    if not isinstance(source, Source):
        raise TypeError(f"source={source!r} is not a source; pass for instance Running(0.1), Batch() or Frozen().")
    _refuse_both(cls, "source", source, BY_SOURCE, args, kwargs)
    if source.names and not issubclass(cls, Remembering):
        raise TypeError(
            f"{cls.__name__} has new groups in every call, so {type(source).__name__} would have nothing to remember; "
            f"its source is Batch()."
        )


def _check_gain(cls: Any, gain: Gain, args: Any, kwargs: Any) -> None:
    if not isinstance(gain, Gain):
        raise TypeError(f'gain={gain!r} is not a gain; pass for instance Learned("c").')
    _refuse_both(cls, "gain", gain, BY_GAIN, args, kwargs)
    if hasattr(cls, "cls_to_become"):
        raise TypeError(
            f"{cls.__name__} learns its size later, and {gain} needs it now: use {cls.cls_to_become.__name__}."
        )
    if gain.bias and not cls.center:
        raise TypeError(f"{cls.__name__} puts back no b: give {type(gain).__name__} bias=False.")


def _refuse_both(cls: type, word: str, value: Any, decided: tuple[str, ...], args: Any, kwargs: Any) -> None:
    given = inspect.signature(cls).bind(*args, **kwargs).arguments
    both = [f"{name}=" for name in decided if name in given]
    if both:
        raise TypeError(f"{cls.__name__}: {word}={value} decides {' and '.join(both)} itself; give one or the other.")
