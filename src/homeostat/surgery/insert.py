"""Insert: a norm before or after a layer, its gain set so that the model's function stays what it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from homeostat.nn.adopt import OURS, adopt, release
from homeostat.nn.identity import identity_on
from homeostat.nn.states import check_module
from homeostat.recognising import by_class, refused
from homeostat.surgery.calling import Forward, asked, call, check_changeable, compared, copied, listed, samples_in
from homeostat.surgery.certificate import Certificate, Change
from homeostat.surgery.refit import order_of, seen_by
from homeostat.surgery.swaps import Fusing, fusing, names_of, put, switch

M = TypeVar("M", bound=nn.Module)
SOURCES = {"sample": "each sample's own", "batch": "the batch's at hand"}


class Inserted(nn.Module):
    """norm(inner(x)), or inner(norm(x)) with `before`. Attributes that it lacks are the inner layer's."""

    def __init__(self, inner: nn.Module, norm: nn.Module, before: bool = False) -> None:
        super().__init__()
        self.inner, self.norm, self.before = inner, norm, before
        self.training = inner.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Of several tensors the first is normalized."""
        if not self.before:
            y = self.inner(*args, **kwargs)
            return self.norm(y) if isinstance(y, Tensor) else (self.norm(y[0]), *y[1:])
        if args:
            return self.inner(self.norm(args[0]), *args[1:], **kwargs)
        word = next(iter(kwargs))
        return self.inner(**{**kwargs, word: self.norm(kwargs[word])})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner":
                raise
            return getattr(self.inner, name)


@dataclass(frozen=True)
class Placed(Change):
    """`drift` is the largest move of what comes out there, in root mean squares of it before.

    `off` is how far the norm is from the identity on these batches, the root of |y - x|^2 / |x - its mean|^2.
    """

    norm: str
    drift: float
    off: float
    note: str

    def __str__(self) -> str:
        said = f"{self.layer} ({self.kind}) has a {self.norm}: moves {self.drift:.3g} rms, off by {self.off:.3g}"
        return said + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Insertion(Certificate):
    """Where norms were put."""

    fusing: Fusing = field(default=(), repr=False, compare=False)

    def undo(self, model: M, inplace: bool = False) -> M:
        """The model without these norms, the rest as it is now."""
        found: Any = model if inplace else copied(model)
        for change in self.changed:
            there = found.get_submodule(change.layer) if change.layer else found
            if not isinstance(there, Inserted):
                raise ValueError(f"undo: nothing was inserted at {change.layer}; this certificate is of another model.")
            there.inner.train(there.training)
            found = put(found, names_of(found, there), there, there.inner, hooks=False)
        switch(found, self.fusing, on=True)
        return found  # type: ignore[no-any-return]


def insert(
    model: M,
    where: str | Iterable[str],
    norm: nn.Module | Callable[[Tensor], nn.Module],
    batches: Iterable[Any],
    *,
    before: bool = False,
    forward: Forward = call,
    inplace: bool = False,
) -> tuple[M, Insertion]:
    """A copy of the model with a norm after these layers (or `before` them), and by how much that changes it.

        insert(model, "layer?", lambda x: hs.nn.BatchNorm2d(x.shape[1]), batches)

    `where` are names of layers, with * and ?. `norm` is a module, copied for each place, or makes one from the tensor
    that comes there. Its gain, and its memory if it has one, are set on the batches so that it gives back what it is
    given, layer by layer in the order they run. A norm with memory does so for any input, in evaluation; one that
    measures what it is given cannot, and the certificate says how far off it is. A layer's keys in the `state_dict`
    are then under its name and "inner".
    """
    check_module(model, "insert")
    check_changeable(model, "insert")
    if not callable(norm) or isinstance(norm, type):
        raise TypeError(
            f"insert: norm={norm!r} is a module, or makes one of a tensor: lambda x: hs.nn.BatchNorm2d(x.shape[1])."
        )
    data = listed(batches)
    new: Any
    old, new = (copied(model), model) if inplace else (model, copied(model))
    names = [name for name, _ in asked(new, where)]
    if inplace and "" in names:
        raise ValueError("insert: the model is itself the layer, so nothing can be put around it in place.")
    left = {name: why for name in names if (why := refused(old.get_submodule(name)))}
    order = order_of(new, [name for name in names if name not in left], data, forward)
    left |= {name: "these batches do not reach it" for name in names if name not in (*order, *left)}
    places: dict[str, tuple[str, float, str]] = {}
    around = fusing(new, order)
    switch(new, around, on=False)
    try:
        for name in order:
            there = new.get_submodule(name)
            made = _made(new, name, norm, before, data, forward)
            if isinstance(made, str):
                left[name] = made
                continue
            places[name] = made[1:]
            new = put(new, names_of(new, there), there, Inserted(there, made[0], before), hooks=False)
        drift, moved = compared(old, new, data, forward, places)
    except BaseException:
        for name in places:
            there = new.get_submodule(name)
            put(new, names_of(new, there), there, there.inner, hooks=False)
        switch(new, around, on=True)
        raise
    changed = tuple(
        Placed(name, type(old.get_submodule(name)).__name__, kind, moved[name], off, note)
        for name, (kind, off, note) in places.items()
    )
    return new, Insertion("inserted", changed, tuple(left.items()), drift, samples_in(data), around)


def _made(
    model: nn.Module, name: str, norm: Any, before: bool, data: list[Any], forward: Forward
) -> tuple[nn.Module, str, float, str] | str:
    """The norm for this place, its kind, how far from the identity it is, and a note; or why there is none."""
    there: list[Any] = [args if before else y for args, y in seen_by(model, name, data, forward)]
    xs: list[Any] = [x[0] if isinstance(x, tuple) and x else x for x in there]
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in xs):
        return "what comes there is no tensor of fractions"
    made: Any = copied(norm) if isinstance(norm, nn.Module) else norm(xs[0])
    if not isinstance(made, nn.Module):
        raise TypeError(f"insert: norm(x) gave {made!r}, which is no module: lambda x: hs.nn.BatchNorm2d(x.shape[1]).")
    made = made.to(device=xs[0].device, dtype=xs[0].dtype).train(model.get_submodule(name).training)
    theirs = type(made) in OURS
    if theirs:
        adopt(made)
    try:
        off = identity_on(made, xs)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(made).__name__}: {str(error).splitlines()[0]}"
    finally:
        if theirs:
            release(made)
    found = by_class("", made)
    whose = "" if found is None else SOURCES.get(found.source, "")
    note = f"its statistics are {whose}, so no gain makes it the identity for every input" if whose else ""
    return made, type(made).__name__, off if math.isfinite(off) else math.nan, note
