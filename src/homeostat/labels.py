"""Labels: any sequence that says, position by position, which group it is.

>>> codes, levels = resolve("lab", ["b", "a", "b"], (3,), "lab[cell]")
>>> codes, levels
(array([1, 0, 1]), ('a', 'b'))

`(codes, n)` skips the reading: integers 0..n-1, as they come from an embedding, a router or a data loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from homeostat.arrays import Array, being_compiled, is_at_hand, to_numpy
from homeostat.frame import FrameError

Levels = tuple[Any, ...] | int  # the values the codes stand for, or just how many


def resolve(name: str, given: Any, extent: tuple[int, ...], said: str) -> tuple[Array, Levels]:
    """Codes of shape `extent`, and what they stand for."""
    if _is_scalar(given):
        what = "one text" if isinstance(given, str | bytes) else "nothing" if given is None else "one value"
        raise FrameError(
            f"{name}={given!r} is {what}; {said} needs one label per position, shape {extent}, or (codes, n)."
        )
    if is_coded(given):
        codes, n = given
        if not isinstance(n, int | np.integer) or isinstance(n, bool):
            raise FrameError(f"{name}=(codes, {n!r}): the number of groups is an integer, as in (codes, 8).")
        return _coded(name, codes, int(n), extent, said), int(n)
    return _read(name, given, extent, said)


def is_coded(given: Any) -> bool:
    """Is this `(codes, n)`? Two labels in a tuple are two scalars."""
    return isinstance(given, tuple) and len(given) == 2 and _is_scalar(given[1]) and not _is_scalar(given[0])


def counts_in(labels: Mapping[str, Any]) -> tuple[tuple[str, int], ...] | None:
    """How many values each label takes, where all say it themselves: (codes, n)."""
    counts = tuple((name, given[1]) for name, given in labels.items() if is_coded(given))
    return counts if len(counts) == len(labels) else None


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic)


def recode(name: str, given: Any, extent: tuple[int, ...], said: str, levels: Levels) -> Array:
    """Codes of new labels by the levels of earlier ones."""
    if is_coded(given) or _is_scalar(given):
        codes, n = resolve(name, given, extent, said)
        known = levels if isinstance(levels, int) else len(levels)
        if n != known:
            raise FrameError(f"{name} was measured with {known} groups; these labels speak of {n}.")
        return codes
    if isinstance(levels, int):
        raise FrameError(f"{name} was measured with (codes, {levels}); pass (codes, {levels}) here too.")
    values = _values(name, given, extent, said)
    place = {level: i for i, level in enumerate(levels)}
    unseen = sorted({str(v) for v in values.ravel().tolist() if v not in place})
    if unseen:
        raise FrameError(
            f"{name} has {_few(unseen)}, not among the labels that were measured ({_few([str(v) for v in levels])})."
        )
    return np.array([place[v] for v in values.ravel().tolist()], np.int64).reshape(extent)


def _coded(name: str, codes: Any, n: int, extent: tuple[int, ...], said: str) -> Array:
    if not hasattr(codes, "detach") and not type(codes).__module__.startswith("jax"):
        codes = _as_numpy(name, codes, said)
    _check_extent(name, tuple(codes.shape), extent, said)
    if "int" not in str(codes.dtype):
        raise FrameError(f"{name}=(codes, n): codes are integers 0..{n - 1}; these are {codes.dtype}.")
    if n <= 0:
        raise FrameError(f"{name}=(codes, {n}): there must be at least one group.")
    if is_at_hand(codes) and 0 not in codes.shape:
        seen = to_numpy(codes)  # under jax.jit even a known array's minimum would be traced
        low, high = int(seen.min()), int(seen.max())
        if low < 0:
            raise FrameError(
                f"{name}: code {low} is not in 0..{n - 1}. Labels may not be missing: leave those positions out, "
                f"or give them a group of their own."
            )
        if high >= n:
            raise FrameError(
                f"{name}: code {high} is not in 0..{n - 1}; for {high + 1} groups pass (codes, {high + 1})."
            )
    if being_compiled() and hasattr(codes, "masked_fill"):
        codes = codes.long().masked_fill((codes < 0) | (codes >= n), 1 << 40)  # so that indexing fails, not wraps
    return codes.astype(np.int64) if isinstance(codes, np.ndarray) else codes  # uint64 + int64 would be float64


def _read(name: str, given: Any, extent: tuple[int, ...], said: str) -> tuple[Array, Levels]:
    values = _values(name, given, extent, said)
    try:
        levels, codes = np.unique(values, return_inverse=True)
    except TypeError:
        raise FrameError(f"{name} mixes values that cannot be ordered; make them all text or all numbers.") from None
    return codes.reshape(extent).astype(np.int64), tuple(levels.tolist())


def _values(name: str, given: Any, extent: tuple[int, ...], said: str) -> np.ndarray[Any, Any]:
    if hasattr(given, "detach"):
        import torch

        if torch.compiler.is_compiling():
            raise FrameError(
                f"{name}: reading labels looks at their values, which a compiled graph cannot; pass (codes, n)."
            )
        given = given.detach().cpu()
    values = _as_numpy(name, given, said)
    _check_extent(name, values.shape, extent, said)
    missing = np.flatnonzero(_missing(values.ravel()))
    if len(missing):
        raise FrameError(
            f"{name}: {len(missing)} of {values.size} labels {'is' if len(missing) == 1 else 'are'} missing "
            f"(position {_few([str(i) for i in missing])}); drop those positions or name them, for instance 'unknown'."
        )
    return values


def _as_numpy(name: str, given: Any, said: str) -> np.ndarray[Any, Any]:
    """A sequence as it is. NumPy would write everything beside a text as text, NaN as "nan" and 1 as "1"."""
    if isinstance(given, set | frozenset | dict) or hasattr(given, "__next__"):
        raise FrameError(f"{name} is a {type(given).__name__}; {said} needs a sequence, one label per position.")
    try:
        values = np.asarray(given)
    except ValueError:
        raise FrameError(
            f"{name} is neither one label per position, as {said} needs, nor (codes, n) with an integer n: "
            f"its parts differ in length."
        ) from None
    if values.dtype.kind in "US" and not hasattr(given, "dtype"):
        as_given = np.asarray(given, object)
        return values if all(isinstance(v, str | bytes) for v in as_given.ravel()) else as_given
    return values if values.size or values.dtype.kind != "f" else values.astype(np.int64)  # [] is no fraction


def _missing(flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """None, NaN, NaT, NA: what is missing does not equal itself, or cannot say."""
    if flat.dtype.kind in "fcmM":
        return np.asarray(flat != flat)
    if flat.dtype.kind != "O":
        return np.zeros(len(flat), bool)
    return np.array([v is None or type(v).__name__ in ("NAType", "NaTType") or v != v for v in flat], bool)


def _check_extent(name: str, shape: tuple[int, ...], extent: tuple[int, ...], said: str) -> None:
    if tuple(shape) != tuple(extent):
        raise FrameError(f"{name} has shape {tuple(shape)}; {said} spans {tuple(extent)} positions of x.")


def _few(words: list[str]) -> str:
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")
