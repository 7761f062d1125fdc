"""Gains whose w and b are made anew at every call, from what comes with it: a vector, a picture, a style."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from homeostat import ops
from homeostat.frame import Frame, FrameError, ShapeError, listed
from homeostat.gains.base import Gain, Pair, declares, extent, lengths_in
from homeostat.kernels.reference import Job
from homeostat.moments import Moments
from homeostat.plan import plan_for


@dataclass(frozen=True)
class Given(Gain):
    """y w + b with w and b that come with the call: norm(x, w=w, b=b), of shape `keep`."""

    asks = ("w", "b")

    def at(self, layer: Any, x: Any, given: dict[str, Any]) -> Pair:
        if given.get("w") is None:
            raise TypeError(f"{self} needs w, and b if there is one: call norm(x, w=..., b=...).")
        if given.get("b") is not None and not self.bias:
            raise TypeError(f"{self} has no b; leave it out, or make it with bias=True.")
        return given.pop("w"), given.pop("b", None)


@dataclass(frozen=True)
class FiLM(Gain):
    """y (1 + s) + t, (s, t) = W cond + v: a vector of `width` numbers that comes with the call says how.

    FiLM("n c", width=128): norm(x, cond=z) with z [n, 128]. Of `keep`, the axes with declared sizes are made by W, the
    others are cond's own. `zero=True` begins at the identity (AdaLN-Zero); `before` is applied to cond first.
    """

    width: int = 0
    zero: bool = False
    before: str | None = None  # "silu", "relu", "gelu"
    asks = ("cond",)

    def make(self, layer: Any, frame: Frame, sizes: Mapping[str, int], kind: dict[str, Any]) -> None:
        import torch

        super().make(layer, frame, sizes, kind)
        if self.width < 1:
            raise ValueError(f"{self}: give the width of the vector that comes with the call, width=...")
        free, made = self._parted(frame, sizes)
        layer.free, layer.made = frame.keep(free), extent(frame.keep(made), sizes)
        layer.modulation = torch.nn.Linear(self.width, math.prod(layer.made) * (1 + self.bias), **kind)
        self.reset(layer)

    def _parted(self, frame: Frame, sizes: Mapping[str, int]) -> tuple[Any, Any]:
        """The groups of cond, and those that W makes: with declared sizes, they stand last."""
        kept = self.frame_in(frame).kept
        declared = [declares(item, sizes) for item in kept]
        first = declared.index(True) if True in declared else len(kept)
        if first == len(kept) or not all(declared[first:]):
            raise FrameError(
                f'{type(self).__name__}("{self.keep}"): the axes it learns for stand last and have declared sizes; '
                f"declared are {listed(tuple(sizes)) or 'none'}."
            )
        return kept[:first], kept[first:]

    def reset(self, layer: Any) -> None:
        import torch

        if self.zero:
            torch.nn.init.zeros_(layer.modulation.weight)
            torch.nn.init.zeros_(layer.modulation.bias)
        else:
            layer.modulation.reset_parameters()

    def at(self, layer: Any, x: Any, given: dict[str, Any]) -> Pair:
        import torch

        cond = given.pop("cond", None)
        if cond is None or cond.shape[-1] != self.width:
            got = "nothing" if cond is None else f"a tensor {tuple(cond.shape)}"
            raise TypeError(f"{self} needs cond with {self.width} numbers in its last axis, got {got}.")
        free = lengths_in(layer, x, layer.free)
        if tuple(cond.shape[:-1]) != free:
            raise ShapeError(f"{self} needs cond of shape {(*free, self.width)} for this x; got {tuple(cond.shape)}.")
        z = cond if self.before is None else getattr(torch.nn.functional, self.before)(cond)
        s, *t = layer.modulation(z).reshape(*free, 1 + self.bias, *layer.made).unbind(len(free))
        return 1 + s, t[0] if t else None


@dataclass(frozen=True)
class Spatial(Gain):
    """y (1 + s) + t, s and t made at every pixel from a picture (SPADE): s, t = conv(relu(conv(map))).

    Spatial("n c h w", width=3): norm(x, map=segmentation) with a map [n, 3, ., .], brought to the size of x.
    """

    width: int = 0
    hidden: int = 128
    asks = ("map",)

    def make(self, layer: Any, frame: Frame, sizes: Mapping[str, int], kind: dict[str, Any]) -> None:
        import torch

        super().make(layer, frame, sizes, kind)
        kept = self.frame_in(frame).kept
        if len(kept) != 4 or not declares(kept[1], sizes) or self.width < 1:
            raise FrameError(f'{self} is for pictures, as "n c h w", with a declared c and a width of the map.')
        channels, conv = sizes[str(kept[1])], torch.nn.Conv2d
        layer.shared = conv(self.width, self.hidden, 3, padding=1, **kind)
        layer.modulation = conv(self.hidden, channels * (1 + self.bias), 3, padding=1, **kind)

    def reset(self, layer: Any) -> None:
        layer.shared.reset_parameters()
        layer.modulation.reset_parameters()

    def at(self, layer: Any, x: Any, given: dict[str, Any]) -> Pair:
        import torch.nn.functional as F

        picture = given.pop("map", None)
        if picture is None or picture.dim() != 4 or picture.shape[1] != self.width:
            got = "nothing" if picture is None else f"a tensor {tuple(picture.shape)}"
            raise TypeError(f"{self} needs a map [n, {self.width}, height, width], got {got}.")
        if picture.shape[2:] != x.shape[2:]:
            picture = F.interpolate(picture, tuple(x.shape[2:]), mode="nearest")
        parts = layer.modulation(F.relu(layer.shared(picture))).chunk(1 + self.bias, 1)
        return 1 + parts[0], parts[1] if self.bias else None


@dataclass(frozen=True)
class Style(Gain):
    """y sigma(s) + mean(s): the spread and mean of another tensor s, or of Moments that were measured on one (AdaIN).

    Style("n c"): norm(x, style=s), s of the same axes. Its pooled lengths may differ, and one sample may serve all.
    Style("n c", reference=s) has the layer keep them, for calls that bring no style.
    """

    reference: Any = field(default=None, repr=False, compare=False)
    asks = ("style",)

    def make(self, layer: Any, frame: Frame, sizes: Mapping[str, int], kind: dict[str, Any]) -> None:
        import torch

        super().make(layer, frame, sizes, kind)
        if self.reference is not None:
            layer.gain = replace(self, reference=None)  # two numbers per group are kept, and not the picture
            m = self._measured(self.reference, frame, sizes)
            for name, part in (("style_mean", m.mean), ("style_var", m.var())):
                layer.register_buffer(name, torch.as_tensor(part).detach().clone().to(**kind))

    def at(self, layer: Any, x: Any, given: dict[str, Any]) -> Pair:
        import torch

        style, kept = given.pop("style", None), layer._buffers
        if style is not None:
            style = self._measured(style, layer.frame, layer.sizes)
        elif "style_mean" not in kept:
            raise TypeError(f"{self} needs the tensor or the Moments whose style it puts on: call norm(x, style=...).")
        mean, var = (style.mean, style.var()) if style is not None else (kept["style_mean"], kept["style_var"])
        shape = lengths_in(layer, x, self.frame_in(layer.frame))
        eps = 0.0 if layer.eps == "auto" else layer.eps
        w, b = (torch.as_tensor(part, device=x.device).to(x.dtype) for part in ((var + eps) ** 0.5, mean))
        return w.expand(shape), b.expand(shape) if self.bias else None

    def _measured(self, style: Any, frame: Frame, sizes: Mapping[str, int]) -> Moments:
        if isinstance(style, Moments):
            return style
        return ops.measure(style, Job(plan_for(self.frame_in(frame), tuple(style.shape), sizes), center=True))
