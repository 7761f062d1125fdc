"""SARIF 2.1.0: findings as code scanning takes them.

GitHub refuses a whole file for one result without a line in the repository. So a norm that a library builds is shown
where the user builds the library's model, with the library's line beside it, and what has no line at all is a
notification. A result is the same as before if its rule and module are: fingerprints hold no number.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any
from urllib.parse import quote

from homeostat.report.baseline import mark
from homeostat.report.saved import Record

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"correctness": "error", "suspicious": "warning"}
PRECISION = {"correctness": "very-high", "suspicious": "high", "pedantic": "medium", "nursery": "low"}


def written(record: Record) -> str:
    """Its JSON."""
    return json.dumps(log(record), indent=1, allow_nan=False) + "\n"


def log(record: Record) -> dict[str, Any]:
    """One run of one tool."""
    rules = [result["code"] for result in record["results"]]
    placed = [finding for finding in record["findings"] if finding["location"]]
    nowhere = [finding for finding in record["findings"] if not finding["location"]]
    driver = {"name": "homeostat", "version": record["version"], "rules": [_rule(one) for one in record["results"]]}
    invocation = {"executionSuccessful": True, "toolExecutionNotifications": [_notice(one) for one in nowhere]}
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, rules) for finding in placed],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(result: dict[str, Any]) -> dict[str, Any]:
    text, group = result["text"], result["group"]
    what = text.partition("\n")[0].partition(": ")[2] or result["name"]
    return {
        "id": result["code"],
        "name": result["name"],
        "shortDescription": {"text": what},
        "fullDescription": {"text": what},
        "help": {"text": text or what},
        "defaultConfiguration": {"level": LEVELS.get(group, "note")},
        "properties": {"tags": ["normalization", group], "precision": PRECISION.get(group, "medium")},
    }


def _result(finding: dict[str, Any], rules: list[str]) -> dict[str, Any]:
    known = mark(finding)
    found: dict[str, Any] = {
        "ruleId": finding["code"],
        "ruleIndex": rules.index(finding["code"]),
        "level": finding["severity"],
        "message": {"text": _said(finding)},
        "locations": [_location(finding["location"], "%SRCROOT%", finding["module"])],
        "partialFingerprints": {
            "homeostat/v1": known,
            "primaryLocationLineHash": f"{blake2b(known.encode(), digest_size=8).hexdigest()}:1",  # what GitHub reads
        },
    }
    if finding["library"]:
        found["relatedLocations"] = [{"id": 1, **_location(finding["library"], "PYTHONPATH", finding["module"])}]
        found["relatedLocations"][0]["message"] = {"text": "built here, by a library"}
    return found


def _location(place: str, base: str, module: str) -> dict[str, Any]:
    file, _, line = place.rpartition(":")
    found: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": quote(file), **({} if file.startswith("/") else {"uriBaseId": base})},
            "region": {"startLine": int(line)},
        }
    }
    if module:
        found["logicalLocations"] = [{"fullyQualifiedName": module, "kind": "member"}]
    return found


def _notice(finding: dict[str, Any]) -> dict[str, Any]:
    where = f"no line of the repository builds {finding['module'] or 'the model'}, so this is shown here only"
    text = f"{finding['code']} {finding['name']}: {_said(finding)} ({where})"
    return {"level": finding["severity"], "message": {"text": text}, "associatedRule": {"id": finding["code"]}}


def _said(finding: dict[str, Any]) -> str:
    return f"{finding['module'] or 'the model'}: {finding['message']}. Fix: {finding['fix']}."
