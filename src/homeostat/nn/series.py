"""Reversible: normalize a series, forecast, and put back by the very same centre and scale what was taken away.

norm = Reversible(channels)
y, reading = norm(x)                       x [n, t, c], each channel of each series by itself
forecast = norm.inverse(model(y), reading)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homeostat.reading import Reading, normalize


class Reversible(nn.Module):
    """(x - mean_nc) / sqrt(var_nc + eps), and back: x = y sqrt(var_nc + eps) + mean_nc, for any length of y.

    Missing values (NaN) are not measured and become 0, the mean. Nothing is stored on the module between the two
    directions, so it may be shared, nested and called from many threads. `affine=True` learns w and b per channel,
    undone by `inverse`. Kim et al. 2022 (RevIN), openreview cGDAkQo1C0p.
    """

    def __init__(self, channels: int | None = None, affine: bool = False, eps: float | str = "auto") -> None:
        super().__init__()
        if affine and channels is None:
            raise ValueError("affine=True learns a gain per channel: give channels.")
        self.eps: Any = eps
        self.weight = nn.Parameter(torch.ones(channels or 0)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels or 0)) if affine else None

    def forward(self, x: Tensor) -> tuple[Tensor, Reading]:
        seen = torch.isfinite(x)
        y, reading = normalize(x, "n t c -> n c", eps=self.eps, where=seen, return_reading=True)
        y = y.masked_fill(~seen, 0.0)
        return (y if self.weight is None else y * self.weight + self.bias), reading

    def inverse(self, y: Tensor, reading: Reading) -> Tensor:
        """What `reading` took away, put back on a forecast [n, any, c]."""
        if self.weight is not None and self.bias is not None:
            y = (y - self.bias) / self.weight
        x: Tensor = reading.inverse(y)
        return x
