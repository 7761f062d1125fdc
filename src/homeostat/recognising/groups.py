"""Groups: which elements of x share a statistic, found by changing one and seeing whose output moves; and their frame.

Per axis the outputs that move lie at one position (it is kept), at all (it is pooled), at every position of a block
(it is split), or where a label is the same.
"""

from __future__ import annotations

import inspect
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.frame import RESERVED, Frame
from homeostat.recognising.subject import Subject, Unfit

KEPT, POOLED, BLOCKS, STRIDES, LABEL = "kept", "pooled", "blocks", "strides", "label"
NAMES = {2: "n d", 3: "n c t", 4: "n c h w", 5: "n c d h w"}
LAST = {2: "n d", 3: "n t d", 4: "n h w d", 5: "n t h w d"}
MOVED = 1e-5  # of the largest y


@dataclass(frozen=True)
class Axis:
    """What one axis of x is to a statistic; `codes` number its groups by position."""

    kind: str
    codes: Tensor
    label: str = ""


def moved(before: list[Tensor], after: list[Tensor]) -> Tensor:
    """Where any of these y has changed."""
    steps = [(z - y).abs() > MOVED * y.abs().max() for y, z in zip(before, after, strict=True)]
    return torch.stack(steps).any(0)


def axes_of(subject: Subject, bases: list[Tensor], probes: int = 4) -> list[Axis]:
    """What each axis is. `bases` come with their negatives: where a relu hides an output, the other shows it."""
    shape = bases[0].shape
    drawn = torch.Generator().manual_seed(1)
    at = [tuple(int(torch.randint(n, (), generator=drawn)) for n in shape) for _ in range(probes)]
    before = [subject(x) for x in bases]
    hits = [moved(before, [subject(_raised(x, i)) for x in bases]) for i in at]
    for hit, i in zip(hits, at, strict=True):
        whole = math.prod(int(_span(hit, axis).sum()) for axis in range(len(shape)))
        if not hit[i] or hit.sum() < 0.5 * whole:
            raise Unfit("its output at one place follows no regular part of its input")
    labels = _labels(subject)
    found = []
    for axis in range(len(shape)):
        spans = [(i[axis], _span(hit, axis)) for i, hit in zip(at, hits, strict=True)]
        found.append(_kind(axis, shape[axis], spans, labels))
    return found


def _raised(x: Tensor, at: tuple[int, ...]) -> Tensor:
    """One element made to outweigh the rest of any group it may be in."""
    z = x.clone()
    z[at] += 4 * math.sqrt(x.numel()) * x.square().mean().sqrt()
    return z


def _span(hit: Tensor, axis: int) -> Tensor:
    others = [a for a in range(hit.dim()) if a != axis]
    return hit.sum(others) > 0


