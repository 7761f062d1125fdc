"""Members without a statistic: what stands where a norm stood, or scales a branch, and measures nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from homeostat.errors import number, whole
from homeostat.nn.inputs import check_input


class DyT(nn.Module):
    """w tanh(a x) + b (dynamic tanh). Zhu et al. 2025, arXiv:2503.10622."""

    def __init__(self, d: int, alpha: float = 0.5) -> None:
        super().__init__()
        d, self.alpha = whole("d", d), nn.Parameter(torch.tensor(number("alpha", alpha)))
        self.weight, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.weight.shape[0])
        return (torch.tanh(self.alpha * x) * self.weight + self.bias).to(x.dtype)


class Derf(nn.Module):
    """w erf(a x + s) + b. Chen et al. 2025, arXiv:2512.10938."""

    def __init__(self, d: int, alpha: float = 0.5) -> None:
        super().__init__()
        d, self.alpha = whole("d", d), nn.Parameter(torch.tensor(number("alpha", alpha)))
        self.shift = nn.Parameter(torch.zeros(()))
        self.weight, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.weight.shape[0])
        return (torch.erf(self.alpha * x + self.shift) * self.weight + self.bias).to(x.dtype)


class LayerScale(nn.Module):
    """w x, w small at first: a branch that enters a residual stream softly. Touvron et al. 2021, arXiv:2103.17239."""

    def __init__(self, d: int, start: float = 1e-4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((whole("d", d),), number("start", start)))

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.weight.shape[0])
        return (x * self.weight).to(x.dtype)


class ReZero(nn.Module):
    """a x, one a for all, 0 at first. Bachlechner et al. 2020, arXiv:2003.04887."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x)
        return (x * self.weight).to(x.dtype)
