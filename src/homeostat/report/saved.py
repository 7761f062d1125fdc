"""Saved: a record as strict JSON, whole or not at all; read back, it draws every view anew.

JSON has no infinity and no NaN: they are written as words, and are numbers again when read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from homeostat.files import write_whole

SCHEMA = 1
NUMBERS = {"effect", "null", "low", "high", "limit", "value"}
PARTS = {"head", "batches", "seconds", "passes", "changed", "norms", "findings", "ignored", "results", "version"}
Record = dict[str, Any]


class RecordError(ValueError):
    """A file that is no record that this version reads."""


def written(record: Record) -> str:
    """Its JSON."""
    return json.dumps(_out(record), indent=1, allow_nan=False) + "\n"


def save(record: Record, path: str | Path) -> None:
    """A reader of the file sees the old one or the new one, never half of it."""
    write_whole(Path(path), written(record).encode())


def read(path: str | Path) -> Record:
    """The record of a file; nothing in it is ever run."""
    try:
        record = json.loads(Path(path).read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path} is no record of a check: it is not JSON ({error}).") from error
    if not isinstance(record, dict) or "schema" not in record:
        raise RecordError(f"{path} is JSON, but no record of a check: it has no schema.")
    if record["schema"] != SCHEMA:
        raise RecordError(f"{path} has schema {record['schema']}; this version reads {SCHEMA}: check again.")
    if missing := sorted(PARTS - record.keys()):
        raise RecordError(f"{path} is not whole: it lacks {', '.join(missing)}; check the model again.")
    found: Record = _in(record)
    return found


def _out(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _out(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_out(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(float(value))
    return float(value) if isinstance(value, float) else value


def _in(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: float(one) if key in NUMBERS else _in(one) for key, one in value.items()}
    return [_in(one) for one in value] if isinstance(value, list) else value
