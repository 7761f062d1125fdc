"""Frame: who shares a number.

A pattern names the axes of a tensor left of `->` and, right of it, what keeps a statistic of its own:

    pattern := axes "->" keep
    axes    := ( name | "..." | "(" name name+ ")" )+                        first name slowest
    keep    := ( name | "..." | "(" name+ ")" | label"["(name | "...")+"]" )*

>>> str(Frame.parse("n c h w -> n c").over("n"))
'n c h w -> c'
>>> Frame.parse("cell gene -> lab[cell] gene").labels
(Label(name='lab', axes=('cell',)),)

Text is read once, at the door. Afterwards a Frame is a value: compared, hashed, changed by its methods, turned
into a Plan for a shape (plan.py); nothing below this file sees a string to interpret.
"""

from __future__ import annotations

import keyword
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from homeostat.arrays import being_compiled

# Words that are parameters of `normalize`, `measure`, `Norm` and their calls; axes and labels are passed beside them.
RESERVED = frozenset("x input self pattern eps center where return_reading source gain dtype device generator".split())
ELLIPSIS = "..."


class FrameError(ValueError):
    """A pattern that cannot be read, or sizes and labels that do not fit it."""


class ShapeError(FrameError, RuntimeError):
    """A tensor that does not fit the pattern. Also a RuntimeError, which is what torch.nn raises here."""


@dataclass(frozen=True, slots=True)
class Label:
    """`lab[cell]`: elements are grouped by the label of their position along `axes`."""

    name: str
    axes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}[{' '.join(self.axes)}]"


Axis = str | tuple[str, ...]  # left: a name, "...", or a split
Keep = str | tuple[str, ...] | Label  # right: a name, "...", a merge, or a label


