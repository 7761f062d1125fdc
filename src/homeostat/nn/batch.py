"""Batch norm: "n c ... -> c". Every channel has one statistic, shared by the whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from homeostat.forward import asked, run
from homeostat.frame import Frame
from homeostat.nn.preset import Remembering, gained, lazily

FRAME = Frame.parse("n c ... -> c")


class _Batch(Remembering):
    frame = state_frame = FRAME

    @property
    def gain_frame(self: Any) -> Frame | None:
        return FRAME if self.affine else self.own_gain_frame

    @property
    def sizes(self: Any) -> dict[str, int]:
        return {"c": self.num_features}

    def forward(self: Any, input: Tensor, **given: Any) -> Tensor:
        """(x - mean_c) / sqrt(var_c + eps) w_c + b_c"""
        if self.gain is not None:
            return gained(self, input, given, _check)
        # As in torch, what is there per channel decides the width (a pruned layer's num_features is out of date).
        per_channel = self._buffers["running_mean"]
        per_channel = self.weight if per_channel is None else per_channel
        sizes = () if per_channel is None else (("c", per_channel.shape[-1]),)
        return run(self, input, FRAME, sizes, labels=asked(self.source.asks, given), check=_check)


def _check(self: Any, x: Tensor, fixed: bool) -> None:
    """torch's errors: another rank, or a single value, whose statistic says nothing."""
    self._check_input_dim(x)
    if fixed:
        return
    n = 1
    for i, length in enumerate(x.shape):
        n = n if i == 1 else n * length
    if n == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}. With one value, "
            f"x minus its mean is 0; use a larger batch, LayerNorm or GroupNorm, or model.eval()."
        )


class BatchNorm1d(_Batch, torch.nn.BatchNorm1d):
    """w_c (x - mean_c) / sqrt(var_c + eps) + b_c: each channel of [n, c] or [n, c, t] by itself, over the rest.

    Ioffe & Szegedy 2015, arXiv:1502.03167.
    """


class BatchNorm2d(_Batch, torch.nn.BatchNorm2d):
    """w_c (x - mean_c) / sqrt(var_c + eps) + b_c: each channel of [n, c, h, w] by itself, over the rest.

    Ioffe & Szegedy 2015, arXiv:1502.03167.
    """


class BatchNorm3d(_Batch, torch.nn.BatchNorm3d):
    """w_c (x - mean_c) / sqrt(var_c + eps) + b_c: each channel of [n, c, d, h, w] by itself, over the rest.

    Ioffe & Szegedy 2015, arXiv:1502.03167.
    """


class _LazyBatch(_Batch):
    def initialize_parameters(self: Any, input: Tensor) -> None:
        super().initialize_parameters(input)  # type: ignore[misc]
        lazily(self, input)


class LazyBatchNorm1d(_LazyBatch, torch.nn.LazyBatchNorm1d):
    """BatchNorm1d that learns num_features from its first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_LazyBatch, torch.nn.LazyBatchNorm2d):
    """BatchNorm2d that learns num_features from its first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_LazyBatch, torch.nn.LazyBatchNorm3d):
    """BatchNorm3d that learns num_features from its first input."""

    cls_to_become = BatchNorm3d
