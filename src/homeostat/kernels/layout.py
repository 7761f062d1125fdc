"""Layout: a plan and the strides of a tensor, as the few extents the compiled kernels know.

    memory order      A kept | B, T pooled | C kept | P, S pooled          B may be labelled instead (then A = 1)
    gain of an element at (a, b, c, p, s)           a ga + b gb + c gc + p gp + s gs
    weight of an element at (a, b, t, c, p, s)      a wa + b wb + t wt + c wc + p wp + s ws

>>> from homeostat.frame import Frame
>>> from homeostat.plan import plan_for
>>> plan = plan_for(Frame.parse("n c h w -> c"), (8, 64, 7, 7))
>>> extents(plan, (3136, 49, 7, 1), plan).sizes  # NCHW: B = n, C = c, S = h w
(1, 8, 1, 64, 1, 49)
>>> extents(plan, (3136, 1, 448, 64), plan).sizes  # channels_last: B = n h w, C = c
(1, 392, 1, 64, 1, 1)
"""

from __future__ import annotations

from typing import NamedTuple

from homeostat.plan import Plan

# What may stand before the last pooled axes, and what each is called: k kept, p pooled, l labelled.
PREFIXES = {
    "": "",
    "k": "A",
    "kk": "AC",
    "pk": "BC",
    "ppk": "BTC",
    "kpk": "ABC",
    "kppk": "ABTC",
    "l": "B",
    "lp": "BT",
    "lk": "BC",
    "lpk": "BTC",
}


class Extents(NamedTuple):
    sizes: tuple[int, ...]  # A B T C P S
    gain: tuple[int, ...]  # strides along A B C P S
    where: tuple[int, ...]  # strides along A B T C P S
    labels: int  # how many values a label takes; 0: none


class _Axis(NamedTuple):
    """A stretch of memory order."""

    size: int
    kind: str
    gain: int = 0
    where: int = 0


_ONE = _Axis(1, "")


def extents(
    plan: Plan, strides: tuple[int, ...], gain: Plan | None, where: tuple[int, ...] | None = None
) -> Extents | None:
    """None where the tensor is not of that form, or not dense. `where`: strides of weights, 0 where they broadcast."""
    axes = _in_memory_order(plan, strides, gain, where or (0,) * len(strides))
    if axes is None:
        return None
    tail = [axes.pop() for _ in range(2) if axes and axes[-1].kind == "p"][::-1]
    names = PREFIXES.get("".join(axis.kind for axis in axes))
    if names is None:
        return None
    found = dict(zip(names, axes, strict=True))
    a, b, t, c = (found.get(name, _ONE) for name in "ABTC")
    p, s = [_ONE] * (2 - len(tail)) + tail
    if s.gain > 1 or (s.where > 1 and p is _ONE):
        if p is not _ONE:
            return None
        p, s = s, _ONE
    if t.gain:
        return None
    labels = _labels(plan) if plan.keyed else 0
    return Extents(
        tuple(axis.size for axis in (a, b, t, c, p, s)),
        tuple(axis.gain for axis in (a, b, c, p, s)),
        tuple(axis.where for axis in (a, b, t, c, p, s)),
        labels,
    )


def _labels(plan: Plan) -> int:
    """How many groups the labelled positions make."""
    n = 1
    for (kind, i), size in zip(plan.atoms, plan.atom_sizes, strict=True):
        n *= size if kind == "label" or i in plan.keyed else 1
    return n


def _in_memory_order(
    plan: Plan, strides: tuple[int, ...], gain: Plan | None, where: tuple[int, ...]
) -> list[_Axis] | None:
    """The axes from the slowest to the fastest, neighbours of one kind merged; None where memory has gaps."""
    if gain is not None and gain.keyed:
        return None
    steps, keyed, kept = _gain_strides(gain), plan.keyed, plan.kept
    order = sorted((i for i, n in enumerate(plan.shape) if n > 1), key=lambda i: -strides[i])
    if not _in_keep_order(plan, order) or any(strides[i] != step for i, step in _dense(plan.shape, order)):
        return None
    out: list[_Axis] = []
    if keyed and not any(i in keyed for i in order):
        out.append(_Axis(1, "l"))  # one position, one label
    for i in order:
        kind = "l" if i in keyed else "k" if i in kept else "p"
        axis = _Axis(plan.shape[i], kind, steps.get(i, 0), where[i])
        last = out[-1] if out else _ONE
        if last.kind == kind and last.gain == axis.gain * axis.size and last.where == axis.where * axis.size:
            out[-1] = axis._replace(size=last.size * axis.size)
        else:
            out.append(axis)
    return out


def _dense(shape: tuple[int, ...], order: list[int]) -> list[tuple[int, int]]:
    """The stride each axis has where memory has no gaps."""
    step, out = 1, []
    for i in reversed(order):
        out.append((i, step))
        step *= shape[i]
    return out


def _in_keep_order(plan: Plan, order: list[int]) -> bool:
    """Do groups lie in memory in the order in which they are kept, labels first?"""
    free = [i for kind, i in plan.atoms if kind == "axis" and i not in plan.keyed and plan.shape[i] > 1]
    named = [n for n, (kind, i) in enumerate(plan.atoms) if kind == "label" or i in plan.keyed]
    spans = [i for i in order if i in plan.keyed]
    return (
        [i for i in order if i in free] == free
        and named == list(range(len(named)))
        and spans == sorted(spans)
        and spans == order[: len(spans)]
    )


def _gain_strides(gain: Plan | None) -> dict[int, int]:
    """Per position of x, the stride of the gain, whose entries lie in keep order."""
    steps: dict[int, int] = {}
    if gain is not None:
        step = 1
        for (_kind, i), n in reversed(list(zip(gain.atoms, gain.atom_sizes, strict=True))):
            steps[i] = step
            step *= n
    return steps
