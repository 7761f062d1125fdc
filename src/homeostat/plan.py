"""Plan: a frame bound to a shape; positions instead of names.

>>> plan_for(Frame.parse("n (g c) ... -> n g"), (8, 64, 7, 7), {"g": 32}).shape
(8, 32, 2, 7, 7)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from homeostat.arrays import being_compiled
from homeostat.frame import ELLIPSIS, Axis, Frame, FrameError, Keep, Label, ShapeError, listed


@dataclass(frozen=True, slots=True)
class Plan:
    """A frame bound to a shape: positions instead of names.

    An *atom* is one elementary kept thing in result order: ("axis", position) or ("label", index in frame.labels).
    `merges` says how many consecutive atoms make one result axis.
    """

    frame: Frame
    names: tuple[str, ...]  # elementary names, "..." expanded to ...0, ...1
    shape: tuple[int, ...]  # of x once its splits are views
    atoms: tuple[tuple[str, int], ...]
    merges: tuple[int, ...]
    spans: tuple[tuple[int, ...], ...]  # positions each label spans
    counts: tuple[int, ...]  # how many values each label takes
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # what was derived from it before

    @property
    def keyed(self) -> tuple[int, ...]:
        """Positions some label spans."""
        return tuple(sorted({p for span in self.spans for p in span}))

    @property
    def kept(self) -> tuple[int, ...]:
        """Positions that keep their own statistic, in result order."""
        return tuple(i for kind, i in self.atoms if kind == "axis")

    @property
    def pooled(self) -> tuple[int, ...]:
        """Positions summed over, labelled ones excluded."""
        own = set(self.kept) | set(self.keyed)
        return tuple(p for p in range(len(self.shape)) if p not in own)

    @property
    def atom_sizes(self) -> tuple[int, ...]:
        return tuple(self.shape[i] if kind == "axis" else self.counts[i] for kind, i in self.atoms)

    @property
    def groups(self) -> tuple[int, ...]:
        """The shape of the result: one entry per group, in keep order."""
        if "groups" in self.memo:
            found: tuple[int, ...] = self.memo["groups"]
            return found
        sizes, out, at = self.atom_sizes, [], 0
        for k in self.merges:
            out.append(_product(sizes[at : at + k]))
            at += k
        self.memo["groups"] = tuple(out)
        return tuple(out)

    @property
    def pool(self) -> int:
        """How many elements share one statistic (labels aside)."""
        if "pool" not in self.memo:
            self.memo["pool"] = _product(tuple(self.shape[p] for p in self.pooled))
        found: int = self.memo["pool"]
        return found

    def keep(self, frame: Frame, counts: Mapping[str, int] | None = None) -> Plan:
        """The plan of another frame with the same left side, for the same tensor."""
        if frame in self.memo and not counts:
            found: Plan = self.memo[frame]
            return found
        atoms, merges, spans = _locate(frame, self.names)
        plan = Plan(frame, self.names, self.shape, atoms, merges, spans, _counts(frame, counts or {}))
        if not counts and not being_compiled():
            self.memo[frame] = plan
        return plan


def plan_for(
    frame: Frame,
    shape: tuple[int, ...],
    sizes: Mapping[str, int] | None = None,
    counts: Mapping[str, int] | None = None,
) -> Plan:
    """What to do for tensors of one shape; `sizes` of split or checked axes, `counts` of each label's values."""
    given = tuple((sizes or {}).items()), tuple((counts or {}).items())
    if not being_compiled() and all(type(n) is int for n in shape):
        return _plan_cached(frame, tuple(shape), *given)
    return _plan(frame, tuple(shape), *given)  # symbolic sizes cannot be hashed, and a compiler traces no cache


def _product(sizes: tuple[int, ...]) -> int:
    out = 1
    for n in sizes:  # a loop, not math.prod over a generator: dynamo rejects that
        out = out * n
    return out


def _plan(
    frame: Frame,
    shape: tuple[int, ...],
    sizes: tuple[tuple[str, int], ...],
    counts: tuple[tuple[str, int], ...],
) -> Plan:
    want = dict(sizes)
    _check_sizes(frame, want)
    lengths = _spread_ellipsis(frame, shape)
    names: list[str] = []
    out: list[int] = []
    for axis, n in lengths:
        if isinstance(axis, tuple):
            names += axis
            out += _split(frame, axis, n, want)
        else:
            if axis in want and want[axis] != n:
                raise ShapeError(
                    f'"{frame}": {axis} was given as {want[axis]}, but this tensor has {n} there: {_shape(shape)}.'
                )
            names.append(axis)
            out.append(n)
    atoms, merges, spans = _locate(frame, tuple(names))
    return Plan(frame, tuple(names), tuple(out), atoms, merges, spans, _counts(frame, dict(counts)))


_plan_cached = lru_cache(maxsize=4096)(_plan)


def _shape(shape: tuple[int, ...]) -> str:
    return str(tuple(shape))


