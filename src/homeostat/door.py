"""The door: what every call must be before it may come in, and what it is told otherwise.

Sizes, labels, masks and dtypes are read and checked here, once; behind the door nobody asks again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from homeostat import labels
from homeostat.arrays import Array, Numpy, backend_of, is_at_hand, to_numpy
from homeostat.frame import Frame, FrameError, ShapeError, listed
from homeostat.plan import Plan, plan_for


class DtypeError(TypeError, NotImplementedError):
    """An array whose values cannot be normalized. Also a NotImplementedError, which is what torch.nn raises here."""


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
    sizes = {name: int(value) for name, value in given.items() if _is_size(value)}
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
        if not extent:
            raise ShapeError(f'"{frame}": {label} spans no axis of this tensor, {shape}, where "..." stands for none.')
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
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _not_a_label(name: str, value: Any, frame: Frame) -> str:
    if name in frame.names:
        return f'"{frame}": {name} is an axis, so {name}= takes an integer size; got {type(value).__name__}.'
    if value is None or isinstance(value, bool | float | str):
        return (
            f"{name}={value!r} is no parameter of this call, and neither the size of an axis nor labels; "
            f'the axes of "{frame}" are {listed(frame.names)}.'
        )
    known = ", ".join(str(label) for label in frame.labels)
    return f'"{frame}" has no label {name}' + (f"; it has {known}." if known else f"; write {name}[axis] to keep one.")


def check_dtype(b: Numpy, x: Array) -> None:
    """x holds fractions, and an array of them in the plain sense."""
    if not b.is_float(x):
        raise DtypeError(_not_floating(b, x))
    if b.name == "torch":
        if x.layout is not b.xp.strided or x.is_nested:
            kind = ("nested", "torch.nested.to_padded_tensor(x, 0.0) and where=")
            kind = kind if x.is_nested else ("sparse", "x.to_dense()")
            raise TypeError(f"x is a {kind[0]} tensor; all its axes must be whole: pass {kind[1]}.")
    elif isinstance(x, np.ma.MaskedArray):
        raise TypeError("x is a masked array, whose mask would be lost on the way; pass x.data and where=~x.mask.")
    elif isinstance(x, np.matrix):
        raise TypeError("x is a numpy.matrix, which cannot change its shape; pass numpy.asarray(x).")


def _not_floating(b: Numpy, x: Array) -> str:
    if "complex" in str(x.dtype):
        return f"x is {x.dtype}: real and imaginary parts are normalized apart; pass x.real and x.imag."
    to = {"torch": "x.float()", "jax": "x.astype(jnp.float32)"}.get(b.name, "x.astype(float)")
    return f"x is {x.dtype}: normalized values are fractions, so x must be floating; pass {to}."


def check_center(center: Any) -> None:
    if not isinstance(center, bool | np.bool_):
        raise TypeError(f"center={center!r} is neither True (subtract the mean) nor False (divide by the RMS only).")


def check_eps(eps: Any) -> float | str:
    """eps as a Python number, or "auto"."""
    if isinstance(eps, str) and eps == "auto":
        return eps
    number = isinstance(eps, int | float | np.integer | np.floating) and not isinstance(eps, bool)
    if not number or not 0 <= eps < math.inf:
        raise ValueError(f'eps={eps!r} is neither a number >= 0 nor "auto".')
    return float(eps)


def check_where(where: Any, x: Array) -> None:
    """A mask or weights >= 0 beside x, and broadcast to it."""
    if where is None:
        return
    _check_where_kind(where, x)
    if getattr(where, "requires_grad", False):
        raise ValueError("where= weights are taken as constants and would get no gradient; pass where.detach().")
    _check_where_shape(where, x)
    _check_where_values(where)


def _check_where_kind(where: Any, x: Array) -> None:
    library = backend_of(x).name
    known = _library(where)
    if known != library and not (known == "numpy" and library in ("jax", "dask")):
        raise TypeError(
            f"where is a {type(where).__name__} ({type(where).__module__.split('.')[0]}) and x an array of {library}; "
            f"pass a mask or weights of the same library as x."
        )
    words = str(where.dtype)
    if not any(word in words for word in ("bool", "int", "float")):
        raise TypeError(f"where is {where.dtype}; pass a mask (bool) or weights >= 0 (integers or fractions).")
    if library == "torch" and where.layout is not x.layout:
        raise TypeError("where is a sparse tensor; pass where.to_dense().")
    if library == "torch" and where.device != x.device:
        raise ValueError(f'where is on {where.device} and x on {x.device}; pass where.to("{x.device}").')


def _library(value: Any) -> str:
    try:
        return backend_of(value).name
    except TypeError:
        return "none"


def _check_where_values(where: Array) -> None:
    """Looked at where that costs no more than a pass: on a GPU it would stop the device, in Dask compute."""
    if "bool" in str(where.dtype) or 0 in where.shape or not is_at_hand(where):
        return
    if getattr(where, "is_cuda", False):
        return
    seen = to_numpy(where)
    low, high = float(seen.min()), float(seen.max())
    if not (low >= 0 and high < math.inf):  # so NaN is refused too
        raise ValueError(f"where goes from {low:g} to {high:g}; weights are finite and >= 0, and 0 leaves out.")


def _check_where_shape(where: Array, x: Array) -> None:
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
    keyed = set(plan.keyed)
    shared = [plan.names[p] for p in (*plan.pooled, *plan.keyed)]
    if 0 in plan.shape and plan.pool == 0:
        empty = [plan.names[p] for p in plan.pooled if plan.shape[p] == 0]
        raise ShapeError(f'"{plan.frame}" measures nobody: {", ".join(empty)} has length 0 in {plan.shape}.')
    if plan.pool == 1 and keyed <= set(plan.kept):
        over = f" (over {', '.join(shared)})" if shared else ""
        raise ShapeError(
            f'"{plan.frame}" leaves one value in each group of {plan.shape}{over}: minus its own mean it is 0 '
            f"everywhere. Keep fewer axes, or pass center=False."
        )
    if keyed and plan.pool == 1 and where is None:
        _check_lonely(bound)


def _check_lonely(bound: Bound) -> None:
    """Named labels that occur once, alone or crossed, where nothing else is pooled. Codes are taken as they come."""
    if any(isinstance(level, int) for level in bound.levels):
        return
    plan = bound.plan
    atoms = [(kind, i) for kind, i in plan.atoms if kind == "label" or i in plan.keyed]
    sizes = [plan.counts[i] if kind == "label" else plan.shape[i] for kind, i in atoms]
    key: Any = 0
    for (kind, i), n in zip(atoms, sizes, strict=True):
        along = plan.spans[i] if kind == "label" else (i,)
        digit = to_numpy(bound.codes[i]) if kind == "label" else np.arange(n)
        key = key * n + digit.reshape([plan.shape[p] if p in along else 1 for p in plan.keyed])
    found, times = np.unique(key, return_counts=True)
    lonely = found[times == 1]
    if len(lonely):
        names = [_group_name(bound, atoms, at) for at in zip(*np.unravel_index(lonely[:5], sizes), strict=True)]
        more = f" and {len(lonely) - 5} more" if len(lonely) > 5 else ""
        raise ShapeError(
            f'"{bound.frame}": {", ".join(names)}{more} {"holds" if len(lonely) == 1 else "hold"} a single value per '
            f"group, which minus its own mean is 0. Drop it, merge it into another label, or give (codes, n) to "
            f"accept that."
        )


def _group_name(bound: Bound, atoms: list[tuple[str, int]], at: tuple[int, ...]) -> str:
    """'a' x 'b', and for an axis its name and position: 'a' x n=3."""
    return " x ".join(
        repr(bound.levels[i][k]) if kind == "label" else f"{bound.plan.names[i]}={k}"  # type: ignore[index]
        for (kind, i), k in zip(atoms, at, strict=True)
    )
