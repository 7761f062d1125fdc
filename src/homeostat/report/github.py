"""GitHub: a line per finding that an Action shows beside the code."""

from __future__ import annotations

from typing import Any

from homeostat.report.saved import Record

COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}
DATA = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
PROPERTY = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})


def written(record: Record) -> str:
    """::error file=net.py,line=5,title=HS101 small-batch-noise::norm1: what is wrong"""
    return "".join(f"{_command(finding)}\n" for finding in record["findings"])


def _command(finding: dict[str, Any]) -> str:
    told = {"title": f"{finding['code']} {finding['name']}"}
    if finding["location"]:
        file, _, line = finding["location"].rpartition(":")
        told = {"file": file, "line": line} | told
    properties = ",".join(f"{key}={value.translate(PROPERTY)}" for key, value in told.items())
    message = f"{finding['module'] or 'the model'}: {finding['message']}\nfix: {finding['fix']}"
    return f"::{COMMANDS[finding['severity']]} {properties}::{message.translate(DATA)}"
