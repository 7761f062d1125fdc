"""Page: a record as one HTML file that needs nothing else: no network, no script, at most 2 MB.

What may load is written into the page itself: nothing but its own style, known by its hash.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from homeostat.report import network
from homeostat.report.picture import legend, svg
from homeostat.report.saved import Record
from homeostat.report.tags import Markup, tag
from homeostat.report.terminal import NOT_APPLICABLE, NOT_MEASURED, PASSED, counts

STYLE = Path(__file__).with_name("page.css").read_text("utf-8")
POLICY = "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"
NOTEBOOK = 10  # findings in a cell's output


def written(record: Record) -> str:
    """The whole page."""
    policy = POLICY.format(b64encode(sha256(STYLE.encode()).digest()).decode())
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"homeostat: {counts(record)}"),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        tag("a", "to the findings", href="#findings", class_="skip"),
        tag("header", tag("h1", "What normalization does in this model"), *_head(record)),
        tag("main", _map(record), _findings(record), *_rest(record), network.table(record)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def fragment(record: Record) -> str:
    """For a notebook: the first findings, without style, script or anything that is loaded."""
    some = record["findings"][:NOTEBOOK]
    more = len(record["findings"]) - len(some)
    rest = [f"{result['code']} {result['name']}, because {result['why']}" for result in _in(record, NOT_MEASURED)]
    return tag(
        "div",
        *_head(record),
        (_finding(finding) for finding in some),
        tag("p", f"and {more} more: report.findings") if more else "",
        tag("details", tag("summary", f"{NOT_MEASURED}: {len(rest)}"), tag("ul", (tag("li", one) for one in rest))),
    )


def _head(record: Record) -> Iterator[Markup]:
    yield tag("p", record["head"], class_="changed" if record["changed"] else None)
    yield tag("p", tag("strong", counts(record)))


def _map(record: Record) -> Markup:
    return tag(
        "section",
        tag("h2", "Map of the norms", id="map"),
        tag("p", f"{network.LEGEND} A norm leads to what was found there.", class_="soft"),
        network.drawn(record),
        aria_labelledby="map",
    )


def _findings(record: Record) -> Markup:
    rules = {result["code"]: result for result in record["results"]}
    by_rule: dict[str, list[Markup]] = {}  # in the order of the findings: the worst rule first
    for number, finding in enumerate(record["findings"]):
        these = by_rule.setdefault(finding["code"], [])
        these.append(_finding(finding, f"f-{number}") if len(these) < network.OF_A_RULE else Markup())
    return tag(
        "section",
        tag("h2", "Findings", id="findings"),
        _filters(record) if by_rule else tag("p", "Nothing was found by the rules that measured."),
        (_rule(rules[code], these) for code, these in by_rule.items()),
        aria_labelledby="findings",
    )


def _filters(record: Record) -> Markup:
    """Boxes that show and hide, by the style alone."""
    found = [finding["severity"] for finding in record["findings"]]
    boxes = [
        tag("label", tag("input", type="checkbox", id=f"show-{word}", checked=True), f"{word} ({found.count(word)})")
        for word in ("error", "warning", "note")
        if word in found
    ]
    return tag("fieldset", tag("legend", "Show"), boxes, class_="filters")


def _rule(rule: dict[str, Any], these: list[Markup]) -> Markup:
    more = len(these) - network.OF_A_RULE
    return tag(
        "section",
        tag("h3", f"{rule['code']} {rule['name']}", id=f"rule-{rule['code']}"),
        these,
        tag("p", f"{more} more of this rule are in the JSON record.") if more > 0 else "",
        tag("details", tag("summary", f"What {rule['code']} is, and when it is wrong"), *_text(rule["text"])),
        aria_labelledby=f"rule-{rule['code']}",
    )


def _finding(finding: dict[str, Any], place: str | None = None) -> Markup:
    places = ", built in ".join(filter(None, (finding["location"], finding["library"])))
    module = network.short(finding["module"] or "the model")
    return tag(
        "article",
        tag("h4", f"{finding['severity']}: {finding['code']} at ", tag("code", module)),
        tag("p", tag("code", places), class_="soft") if places else "",
        tag("p", finding["message"]),
        svg(finding),
        tag("p", f"{legend(finding)} (dashed: null; line: limit; band: 95 % interval)", class_="soft"),
        tag("p", tag("strong", f"Fix ({finding['safety'] or 'by hand'}): "), finding["fix"]),
        class_=f"finding {finding['severity']}",
        id=place,
    )


def _rest(record: Record) -> Iterator[Markup]:
    for state in (PASSED, NOT_MEASURED, NOT_APPLICABLE):
        if these := _in(record, state):
            name = state.replace(" ", "-")
            heading = tag("h2", f"{state.capitalize()}: {len(these)}", id=name)
            yield tag("section", heading, tag("ul", map(_result, these)), aria_labelledby=name)
    for name, said in (("ignored", "Ignored in the source"), ("known", "Known from the baseline")):
        if aside := record.get(name):
            some = aside[: network.OF_A_RULE]
            listed = (tag("li", f"{one['code']} {one['module']} {one['location'] or ''}") for one in some)
            yield tag("section", tag("h2", f"{said}: {len(aside)}", id=name), tag("ul", listed), aria_labelledby=name)


def _result(result: dict[str, Any]) -> Markup:
    said = f", because {result['why']}" if result["why"] else ""
    if result["state"] == PASSED and result["measured"]:
        worst, limit = result["measured"][0], result["limits"][:1]
        said = f": at most {worst['value']:.3g} (null {worst['null']:.3g}"
        said += f", said from {limit[0]:.3g} on)" if limit else ")"
    return tag("li", tag("strong", f"{result['code']} {result['name']}"), said)


def _text(text: str) -> Iterator[Markup]:
    """Paragraphs; formulas, which are indented, as they stand."""
    for part in text.split("\n\n"):
        yield tag("pre", part) if part.startswith("    ") else tag("p", part.replace("\n", " "))


def _in(record: Record, state: str) -> list[dict[str, Any]]:
    return [result for result in record["results"] if result["state"] == state]
