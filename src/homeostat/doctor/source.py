"""Source: where in a text of Python a name, an attribute or an element of a container is built."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

SCOPES = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Built(NamedTuple):
    """An expression in a file, and the function or class around it."""

    file: str
    node: ast.AST
    around: ast.AST

    @property
    def line(self) -> int:
        return getattr(self.node, "lineno", 1)

    @property
    def end(self) -> int:
        return getattr(self.node, "end_lineno", None) or self.line


def tree(file: str) -> ast.Module | None:
    """None where there is no file, or none that can be read as Python."""
    try:
        return _parsed(file, Path(file).stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError):
        return None


@lru_cache(maxsize=64)
def _parsed(file: str, _changed: int) -> ast.Module:
    return ast.parse(Path(file).read_text("utf-8"))


def scope(file: str, qualname: str) -> ast.AST | None:
    """The class or function of that name; the last of several."""
    found: ast.AST | None = tree(file)
    for name in qualname.replace("<locals>.", "").split("."):
        inner = [node for node in _inside(found) if getattr(node, "name", None) == name] if found else []
        found = inner[-1] if inner else None
    return found


def around(file: str, line: int) -> ast.AST | None:
    """The innermost function that a line is in, or the whole file."""
    found: ast.AST | None = tree(file)
    while found:
        inner = [n for n in _inside(found) if n.lineno <= line <= (n.end_lineno or n.lineno)]  # type: ignore[attr-defined]
        if not inner:
            return found
        found = inner[0]
    return None


def attribute(cls: ast.AST, name: str, kind: str) -> tuple[ast.expr, ast.AST] | None:
    """What `self.name` is set to in a class, and in which method; of several, one that names the kind."""
    found = _attributes(cls).get(name, [])
    return next((pair for pair in found if kind in ast.unparse(pair[0])), found[0] if found else None)


@lru_cache(maxsize=256)
def _attributes(cls: ast.AST) -> dict[str, list[tuple[ast.expr, ast.AST]]]:
    found: dict[str, list[tuple[ast.expr, ast.AST]]] = {}
    for method in ast.iter_child_nodes(cls):
        for node in ast.walk(method):
            for name, value in _settings(node):
                if not (isinstance(value, ast.Constant) and value.value is None):
                    found.setdefault(name, []).append((value, method))
    return found


def variable(inside: ast.AST, name: str) -> ast.expr | None:
    """What a name was set to last."""
    found = [
        node.value
        for node in ast.walk(inside)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id == name
    ]
    return found[-1] if found else None


def returned(function: ast.AST) -> ast.expr | None:
    """What a function returns at its end, followed through one name."""
    found = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
    last = found[-1] if found else None
    return (variable(function, last.id) or last) if isinstance(last, ast.Name) else last


def element(node: ast.AST, key: str) -> ast.expr | None:
    """What stands under a key in Sequential(a, b), ModuleList([a, b]), ModuleDict({"key": a}), [a for ...]."""
    match node:
        case ast.Call(args=[ast.List() | ast.Tuple() | ast.Dict() | ast.ListComp() | ast.GeneratorExp() as only]):
            return element(only, key)
        case ast.Call(args=[ast.Call(func=ast.Name("OrderedDict") | ast.Attribute(attr="OrderedDict")) as only]):
            return element(only, key)
        case ast.Call(args=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
            return _pair(parts, key) or _at(parts, key)
        case ast.Dict(keys=keys, values=values):
            return next((v for k, v in zip(keys, values, strict=True) if _constant(k) == key), None)
        case ast.ListComp(elt=made) | ast.GeneratorExp(elt=made):
            return made
    return None


def only_call(inside: ast.AST, kind: str) -> ast.Call | None:
    """The one call of a class in a function; None where there are more."""
    found = [node for node in ast.walk(inside) if isinstance(node, ast.Call) and last_name(node.func) == kind]
    return found[0] if len(found) == 1 else None


def first_argument(inside: ast.AST, line: int) -> ast.expr | None:
    """What the call of that line is given first, followed through one name."""
    for node in ast.walk(inside):
        if isinstance(node, ast.Call) and node.args and node.lineno <= line <= (node.end_lineno or line):
            first = node.args[0]
            return (variable(inside, first.id) or first) if isinstance(first, ast.Name) else first
    return None


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """Classes and functions in a scope, under ifs and withs too, not in one another."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, SCOPES):
            yield child
        else:
            yield from _inside(child)


def _settings(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Attributes of self that a statement sets, by `self.x = ...` or by add_module("x", ...)."""
    match node:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                yield from ((name, v) for t, v in _pairs(target, value) if (name := _of_self(t)))
        case ast.AnnAssign(target=target, value=ast.expr() as value) if name := _of_self(target):
            yield name, value
        case ast.Call(func=ast.Attribute(attr="add_module" | "register_module"), args=[name, value]):
            yield str(_constant(name)), value


def _pairs(target: ast.expr, value: ast.expr) -> Iterable[tuple[ast.expr, ast.expr]]:
    """a, b = 1, 2 is two."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return zip(target.elts, value.elts, strict=False)
    return [(target, value)]


def _of_self(node: ast.expr) -> str:
    """self.x -> x"""
    return node.attr if isinstance(node, ast.Attribute) and last_name(node.value) == "self" else ""


def _pair(parts: list[ast.expr], key: str) -> ast.expr | None:
    """[("key", a), ...], as OrderedDict takes it."""
    pairs = [part.elts for part in parts if isinstance(part, ast.Tuple) and len(part.elts) == 2]
    return next((value for word, value in pairs if _constant(word) == key), None)


def _at(parts: list[ast.expr], key: str) -> ast.expr | None:
    if not key.isdigit():
        return None
    for number, part in enumerate(parts):
        if isinstance(part, ast.Starred):
            return element(part.value, key)
        if number == int(key):
            return part
    return None


def _constant(node: ast.AST | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def last_name(node: ast.AST) -> str:
    """torch.nn.BatchNorm2d -> BatchNorm2d"""
    return getattr(node, "attr", getattr(node, "id", ""))
