"""Targets: the norm that takes another's place, from a class, a factory or a source."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from homeostat.nn.adopt import OURS, plain_class
from homeostat.nn.preset import BY_GAIN, BY_SOURCE, Preset
from homeostat.noise import groups_for
from homeostat.norm import Norm
from homeostat.recognising import Found, by_class
from homeostat.sources import Source
from homeostat.surgery.apart import Apart, norm_in

Target = type[nn.Module] | Callable[[nn.Module], nn.Module] | Source
SECOND = ("num_features", "num_channels", "channels", "in_channels", "c")  # parameters that count the second axis
LAST = ("normalized_shape", "hidden_size", "dim", "d")  # and the last


FACTORY = "give a factory, lambda old: ..., which makes all of it"


class Impossible(Exception):
    """Why a norm cannot be made for this place."""


def make(found: Found, old: nn.Module, target: Target, gain: bool) -> nn.Module:
    """The new module, with what the old one had where it fits; `gain`: it must be able to learn one."""
    factory: Any = target
    if isinstance(target, Source):
        return _with_source(old, target)
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        new: nn.Module = factory(old)
        if not isinstance(new, nn.Module) or new is old:
            raise TypeError(f"a factory takes the old module and gives a new one; this gave {new!r}.")
    elif found.fused and norm_in(old) is None:
        raise Impossible(f"more than a norm is fused into it, which {target.__name__} would lose: {FACTORY}")
    else:
        new = _of_class(found, old, target, gain)
    apart = found.fused and isinstance(target, type)
    _carry(found, old, new, apart)
    return Apart(new, old) if apart else new


def same_statistic(found: Found, new: nn.Module, apart: bool = False) -> bool:
    """Does the new one normalize by the same numbers, so that nothing changes?"""
    other = by_class("", new)
    if other is None or other.fused or not (apart or (found.by == "class" and not found.fused)):
        return False
    return (other.frame, other.center, other.source, other.eps) == (found.frame, found.center, found.source, found.eps)


def _kind(old: nn.Module) -> dict[str, Any]:
    like = next((t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()), None)
    return {} if like is None else {"device": like.device, "dtype": like.dtype}


def _built(cls: Any, values: dict[str, Any]) -> nn.Module:
    taken = inspect.signature(cls).parameters
    missing = [
        name
        for name, p in taken.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and name not in values
    ]
    if missing:
        raise Impossible(f"{cls.__name__} needs {', '.join(missing)}, which this place does not say: give a factory")
    open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    kind = ("device", "dtype") if open_ended else ()
    try:
        made: nn.Module = cls(**{name: value for name, value in values.items() if name in taken or name in kind})
    except (TypeError, ValueError) as error:
        raise Impossible(f"{cls.__name__}: {error}") from error
    if any(is_lazy(t) for t in (*made.parameters(), *made.buffers())):
        raise Impossible(f"{cls.__name__} has not seen an input yet: give the class that it becomes")
    return made.to(**{name: values[name] for name in ("device", "dtype") if name in values})


def _of_class(found: Found, old: nn.Module, cls: type[nn.Module], gain: bool) -> nn.Module:
    last, n = _features(found)
    names = inspect.signature(cls).parameters
    wrong = [name for name in (SECOND if last else LAST) if name in names]
    if wrong and found.shape is not None and len(found.shape) == 2:
        wrong = []
    if wrong and last is not None:
        where = ("last", "second") if last else ("second", "last")
        raise Impossible(
            f"its features are the {where[0]} axis, and {cls.__name__} takes the {where[1]}: give a factory, "
            f'such as lambda old: hs.Norm("{found.frame}", ...)'
        )
    spatial = math.prod(found.shape[2:]) if found.shape is not None else 1
    values = dict.fromkeys((*SECOND, *LAST), n)
    for name in ("num_groups", "groups"):
        values[name] = found.sizes.get("g") or groups_for(n, max(spatial, 1))
    more: dict[str, Any] = {}
    if issubclass(cls, _BatchNorm):  # elsewhere a memory is asked for
        more = {name: getattr(old, name) for name in BY_SOURCE if hasattr(old, name)}
    more |= dict.fromkeys(("affine", "elementwise_affine"), gain or found.gain is not None)
    if found.gain is not None:
        more["bias"] = getattr(old, "bias", None) is not None
    if isinstance(found.eps, float):
        more["eps"] = found.eps
    return _built(cls, {**values, **more, **_kind(old)})


def _features(found: Found) -> tuple[bool | None, int]:
    """Are the features the last axis, and not the second? And how many they are."""
    axes, last = found.frame.axes, found.frame.axes[0] == "..." or found.gain in ("d", "(h d)")
    word = axes[-1] if last else axes[min(1, len(axes) - 1)]
    if found.shape is not None:
        return last, found.shape[-1 if last else 1]
    sizes = [found.sizes.get(name) for name in (word if isinstance(word, tuple) else (word,))]
    if None in sizes:
        raise Impossible("how many features it has is not known: give a factory, or batches that reach it")
    return last, math.prod(size for size in sizes if size is not None)


def _carry(found: Found, old: Any, new: Any, apart: bool) -> None:
    """Gain and memory, where there is the same in both."""
    names = ["weight", "bias"]
    if same_statistic(found, new, apart):
        names += ["running_mean", "running_var", "num_batches_tracked"]
    with torch.no_grad():
        for name in names:
            a, b = getattr(old, name, None), getattr(new, name, None)
            if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.numel() == b.numel():
                b.copy_(a.reshape(b.shape))
                b.requires_grad_(a.requires_grad)


def _with_source(old: Any, source: Source) -> nn.Module:
    """The same layer with another source, its parameters the very same."""
    cls: Any
    if type(old) is Norm:
        words: dict[str, Any] = {**old.sizes, **old.counts, **_kind(old)}
        new: Any = Norm(old.frame, source, old.gain, old.eps, old.center, **words)
    else:
        kind = plain_class(old)
        cls = kind if issubclass(kind, Preset) else OURS.get(kind)
        if cls is None:
            raise Impossible(f"a source is for norms of torch.nn or of ours; this is a {kind.__name__}")
        decided = (*BY_SOURCE, *(BY_GAIN if getattr(old, "gain", None) is not None else ()))
        values = {name: getattr(old, name) for name in inspect.signature(cls).parameters if hasattr(old, name)}
        values = {name: value for name, value in values.items() if name not in (*decided, "source")}
        if "bias" in values:
            values["bias"] = values["bias"] is not None
        new = _built(cls, {**values, "source": source, **_kind(old)})
    saved = {name: t.detach().clone() for name, t in old.state_dict().items()}
    new.load_state_dict(saved, strict=False)
    for name, p in old._parameters.items():
        if p is not None and name in new._parameters and new._parameters[name].shape == p.shape:
            new._parameters[name] = p
    return new  # type: ignore[no-any-return]
