"""Shapes: what `choose` is told about a task, read and checked.

>>> Shape.read("images", shape=(14, 14, 256), layout="channels_last").channels
256
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from homeostat.errors import said, whole, widths
from homeostat.noise import divisors, groups_for

QUIET = 0.1  # relative error of a variance that training does not notice
LAYOUTS = FIRST, LAST = ("channels_first", "channels_last")
PICTURES = ("images", "segmentation", "detection", "generation", "critic", "style", "symmetry")


@dataclass(frozen=True)
class Shape:
    """What `choose` was told."""

    channels: int = 64
    spatial: int = 1
    batch: int = 32
    ranks: int = 1
    domains: int = 0
    classes: int = 0
    width: int = 0
    orbit: int = 4
    blocks: tuple[int, ...] = ()
    layout: str = FIRST

    @staticmethod
    def read(task: str, **sizes: Any) -> Shape:
        """From what was given by name."""
        known = (*Shape.__dataclass_fields__, "shape")
        for name in sizes:
            if name not in known:
                raise TypeError(f"choose has no size {name}; sizes are {', '.join(known)}.")
        layout = _layout(task, sizes.pop("layout", None))
        wide = {name: widths(name, sizes.pop(name)) for name in ("blocks", "shape") if name in sizes}
        told = {n: whole(n, value, 0 if n in ("domains", "classes", "width") else 1) for n, value in sizes.items()}
        if "shape" in wide:
            told = _shaped(wide["shape"], layout, told)
        whole_width = sum(wide.get("blocks", ()))
        if whole_width and told.setdefault("channels", whole_width) != whole_width:
            raise ValueError(f"blocks={wide['blocks']} add up to {whole_width}, not to channels={told['channels']}.")
        return Shape(**told, blocks=wide.get("blocks", ()), layout=layout)

    @property
    def groups(self) -> int:
        """At most 32 groups of group norm, as quiet as can be asked for."""
        most = min(32, groups_for(self.channels, self.spatial, budget=QUIET))
        return max(g for g in divisors(self.channels) if g <= most)

    def frame(self, channels: str, keep: str) -> str:
        """Pictures, their channels where they lie."""
        return f"n {channels} ... -> {keep}" if self.layout == FIRST else f"n ... {channels} -> {keep}"


def _layout(task: str, given: Any) -> str:
    own = FIRST if task in PICTURES else LAST
    if not (given is None or (isinstance(given, str) and given in LAYOUTS)):
        raise ValueError(f"layout={said(given)} is none of {', '.join(LAYOUTS)}.")
    if given == FIRST != own:
        raise ValueError(f'layout="{given}": in {task} features are the last axis; leave layout out, or move them.')
    return own if given is None else given


def _shaped(shape: tuple[int, ...], layout: str, told: dict[str, int]) -> dict[str, int]:
    if both := {"channels", "spatial"} & told.keys():
        raise ValueError(f"shape={shape} says {' and '.join(sorted(both))} too: give one or the other.")
    channels = shape[0] if layout == FIRST else shape[-1]
    return {**told, "channels": channels, "spatial": math.prod(shape) // channels}
