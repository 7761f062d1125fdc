"""Instance norm: "n c ... -> n c". Every channel of every sample has its own statistic; memory is per channel."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from homeostat.forward import asked, run
from homeostat.frame import Frame, ShapeError
from homeostat.nn.preset import Remembering, gained, lazily
from homeostat.sources import BATCH, Source

FRAME = Frame.parse("n c ... -> n c")
PER_CHANNEL = FRAME.keep("c")


class _Instance(Remembering):
    frame, state_frame = FRAME, PER_CHANNEL

    @property
    def gain_frame(self: Any) -> Frame | None:
        return PER_CHANNEL if self.affine else self.own_gain_frame

    @property
    def sizes(self: Any) -> dict[str, int]:
        return {"c": self.num_features}

    def default_source(self: Any) -> Source:
        return super().default_source() if self.track_running_stats else BATCH

    def forward(self: Any, input: Tensor, **given: Any) -> Tensor:
        """(x - mean_nc) / sqrt(var_nc + eps) w_c + b_c"""
        single = input.dim() == self._get_no_batch_dim()
        x = input.unsqueeze(0) if single else input
        if self.gain is not None:
            y = gained(self, x, given, _check)
        else:
            sizes = (("c", self.num_features),) if x.dim() > 1 and x.shape[1] == self.num_features else ()
            y = run(self, x, FRAME, sizes, labels=asked(self.source.asks, given), check=_check)
        return y.squeeze(0) if single else y


def _check(self: Any, x: Tensor, fixed: bool) -> None:
    """torch's behaviour: errors for another rank, another width, or one value per group."""
    self._check_input_dim(x)
    if x.shape[1] != self.num_features:
        said = f"expected input's size at channel dimension to match num_features ({self.num_features}), "
        said += f"but got: {x.shape[1]}."
        if self.gain_frame is not None or self.running_mean is not None:
            raise ShapeError(said)
        warnings.warn(f"{said} num_features is not used because affine=False.", stacklevel=5)
    n = 1
    for length in x.shape[2:]:
        n = n * length
    if n == 1 and not fixed:
        raise ValueError(
            f"Expected more than 1 spatial element when training, got input size {tuple(x.shape)}. With one value per "
            f"channel and sample, x minus its mean is 0; use GroupNorm or LayerNorm here."
        )


class InstanceNorm1d(_Instance, torch.nn.InstanceNorm1d):
    """w_c (x - mean_nc) / sqrt(var_nc + eps) + b_c: each channel of each sample of [n, c, t] by itself.

    Ulyanov et al. 2016, arXiv:1607.08022.
    """


class InstanceNorm2d(_Instance, torch.nn.InstanceNorm2d):
    """w_c (x - mean_nc) / sqrt(var_nc + eps) + b_c: each channel of each sample of [n, c, h, w] by itself.

    Ulyanov et al. 2016, arXiv:1607.08022.
    """


class InstanceNorm3d(_Instance, torch.nn.InstanceNorm3d):
    """w_c (x - mean_nc) / sqrt(var_nc + eps) + b_c: each channel of each sample of [n, c, d, h, w] by itself.

    Ulyanov et al. 2016, arXiv:1607.08022.
    """


class _LazyInstance(_Instance):
    def initialize_parameters(self: Any, input: Tensor) -> None:
        super().initialize_parameters(input)  # type: ignore[misc]
        lazily(self, input)


class LazyInstanceNorm1d(_LazyInstance, torch.nn.LazyInstanceNorm1d):
    """InstanceNorm1d that learns num_features from its first input."""

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(_LazyInstance, torch.nn.LazyInstanceNorm2d):
    """InstanceNorm2d that learns num_features from its first input."""

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(_LazyInstance, torch.nn.LazyInstanceNorm3d):
    """InstanceNorm3d that learns num_features from its first input."""

    cls_to_become = InstanceNorm3d
