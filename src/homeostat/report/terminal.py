"""Terminal: findings worst first, then what passed and what was not measured; in colour where Rich is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, TextIO

from homeostat.report.picture import legend, line
from homeostat.report.saved import Record

PASSED, NOT_APPLICABLE, NOT_MEASURED = "passed", "not applicable", "not measured"
STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan", "": ""}


def written(record: Record) -> str:
    """The plain text."""
    return "".join(f"{text}\n" for text, _ in lines(record))


def show(record: Record, file: TextIO | None = None) -> None:
    """The same, in colour on a terminal."""
    out = sys.stdout if file is None else file
    try:
        from rich.console import Console
    except ImportError:
        out.write(written(record))
        return
    console = Console(file=out, highlight=False, soft_wrap=True)
    for text, style in lines(record):
        console.print(text, style=STYLES.get(style, style) or None, markup=False, emoji=False)


def lines(record: Record) -> Iterator[tuple[str, str]]:
    """Each line, and its severity or style."""
    yield _clean(record["head"]), "bold red" if record["changed"] else "bold"
    for finding in record["findings"]:
        yield "", ""
        yield from _finding(finding)
    yield "", ""
    yield counts(record), "bold"
    for result in record["results"]:
        if result["state"] == NOT_MEASURED:
            yield _clean(f"{NOT_MEASURED}: {result['code']} {result['name']}, because {result['why']}"), "dim"
    if record["findings"]:
        yield f"more: homeostat explain {record['findings'][0]['code']}", "dim"


def counts(record: Record) -> str:
    """3 findings (1 error, 2 warnings); 4 passed, 2 not applicable, 1 not measured"""
    found = [finding["severity"] for finding in record["findings"]]
    each = [_many(found.count(word), word) for word in ("error", "warning", "note") if word in found]
    said = _many(len(found), "finding") + (f" ({', '.join(each)})" if each else "")
    states = [result["state"] for result in record["results"]]
    rest = [f"{states.count(word)} {word}" for word in (PASSED, NOT_APPLICABLE, NOT_MEASURED) if word in states]
    if aside := len(record["ignored"]):
        rest.append(f"{aside} ignored in the source")
    if aside := len(record.get("known", ())):
        rest.append(f"{aside} known from the baseline")
    return f"{said}; {', '.join(rest)}" if rest else said


def _finding(finding: dict[str, Any]) -> Iterator[tuple[str, str]]:
    where = finding["module"] or "the model"
    places = [finding["location"], finding["library"] and f"built in {finding['library']}"]
    place = ", ".join(filter(None, places))
    yield _clean(f"{finding['code']} {finding['name']}, {finding['severity']}: {where}"), finding["severity"]
    if place:
        yield _clean(f"  {place}"), "dim"
    yield _clean(f"  {finding['message']}"), ""
    yield f"  {line(finding)}  {legend(finding)}", ""
    yield _clean(f"  fix ({finding['safety'] or 'by hand'}): {finding['fix']}"), "green"


def _many(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def _clean(text: str) -> str:
    """What would move the cursor or change its colours is shown, not obeyed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