def _check_sizes(frame: Frame, sizes: Mapping[str, int]) -> None:
    labels = tuple(label.name for label in frame.labels)
    for name in sizes:
        n = sizes[name]
        if name in labels:
            raise FrameError(
                f'"{frame}" groups by {name}, so {name}= takes one label per position, or (codes, n); '
                f"got the integer {n}."
            )
        if name not in frame.names:
            raise FrameError(f'"{frame}" has no axis {name}; its axes are {listed(frame.names)}.')
        if n <= 0:
            raise FrameError(f'"{frame}": {name}={n} is not a size; sizes are positive.')


def _spread_ellipsis(frame: Frame, shape: tuple[int, ...]) -> list[tuple[Axis, int]]:
    """Pair each axis of the pattern with its length; "..." becomes ...0, ...1."""
    named = len(frame.axes) - (ELLIPSIS in frame.axes)
    extra = len(shape) - named
    if extra < 0 or (extra and ELLIPSIS not in frame.axes):
        raise ShapeError(_wrong_rank(frame, shape, named))
    out: list[tuple[Axis, int]] = []
    at = 0
    for axis in frame.axes:
        for k in range(extra if axis == ELLIPSIS else 1):
            out.append((f"...{k}" if axis == ELLIPSIS else axis, shape[at]))
            at += 1
    return out


def _wrong_rank(frame: Frame, shape: tuple[int, ...], named: int) -> str:
    need = f"at least {named}" if ELLIPSIS in frame.axes else f"{named}"
    said = f'"{frame}" names {need} {"axis" if named == 1 else "axes"}; this tensor has {len(shape)}: {_shape(shape)}.'
    return said + _any_rank(frame)


def _any_rank(frame: Frame) -> str:
    """The same frame for any rank, where its last axes are all pooled."""
    if ELLIPSIS in frame.axes:
        return ""
    used = {name for item in frame.kept for name in _spanned(item)}
    tail = len(frame.axes)
    while tail and isinstance(frame.axes[tail - 1], str) and frame.axes[tail - 1] not in used:
        tail -= 1
    if tail in (0, len(frame.axes)):
        return ""
    return f' For any rank write "{Frame((*frame.axes[:tail], ELLIPSIS), frame.kept)}".'


def _spanned(item: Keep) -> tuple[str, ...]:
    return item.axes if isinstance(item, Label) else item if isinstance(item, tuple) else (item,)


def _split(frame: Frame, axis: tuple[str, ...], n: int, sizes: Mapping[str, int]) -> list[int]:
    said = f"({' '.join(axis)})"
    free = [name for name in axis if name not in sizes]
    known = _product(tuple(sizes[name] for name in axis if name in sizes))
    if len(free) > 1:
        raise FrameError(
            f'"{frame}": {said} needs the size of all names but one; give {listed(free[:-1])}= '
            f"(this tensor has {n} there)."
        )
    if not free and known != n:
        product = " x ".join(f"{name}={sizes[name]}" for name in axis)
        raise ShapeError(f'"{frame}": {product} makes {known}, but this tensor has {n} there.')
    if free and n % known != 0:
        parts = ", ".join(f"{name}={sizes[name]}" for name in axis if name in sizes)
        raise ShapeError(
            f'"{frame}": {n} does not split by {parts} into {said}; {known} must be one of {_divisors(n)}.'
        )
    return [sizes[name] if name in sizes else n // known for name in axis]


def _divisors(n: int) -> str:
    return ", ".join(str(k) for k in range(1, n + 1) if n % k == 0)


def _counts(frame: Frame, counts: Mapping[str, int]) -> tuple[int, ...]:
    missing = [label.name for label in frame.labels if label.name not in counts]
    if missing:
        label = next(item for item in frame.labels if item.name == missing[0])
        raise FrameError(
            f'"{frame}" groups by {label}: pass {label.name}= with one label per position along '
            f"{' '.join(label.axes)}, or (codes, n)."
        )
    return tuple(counts[label.name] for label in frame.labels)


def _locate(
    frame: Frame, names: tuple[str, ...]
) -> tuple[tuple[tuple[str, int], ...], tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Atoms, merges and label spans as positions among `names`."""
    rest = [i for i, name in enumerate(names) if name.startswith(ELLIPSIS)]
    atoms: list[tuple[str, int]] = []
    merges: list[int] = []
    spans: list[tuple[int, ...]] = []
    for item in frame.kept:
        if isinstance(item, Label):
            atoms.append(("label", len(spans)))
            merges.append(1)
            spans.append(_positions(item.axes, names, rest))
        elif isinstance(item, tuple):
            atoms += [("axis", names.index(name)) for name in item]
            merges.append(len(item))
        else:
            found = _positions((item,), names, rest)
            atoms += [("axis", i) for i in found]
            merges += [1] * len(found)
    return tuple(atoms), tuple(merges), tuple(spans)


def _positions(axes: tuple[str, ...], names: tuple[str, ...], rest: list[int]) -> tuple[int, ...]:
    out: list[int] = []
    for axis in axes:
        out += rest if axis == ELLIPSIS else [names.index(axis)]
    return tuple(out)
