"""Fixing: the cure of one rule on a copy of the model, looked at again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from homeostat.doctor.report import Report
from homeostat.doctor.rule import asked_for, every_rule
from homeostat.recognising.watching import Forward


@dataclass(frozen=True)
class Fixed:
    """The new model, what surgery did, and the two reports. `safe`: it needs no training and can be undone."""

    model: nn.Module
    certificate: Any
    before: Report
    after: Report
    code: str
    safe: bool

    def __str__(self) -> str:
        how = "safe" if self.safe else "needs training"
        old, new = (_worst(report, self.code) for report in (self.before, self.after))
        worse = [code for code in self.after.codes if code not in self.before.codes]
        new += " after" + (f"; but now {', '.join(worse)}: look before you take it" if worse else "")
        return f"{self.code} fixed on a copy ({how}): {old} before, {new}\n{self.certificate}"


def cure(
    model: nn.Module,
    data: list[Any],
    forward: Forward,
    report: Report,
    code: str,
    check: Callable[[nn.Module], Report],
    **how: Any,
) -> Fixed:
    """Apply a rule's cure to where it spoke."""
    found = every_rule()[sorted(asked_for(code))[0]]
    where = [finding.module for finding in report.findings if finding.code == found.code]
    if not where:
        raise ValueError(f"{found.code} {found.name} found nothing here to fix.")
    if found.cure is None:
        raise ValueError(f"{found.code} {found.name} is fixed by hand: {found.advice}")
    told = {"roles": report.facts.roles} if report.facts and any("roles" in word for word in found.asks) else {}
    new, certificate = found.cure(model, where, data, forward, **told, **how)
    return Fixed(new, certificate, report, check(new), found.code, found.safety == "safe")


def _worst(report: Report, code: str) -> str:
    values = [m["value"] for result in report.results if result.code == code for m in result.measured]
    return f"{max(values):.3g}" if values else "not measured"
