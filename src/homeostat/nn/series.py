"""Norms of series x [n, t, c], whose level and scale are their own: taken away and put back, or taken as learned.

norm = Reversible(channels)
y, reading = norm(x)                       each channel of each series by itself
forecast = norm.inverse(model(y), reading) by the very same centre and scale

y = DAIN(channels)(x)                      centre, scale and gate, each learned of what was measured
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homeostat.affine import Affine
from homeostat.door import check_eps
from homeostat.errors import number, said, whole
from homeostat.nn.inputs import check_input
from homeostat.reading import Reading, measure, normalize


class Reversible(nn.Module):
    """(x - mean_nc) / sqrt(var_nc + eps), and back: x = y sqrt(var_nc + eps) + mean_nc, for any length of y.

    Missing values (NaN) are not measured and become 0, the mean. Nothing is stored on the module between the two
    directions, so it may be shared, nested and called from many threads. `affine=True` learns w and b per channel,
    undone by `inverse`. Kim et al. 2022 (RevIN), openreview cGDAkQo1C0p.
    """

    pattern = "n t c -> n c"

    def __init__(self, channels: int | None = None, affine: bool = False, eps: float | str = "auto") -> None:
        super().__init__()
        if affine and channels is None:
            raise ValueError("affine=True learns a gain per channel: give channels.")
        self.channels = None if channels is None else whole("channels", channels)
        self.eps: Any = check_eps(eps)
        self.weight = nn.Parameter(torch.ones(self.channels or 0)) if affine else None
        self.bias = nn.Parameter(torch.zeros(self.channels or 0)) if affine else None

    def forward(self, x: Tensor) -> tuple[Tensor, Reading]:
        check_input(self, x, self.channels)
        seen = ~torch.isnan(x)
        y, reading = normalize(x, self.pattern, eps=self.eps, where=seen, return_reading=True)
        y = y.masked_fill(~seen, 0.0)
        return (y if self.weight is None else y * self.weight + self.bias), reading

    def inverse(self, y: Tensor, reading: Reading) -> Tensor:
        """What `reading` took away, put back on a forecast [n, any, c]."""
        if not isinstance(reading, Reading):
            raise TypeError(f"reading={said(reading)}: give what came with y, as in y, reading = norm(x).")
        check_input(self, y, self.channels)
        if self.weight is not None and self.bias is not None:
            y = (y - self.bias) / self.weight
        x: Tensor = reading.inverse(y)
        return x


class DAIN(nn.Module):
    """z sigmoid(V mean z + d), z = (x - a) / s, a = A mean x, s = S sqrt(mean (x - a)^2 + eps), means over time.

    A and S are learned matrices that begin at 1, where z is x standardized; they want a smaller learning rate than the
    network. An s that is not above eps becomes 1. One measurement serves all three steps: mean (x - a)^2 is
    var + (mean - a)^2, and mean z is (mean - a) / s. Passalis et al. 2019, arXiv:1902.07892.
    """

    pattern = "n t c -> n c"

    def __init__(self, channels: int, eps: float = 1e-8, **kind: Any) -> None:
        super().__init__()
        channels, self.eps = whole("channels", channels), number("eps", eps, least=0)
        self.shift = nn.Linear(channels, channels, bias=False, **kind)
        self.scale = nn.Linear(channels, channels, bias=False, **kind)
        self.gate = nn.Linear(channels, channels, **kind)
        nn.init.eye_(self.shift.weight)
        nn.init.eye_(self.scale.weight)

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.scale.in_features)
        m = measure(x, self.pattern)
        learned = (self.shift.weight, self.scale.weight, self.gate.weight, self.gate.bias)
        shift, scale, gate, d = (p.to(m.mean.dtype) for p in learned)
        a = m.mean @ shift.T
        left = m.mean - a
        s = (m.var() + left**2 + self.eps).sqrt() @ scale.T
        s = torch.where(s > self.eps, s, 1.0)
        rate = torch.sigmoid(left / s @ gate.T + d) / s
        y: Tensor = Affine(a[:, None], rate[:, None])(x.to(a.dtype)).to(x.dtype)
        return y
