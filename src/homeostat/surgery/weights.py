"""Weights: a linear map and an affine, as one linear map. In float64; w is [out, in, ...].

the affine last     ((W x + b) - c) s + t    =  (s W) x + (b - c) s + t
the affine first    W ((x - c) s + t) + b    =  (W s) x + b + W (t - c s)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from homeostat.affine import Affine

CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d
TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
LINEAR = nn.Linear | CONVOLUTIONS | TRANSPOSED


class Weights:
    """Of one layer, in float64, until they are written back: rounded once, however much was folded into them."""

    def __init__(self, layer: Any) -> None:
        self.dtype: torch.dtype = layer.weight.dtype
        self.groups: int = getattr(layer, "groups", 1)
        self.transposed = isinstance(layer, TRANSPOSED)
        self.w = self._turned(layer.weight.detach().double())
        self.b = None if layer.bias is None else layer.bias.detach().double()

    def put_last(self, affine: Affine) -> None:
        self.w, self.b = affine.fold_into(self.w, self.b)

    def put_first(self, affine: Affine) -> None:
        g, (n_out, n_in) = self.groups, self.w.shape[:2]
        s, d = (
            part.reshape(g, 1, n_in).expand(g, n_out // g, n_in).reshape(n_out, n_in, *(1,) * (self.w.dim() - 2))
            for part in (affine.s, shift(affine))
        )
        if shift(affine).any():
            more = (self.w * d).flatten(1).sum(1)
            self.b = more if self.b is None else self.b + more
        self.w = self.w * s

    def write(self, layer: Any) -> None:
        with torch.no_grad():
            layer.weight.copy_(self._turned(self.w))
            if layer.bias is not None:
                layer.bias.copy_(self.b)
            elif self.b is not None:
                layer.bias = nn.Parameter(self.b.to(self.dtype), requires_grad=layer.weight.requires_grad)

    def fit(self) -> bool:
        """Are they finite once rounded?"""
        return all(bool(torch.isfinite(part.to(self.dtype)).all()) for part in (self.w, self.b) if part is not None)

    def _turned(self, w: Tensor) -> Tensor:
        """A transposed convolution keeps [in, out/g, ...]; here the outputs stand first, [out, in/g, ...]. And back."""
        if not self.transposed:
            return w
        g, (first, second), kernel = self.groups, w.shape[:2], w.shape[2:]
        return w.reshape(g, first // g, second, *kernel).transpose(1, 2).reshape(g * second, first // g, *kernel)


def shift(affine: Affine) -> Any:
    """t - c s: what is added, where the centre is not taken away first."""
    return affine.t - affine.c * affine.s


def is_stored(layer: Any) -> bool:
    """Is its weight a parameter, of fractions that can be rounded to?"""
    weight = layer._parameters.get("weight")
    return weight is not None and not is_lazy(weight) and weight.is_floating_point() and weight.element_size() > 1
