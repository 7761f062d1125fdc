"""Report: the views of one saved record. A record is plain data; nothing here knows a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from homeostat.files import write_whole
from homeostat.report import baseline as baseline
from homeostat.report import github, page, sarif, saved, terminal
from homeostat.report.page import fragment as fragment
from homeostat.report.saved import Record as Record
from homeostat.report.saved import RecordError as RecordError
from homeostat.report.saved import read as read
from homeostat.report.terminal import counts as counts
from homeostat.report.terminal import show as show

FORMATS: dict[str, Callable[[Record], str]] = {
    "text": terminal.written,
    "json": saved.written,
    "sarif": sarif.written,
    "github": github.written,
    "html": page.written,
}
ENDINGS = {".txt": "text", ".json": "json", ".sarif": "sarif", ".html": "html", ".htm": "html"}


def save(record: Record, path: str | Path, form: str | None = None) -> str:
    """Write a view whole or not at all; the form is what the name ends in, unless said. Gives the form."""
    form = form_of(Path(path), form)
    write_whole(Path(path), FORMATS[form](record).encode(errors="replace"))
    return form


def form_of(path: Path, form: str | None = None) -> str:
    """The form that is said, or that the name of a file ends in."""
    form = form or ENDINGS.get(path.suffix.lower())
    if form not in FORMATS:
        raise ValueError(f"{path.name} ends in {path.suffix or 'nothing'}; views end in {', '.join(ENDINGS)}.")
    return form
