"""Network: the norms of a model where they stand in it, each by the worst that was found there."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

from homeostat.report.saved import Record
from homeostat.report.tags import Markup, tag

SIGNS = {"error": "✕", "warning": "!", "note": "i", "passed": "✓"}
LEGEND = "✕ error, ! warning, i note, ✓ nothing found."
SHOWN, GROUPS, LONGEST = 1500, 24, 120  # norms of a page, rows of its map, letters of a name
OF_A_RULE = 40  # findings shown of it


def drawn(record: Record) -> Markup:
    """A row for each part of the network, a cell for each norm."""
    names = [norm["name"] for norm in record["norms"][:SHOWN]]
    depth = _depth(names)
    found = worst(record)
    rows = [
        tag("div", tag("span", short(part)), (_cell(name, depth, found) for name in these), class_="row")
        for part, these in groupby(names, lambda name: _part(name, depth))
    ]
    more = len(record["norms"]) - len(names)
    return tag("div", rows or tag("p", "no norm was recognised"), tag("p", f"{more} more norms") if more else "")


def table(record: Record) -> Markup:
    """Every norm: what it is, its frame, where it is built."""
    head = tag("tr", (tag("th", word, scope="col") for word in ("norm", "kind", "frame", "built at")))
    rows = [
        tag("tr", (tag("td", short(norm.get(part) or "")) for part in ("name", "kind", "frame", "location")))
        for norm in record["norms"][:SHOWN]
    ]
    inside = tag("table", tag("thead", head), tag("tbody", rows))
    return tag(
        "section",
        tag("h2", "All norms", id="norms"),
        tag("div", inside, class_="wide", tabindex=0, role="region", aria_labelledby="norms"),
    )


def worst(record: Record) -> dict[str, tuple[dict[str, Any], str]]:
    """By module, its worst finding, and the place on the page that tells of it. Findings come worst first."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    seen: Counter[str] = Counter()
    for number, finding in enumerate(record["findings"]):
        seen[finding["code"]] += 1
        place = f"f-{number}" if seen[finding["code"]] <= OF_A_RULE else f"rule-{finding['code']}"
        found.setdefault(finding["module"], (finding, place))
    return found


def short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _cell(name: str, depth: int, found: dict[str, tuple[dict[str, Any], str]]) -> Markup:
    rest = ".".join(name.split(".")[depth:]) or name.rpartition(".")[2] or "the model"
    if name not in found:
        return tag("span", f"{SIGNS['passed']} {short(rest)}", class_="cell passed", title=short(name))
    finding, place = found[name]
    state = finding["severity"]
    said = f"{name}: {finding['code']} {finding['name']}, {state}"
    return tag("a", f"{SIGNS[state]} {short(rest)}", href=f"#{place}", class_=f"cell {state}", title=short(said))


def _depth(names: list[str]) -> int:
    """As deep as there are not too many rows, nor rows of hardly anything."""

    def rows(depth: int) -> int:
        return sum(1 for _ in groupby(names, lambda name: _part(name, depth)))

    return max((depth for depth in range(5) if rows(depth) <= min(GROUPS, len(names) // 2)), default=0)


def _part(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:-1][:depth]) or "the model"