def _kind(axis: int, n: int, spans: list[tuple[int, Tensor]], labels: dict[str, Tensor]) -> Axis:
    """`spans` are pairs: a position, and which positions move with it."""
    positions = torch.arange(n, device=spans[0][1].device)

    def fits(codes: Tensor) -> bool:
        return all(torch.equal(span, codes == codes[i]) for i, span in spans)

    if n == 1:  # nothing to tell: taken to be a sample, or a place
        return Axis(KEPT if axis == 0 else POOLED, positions)
    if fits(positions):
        return Axis(KEPT, positions)
    if fits(positions * 0):
        return Axis(POOLED, positions * 0)
    for name, codes in labels.items():
        if codes.shape == positions.shape and fits(codes):
            return Axis(LABEL, codes, name)
    width = int(spans[0][1].sum())
    if n % width == 0:
        for kind, codes in ((BLOCKS, positions // width), (STRIDES, positions % (n // width))):
            if fits(codes):
                return Axis(kind, codes)
    raise Unfit(f"it behaves like a norm, but its groups along axis {axis} are neither blocks nor a label")


def _labels(subject: Subject) -> dict[str, Tensor]:
    """Vectors of whole numbers that come with the call, by the names the module gives them."""
    args, kwargs = torch.utils._pytree.tree_unflatten(subject.leaves, subject.tree)
    try:
        given = dict(inspect.signature(subject.module.forward).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        given = {f"label{i}": value for i, value in enumerate(args)} | kwargs
    whole = {name: v for name, v in given.items() if isinstance(v, Tensor) and v.dim() == 1 and not _fractions(v)}
    return {name if name.isidentifier() and name not in RESERVED else "group": v for name, v in whole.items()}


def _fractions(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


# ---------------------------------------------------------------- in words


def codes_of(axes: list[Axis]) -> Tensor:
    """A number for every element of x, the same within a group."""
    out = torch.zeros((), dtype=torch.int64, device=axes[0].codes.device)
    for position, axis in enumerate(axes):
        codes = axis.codes - axis.codes.min()
        shape = [-1 if i == position else 1 for i in range(len(axes))]
        out = out * (int(codes.max()) + 1) + codes.view(shape)
    return numbered(out)


def numbered(codes: Tensor) -> Tensor:
    """The same groups as 0, 1, 2, ..."""
    found: Tensor = torch.unique(codes, return_inverse=True)[1]
    return found


def frame_of(axes: list[Axis], gained: list[int] | None, short: bool) -> tuple[Frame, str | None, dict[str, int]]:
    """The frame of these axes, what its gain keeps, and the sizes of what it splits.

    `gained` are axes of the gain; `short` writes it for any rank where it is one of the usual frames.
    """
    kinds, last = [axis.kind for axis in axes], gained == [len(axes) - 1]
    names = (LAST if last else NAMES).get(len(axes), "").split()
    usual = _usual(kinds, last) if short else None
    frame = Frame.parse(usual or _spelled(axes, names))
    gain = None if gained is None else _gain(frame, gained, len(axes))
    if gained is not None and gain is None:  # it tells apart what "..." does not
        frame = Frame.parse(_spelled(axes, names))
        gain = _gain(frame, gained, len(axes))
    sizes: dict[str, int] = {}
    for axis, words in zip([a for a in axes if a.kind in (BLOCKS, STRIDES)], _splits(frame), strict=True):
        groups = int(axis.codes.max()) + 1
        numbers = (groups, len(axis.codes) // groups)
        sizes |= dict(zip(words, numbers if axis.kind == BLOCKS else numbers[::-1], strict=True))
    return frame, gain, sizes


def _splits(frame: Frame) -> list[tuple[str, ...]]:
    return [axis for axis in frame.axes if isinstance(axis, tuple)]


def _gain(frame: Frame, gained: list[int], rank: int) -> str | None:
    """What a gain on these axes keeps, in the words of the frame; None where they have none."""
    words = [f"({' '.join(axis)})" if isinstance(axis, tuple) else axis for axis in frame.axes]
    if "..." in words:
        at = words.index("...")
        words[at : at + 1] = ["..."] * (rank - len(words) + 1)
    said = [words[i] for i in gained]
    if 0 < said.count("...") < words.count("..."):
        return None
    return " ".join(dict.fromkeys(said))


def _usual(kinds: list[str], last: bool) -> str | None:
    """The patterns that this library writes for any rank."""
    r = len(kinds)
    pooled = [i for i, kind in enumerate(kinds) if kind == POOLED]
    rest = [kinds[i] for i in range(r) if i not in pooled]
    if all(kind == KEPT for kind in rest):
        if pooled == [r - 1]:
            return "... d -> ..."
        if last and pooled == list(range(r - 1)):
            return "... d -> d"
        if pooled == [i for i in range(r) if i != 1]:
            return "n c ... -> c"
        if r > 2 and pooled == list(range(2, r)):
            return "n c ... -> n c"
        if r > 2 and pooled == [1] and not last:
            return "n c ... -> n ..."
    if kinds[0] == KEPT and r > 2 and kinds[1] in (BLOCKS, STRIDES) and all(k == POOLED for k in kinds[2:]):
        return "n (g c) ... -> n g" if kinds[1] == BLOCKS else "n (c g) ... -> n g"
    if kinds[-1] in (BLOCKS, STRIDES) and all(kind == KEPT for kind in kinds[:-1]):
        return "... (h d) -> ... h" if kinds[-1] == BLOCKS else "... (d h) -> ... h"
    return None


def _spelled(axes: list[Axis], names: list[str]) -> str:
    """Every axis by name."""
    names = names or [f"a{i}" for i in range(len(axes))]
    letters = itertools.count()
    left, kept = [], []
    for name, axis in zip(names, axes, strict=True):
        if axis.kind in (BLOCKS, STRIDES):
            group = f"g{next(letters) or ''}"
            left.append(f"({group} {name})" if axis.kind == BLOCKS else f"({name} {group})")
            kept.append(group)
        else:
            left.append(name)
            kept += {KEPT: [name], POOLED: [], LABEL: [f"{axis.label}[{name}]"]}[axis.kind]
    return f"{' '.join(left)} -> {' '.join(kept)}"
