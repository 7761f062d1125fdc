"""Layers: of each case, homeostat's layer, what torch's users have instead, and the recipe for JAX."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import homeostat as hs
from bench import written
from bench.jaxed import Recipe

CLASSES = 10
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sides:
    """Modules of the same inputs and outputs."""

    ours: nn.Module
    theirs: nn.Module
    recipe: Recipe | None = None


class Bound(nn.Module):
    """A layer with the keywords of its calls: a mask, labels."""

    def __init__(self, layer: nn.Module, **given: object) -> None:
        super().__init__()
        self.layer, self.given = layer, given

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, **self.given)


class Add(nn.Module):
    """s, norm(s) of s = x + residual, by the layer's own verb."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.add(x, residual)


def layer_norm(shape: Shape, last: bool) -> Sides:
    return Sides(hs.nn.LayerNorm(shape[-1]), nn.LayerNorm(shape[-1]), Recipe(shape, (-1,), shape[-1:]))


def rms_norm(shape: Shape, last: bool) -> Sides:
    return Sides(hs.nn.RMSNorm(shape[-1]), nn.RMSNorm(shape[-1]), Recipe(shape, (-1,), shape[-1:], center=False))


def batch_norm(shape: Shape, last: bool) -> Sides:
    c = shape[1]
    return Sides(hs.nn.BatchNorm2d(c), nn.BatchNorm2d(c), _image_recipe(shape, last, over_samples=True))


def instance_norm(shape: Shape, last: bool) -> Sides:
    c = shape[1]
    ours, theirs = (m.InstanceNorm2d(c, affine=True) for m in (hs.nn, nn))
    return Sides(ours, theirs, _image_recipe(shape, last, over_samples=False))


def _image_recipe(shape: Shape, last: bool, over_samples: bool) -> Recipe:
    n, c, h, w = shape
    split, pixels, gain = ((n, h, w, c), (1, 2), (c,)) if last else (shape, (2, 3), (c, 1, 1))
    return Recipe(split, (0, *pixels) if over_samples else pixels, gain, channels_last=last)


def group_norm(shape: Shape, last: bool) -> Sides:
    n, c, h, w = shape
    g = 32 if c % 32 == 0 else 16
    k = c // g
    recipe = (
        Recipe((n, h, w, g, k), (1, 2, 4), (g, k), channels_last=True)
        if last
        else Recipe((n, g, k, h, w), (2, 3, 4), (g, k, 1, 1))
    )
    return Sides(hs.nn.GroupNorm(g, c), nn.GroupNorm(g, c), recipe)


def masked_batch_norm(shape: Shape, last: bool) -> Sides:
    n, c, h, w = shape
    mask = torch.rand(n, 1, h, w) < 0.7
    ours = hs.Norm("n c h w -> c", gain=hs.Learned("c"), c=c)
    return Sides(Bound(ours, where=mask), written.MaskedBatchNorm(c, mask))


def conditional_batch_norm(shape: Shape, last: bool) -> Sides:
    n, c = shape[:2]
    kind = torch.randint(0, CLASSES, (n,))
    gain = hs.Conditional("kind[n] c")
    ours = hs.Norm("n c h w -> c", source=hs.Running(0.1), gain=gain, kind=CLASSES, c=c)
    return Sides(Bound(ours, kind=(kind, CLASSES)), written.ConditionalBatchNorm(c, CLASSES, kind))


def batch_renorm(shape: Shape, last: bool) -> Sides:
    return Sides(hs.nn.BatchNorm2d(shape[1], source=hs.Renorm()), written.BatchRenorm(shape[1]))


def head_rms_norm(shape: Shape, last: bool) -> Sides:
    h, d = shape[-1] // 64, 64
    ours = hs.Norm("b t (h d) -> b t h", center=False, gain=hs.Learned("d", bias=False), h=h, d=d)
    recipe = Recipe((*shape[:-1], h, d), (-1,), (d,), center=False)
    return Sides(ours, written.HeadRMSNorm(d), recipe)


def add_layer_norm(shape: Shape, last: bool) -> Sides:
    return Sides(Add(hs.nn.LayerNorm(shape[-1])), written.AddThenNorm(nn.LayerNorm(shape[-1])))


def add_rms_norm(shape: Shape, last: bool) -> Sides:
    return Sides(Add(hs.nn.RMSNorm(shape[-1])), written.AddThenNorm(nn.RMSNorm(shape[-1])))
