"""Gains whose w and b are made anew at every call, from what comes with it: a label, a vector, a picture, a style."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homeostat import ops
from homeostat.frame import Frame, FrameError, Label, ShapeError, listed
from homeostat.gains.base import Gain, Learned, Pair, declares, extent, lengths_of, names_in
from homeostat.kernels.reference import Job
from homeostat.labels import is_coded, resolve
from homeostat.moments import Moments
from homeostat.plan import plan_for


@dataclass(frozen=True)
class Conditional(Learned):
    """y w[k] + b[k]: one learned w and b per value k of a label, which comes with the call.

    Conditional("kind[n] c"): norm(x, kind=(codes, 10)) gives every sample the gain of its kind.
    """

    def frame_in(self, frame: Frame) -> Frame:
        learned = frame.keep(self.keep)
        if len(learned.labels) != 1 or not isinstance(learned.kept[0], Label):
            raise FrameError(f'Conditional("{self.keep}") keeps one label, and it stands first, as in "kind[n] c".')
        return learned

    def applied_in(self, frame: Frame) -> Frame:
        learned = self.frame_in(frame)
        return frame.keep((*learned.labels[0].axes, *learned.kept[1:]))

    def labels_in(self, frame: Frame) -> tuple[Label, ...]:
        return self.frame_in(frame).labels

    def make(self, layer: Any, frame: Frame, sizes: Mapping[str, int], kind: dict[str, Any]) -> None:
        super().make(layer, frame, sizes, kind)
        layer.label = self.frame_in(frame).labels[0]

    def at(self, layer: Any, x: Any, given: dict[str, Any]) -> Pair:
        import torch

        label = layer.label
        name, n = label.name, layer.counts[label.name]
        if torch.is_tensor(given.get(name)) and not given[name].is_floating_point():
            given[name] = given[name], n  # the layer knows how many there are
        if not is_coded(given.get(name)) or given[name][1] != n:
            raise FrameError(
                f"{self} needs the {name} of each {' '.join(label.axes)}: pass {name}=codes, a tensor of integers, "
                f"or (codes, {n})."
            )
        lengths = lengths_of(layer, x)
        where = tuple(lengths[axis] for axis in label.axes)
        shared = any(one.name == name for one in layer.frame.labels)  # then the frame needs it too
        codes, _ = resolve(name, given[name] if shared else given.pop(name), where, str(label))
        at = torch.as_tensor(codes, dtype=torch.int64, device=x.device).reshape(-1)

        def of(p: Any) -> Any:
            rows = None if p is None else p.index_select(0, at)
            return rows if rows is None or len(where) == 1 else rows.reshape(*where, *p.shape[1:])

        return of(layer.weight), of(layer.bias)


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
        made = 1
        for item in self._made(frame, sizes):
            made *= extent(frame.keep((item,)), sizes)[0]
        layer.modulation = torch.nn.Linear(self.width, made * (1 + self.bias), **kind)
        self.reset(layer)

    def _made(self, frame: Frame, sizes: Mapping[str, int]) -> tuple[Any, ...]:
        """The groups that W makes: those with declared sizes. They stand last."""
        kept = self.frame_in(frame).kept
        declared = [declares(item, sizes) for item in kept]
        first = declared.index(True) if True in declared else len(kept)
        if first == len(kept) or not all(declared[first:]):
            raise FrameError(
                f'{type(self).__name__}("{self.keep}"): the axes it learns for stand last and have declared sizes; '
                f"declared are {listed(tuple(sizes)) or 'none'}."
            )
        return kept[first:]

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
        kept, lengths = self.frame_in(layer.frame).kept, lengths_of(layer, x)
        made = self._made(layer.frame, layer.sizes)
        free = [lengths[name] for item in kept[: -len(made)] for name in names_in(item)]
        if tuple(cond.shape[:-1]) != tuple(free):
            raise ShapeError(f"{self} needs cond of shape {(*free, self.width)} for this x; got {tuple(cond.shape)}.")
        z = cond if self.before is None else getattr(torch.nn.functional, self.before)(cond)
        parts = layer.modulation(z).reshape(*free, 1 + self.bias, *extent(layer.frame.keep(made), layer.sizes))
        w = 1 + parts.select(len(free), 0)
        return w, parts.select(len(free), 1) if self.bias else None


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
    """

    asks = ("style",)

    def at(self, layer: Any, x: Any, given: dict[str, Any]) -> Pair:
        import torch

        style = given.pop("style", None)
        if style is None:
            raise TypeError(f"{self} needs the tensor or the Moments whose style it puts on: call norm(x, style=...).")
        frame = self.frame_in(layer.frame)
        if not isinstance(style, Moments):
            plan = plan_for(frame, tuple(style.shape), layer.sizes)
            style = ops.measure(style, Job(plan, center=True))
        shape = plan_for(frame, tuple(x.shape), layer.sizes).groups
        eps = 0.0 if layer.eps == "auto" else layer.eps
        w, b = (torch.as_tensor(part, device=x.device) for part in ((style.var() + eps) ** 0.5, style.mean))
        return w.to(x.dtype).expand(shape), b.to(x.dtype).expand(shape)
