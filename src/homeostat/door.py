"""The door: what every call must be before it may come in, and what it is told otherwise.

Sizes, labels, masks and dtypes are read and checked here, once; behind the door nobody asks again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from homeostat import labels
from homeostat.arrays import Array, Numpy, backend_of, to_numpy
from homeostat.frame import Frame, FrameError, ShapeError
from homeostat.plan import Plan, plan_for


@dataclass(frozen=True, eq=False, slots=True)
class Bound:
    """A frame, its plan for one tensor, and the codes of its labels."""

    frame: Frame
    plan: Plan
    codes: tuple[Array, ...] = ()
    levels: tuple[labels.Levels, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)


def bind(x: Array, pattern: str | Frame, given: dict[str, Any], levels: tuple[labels.Levels, ...] = ()) -> Bound:
    """Check x and read sizes and labels."""
    b = backend_of(x)
    check_dtype(b, x)
    sizes = {name: value for name, value in given.items() if _is_size(value)}
    rest = {name: value for name, value in given.items() if name not in sizes}
    frame = pattern if isinstance(pattern, Frame) else Frame.parse(pattern, frozenset(rest))
    shape = tuple(x.shape)
    if any(isinstance(n, float) and math.isnan(n) for n in shape):
        raise ShapeError(f"x has unknown chunk sizes, {shape}; call x.compute_chunk_sizes() first.")
    known = {label.name for label in frame.labels}
    for name in rest:
        if name not in known:
            raise FrameError(_not_a_label(name, rest[name], frame))
    for name in sizes:
        if name in known:  # an integer where labels belong: the plan says what it takes
            plan_for(frame, shape, sizes, {})
    if not known:
        return Bound(frame, plan_for(frame, shape, sizes), (), (), sizes)
    return _bind_labels(b, x, frame, sizes, rest, levels)


def _bind_labels(
    b: Numpy, x: Array, frame: Frame, sizes: dict[str, int], given: dict[str, Any], levels: tuple[labels.Levels, ...]
) -> Bound:
    shape = tuple(x.shape)
    lengths = plan_for(frame, shape, sizes, dict.fromkeys(given, 1))  # raises where a label is absent
    codes, found = [], []
    for i, label in enumerate(frame.labels):
        extent = tuple(lengths.shape[p] for p in lengths.spans[i])
        if levels:
            code, level = labels.recode(label.name, given[label.name], extent, str(label), levels[i]), levels[i]
        else:
            code, level = labels.resolve(label.name, given[label.name], extent, str(label))
        codes.append(b.codes(code, x))
        found.append(level)
    counts = {
        label.name: level if isinstance(level, int) else len(level)
        for label, level in zip(frame.labels, found, strict=True)
    }
    return Bound(frame, plan_for(frame, shape, sizes, counts), tuple(codes), tuple(found), sizes)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _not_a_label(name: str, value: Any, frame: Frame) -> str:
    if name in frame.names:
        return f'"{frame}": {name} is an axis, so {name}= takes an integer size; got {type(value).__name__}.'
    labels = ", ".join(str(label) for label in frame.labels)
    return f'"{frame}" has no label {name}' + (
        f"; it has {labels}." if labels else f"; write {name}[axis] to keep one."
    )


def check_dtype(b: Numpy, x: Array) -> None:
    if not b.is_float(x):
        to = {"torch": "x.float()", "jax": "x.astype(jnp.float32)"}.get(b.name, "x.astype(float)")
        raise TypeError(f"x is {x.dtype}: normalized values are fractions, so x must be floating; pass {to}.")


def check_eps(eps: Any) -> None:
    if eps == "auto":
        return
    if isinstance(eps, str) or not isinstance(eps, int | float) or not 0 <= eps < math.inf:
        raise ValueError(f'eps={eps!r} is neither a number >= 0 nor "auto".')


def check_where(where: Any, x: Array) -> None:
    if where is None:
        return
    if type(where).__module__.split(".")[0] != type(x).__module__.split(".")[0] and not hasattr(where, "shape"):
        raise TypeError(f"where is a {type(where).__name__}; pass a mask or weights of the same library as x.")
    if getattr(where, "requires_grad", False):
        raise ValueError("where= weights are taken as constants and would get no gradient; pass where.detach().")
    if _broadcasts(tuple(where.shape), tuple(x.shape)):
        return
    extra = len(x.shape) - len(where.shape)
    hint = ""
    if extra > 0 and tuple(where.shape) == tuple(x.shape[: len(where.shape)]):
        hint = f" It has the leading axes of x: write where[..., {', '.join(['None'] * extra)}]."
    raise ShapeError(f"where has shape {tuple(where.shape)}, which does not broadcast to x, {tuple(x.shape)}.{hint}")


def _broadcasts(small: tuple[int, ...], big: tuple[int, ...]) -> bool:
    if len(small) > len(big):
        return False
    return all(a in (1, n) for a, n in zip(small[::-1], big[::-1], strict=False))


def check_pool(bound: Bound, where: Array | None = None) -> None:
    """Centring a group of one leaves 0 whatever was there; a group of none says nothing."""
    plan = bound.plan
    shared = [plan.names[p] for p in (*plan.pooled, *plan.keyed)]
    if 0 in plan.shape and plan.pool == 0:
        empty = [plan.names[p] for p in plan.pooled if plan.shape[p] == 0]
        raise ShapeError(f'"{plan.frame}" measures nobody: {", ".join(empty)} has length 0 in {plan.shape}.')
    if not plan.keyed and plan.pool == 1:
        over = f" (over {', '.join(shared)})" if shared else ""
        raise ShapeError(
            f'"{plan.frame}" leaves one value in each group of {plan.shape}{over}: minus its own mean it is 0 '
            f"everywhere. Keep fewer axes, or pass center=False."
        )
    if plan.keyed and plan.pool == 1 and where is None:
        _check_lonely(bound)


def _check_lonely(bound: Bound) -> None:
    """Named labels that occur once, where nothing else is pooled. Codes are taken as they come."""
    if len(bound.codes) != 1 or isinstance(bound.levels[0], int) or set(bound.plan.kept) & set(bound.plan.keyed):
        return
    lonely = np.flatnonzero(np.bincount(to_numpy(bound.codes[0]).ravel()) == 1)
    if len(lonely):
        names = ", ".join(repr(bound.levels[0][i]) for i in lonely[:5])
        raise ShapeError(
            f'"{bound.frame}": {names} holds a single value per group, which minus its own mean is 0. '
            f"Drop it, merge it into another label, or give (codes, n) to accept that."
        )
