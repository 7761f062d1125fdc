"""Baseline: findings that are known and accepted, so that a check speaks of new ones only.

A finding is known again by its rule and its module, never by a number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from homeostat.files import write_whole
from homeostat.report.saved import Record, RecordError

SCHEMA = 1


def mark(finding: dict[str, Any]) -> str:
    """HS101 body.3.norm"""
    return f"{finding['code']} {finding['module']}".strip()


def save(record: Record, path: str | Path) -> int:
    """Write what is found now as known, a line each; how many that is."""
    known = sorted({mark(finding) for finding in [*record["findings"], *record.get("known", [])]})
    write_whole(Path(path), (json.dumps({"schema": SCHEMA, "known": known}, indent=1) + "\n").encode())
    return len(known)


def read(path: str | Path) -> set[str]:
    """The marks of a file."""
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except ValueError as error:
        raise RecordError(f"{path} is no baseline: it is not JSON ({error}).") from error
    known = found.get("known") if isinstance(found, dict) and found.get("schema") == SCHEMA else None
    if not isinstance(known, list):
        raise RecordError(f"{path} is no baseline of schema {SCHEMA}; write one with --write-baseline {path}.")
    return set(map(str, known))


def apart(record: Record, known: set[str]) -> Record:
    """The record with what is known put aside, under "known"."""
    new = [finding for finding in record["findings"] if mark(finding) not in known]
    old = [finding for finding in record["findings"] if mark(finding) in known]
    return record | {"findings": new, "known": [*record.get("known", []), *old]}
