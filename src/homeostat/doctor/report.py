"""Report: what a check found, as a record that views are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from homeostat import report as views
from homeostat.doctor.facts import Facts
from homeostat.report.saved import SCHEMA

PASSED, FOUND, NOT_APPLICABLE, NOT_MEASURED = "passed", "found", "not applicable", "not measured"
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Trouble, at one place. `effect` is judged against `null`, its value where nothing is wrong."""

    code: str
    name: str
    severity: str
    module: str
    location: str | None = field(
        compare=False
    )  # file:line in the user's repository where the norm is built, or what holds it
    effect: float
    null: float
    low: float
    high: float
    limit: float
    message: str
    fix: str  # what to do
    safety: str | None  # of the fix: safe, needs training; None where there is none to apply
    library: str | None = field(default=None, compare=False)  # file:line in a library, where that builds the norm

    def __str__(self) -> str:
        where = self.module or "the model"
        place = f" ({self.location})" if self.location else ""
        return (
            f"{self.code} {self.name}, {self.severity}: {where}{place}\n"
            f"  {self.message}\n"
            f"  measured {self.effect:.3g} in [{self.low:.3g}, {self.high:.3g}]; "
            f"null {self.null:.3g}, said from {self.limit:.3g} on\n"
            f"  fix ({self.safety or 'by hand'}): {self.fix}"
        )


@dataclass(frozen=True)
class Result:
    """What became of one rule: its state, why, and all it measured, worst first."""

    code: str
    name: str
    group: str
    state: str
    why: str
    measured: tuple[dict[str, Any], ...] = ()
    text: str = ""  # what the rule is about
    limits: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Report:
    """`findings` is trouble, worst first; `results` is every rule, the informative numbers among them."""

    findings: tuple[Finding, ...]
    results: tuple[Result, ...]
    norms: tuple[dict[str, Any], ...]
    batches: int
    seconds: float
    passes: float  # forward passes per batch
    changed: tuple[str, ...]  # parts of the model that are not what they were: none, or the check has a defect
    ignored: tuple[Finding, ...] = ()  # what a comment in the source says to leave
    facts: Facts | None = field(default=None, repr=False, compare=False)  # None in one that was read from a record
    curer: Callable[..., Any] | None = field(default=None, repr=False, compare=False)

    @property
    def head(self) -> str:
        """The first line."""
        same = "model unchanged (verified)" if not self.changed else f"model CHANGED: {', '.join(self.changed)}"
        many = f"{len(self.norms)} norm{'s' * (len(self.norms) != 1)}, {self.batches} batch{'es' * (self.batches != 1)}"
        return f"{many}, {self.seconds:.1f} s, {self.passes:.3g} passes a batch, {same}"

    @property
    def codes(self) -> list[str]:
        """Of the findings, each once."""
        return list(dict.fromkeys(finding.code for finding in self.findings))

    def fix(self, code: str, **how: Any) -> Any:
        """The cure of one rule's findings on a copy, looked at again: `.model`, `.certificate`, before and after."""
        if self.curer is None:
            raise ValueError("this report was read from a record; check the model again to fix it.")
        return self.curer(self, code, **how)

    def record(self) -> dict[str, Any]:
        """Plain data, for JSON and for every view."""
        return {
            "schema": SCHEMA,
            "head": self.head,
            "batches": self.batches,
            "seconds": self.seconds,
            "passes": self.passes,
            "changed": list(self.changed),
            "norms": [dict(norm) for norm in self.norms],
            "findings": [asdict(finding) for finding in self.findings],
            "ignored": [asdict(finding) for finding in self.ignored],
            "results": [asdict(result) for result in self.results],
            "version": version("homeostat"),
        }

    def save(self, path: str | Path) -> None:
        """As JSON, HTML, SARIF or text, by what the name ends in: report.save("report.html")."""
        views.save(self.record(), path)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """From JSON that was saved; nothing in it is run."""
        record = views.read(path)
        try:
            return cls(
                findings=tuple(Finding(**one) for one in record["findings"]),
                results=tuple(Result(**one | _tuples(one, "measured", "limits")) for one in record["results"]),
                ignored=tuple(Finding(**one) for one in record["ignored"]),
                **{name: record[name] for name in ("batches", "seconds", "passes")},
                **_tuples(record, "norms", "changed"),
            )
        except (TypeError, KeyError) as error:
            raise views.RecordError(f"{path} is not as it was saved: {error}.") from error

    @property
    def df(self) -> Any:
        """Findings as a pandas table."""
        import pandas

        return pandas.DataFrame([asdict(finding) for finding in self.findings])

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        return True  # a report without findings is a report

    def __str__(self) -> str:
        return views.FORMATS["text"](self.record()).rstrip()

    def _repr_html_(self) -> str:
        return views.fragment(self.record())


def _tuples(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: tuple(record[name]) for name in names}
