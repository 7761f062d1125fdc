"""Groups: from elements to the groups of a plan, and back.

Between the two verbs a statistic has its *inner* form: without labels the shape of x with pooled axes of length 1,
so that it broadcasts for free; with labels [keys, other axes], one row per combination of labels.

    total(x) -> inner        spread(inner) -> broadcasts against x        result(inner) <-> inner(result)
"""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.arrays import Array, Numpy
from homeostat.plan import Plan


class Groups:
    """The groups of a plan without labels."""

    def __init__(self, b: Numpy, plan: Plan) -> None:
        self.b, self.plan = b, plan

    def total(self, x: Array) -> Array:
        return self.b.sum(x, self.plan.pooled)

    def largest(self, x: Array) -> Array:
        return self.b.amax(x, self.plan.pooled) if self.plan.pool else self.total(x)

    def spread(self, inner: Array) -> Array:
        return inner

    def count(self, x: Array) -> Array | float:
        return float(self.plan.pool)

    def result(self, inner: Array) -> Array:
        plan = self.plan
        return self.b.reshape(self.b.permute(inner, (*plan.kept, *plan.pooled)), plan.groups)

    def inner(self, result: Array) -> Array:
        plan = self.plan
        order = (*plan.kept, *plan.pooled)
        long = self.b.reshape(result, (*plan.atom_sizes, *(1,) * len(plan.pooled)))
        return self.b.permute(long, _inverse(order))


@dataclass(frozen=True, slots=True)
class _Keying:
    """Where labelled axes go: `span` first and flattened into keys, `rest` behind."""

    span: tuple[int, ...]
    rest: tuple[int, ...]
    atoms: tuple[tuple[str, int], ...]  # the atoms that make up a key
    sizes: tuple[int, ...]  # and how many values each takes


class KeyedGroups(Groups):
    """The groups of a plan whose labels say, position by position, which group it is."""

    def __init__(self, b: Numpy, plan: Plan, codes: tuple[Array, ...]) -> None:
        super().__init__(b, plan)
        span = plan.keyed
        rest = tuple(p for p in range(len(plan.shape)) if p not in span)
        inside = [i for i, (kind, p) in enumerate(plan.atoms) if kind == "label" or p in span]
        self.k = _Keying(span, rest, tuple(plan.atoms[i] for i in inside), tuple(plan.atom_sizes[i] for i in inside))
        self.keys = 1
        for n in self.k.sizes:
            self.keys *= n
        self.key = self._key(codes)

    def _key(self, codes: tuple[Array, ...]) -> Array:
        """One number per labelled position: the mixed-radix reading of its labels."""
        plan, k = self.plan, self.k
        extent = tuple(plan.shape[p] for p in k.span)
        key = self.b.codes([0], codes[0])
        for (kind, i), n in zip(k.atoms, k.sizes, strict=True):
            along = plan.spans[i] if kind == "label" else (i,)
            digit = codes[i] if kind == "label" else self.b.places(n, codes[0])
            lengths = tuple(plan.shape[p] if p in along else 1 for p in k.span)
            key = key * n + self.b.reshape(digit, lengths)
        return self.b.reshape(self.b.broadcast(key, extent), (-1,))

    def _rows(self, x: Array) -> Array:
        """[labelled positions, other axes]"""
        k = self.k
        moved = self.b.permute(x, (*k.span, *k.rest))
        return self.b.reshape(moved, (-1, *moved.shape[len(k.span) :]))

    def total(self, x: Array) -> Array:
        return self.b.segment_sum(self._rows(super().total(x)), self.key, self.keys)

    def largest(self, x: Array) -> Array:
        return self.b.segment_max(self._rows(super().largest(x)), self.key, self.keys)

    def spread(self, inner: Array) -> Array:
        plan, k = self.plan, self.k
        rows = self.b.take(inner, self.key)
        long = self.b.reshape(rows, (*(plan.shape[p] for p in k.span), *rows.shape[1:]))
        return self.b.permute(long, _inverse((*k.span, *k.rest)))

    def count(self, x: Array) -> Array:
        extent = tuple(n if p in self.k.span else 1 for p, n in enumerate(self.plan.shape))
        ones = self.b.ones(extent, x, self.b.group_dtype(x))
        return self.b.segment_sum(self._rows(ones), self.key, self.keys) * float(self.plan.pool)

    def result(self, inner: Array) -> Array:
        kept = self.plan.kept
        wide = (self.keys, *(self.plan.shape[p] if p in kept else 1 for p in self.k.rest))  # a count is one per key
        long = self.b.reshape(self.b.broadcast(inner, wide), (*self.k.sizes, *wide[1:]))
        return self.b.reshape(self.b.permute(long, self._order()), self.plan.groups)

    def inner(self, result: Array) -> Array:
        plan, k = self.plan, self.k
        order = self._order()
        long = self.b.reshape(result, (*plan.atom_sizes, *(1,) * (len(order) - len(plan.atoms))))
        moved = self.b.permute(long, _inverse(order))
        return self.b.reshape(moved, (self.keys, *moved.shape[len(k.sizes) :]))

    def _order(self) -> tuple[int, ...]:
        """From [key atoms, rest axes] to [atoms in result order, pooled axes]."""
        k = self.k
        place = {atom: i for i, atom in enumerate(k.atoms)}
        place |= {("axis", p): len(k.atoms) + i for i, p in enumerate(k.rest)}
        kept = tuple(place[atom] for atom in self.plan.atoms)
        return (*kept, *(i for i in range(len(k.atoms) + len(k.rest)) if i not in kept))


def groups_of(b: Numpy, plan: Plan, codes: tuple[Array, ...] = ()) -> Groups:
    return KeyedGroups(b, plan, codes) if codes else Groups(b, plan)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    out = [0] * len(order)
    for i, p in enumerate(order):
        out[p] = i
    return tuple(out)
