"""Location: the line that builds a module, found by reading the source of the class that holds it.

body.3.norm                 the class of body.3 says `self.norm = ...`: that line
body.3, in a Sequential     the class above says `self.body = Sequential(a, b, c, d)`: the line of d
a library's line            the nearest above it in the tree that the user wrote, and the library's beside it
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import nn

from homeostat.doctor import source
from homeostat.doctor.source import Built

INSTALLED = {"site-packages", "dist-packages", "node_modules"}
IGNORE = re.compile(r"#\s*homeostat:\s*ignore(?:\[([^\]]*)\]|(?![\w\[]))")


class Place(NamedTuple):
    """`ours` is the file:line in the user's repository, `library` that in a library where it is built by one."""

    ours: str | None = None
    library: str | None = None
    ignored: tuple[str, ...] = ()  # what the comment on that line says to ignore; "all" for a bare one


class Places:
    """Of the modules of one model, by name. `built` is what made it, as "package.module:name".

    Without it, the line that called the check stands for a model that a library wrote.
    """

    def __init__(self, model: nn.Module, built: str | None = None) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.root = repository()
        self.start = _named(built) if built else _caller()
        self.find = cache(self._find)

    def __call__(self, name: str) -> Place:
        """Where the module of that name is built."""
        library = None
        while True:
            found = self.find(name)
            if found and self.is_ours(found.file):
                return Place(f"{self.short(found.file)}:{found.line}", library, _ignored(found))
            if found and name and library is None:
                library = f"{self.short(found.file)}:{found.line}"
            if not name:
                return Place(None, library)
            name = name.rpartition(".")[0]

    def _find(self, name: str) -> Built | None:
        if not name:
            return self.start
        if name not in self.modules:  # a part of a module
            return None
        above, _, last = name.rpartition(".")
        parent, kind = self.modules[above], type(self.modules[name]).__name__
        return _in_class(type(parent), last, kind) or _in_container(self.find(above), last, kind)

    def is_ours(self, file: str) -> bool:
        path = Path(file)
        installed = INSTALLED & set(path.parts) or path.is_relative_to(sys.prefix)
        return path.is_relative_to(self.root) and not (installed and sys.prefix != str(self.root))

    def short(self, file: str) -> str:
        """Relative to the repository, or to where Python found it."""
        path = Path(file)
        tops = [self.root] if self.is_ours(file) else sorted(map(Path, filter(None, sys.path)), reverse=True)
        return next((path.relative_to(top).as_posix() for top in tops if path.is_relative_to(top)), path.as_posix())


def repository() -> Path:
    """The folder around here with .git or pyproject.toml in it, or this one."""
    here = Path.cwd()
    marked = [top for top in (here, *here.parents) if (top / ".git").exists()]
    marked += [top for top in (here, *here.parents) if (top / "pyproject.toml").exists()]
    return marked[0] if marked else here


def is_ours(built: str) -> bool:
    """Is what package.module:name is made by in the user's repository?"""
    places = Places(nn.Module(), built)
    return places("").ours is not None


def _in_class(cls: type, name: str, kind: str) -> Built | None:
    for base in cls.__mro__:
        if base in (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, object):
            return None
        file = _file(base)
        around = source.scope(file, base.__qualname__) if file else None
        if file and around and (found := source.attribute(around, name, kind)):
            return Built(file, *found)
    return None


def _in_container(outer: Built | None, key: str, kind: str) -> Built | None:
    """The element under a key, or else the only call of its class thereabouts, or else the container."""
    if outer is None:
        return None
    return outer._replace(node=source.element(outer.node, key) or source.only_call(outer.around, kind) or outer.node)


def _named(built: str) -> Built | None:
    """package.module:name, which is imported already."""
    module, _, name = built.partition(":")
    made = sys.modules[module]
    for part in name.split("."):
        made = getattr(made, part)
    defined = inspect.isfunction(made) or inspect.isclass(made)
    file = _file(made if defined else sys.modules[module])
    around = source.scope(file, made.__qualname__) if file and defined else source.tree(file) if file else None
    if not file or around is None:
        return None
    node = source.returned(around) if inspect.isfunction(made) else None if defined else source.variable(around, name)
    return Built(file, node or around, around)


def _caller() -> Built | None:
    """The first line outside of this library that led here."""
    frame = sys._getframe()
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] == "homeostat":
        if frame.f_back is None:
            return None
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    around = source.around(file, line)
    if around is None:
        return None
    return Built(file, source.first_argument(around, line) or around, around)


def _file(made: object) -> str | None:
    try:
        return inspect.getsourcefile(made)  # type: ignore[arg-type]
    except (TypeError, OSError):
        return None


def _ignored(built: Built) -> tuple[str, ...]:
    lines = Path(built.file).read_text("utf-8").splitlines()[built.line - 1 : built.end]
    found = [match for line in lines for match in IGNORE.finditer(line)] if len(lines) < 20 else []
    return tuple(word.strip() for match in found for word in (match.group(1) or "all").split(",") if word.strip())
