"""Replace: any norm by any norm, its gain refitted so that the model's function changes as little as possible."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from homeostat.nn.adopt import plain_class
from homeostat.nn.states import check_module
from homeostat.recognising import Found, Recognised, recognise
from homeostat.sources import Source
from homeostat.surgery.apart import Apart, name_of
from homeostat.surgery.calling import Forward, call, check_changeable, compared, copied, listed, samples_in
from homeostat.surgery.certificate import Certificate, Change
from homeostat.surgery.refit import order_of, refit
from homeostat.surgery.standing import standing, tried
from homeostat.surgery.swaps import Swap, cannot_move, fusing, names_of, ties_of, undo
from homeostat.surgery.targets import Impossible, Target, make, same_statistic

M = TypeVar("M", bound=nn.Module)
Key = str | Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Replaced(Change):
    """`drift` is the largest move of its output on the batches, in root mean squares of it before.

    `before` and `after` refitting it, its output is off from the old one's by so much, the root of
    |y - old|^2 / |old - its mean|^2: `after` is what no gain can mend. NaN where nothing was refitted; `note` says why.
    """

    into: str
    drift: float
    before: float
    after: float
    note: str

    def __str__(self) -> str:
        said = f"{self.layer} ({self.kind}) is now {self.into}: moves {self.drift:.3g} rms"
        fit = (
            ""
            if math.isnan(self.after)
            else f", off by {self.after:.3g} ({self.before:.3g} before its gain was refitted)"
        )
        return said + fit + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Replacement(Certificate):
    """`carried` is the drift of the outputs before any gain was refitted."""

    carried: float
    swaps: tuple[Swap, ...] = field(repr=False, compare=False)

    def undo(self, model: M, inplace: bool = False) -> M:
        """The model with the norms it had before, parameters and memory bit for bit; the rest as it is now."""
        return undo(model, self.swaps, inplace)


def replace(
    model: M,
    what: Mapping[Key, Target],
    keep_function_on: Iterable[Any] = (),
    *,
    forward: Forward = call,
    inplace: bool = False,
) -> tuple[M, Replacement]:
    """A copy of the model with other norms, and by how much that changes it.

        replace(model, {"BatchNorm*": hs.nn.GroupNorm}, keep_function_on=batches)

    `what` says which: names of classes or of layers, with * and ?, or a function of the module. And into what: a class,
    made to measure; a factory, new = f(old); or a source, for the same layer with other statistics. Gains go along
    where they fit. With batches they are refitted, one layer after the other in the order they run, to what the layer
    made before, given what it is given now; and norms written by hand are recognised by their behaviour.
    `certificate.undo(new)` puts everything back.
    """
    check_module(model, "replace")
    check_changeable(model, "replace")
    _check(what)
    data = listed(keep_function_on)
    found = recognise(model, data, forward)
    wanted = {one.name: target for one in found if (target := _target(model, one.name, what)) is not None}
    left = {name: why for name, why in found.left if _target(model, name, what) is not None}
    if not wanted and (lazy := [why for why in left.values() if "not seen an input" in why]):
        raise ValueError(f"replace: {lazy[0]}: run the model once.")
    if not wanted and not left:
        has = _listed(found) or "it has none"
        more = "".join(f"; {name or 'the model itself'}: {why}" for name, why in found.left)
        raise ValueError(f"replace: {_listed(what)} is none of the norms of this model: {has}{more}.")
    if inplace and "" in wanted:
        raise ValueError("replace: the model is itself the norm, so it cannot be replaced in place.")
    new: Any
    old, new = (copied(model), model) if inplace else (model, copied(model))
    swaps = _made(old, new, found, wanted, left, data, forward)
    try:
        new, swaps = standing(new, swaps, left, data, forward)
        changed, outputs = _fitted(old, new, found, swaps, data, forward)
    except BaseException:
        undo(new, tuple(swaps), inplace=True)
        raise
    samples = samples_in(data)
    return new, Replacement("replaced", changed, tuple(left.items()), outputs[1], samples, outputs[0], tuple(swaps))


def _made(
    old: nn.Module,
    new: nn.Module,
    found: Recognised,
    wanted: dict[str, Target],
    left: dict[str, str],
    data: list[Any],
    forward: Forward,
) -> list[Swap]:
    """What goes where; `left` learns what cannot, and why."""
    swaps: list[Swap] = []
    for name, target in wanted.items():
        module = new.get_submodule(name)
        ties = ties_of(new, module)
        try:
            if why := cannot_move(module):
                raise Impossible(why)
            made = make(found[name], module, target, bool(data))
            _tie(module, made, ties)
        except Impossible as why:
            left[name] = str(why)
            continue
        names = names_of(new, module)
        swaps.append(Swap(names, module, made, ties, fusing(new, names)))
    wrong = tried(old, {swap.names[0]: swap.new for swap in swaps}, data, forward)
    left.update(wrong)
    return [swap for swap in swaps if swap.names[0] not in wrong]


def _tie(old: nn.Module, new: nn.Module, ties: tuple[tuple[str, str], ...]) -> None:
    """A parameter that others hold too stays the same one."""
    for name, other in ties:
        p = dict(old.named_parameters())[name]
        mine = new._parameters.get(name)
        if mine is None or mine.shape != p.shape:
            raise Impossible(f"its {name} is tied to {other}, and the new norm has none of that shape")
        new._parameters[name] = p


def _fitted(
    old: nn.Module, new: nn.Module, found: Recognised, swaps: list[Swap], data: list[Any], forward: Forward
) -> tuple[tuple[Replaced, ...], tuple[float, float]]:
    """Every new norm refitted, in the order they run; how far they and the outputs move before and after."""
    by_name = {swap.names[0]: swap for swap in swaps}
    order = order_of(new, list(by_name), data, forward)
    carried, _ = compared(old, new, data, forward)
    why = "these batches do not reach it" if data else "there are no batches to refit it on"
    fits = dict.fromkeys(by_name, (math.nan, math.nan, why))
    for name in order:
        swap = by_name[name]
        if swap.ties:
            fits[name] = math.nan, math.nan, f"not refitted: its {swap.ties[0][0]} is tied to {swap.ties[0][1]}"
        elif _is_source(swap):
            fits[name] = math.nan, math.nan, "not refitted: its parameters are the very same"
        elif same_statistic(found[name], *((swap.new.norm, True) if isinstance(swap.new, Apart) else (swap.new,))):
            fits[name] = math.nan, math.nan, ""
        else:
            fits[name] = refit(old, new, name, data, forward)
    drift, moved = compared(old, new, data, forward, order)
    changed = [
        Replaced(name, found[name].kind, name_of(swap.new), moved.get(name, math.nan), *fits[name])
        for name, swap in by_name.items()
    ]
    return tuple(changed), (carried, drift)


def _is_source(swap: Swap) -> bool:
    """Was only its source exchanged?"""
    return any(p is q for p in swap.old.parameters() for q in swap.new.parameters())


def _target(model: nn.Module, name: str, what: Mapping[Key, Target]) -> Target | None:
    """What this layer shall become; None where it was not asked for."""
    module = model.get_submodule(name)
    words = (plain_class(module).__name__, *names_of(model, module))
    for key, target in what.items():
        if key(module) if callable(key) else any(fnmatchcase(word, key) for word in words):
            return target
    return None


def _check(what: Any) -> None:
    if not isinstance(what, Mapping) or not what:
        raise TypeError(f'what={what!r} says which norms become what, as in {{"BatchNorm*": hs.nn.GroupNorm}}.')
    for key, target in what.items():
        if not (isinstance(key, str) or callable(key)):
            raise TypeError(f"{key!r} is no name, with * and ?, of classes or layers, and no function of a module.")
        if isinstance(target, type) and issubclass(target, Source):
            raise TypeError(f"{key!r} shall become {target.__name__}, a kind of source: write {target.__name__}(...).")
        if isinstance(target, nn.Module) or not (isinstance(target, Source) or callable(target)):
            raise TypeError(
                f"{key!r} shall become {target!r}, which is no class, factory or source; one module cannot take many "
                f"places: give lambda old: ..."
            )


def _listed(found: Iterable[Any]) -> str:
    return ", ".join(f"{one.name or 'itself'} ({one.kind})" if isinstance(one, Found) else repr(one) for one in found)
