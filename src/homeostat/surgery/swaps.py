"""Swaps: one module in the place of another, wherever it is referred to; and back again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from homeostat.surgery.calling import copied

M = TypeVar("M", bound=nn.Module)
HOOKS = (
    "_forward_hooks _forward_hooks_with_kwargs _forward_hooks_always_called _forward_pre_hooks "
    "_forward_pre_hooks_with_kwargs _backward_hooks _backward_pre_hooks _is_full_backward_hook"
).split()
FUSING = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}
Fusing = tuple[tuple[str, str, Any], ...]  # where, its switch, and how that stood


@dataclass(frozen=True, eq=False)
class Swap:
    """A module that was taken out, under all its names, and what it shared with the rest of the model."""

    names: tuple[str, ...]
    old: nn.Module
    new: nn.Module
    ties: tuple[tuple[str, str], ...]  # its parameter, the same one elsewhere in the model
    fusing: Fusing = ()


def names_of(model: nn.Module, module: nn.Module) -> tuple[str, ...]:
    """Every name a module goes by."""
    return tuple(name for name, one in model.named_modules(remove_duplicate=False) if one is module)


def ties_of(model: nn.Module, module: nn.Module) -> tuple[tuple[str, str], ...]:
    """Parameters of a module that others of the model hold too."""
    own = {name for at in names_of(model, module) for name in _params(module, at)}
    everywhere = list(model.named_parameters(remove_duplicate=False))
    return tuple(
        (name, other) for name, p in module.named_parameters() for other, q in everywhere if q is p and other not in own
    )


def _params(module: nn.Module, at: str) -> list[str]:
    return [f"{at}.{name}" if at else name for name, _ in module.named_parameters(remove_duplicate=False)]


def cannot_move(module: nn.Module) -> str:
    """Why a module has to stay where it is."""
    if is_parametrized(module):
        return "it is parametrized: remove_parametrizations first"
    for hook in module._forward_pre_hooks.values():
        if type(hook).__module__.startswith("torch.nn.utils"):
            return f"a hook makes its parameters ({type(hook).__name__}): remove it first"
    return ""


def fusing(model: nn.Module, names: Iterable[str]) -> Fusing:
    """What around these modules computes by itself, from their weights, what they do: torch's fast paths."""
    inner = [name for name in names if name]
    return tuple(
        (at, word, getattr(module, word))
        for at, module in model.named_modules()
        for kind, word in FUSING.items()
        if isinstance(module, kind)
        and hasattr(module, word)
        and any(not at or name.startswith(f"{at}.") for name in inner)
    )


def switch(model: nn.Module, fusing: Fusing, on: bool) -> None:
    """Off, so that what stands inside is called; or as it was."""
    for at, word, value in fusing:
        setattr(model.get_submodule(at), word, value if on else type(value)())


def put(model: nn.Module, names: Iterable[str], old: nn.Module, new: nn.Module, hooks: bool = True) -> nn.Module:
    """`new` stands wherever `old` stood, under old's hooks and in its mode; the model, or `new` if it was all of it."""
    for name in HOOKS if hooks else ():
        if name in old.__dict__:
            new.__dict__[name] = old.__dict__[name]
    new.train(old.training)
    for name in names:
        parent, _, child = name.rpartition(".")
        if name:
            model.get_submodule(parent)._modules[child] = new
    if old is model:
        return new
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if name != "_modules" and (changed := _referring(value, old, new)) is not value:
                module.__dict__[name] = changed
    return model


def _referring(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """A plain attribute that refers to `old`, itself or in a list, tuple or dict, for `new`."""
    if value is old:
        return new
    if isinstance(value, list):
        value[:] = [new if item is old else item for item in value]
    elif type(value) is dict:
        value.update({key: new for key, item in value.items() if item is old})
    elif type(value) is tuple and any(item is old for item in value):
        return tuple(new if item is old else item for item in value)
    return value


def undo(model: M, swaps: tuple[Swap, ...], inplace: bool = False) -> M:
    """The modules that were taken out, back in their places with the parameters and memory they had then."""
    for swap in swaps:
        now = _at(model, swap.names[0])
        if type(now) is not type(swap.new):
            raise ValueError(
                f"undo: {swap.names[0] or 'the model'} is a {type(now).__name__}, not the {type(swap.new).__name__} "
                f"that was put there; this certificate is of another model."
            )
    olds = [swap.old for swap in swaps]
    if not inplace:
        model, olds = copied((model, olds))
    found: Any = model
    for swap, old in zip(swaps, olds, strict=True):
        now = _at(found, swap.names[0])
        for name, other in swap.ties:
            parent, _, last = name.rpartition(".")
            tied = dict(found.named_parameters(remove_duplicate=False)).get(other)
            if tied is not None:
                old.get_submodule(parent)._parameters[last] = tied
        found = put(found, swap.names, now, old)
        switch(found, swap.fusing, on=True)
    return found  # type: ignore[no-any-return]


def _at(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name) if name else model
