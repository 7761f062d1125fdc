"""Layout: a plan and the strides of a tensor, as the few extents the compiled kernels know.

    memory order      A kept | B pooled | C kept | P, S pooled
    gain of an element at (a, c, p, s)      a ga + c gc + p gp + s gs

>>> from homeostat.frame import Frame
>>> from homeostat.plan import plan_for
>>> plan = plan_for(Frame.parse("n c h w -> c"), (8, 64, 7, 7))
>>> extents(plan, (3136, 49, 7, 1), plan)  # NCHW: B = n, C = c, S = h w, a gain per c
((1, 8, 64, 1, 49), (0, 1, 0, 0))
>>> extents(plan, (3136, 1, 448, 64), plan)  # channels_last: B = n h w, C = c
((1, 392, 64, 1, 1), (0, 1, 0, 0))
"""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.plan import Plan

Extents = tuple[tuple[int, int, int, int, int], tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class _Axis:
    """A stretch of memory order: how long, kept or pooled, and the gain's stride along it."""

    size: int
    kept: bool
    gain: int


def extents(plan: Plan, strides: tuple[int, ...], gain: Plan | None) -> Extents | None:
    """Extents A, B, C, P, S and gain strides of A, C, P, S; None where the tensor is not of that form, or not dense."""
    if plan.keyed or (gain is not None and gain.keyed):
        return None
    axes = _in_memory_order(plan, strides, gain)
    if axes is None:
        return None
    tail = [axes.pop() for _ in range(2) if axes and not axes[-1].kept][::-1]
    found = {}
    for name, kept in (("A", True), ("B", False), ("C", True)):
        needed = [axis.kept for axis in axes]
        if needed and needed[0] == kept and not (name == "A" and needed == [True, True, True]):
            found[name] = axes.pop(0)
    one = _Axis(1, False, 0)
    if axes or found.get("B", one).gain:
        return None
    if "A" in found and "C" not in found and "B" in found:
        return None  # kept, pooled, pooled: the pooled stretch has no single gain stride
    a, b, c = (found.get(name, one) for name in "ABC")
    p, s = [one] * (2 - len(tail)) + tail
    if s.gain > 1:
        if p is not one:
            return None
        p, s = s, one
    return (a.size, b.size, c.size, p.size, s.size), (a.gain, c.gain, p.gain, s.gain)


def _in_memory_order(plan: Plan, strides: tuple[int, ...], gain: Plan | None) -> list[_Axis] | None:
    """The axes from the slowest to the fastest, neighbours of one kind merged; None where memory has gaps."""
    steps = _gain_strides(gain)
    order = sorted((i for i, n in enumerate(plan.shape) if n > 1), key=lambda i: -strides[i])
    if [i for i in order if i in plan.kept] != [i for i in plan.kept if plan.shape[i] > 1]:
        return None  # groups lie in memory in another order than they are kept
    expected = 1
    for i in reversed(order):
        if strides[i] != expected:
            return None
        expected *= plan.shape[i]
    out: list[_Axis] = []
    for i in order:
        axis = _Axis(plan.shape[i], i in plan.kept, steps.get(i, 0))
        if out and out[-1].kept == axis.kept and out[-1].gain == axis.gain * axis.size:
            out[-1] = _Axis(out[-1].size * axis.size, axis.kept, axis.gain)
        else:
            out.append(axis)
    return out


def _gain_strides(gain: Plan | None) -> dict[int, int]:
    """Per position of x, the stride of the gain, whose entries lie in keep order."""
    steps: dict[int, int] = {}
    if gain is not None:
        step = 1
        for (_kind, i), n in reversed(list(zip(gain.atoms, gain.atom_sizes, strict=True))):
            steps[i] = step
            step *= n
    return steps
