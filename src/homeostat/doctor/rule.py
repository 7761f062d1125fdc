"""Rule: one defect, in one file under rules/, whose docstring is what `homeostat explain` prints.

A file gives its numbers (`judge`), from which level on they are worth a word (LIMITS), a sick and a healthy model
(`bad`, `good`), and, where there is one, a cure (`cure`) and how safe it is (SAFETY). A number is judged against its
null: the same statistic where nothing is wrong.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from torch import nn

from homeostat.doctor import rules
from homeostat.doctor.facts import Facts

CORRECTNESS, SUSPICIOUS, PEDANTIC, NURSERY = "correctness", "suspicious", "pedantic", "nursery"
GROUPS = {CORRECTNESS: "error", SUSPICIOUS: "warning", PEDANTIC: "note", NURSERY: "note"}
DEFAULT = (CORRECTNESS, SUSPICIOUS)
SAFE, NEEDS_TRAINING = "safe", "needs training"


class NotMeasured(Exception):
    """Why a rule has no number here."""


class NotApplicable(Exception):
    """Why a rule has nothing to look at here."""


@dataclass(frozen=True)
class Measure:
    """A number, its null, the interval it lies in 95 times of 100, and in words what it means."""

    where: str  # a norm's name; "" is the model
    value: float
    null: float
    low: float
    high: float
    said: str

    def speaks(self, limit: float) -> bool:
        """Beyond the limit, and surely beyond the null."""
        return self.value > limit and self.low > self.null


class Limits(NamedTuple):
    """From where on a value is a warning, and an error; error None: it stays what its group says."""

    warn: float
    error: float | None = None


class Case(NamedTuple):
    """A model and batches for it, and what else the check is told."""

    model: nn.Module
    batches: list[Any]
    told: dict[str, Any] = {}  # noqa: RUF012 - read only


@dataclass(frozen=True)
class Rule:
    """A file of rules/, as a value."""

    code: str
    name: str
    group: str
    limits: Limits
    text: str
    safety: str | None
    judge: Callable[[Facts], list[Measure]]
    bad: Callable[[int], Case]
    good: Callable[[int], Case]
    cure: Callable[..., tuple[nn.Module, Any]] | None
    advice: str
    asks: tuple[str, ...]  # arguments of `check` without which it is not measured

    @property
    def what(self) -> str:
        """Its first sentence."""
        return self.text.splitlines()[0].partition(": ")[2]


@cache
def every_rule() -> dict[str, Rule]:
    """By code, in order."""
    names = sorted(info.name for info in pkgutil.iter_modules(rules.__path__) if info.name.startswith("hs"))
    return {rule.code: rule for rule in map(_rule, names)}


def _rule(name: str) -> Rule:
    file: Any = import_module(f"{rules.__name__}.{name}")
    code, _, rest = name.partition("_")
    return Rule(
        code=code.upper(),
        name=rest.replace("_", "-"),
        group=file.GROUP,
        limits=file.LIMITS,
        text=file.__doc__.strip(),
        safety=getattr(file, "SAFETY", None),
        judge=file.judge,
        bad=file.bad,
        good=file.good,
        cure=getattr(file, "cure", None),
        advice=file.ADVICE,
        asks=getattr(file, "ASKS", ()),
    )


def asked_for(codes: str | tuple[str, ...] | list[str]) -> set[str]:
    """Codes of rules by code, name, or group; a word that means none of them is refused."""
    found: set[str] = set()
    for word in (codes,) if isinstance(codes, str) else tuple(codes):
        these = {r.code for r in every_rule().values() if word in (r.code, r.name, r.group, "all")}
        these |= {
            code for code in every_rule() if word.upper() == code or (len(word) > 2 and code.startswith(word.upper()))
        }
        if not these:
            known = ", ".join(every_rule())
            raise ValueError(f"{word!r} is no rule, no name of one and no group ({', '.join(GROUPS)}); rules: {known}.")
        found |= these
    return found
