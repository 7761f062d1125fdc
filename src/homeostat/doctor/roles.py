"""Roles: what no tool can guess, as the user tells it. docs/doctor.md has their forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from homeostat.doctor.parts import Array

ROLES = ("real_fake", "group_action", "blocks", "units")
TOKENS = "tokens"


@dataclass(frozen=True)
class Blocks:
    """Names of blocks, and for each position along an axis the number of its block; `tokens`: no axis of features."""

    names: tuple[str, ...]
    codes: Array
    tokens: bool


def checked(roles: Mapping[str, Any] | None) -> dict[str, Any]:
    """The roles; a word that is none of them is refused."""
    for word in roles or {}:
        if word not in ROLES:
            raise ValueError(f"roles has {word!r}; what can be told is {', '.join(ROLES)}.")
    for word in ("blocks", "units", "group_action"):
        if not isinstance((roles or {}).get(word, {}), Mapping):
            raise TypeError(f"roles[{word!r}] is a dict: see docs/doctor.md for what it holds.")
    return dict(roles or {})


def blocks_at(told: Any, norm: str) -> Blocks | None:
    """What is said of a norm, by its name or a pattern with * and ?; None if nothing is."""
    said = next((value for key, value in (told or {}).items() if fnmatchcase(norm, key)), None)
    if said is None:
        return None
    tokens = isinstance(said, Mapping) and set(said) == {TOKENS} and not isinstance(said[TOKENS], int)
    if tokens:
        said = said[TOKENS]
    names, codes = _read(norm, said)
    return Blocks(names, codes, tokens)


def _read(norm: str, said: Any) -> tuple[tuple[str, ...], Array]:
    if isinstance(said, Mapping):
        names, widths = tuple(map(str, said)), tuple(said.values())
    elif isinstance(said, Sequence) and said and all(isinstance(word, str) for word in said):
        names = tuple(dict.fromkeys(said))  # one word for each feature
        return names, np.array([names.index(word) for word in said])
    else:
        widths = tuple(said)
        names = tuple(map(str, range(len(widths))))
    if not widths or not all(isinstance(n, int) and n > 0 for n in widths):
        raise ValueError(
            f"what is told of {norm!r} is {said!r}; blocks are widths, such as {{'image': 48, 'text': 16}}."
        )
    return names, np.repeat(np.arange(len(widths)), widths)
