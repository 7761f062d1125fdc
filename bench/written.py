"""Written: the eager code people write where torch has no layer. Plain, and as good as it is usually found."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedBatchNorm(nn.Module):
    """Batch norm over the pixels a mask [n, 1, h, w] keeps."""

    def __init__(self, c: int, mask: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(c, 1, 1)), nn.Parameter(torch.zeros(c, 1, 1))
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        m = self.mask.to(x.dtype)
        count = m.sum()
        mean = (x * m).sum((0, 2, 3), keepdim=True) / count
        d = x - mean
        var = (d * d * m).sum((0, 2, 3), keepdim=True) / count
        return d * torch.rsqrt(var + 1e-5) * self.weight + self.bias


class ConditionalBatchNorm(nn.Module):
    """Batch norm, then a gain and a shift looked up by each sample's class."""

    def __init__(self, c: int, classes: int, kind: Tensor) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(c, affine=False)
        self.gamma, self.beta = nn.Embedding(classes, c), nn.Embedding(classes, c)
        nn.init.ones_(self.gamma.weight)
        nn.init.zeros_(self.beta.weight)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = self.gamma(self.kind), self.beta(self.kind)
        return gamma[:, :, None, None] * self.norm(x) + beta[:, :, None, None]


class BatchRenorm(nn.Module):
    """y = ((x - mean) / std r + d) w + b, r and d the bounded way from the batch's statistics to the remembered."""

    def __init__(self, c: int, momentum: float = 0.1, r_max: float = 3.0, d_max: float = 5.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(c, 1, 1)), nn.Parameter(torch.zeros(c, 1, 1))
        self.register_buffer("running_mean", torch.zeros(c, 1, 1))
        self.register_buffer("running_std", torch.ones(c, 1, 1))
        self.momentum, self.r_max, self.d_max = momentum, r_max, d_max

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        std = x.std((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
        r = (std.detach() / self.running_std).clamp(1 / self.r_max, self.r_max)
        d = ((mean.detach() - self.running_mean) / self.running_std).clamp(-self.d_max, self.d_max)
        with torch.no_grad():
            self.running_mean += self.momentum * (mean[0] - self.running_mean)
            self.running_std += self.momentum * (std[0] - self.running_std)
        return ((x - mean) / std * r + d) * self.weight + self.bias


class HeadRMSNorm(nn.Module):
    """RMS norm of each head of [b, t, h d]."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        d = self.weight.shape[0]
        return F.rms_norm(x.view(*x.shape[:-1], -1, d), (d,), self.weight).view_as(x)


class AddThenNorm(nn.Module):
    """s = x + residual, and its norm: both go on in a pre-norm transformer."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        s = x + residual
        return s, self.norm(s)
