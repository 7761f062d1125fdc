"""Standing: can new norms be called where the old ones are, and does the model still run with them?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from homeostat.recognising.watching import put_back
from homeostat.surgery.apart import Apart, is_apart
from homeostat.surgery.calling import Forward, copied, evaluating
from homeostat.surgery.refit import hooked
from homeostat.surgery.swaps import Swap, put, switch, undo
from homeostat.surgery.targets import FACTORY


def tried(old: nn.Module, made: dict[str, nn.Module], data: list[Any], forward: Forward) -> dict[str, str]:
    """Those that cannot be called as the old ones are, on a first batch, and why."""
    wrong: dict[str, str] = {}

    def attempt(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, kwargs: Any, y: Any) -> None:
            given = [value.clone() if isinstance(value, Tensor) else value for value in args]
            if isinstance(made[name], Apart) and not (given and is_apart(layer, given[0], y)):
                wrong[name] = (
                    f"more than a norm and what is inside it is done by this {type(layer).__name__}: {FACTORY}"
                )
                return
            try:
                shape = getattr(copied(made[name]).eval()(*given, **kwargs), "shape", None)
            except Exception as error:
                wrong[name] = f"{type(made[name]).__name__} cannot be called as it is: {str(error).splitlines()[0]}"
                return
            if shape != getattr(y, "shape", None):
                wrong[name] = f"{type(made[name]).__name__} gives {shape}, not {getattr(y, 'shape', None)}"

        return hook

    hooks = [old.get_submodule(name).register_forward_hook(attempt(name), with_kwargs=True) for name in made]
    with hooked(*hooks), put_back(old), evaluating(old):
        for batch in data[:1]:
            forward(old, batch)
    return wrong


def standing(
    new: Any, swaps: list[Swap], left: dict[str, str], data: list[Any], forward: Forward
) -> tuple[Any, list[Swap]]:
    """All put in their places; but not those with which the model, which may look into its norms, no longer runs."""
    for swap in swaps:
        new = _put(new, swap)
    if not _fails(new, data, forward):
        return new, swaps
    new, stay = undo(new, tuple(swaps), inplace=True), []
    for swap in swaps:
        new = _put(new, swap)
        if why := _fails(new, data, forward):
            new = undo(new, (swap,), inplace=True)
            left[swap.names[0]] = f"the model does not run with a {type(swap.new).__name__} there: {why}"
        else:
            stay.append(swap)
    return new, stay


def _put(model: nn.Module, swap: Swap) -> nn.Module:
    switch(model, swap.fusing, on=False)
    return put(model, swap.names, swap.old, swap.new)


def _fails(model: nn.Module, data: list[Any], forward: Forward) -> str:
    """The error on a first batch, if there is one."""
    with put_back(model), evaluating(model):
        try:
            for batch in data[:1]:
                forward(model, batch)
        except Exception as error:
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""