@dataclass(frozen=True, slots=True)
class Frame:
    """The axes of a tensor and which of them keep a statistic of their own."""

    axes: tuple[Axis, ...]
    kept: tuple[Keep, ...]
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        """Hashed once: every call of a layer looks its plan up by its frame."""
        object.__setattr__(self, "_hash", hash((self.axes, self.kept)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> Any:
        return Frame, (self.axes, self.kept)  # another process hashes text differently

    @staticmethod
    def parse(pattern: str, labels: frozenset[str] = frozenset()) -> Frame:
        """Read a pattern. `labels` are names given as labels; they only make one error message more helpful."""
        if not isinstance(pattern, str):
            raise FrameError(f'a pattern is text such as "n c ... -> c", not {type(pattern).__name__}.')
        return _parse(pattern, labels) if being_compiled() else _parse_cached(pattern, labels)

    def __str__(self) -> str:
        return f"{_side(self.axes)} -> {_side(self.kept)}".rstrip()

    @property
    def names(self) -> tuple[str, ...]:
        """Elementary names of the left side in order; "..." stays itself."""
        return tuple(name for axis in self.axes for name in (axis if isinstance(axis, tuple) else (axis,)))

    @property
    def labels(self) -> tuple[Label, ...]:
        return tuple(item for item in self.kept if isinstance(item, Label))

    def keep(self, kept: str | tuple[Keep, ...]) -> Frame:
        """The same axes, other groups: `Frame.parse("n (g c) ... -> n g").keep("(g c)")` is a gain per channel."""
        if isinstance(kept, str):
            return Frame.parse(f"{_side(self.axes)} -> {kept}")
        if not isinstance(kept, tuple):
            raise FrameError(f'what "{self}" shall keep is text such as "n c", not {type(kept).__name__}.')
        return _checked(Frame(self.axes, kept), str(self))

    def over(self, *names: str) -> Frame:
        """Pool over these names too: kept axes, names inside a merge, or labels."""
        kept = self.kept
        for name in names:
            left = _without(kept, name)
            if left == kept:
                raise FrameError(_not_kept(self, name))
            kept = left
        return Frame(self.axes, kept)

    def split(self, name: str, *into: str) -> Frame:
        """Split an axis evenly: `frame.split("c", "g", "c")` reads c as (g c)."""
        if name not in self.axes or name == ELLIPSIS:
            raise FrameError(f'"{self}" has no axis {name} to split; it has {_side(self.axes)}.')
        frame = Frame(tuple(into if axis == name else axis for axis in self.axes), self.kept)
        for word in into:
            _name(word, str(frame))
        return _checked(frame, str(frame))

    def label(self, name: str, *axes: str) -> Frame:
        """Group by a label along `axes` instead of keeping or pooling them."""
        kept = self.kept
        for axis in axes:
            kept = _without(kept, axis)
        frame = Frame(self.axes, (Label(_name(name, str(self)), axes), *kept))
        return _checked(frame, str(frame))


def _without(kept: tuple[Keep, ...], name: str) -> tuple[Keep, ...]:
    """What is still kept when the axis or label `name` is not; a merge loses that name only."""
    left = (tuple(n for n in item if n != name) if isinstance(item, tuple) else item for item in kept)
    return tuple(i for i in left if i not in (name, ()) and not (isinstance(i, Label) and i.name == name))


def _not_kept(frame: Frame, name: str) -> str:
    spanning = [label for label in frame.labels if name in label.axes]
    if spanning:
        return f'"{frame}" groups {name} by {spanning[0]}; to pool it, pool over {spanning[0].name}.'
    if name in frame.names:
        return f'"{frame}" does not keep {name}, so it is pooled already.'
    return f'"{frame}" has no axis or label {name}; its axes are {listed(frame.names)}.'


def _side(items: tuple[Keep, ...]) -> str:
    return " ".join(f"({' '.join(item)})" if isinstance(item, tuple) else str(item) for item in items)


def listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(str(name) for name in names) or "none"


# ---------------------------------------------------------------- text -> Frame


def _parse(pattern: str, given: frozenset[str]) -> Frame:
    if pattern.count("->") != 1:
        what = "has no" if "->" not in pattern else "has more than one"
        raise FrameError(
            f'"{pattern}" {what} "->": write the axes of x, one arrow, and what keeps a statistic of its own, '
            f'as in "n c ... -> c".'
        )
    left, right = pattern.split("->")
    axes = _read(left, pattern, on_left=True)
    if not axes:
        raise FrameError(f'"{pattern}" names no axes: left of "->" stand the axes of x, as in "n c ... -> c".')
    kept = _read(right, pattern, on_left=False)
    return _checked(Frame(axes, kept), pattern, given)  # type: ignore[arg-type]


_parse_cached = lru_cache(maxsize=1024)(_parse)  # not for a compiler, which traces no cache


def _tokens(text: str) -> list[tuple[str, bool]]:
    """Words, "..." and brackets, each with whether it is glued to what stands before."""
    out: list[tuple[str, bool]] = []
    at, glued = 0, False
    while at < len(text):
        if text[at].isspace():
            at, glued = at + 1, False
            continue
        end = at + 1
        if text.startswith(ELLIPSIS, at):
            end = at + 3
        elif text[at] not in "()[]":
            while end < len(text) and not (
                text[end].isspace() or text[end] in "()[]" or text.startswith(ELLIPSIS, end)
            ):
                end += 1
        out.append((text[at:end], glued))
        at, glued = end, True
    return out


def _read(text: str, pattern: str, on_left: bool) -> tuple[Keep, ...]:
    """One side of a pattern, token by token."""
    items: list[Keep] = []
    tokens = _tokens(text)
    at = 0
    while at < len(tokens):
        token, glued = tokens[at]
        before = tokens[at - 1][0] if at else ""
        if token == "[":
            _refuse_bracket(pattern, before, glued, on_left, items)
            inside, at = _inside(tokens, at, "]", pattern)
            items[-1] = Label(before, inside)
        elif token == "(":
            inside, at = _inside(tokens, at, ")", pattern)
            items.append(inside)
        elif token in ")]":
            raise FrameError(f'"{pattern}" closes a "{token}" that was never opened.')
        else:
            name = _name(token, pattern)
            if glued and (token == ELLIPSIS or before == ELLIPSIS):
                raise FrameError(
                    f'"{pattern}": "{before}{token}" is two things glued together; '
                    f'write "{before} {token}", the axis and then any number of further axes.'
                )
            items.append(name)
            at += 1
    return tuple(items)


def _inside(tokens: list[tuple[str, bool]], at: int, close: str, pattern: str) -> tuple[tuple[str, ...], int]:
    """The names between the bracket at `at` and its partner, and the position after it."""
    names: list[str] = []
    opened = tokens[at][0]
    for end in range(at + 1, len(tokens)):
        token = tokens[end][0]
        if token == close:
            return tuple(names), end + 1
        if token in "([":
            raise FrameError(f'"{pattern}" nests brackets: inside {opened}{close} stand plain names only.')
        if token in ")]":
            break
        names.append(_name(token, pattern))
    raise FrameError(f'"{pattern}" opens a "{opened}" that is never closed by "{close}".')


def _refuse_bracket(pattern: str, before: str, glued: bool, on_left: bool, items: list[Keep]) -> None:
    if not before or not isinstance(items[-1] if items else None, str) or before == ELLIPSIS:
        raise FrameError(f'"{pattern}": a "[" follows the name of a label, as in lab[n].')
    if on_left:
        raise FrameError(
            f'"{pattern}": {before}[...] groups by a label, so it stands right of "->"; '
            f"left of it stand the plain axes of x."
        )
    if not glued:
        raise FrameError(f'"{pattern}": write {before}[ without a space; a label and its axes are one word.')


def _check_group(inside: tuple[str, ...], pattern: str, on_left: bool) -> None:
    if ELLIPSIS in inside:
        where = "split" if on_left else "merged"
        raise FrameError(f'"{pattern}": "..." cannot be {where} inside parentheses; name the axes.')
    if not inside:
        raise FrameError(f'"{pattern}": the parentheses are empty; (g c) splits one axis into g and c.')
    if on_left and len(inside) == 1:
        raise FrameError(f'"{pattern}": ({inside[0]}) splits nothing; write {inside[0]}, or two names as (g c).')


def _name(token: str, pattern: str) -> str:
    if token == ELLIPSIS:
        return token
    if not token.isidentifier():
        raise FrameError(
            f'"{pattern}": "{token}" is not a name; axes are separated by spaces and named by letters, digits '
            f'and "_", as in "n c h w -> c".'
        )
    if keyword.iskeyword(token):
        raise FrameError(f'"{pattern}": "{token}" is a Python keyword and could not be passed by name; rename it.')
    if token in RESERVED:
        raise FrameError(f'"{pattern}": "{token}" is reserved for a parameter of that name; rename the axis or label.')
    return token


def _checked(frame: Frame, pattern: str, given: frozenset[str] = frozenset()) -> Frame:
    """Names must be known, and stand once; brackets must hold something."""
    names = frame.names
    for axis in frame.axes:
        if isinstance(axis, tuple):
            _check_group(axis, pattern, on_left=True)
    for name in names:
        if names.count(name) > 1:
            what = "any number of axes" if name == ELLIPSIS else "an axis"
            raise FrameError(f'"{pattern}" names {name} twice on the left; each name stands for {what} of its own.')
    seen: list[str] = []
    for item in frame.kept:
        if isinstance(item, tuple):
            _check_group(item, pattern, on_left=False)
        words = (item.name,) if isinstance(item, Label) else item if isinstance(item, tuple) else (item,)
        for word in words:
            if word in seen:
                raise FrameError(f'"{pattern}" keeps {word} twice; once is enough.')
            seen.append(word)
        if isinstance(item, Label):
            _check_label(item, names, pattern)
            continue
        for word in words:
            if word not in names:
                raise FrameError(_unknown(word, names, pattern, word in given))
    return frame


def _check_label(label: Label, names: tuple[str, ...], pattern: str) -> None:
    if not label.axes:
        raise FrameError(f'"{pattern}": {label} spans no axis; write the axis it labels, as {label.name}[{names[0]}].')
    if label.name in names:
        raise FrameError(f'"{pattern}": {label.name} is an axis and a label; give the label another name.')
    for axis in label.axes:
        if axis not in names:
            raise FrameError(f'"{pattern}": {label} spans {axis}, which is not an axis of x ({listed(names)}).')
        if label.axes.count(axis) > 1:
            raise FrameError(f'"{pattern}": {label} names {axis} twice.')
    order = [names.index(axis) for axis in label.axes]
    if order != sorted(order):
        right = tuple(sorted(label.axes, key=names.index))
        raise FrameError(f'"{pattern}": {label} must follow the order of the axes: {Label(label.name, right)}.')


def _unknown(word: str, names: tuple[str, ...], pattern: str, is_label: bool) -> str:
    if is_label:
        return f'"{pattern}": {word} was given as labels; say along which axis, as {word}[{names[0]}].'
    if word == ELLIPSIS:
        return f'"{pattern}" keeps "..." but has none on the left.'
    return f'"{pattern}" keeps {word}, which is not an axis of x; its axes are {listed(names)}.'
