"""Editing: what a cure would change in the source, as a diff to read; nothing is written.

A line is changed where it calls the class of a norm and all norms that it builds became the same thing.
"""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

from torch import nn

from homeostat.doctor.location import Places
from homeostat.doctor.source import last_name


def edits(old: nn.Module, new: nn.Module, built: str | None = None) -> str:
    """A unified diff, "" where no line can be shown to change. It names homeostat's layers hs.nn."""
    places, now = Places(old, built), dict(new.named_modules())
    meant: dict[str, dict[ast.Call, set[str]]] = {}
    for name, module in old.named_modules():
        found = places.find(name)
        if not found or name not in now or not places.is_ours(found.file) or not isinstance(found.node, ast.Call):
            continue
        if last_name(found.node.func) == type(module).__name__:
            meant.setdefault(found.file, {}).setdefault(found.node, set()).add(_spelled(module, now[name]))
    return "".join(_diff(places.short(file), Path(file).read_text("utf-8"), calls) for file, calls in meant.items())


def _spelled(old: nn.Module, new: nn.Module) -> str:
    """The call that makes it, "" where it is of the old class or has no such call."""
    said = f"hs.nn.{new!r}"
    if type(new) is type(old) or not type(new).__module__.startswith("homeostat.nn"):
        return ""
    try:
        return said if isinstance(ast.parse(said, mode="eval").body, ast.Call) else ""
    except SyntaxError:
        return ""


def _diff(file: str, text: str, calls: dict[ast.Call, set[str]]) -> str:
    lines = text.splitlines(keepends=True)
    new = list(lines)
    for call in sorted(calls, key=lambda c: (c.lineno, c.col_offset), reverse=True):
        said = "".join(calls[call])
        if len(calls[call]) == 1 and said and call.lineno == call.end_lineno:
            line = new[call.lineno - 1].encode()  # columns are of bytes
            changed = line[: call.col_offset] + said.encode() + line[call.end_col_offset :]
            new[call.lineno - 1] = changed.decode()
    return "".join(difflib.unified_diff(lines, new, f"a/{file}", f"b/{file}", n=1))
