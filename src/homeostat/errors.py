"""Errors: an argument read as the number or the function that it should be, or refused in one sentence.

>>> whole("batch", 2.0)
Traceback (most recent call last):
    ...
ValueError: batch=2.0: give a whole number of at least 1.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from homeostat.arrays import to_numpy


def whole(name: str, given: Any, least: int = 1) -> int:
    """A whole number; NumPy's are such, True is none."""
    try:
        n = least - 1 if isinstance(given, bool) else operator.index(given)
    except TypeError:
        n = least - 1
    if n < least:
        raise ValueError(f"{name}={said(given)}: give a whole number of at least {least}.")
    return n


def widths(name: str, given: Any) -> tuple[int, ...]:
    """Whole numbers of at least 1, at least one of them."""
    if isinstance(given, str) or not hasattr(given, "__iter__") or not (found := tuple(given)):
        raise ValueError(f"{name}={said(given)}: give whole numbers of at least 1, as in {name}=(512, 64).")
    return tuple(whole(f"{name}[{i}]", n) for i, n in enumerate(found))


def number(name: str, given: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number within bounds."""
    x = real(given)
    if not (math.isfinite(x) and least <= x <= most):
        at_least = "" if least == -math.inf else f" of at least {least:g}"
        wanted = f"finite number{at_least}" if most == math.inf else f"number from {least:g} to {most:g}"
        raise ValueError(f"{name}={said(given)}: give a {wanted}.")
    return x


def real(given: Any) -> float:
    """A number as a float; NaN for what is none: True, text, an array."""
    found = reals(given)
    return float(found) if found.shape == () else math.nan


def reals(given: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers, in an array of any library or a sequence, as float64; a lone NaN for what is neither."""
    try:
        found = to_numpy(given)
    except (TypeError, ValueError):
        found = np.asarray(None)
    kind = str(found.dtype)
    return found.astype(float) if "float" in kind or "int" in kind else np.asarray(math.nan)


def check_callable(name: str, given: Any) -> None:
    """Something to call, and no class that has still to be made."""
    if isinstance(given, type):
        raise TypeError(f"{name}={given.__name__} is a class: make one of it, {given.__name__}(...).")
    if not callable(given):
        raise TypeError(f"{name}={said(given)} cannot be called: give a layer or a function.")


def said(given: Any) -> str:
    """What was given, in a line."""
    text = repr(given)
    return text if len(text) <= 60 and "\n" not in text else f"<{type(given).__name__}>"
