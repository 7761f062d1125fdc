"""Norms within a sample: "... d -> ..." (layer, RMS) and "n (g c) ... -> n g" (group)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from homeostat.forward import add, run
from homeostat.frame import Frame, ShapeError
from homeostat.nn.preset import Preset, gained

GROUPS = Frame.parse("n (g c) ... -> n g")
PER_CHANNEL = GROUPS.keep("(g c)")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class _Rows(Preset):
    @property
    def frame(self: Any) -> Frame:
        return _trailing(self.normalized_shape)[0]

    state_frame = frame

    @property
    def gain_frame(self: Any) -> Frame | None:
        return _trailing(self.normalized_shape)[1] if self.elementwise_affine else self.own_gain_frame

    @property
    def sizes(self: Any) -> dict[str, int]:
        return dict(_trailing(self.normalized_shape)[2])

    def add(self: Any, x: Tensor, other: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        """x + other, and that normalized: a residual stream in one pass over memory."""
        if self.gain is not None or given:
            total = x + other
            return total, self(total, **given)
        frame, _, sizes = _trailing(self.normalized_shape)
        return add(self, _as_rows(x), _as_rows(other), frame, sizes, _check_rows)


class LayerNorm(_Rows, torch.nn.LayerNorm):
    """w_d (x - mean) / sqrt(var + eps) + b_d: each row of the last axes by itself.

    Ba et al. 2016, arXiv:1607.06450.
    """

    def forward(self, input: Tensor, **given: Any) -> Tensor:
        """(x - mean) / sqrt(var + eps) w + b"""
        if self.gain is not None:
            return gained(self, _as_rows(input), given, _check_rows)
        frame, _, sizes = _trailing(self.normalized_shape)
        return run(self, _as_rows(input), frame, sizes, labels=given, check=_check_rows)


class RMSNorm(_Rows, torch.nn.RMSNorm):
    """w_d x / sqrt(mean x^2 + eps): each row of the last axes by its own root mean square.

    Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    center = False
    bias = None

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        """x / sqrt(mean(x^2) + eps) w; without an eps, the spacing at 1 of the dtype of the arithmetic"""
        if self.gain is not None:
            return gained(self, _as_rows(x), given, _check_rows)
        frame, _, sizes = _trailing(self.normalized_shape)
        return run(self, _as_rows(x), frame, sizes, labels=given, check=_check_rows)


class GroupNorm(Preset, torch.nn.GroupNorm):
    """w_c (x - mean_ng) / sqrt(var_ng + eps) + b_c: each group of channels of each sample by itself.

    Wu & He 2018, arXiv:1803.08494.
    """

    frame = state_frame = GROUPS

    @property
    def gain_frame(self) -> Frame | None:
        return PER_CHANNEL if self.affine else self.own_gain_frame

    @property
    def sizes(self) -> dict[str, int]:
        return {"g": self.num_groups, "c": self.num_channels // self.num_groups}

    def forward(self, input: Tensor, **given: Any) -> Tensor:
        """(x - mean_ng) / sqrt(var_ng + eps) w_c + b_c"""
        if self.gain is not None:
            return gained(self, input, given, _check_groups)
        groups = self.num_groups
        sizes = (("g", groups), ("c", self.num_channels // groups)) if self.affine else (("g", groups),)
        return run(self, input, GROUPS, sizes, labels=given, check=_check_groups)


def _as_rows(x: Tensor) -> Tensor:
    """x, copied if it lies in neither memory format: rows are read next by a matrix product, which wants them whole.

    Tokens are often a transposed picture; y in their order makes the linear layer after it slower than the copy.
    """
    kept = x.dim() in FORMATS and x.is_contiguous(memory_format=FORMATS[x.dim()])
    return x if kept else x.contiguous()


Said = tuple[Frame, Frame, tuple[tuple[str, int], ...]]


def _trailing(shape: tuple[int, ...]) -> Said:
    """The frame that pools the last axes, the gain on each of their entries, and their sizes."""
    return _make_trailing(shape) if torch.compiler.is_compiling() else _trailing_cached(shape)  # it traces no cache


def _make_trailing(shape: tuple[int, ...]) -> Said:
    names = ("d",) if len(shape) == 1 else tuple(f"d{i}" for i in range(len(shape)))
    frame = Frame(("...", *names), ("...",))
    return frame, frame.keep(names), tuple(zip(names, shape, strict=True))


_trailing_cached = cache(_make_trailing)


def _check_rows(self: Any, x: Tensor, fixed: bool) -> None:
    shape = tuple(self.normalized_shape)
    if tuple(x.shape[-len(shape) :]) != shape:
        raise ShapeError(
            f"{type(self).__name__} was made for normalized_shape={list(shape)}, the last axes of x; "
            f"this tensor is {list(x.shape)}."
        )


def _check_groups(self: Any, x: Tensor, fixed: bool) -> None:
    """torch's errors; as in torch, a batch of several samples passes even with one value per group."""
    if x.dim() < 2:
        raise ShapeError(f"GroupNorm expects [n, c, ...], at least 2 axes; this tensor has {x.dim()}.")
    n = x.shape[0] * (x.shape[1] // self.num_groups)
    for length in x.shape[2:]:
        n = n * length
    if n == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}. With one value "
            f"per group, x minus its mean is 0; use fewer groups."
        )
