"""Norms within a sample: "... d -> ..." (layer, RMS) and "n (g c) ... -> n g" (group)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from homeostat.frame import Frame, ShapeError
from homeostat.nn.preset import Preset
from homeostat.norm import run

GROUPS = Frame.parse("n (g c) ... -> n g")
PER_CHANNEL = GROUPS.keep("(g c)")


class LayerNorm(Preset, torch.nn.LayerNorm):
    """Each row of the last axes by its own mean and variance."""

    @property
    def frame(self) -> Frame:
        return _trailing(len(self.normalized_shape))[0]

    state_frame = frame

    @property
    def gain_frame(self) -> Frame | None:
        return _trailing(len(self.normalized_shape))[1] if self.elementwise_affine else None

    def forward(self, input: Tensor) -> Tensor:
        """(x - mean) / sqrt(var + eps) w + b"""
        return _rows(self, input, self.normalized_shape)


class RMSNorm(Preset, torch.nn.RMSNorm):
    """Each row of the last axes by its own root mean square."""

    center = False
    bias = None

    @property
    def frame(self) -> Frame:
        return _trailing(len(self.normalized_shape))[0]

    state_frame = frame

    @property
    def gain_frame(self) -> Frame | None:
        return _trailing(len(self.normalized_shape))[1] if self.elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """x / sqrt(mean(x^2) + eps) w; without an eps, the spacing at 1 of the dtype of the arithmetic"""
        return _rows(self, x, self.normalized_shape)


class GroupNorm(Preset, torch.nn.GroupNorm):
    """Each group of channels of each sample by its own mean and variance."""

    frame = state_frame = GROUPS

    @property
    def gain_frame(self) -> Frame | None:
        return PER_CHANNEL if self.affine else None

    def forward(self, input: Tensor) -> Tensor:
        """(x - mean_ng) / sqrt(var_ng + eps) w_c + b_c"""
        if input.dim() < 2:
            raise ShapeError(f"GroupNorm expects [n, c, ...], at least 2 axes; this tensor has {input.dim()}.")
        sizes = {"g": self.num_groups}
        if self.affine:
            sizes["c"] = self.num_channels // self.num_groups
        _check_more_than_one(input, self.num_groups)
        return run(self, input, GROUPS, sizes, check_pool=False)


def _trailing(k: int) -> tuple[Frame, Frame]:
    """The frame that pools the last k axes, and the gain on each of their entries."""
    return _make_trailing(k) if torch.compiler.is_compiling() else _trailing_cached(k)  # a compiler traces no cache


def _make_trailing(k: int) -> tuple[Frame, Frame]:
    names = ("d",) if k == 1 else tuple(f"d{i}" for i in range(k))
    frame = Frame(("...", *names), ("...",))
    return frame, frame.keep(names)


_trailing_cached = cache(_make_trailing)


def _rows(self: Any, x: Tensor, normalized_shape: tuple[int, ...]) -> Tensor:
    k = len(normalized_shape)
    if tuple(x.shape[-k:]) != tuple(normalized_shape):
        raise ShapeError(
            f"{type(self).__name__} was made for normalized_shape={list(normalized_shape)}, the last axes of x; "
            f"this tensor is {list(x.shape)}."
        )
    return run(self, x, _trailing(k)[0], {}, check_pool=False)


def _check_more_than_one(x: Tensor, groups: int) -> None:
    """torch's ValueError; as in torch, a batch of several samples passes even with one value per group."""
    n = x.shape[0] * (x.shape[1] // groups)
    for length in x.shape[2:]:
        n = n * length
    if n == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}. With one value "
            f"per group, x minus its mean is 0; use fewer groups."
        )
