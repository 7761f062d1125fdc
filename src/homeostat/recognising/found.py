"""Found: a norm that was recognised, and in which frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from homeostat.frame import Frame

SAMPLE, BATCH, RUNNING = "sample", "batch", "running"  # whose statistics: own, the batch's at hand, remembered


@dataclass(frozen=True)
class Found:
    """`center` is the frame of the mean that is subtracted, None where none is: in most norms it is `frame`.

    `gain` is what y is multiplied by has groups of, as `hs.Learned` takes it; None without one. `fused`: more than a
    gain is done to it before it comes out, such as a relu. `shape` is that of an input, where batches showed one.
    """

    name: str
    kind: str
    frame: Frame
    center: Frame | None
    source: str
    gain: str | None
    eps: float | str | None
    fused: bool
    by: str  # "class" or "behaviour"
    sizes: dict[str, int] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None

    def __str__(self) -> str:
        kept = f'gain "{self.gain}"' if self.gain is not None else "no gain"
        center = "" if self.center else ", not centred"
        if self.center and self.center != self.frame:
            center = f', centred by "{self.center}"'
        eps = "" if self.eps is None else f", eps={self.eps}"
        fused = ", more fused into it" if self.fused else ""
        what = f'"{self.frame}"{center}, {self.source} statistics, {kept}{eps}{fused}'
        return f"{self.name or 'the model itself'} ({self.kind}): {what}; by its {self.by}"


@dataclass(frozen=True)
class Recognised:
    """The norms of a model, in the order of its modules, and what could not be tried or put in a frame, and why."""

    norms: tuple[Found, ...]
    left: tuple[tuple[str, str], ...]

    def __iter__(self) -> Iterator[Found]:
        return iter(self.norms)

    def __len__(self) -> int:
        return len(self.norms)

    def __getitem__(self, name: str) -> Found:
        for norm in self.norms:
            if norm.name == name:
                return norm
        raise KeyError(f"no norm was recognised under the name {name!r}.")

    def __str__(self) -> str:
        return "\n".join([*map(str, self.norms), *(f"left {name}: {why}" for name, why in self.left)])
