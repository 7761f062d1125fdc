"""Gains: what is put back after normalizing, y w + b. A gain has groups of its own, on the same axes as the frame.

    Learned("c")                 one w and b per channel
    Around("c")                  the same, w learned around 0 and applied as 1 + w
    Balanced("d", blocks=(2, 6)) the same, and every block of features keeps its share of the energy

Those that are made anew at every call, in tables.py and conditioned.py:

    Conditional("kind[n] c")     a row of a table for each sample's kind
    FiLM("n c", width=128)       w = 1 + s, (s, b) linear in a vector that comes with the call
    Spatial("n c h w", width=3)  the same from a picture, at every pixel
    Style("n c")                 w and b are the spread and mean of another tensor
    Given("n c")                 w and b come with the call

>>> str(Learned("(g c)").frame_in(Frame.parse("n (g c) ... -> n g")))
'n (g c) ... -> (g c)'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from homeostat.errors import widths
from homeostat.frame import Frame, FrameError, Label
from homeostat.plan import plan_for

Pair = tuple[Any, Any]  # w and b, either may be None


@dataclass(frozen=True)
class Gain:
    """y w + b, one w and b per group of `keep`; `bias=False` has w alone."""

    keep: str
    bias: bool = True
    asks: ClassVar[tuple[str, ...]] = ()  # what must come with the call, by keyword

    def frame_in(self, frame: Frame) -> Frame:
        """The groups that are learned."""
        learned = frame.keep(self.keep)
        for label in learned.labels:
            raise FrameError(
                f'"{learned}" keeps one per {label.name}, which {type(self).__name__} does not: a gain is per axis. '
                f"Conditional has one per label."
            )
        return learned

    def applied_in(self, frame: Frame) -> Frame:
        """The groups of what is applied."""
        return self.frame_in(frame)

    def labels_in(self, frame: Frame) -> tuple[Label, ...]:
        """Labels of its own, beside the frame's."""
        return ()

    def sizes_in(self, frame: Frame) -> dict[str, int]:
        """How many values its own labels take, where it says so itself."""
        return {}

    def make(self, layer: Any, frame: Frame, sizes: Mapping[str, int], kind: dict[str, Any]) -> None:
        """Give a layer what this gain learns, at the identity; `kind` is device and dtype."""
        layer.weight, layer.bias = None, None

    def reset(self, layer: Any) -> None:
        """What is learned, back to the identity."""

    def at(self, layer: Any, x: Any, given: dict[str, Any]) -> Pair:
        """w and b of this call; what they are made of is taken out of `given`."""
        return layer.weight, layer.bias

    @property
    def constant(self) -> bool:
        """Are w and b the layer's parameters as they stand?"""
        return type(self).at is Gain.at


@dataclass(frozen=True)
class Learned(Gain):
    """y w + b with one learned w and b per group of `keep`; `bias=False` learns w alone."""

    def make(self, layer: Any, frame: Frame, sizes: Mapping[str, int], kind: dict[str, Any]) -> None:
        import torch

        shape = extent(self.frame_in(frame), sizes)
        layer.weight = torch.nn.Parameter(torch.ones(shape, **kind))
        layer.bias = torch.nn.Parameter(torch.zeros(shape, **kind)) if self.bias else None

    def reset(self, layer: Any) -> None:
        import torch

        torch.nn.init.ones_(layer.weight)
        if layer.bias is not None:
            torch.nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class Around(Learned):
    """y (1 + w) + b: w is learned around 0, so that weight decay pulls the gain towards 1 (Gemma's RMS norm)."""

    def make(self, layer: Any, frame: Frame, sizes: Mapping[str, int], kind: dict[str, Any]) -> None:
        super().make(layer, frame, sizes, kind)
        self.reset(layer)

    def reset(self, layer: Any) -> None:
        import torch

        for p in (layer.weight, layer.bias):
            if p is not None:
                torch.nn.init.zeros_(p)

    def at(self, layer: Any, x: Any, given: dict[str, Any]) -> Pair:
        half = layer.weight.element_size() == 2  # 1 + w would round w away
        w, b = (p if p is None or not half else p.float() for p in (layer.weight, layer.bias))
        return w + 1, b


@dataclass(frozen=True)
class Balanced(Learned):
    """y w + b, learned, where every block of features keeps an equal share of the energy sum w^2 + b^2.

    (w, b) = (v, u) sqrt(d / k / sum over the block (v^2 + u^2)), d features in k blocks: the mean energy is 1, and no
    block can grow loud at the others' cost. `blocks` are their widths.
    """

    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.blocks != ():
            object.__setattr__(self, "blocks", widths("blocks", self.blocks))

    def make(self, layer: Any, frame: Frame, sizes: Mapping[str, int], kind: dict[str, Any]) -> None:
        super().make(layer, frame, sizes, kind)
        if tuple(layer.weight.shape) != (sum(self.blocks),):
            raise ValueError(
                f"{self}: blocks are widths of at least 1 that add up to the gain's one axis, "
                f"{tuple(layer.weight.shape)}."
            )
        layer.register_buffer("member", self._members(layer.weight), persistent=False)

    def reset(self, layer: Any) -> None:
        super().reset(layer)
        layer.member = self._members(layer.member)

    def _members(self, like: Any) -> Any:
        """[block, feature]: 1 where the feature is of the block."""
        import torch

        block = torch.arange(len(self.blocks)).repeat_interleave(torch.tensor(self.blocks))
        return torch.eye(len(self.blocks), dtype=torch.float64)[:, block].to(like.device)

    def at(self, layer: Any, x: Any, given: dict[str, Any]) -> Pair:
        import torch

        v, u = layer.weight.double(), None if layer.bias is None else layer.bias.double()
        # A product, and so a copy: `trial` writes buffers back. In double, whatever the buffer was cast to.
        member = layer.member.double() * (len(v) / len(self.blocks))
        energy = torch.mv(member, v * v if u is None else v * v + u * u)
        scale = torch.mv(member.t(), (energy + 1e-30).rsqrt())
        return (v * scale).to(layer.weight.dtype), None if u is None else (u * scale).to(layer.weight.dtype)


# ---------------------------------------------------------------- sizes


def names_in(item: Any) -> tuple[str, ...]:
    """The axes, or the label, of one item of a keep."""
    return (item.name,) if isinstance(item, Label) else item if isinstance(item, tuple) else (item,)


def declares(item: Any, sizes: Mapping[str, int]) -> bool:
    return all(name in sizes for name in names_in(item))


def extent(frame: Frame, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a frame's groups where all of them have declared sizes."""
    out = []
    for item in frame.kept:
        n = 1
        for name in names_in(item):
            if name not in sizes:
                raise FrameError(f'"{frame}" is learned or remembered per {name}: give its size, {name}=...')
            n *= sizes[name]
        out.append(n)
    return tuple(out)


def lengths_in(layer: Any, x: Any, frame: Frame) -> tuple[int, ...]:
    """The lengths in x of what `frame` keeps of the layer's axes."""
    counts = {one.name: layer.counts[one.name] for one in layer.frame.labels}
    return plan_for(layer.frame, tuple(x.shape), layer.sizes, counts).keep(frame).groups
