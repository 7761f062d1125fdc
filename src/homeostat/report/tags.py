"""Tags: HTML in which every text is escaped unless it was made here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

ALONE = {"meta", "input"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(kind: str, /, *inside: str | Iterable[str], **attributes: object) -> Markup:
    """<kind key="value">inside</kind>; class_ is class, aria_label aria-label, True stands alone."""
    given = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    if kind in ALONE:
        return Markup(f"<{kind}{given}>")
    return Markup(f"<{kind}{given}>{join(*inside)}</{kind}>")


def join(*inside: str | Iterable[str]) -> Markup:
    """One after the other."""
    parts = (part for some in inside for part in ([some] if isinstance(some, str) else some))
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def _attribute(key: str, value: object) -> str:
    word = key.rstrip("_").replace("_", "-")
    return f" {word}" if value is True else f' {word}="{escape(str(value))}"'
