"""Norms of pictures and tokens beside the classical five, most of them a frame and an activation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat import memory
from homeostat.door import check_eps
from homeostat.errors import number, real, said, whole
from homeostat.frame import ShapeError
from homeostat.gains import Learned
from homeostat.moments import Moments
from homeostat.nn.batch import BatchNorm2d
from homeostat.nn.inputs import check_input
from homeostat.nn.instance import InstanceNorm2d
from homeostat.norm import Norm
from homeostat.reading import Reading, measure, normalize
from homeostat.sources import Running
from homeostat.trust import Fixed


class FRN(Norm):
    """w x / sqrt(mean over h, w of x^2 + eps) + b, uncentred (filter response norm). TLU follows it.

    Singh & Krishnan 2020, arXiv:1911.09737.
    """

    def __init__(self, channels: int, eps: float = 1e-6, **kind: Any) -> None:
        super().__init__("n c ... -> n c", gain=Learned("c"), eps=eps, center=False, c=channels, **kind)


class TLU(nn.Module):
    """max(x, t), t learned per channel; the partner of FRN."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(whole("channels", channels)))

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.threshold.shape[0], axis=1)
        return torch.maximum(x, self.threshold.view(-1, *(1,) * (x.dim() - 2))).to(x.dtype)


class PONO(nn.Module):
    """(x - mean_nhw) / sqrt(var_nhw + eps) over channels, and what was measured: y, reading = norm(x).

    `reading.mean` and `reading.std` are the moment shortcut of a decoder; `reading.inverse` puts them back.
    Li et al. 2019, arXiv:1907.04312.
    """

    pattern = "n c ... -> n ..."

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps: Any = check_eps(eps)

    def forward(self, x: Tensor) -> tuple[Tensor, Reading]:
        check_input(self, x)
        return normalize(x, self.pattern, eps=self.eps, return_reading=True)


class GRN(nn.Module):
    """w x r + b + x, r_c = |x_c| / mean over channels of |x_c|, |x_c| the length of channel c over its pixels.

    x is [n, ..., c]. It compares channels and does not standardize, so it has a line of its own: the length is the root
    of an uncentred M2. Woo et al. 2023, arXiv:2301.00808.
    """

    pattern, center = "n ... c -> n c", False

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        channels, self.eps = whole("channels", channels), number("eps", eps, least=0)
        self.weight, self.bias = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.weight.shape[0])
        square = measure(x, self.pattern, center=self.center).m2
        length = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)  # a dead channel has no gradient, not NaN
        ratio: Tensor = (length / (length.mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        ratio = ratio.view(len(x), *(1,) * (x.dim() - 2), -1)
        return (x + self.weight * (x * ratio) + self.bias).to(x.dtype)


class EvoNormS0(nn.Module):
    """w x sigmoid(v x) / sqrt(var_ng + eps) + b: group norm's scale and swish in one.

    Liu et al. 2020, arXiv:2004.02967.
    """

    pattern = "n (g c) ... -> n g"

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        channels, self.groups = whole("channels", channels), whole("groups", groups)
        self.eps = number("eps", eps, least=0)
        if channels % self.groups:
            raise ValueError(f"groups={groups} do not divide channels={channels}.")
        self.v = nn.Parameter(torch.ones(channels))
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.v.shape[0], axis=1)
        spread: Tensor = (measure(x, self.pattern, g=self.groups).var() + self.eps).sqrt().to(x.dtype)
        spread = spread.repeat_interleave(x.shape[1] // self.groups, 1)
        v, w, b = (p.view(-1, *(1,) * (x.dim() - 2)) for p in (self.v, self.weight, self.bias))
        y: Tensor = x * torch.sigmoid(v * x) / spread.view(*spread.shape, *(1,) * (x.dim() - 2)) * w + b
        return y.to(x.dtype)


class EvoNormB0(Norm):
    """w x / max(sqrt(var_c + eps), v x + sqrt(var_nc + eps)) + b: over the batch's spread, or the sample's and x.

    var_c runs along and is remembered as in batch norm; var_nc is this sample's, in evaluation too. One measurement
    serves both: Moments add. Liu et al. 2020, arXiv:2004.02967.
    """

    num_batches_skipped: Tensor
    eps: float

    def __init__(self, channels: int, momentum: float | None = 0.1, eps: float = 1e-5, **kind: Any) -> None:
        super().__init__("n c ... -> c", Running(momentum), Learned("c"), eps, c=channels, **kind)
        self.v = nn.Parameter(torch.ones(channels, **kind))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        assert self.weight is not None
        assert self.bias is not None
        m, eps, ones = measure(x, "n c ... -> n c", c=self.sizes["c"]), self.eps, (1,) * (x.dim() - 2)
        own, shared = ((var + eps).sqrt().to(self.v.dtype) for var in (m.var(), self._shared(m)))
        v, w, b, shared = (p.view(-1, *ones) for p in (self.v, self.weight, self.bias, shared))
        return (x / torch.maximum(shared, v * x + own.view(*own.shape, *ones)) * w + b).to(x.dtype)

    def _shared(self, m: Moments) -> Tensor:
        """The batch's variance, which is remembered; or, in evaluation, what was."""
        state: dict[str, Any] = {name: self._buffers[name] for name in self.source.names}
        trust: Any = self.source.trust(memory.recall(state, self.source.writes(self.training)), self.training)
        if isinstance(trust, Fixed):
            return trust.var  # type: ignore[no-any-return]
        whole = m.over((0,))
        whole = Moments(whole.count[0], whole.mean[0], whole.m2[0])
        ranks = self.source.ranks(self) if self.training else None
        whole = whole if ranks is None else ranks.added(whole, len(m.mean))[0]
        memory.remember(self.source, state, self.num_batches_skipped, whole, type(self).__name__)
        var: Tensor = whole.var()
        return var


class LRN(nn.Module):
    """x / (k + a mean of x^2 over the `size` channels around each)^b: local response norm, torch's a.

    Windows overlap, so no frame has them as groups; beyond the first and the last channel there are zeros. The paper's
    a is torch's divided by `size`. Krizhevsky et al. 2012.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.alpha = whole("size", size), number("alpha", alpha)
        self.beta, self.k = number("beta", beta), number("k", k)

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x)
        if x.dim() < 2:
            raise ShapeError(f"LRN was made for [n, c, ...]; this tensor is {list(x.shape)}.")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        square = F.pad(wide.square(), (0, 0) * (x.dim() - 2) + (self.size // 2, (self.size - 1) // 2))
        around = square.unfold(1, self.size, 1).mean(-1)
        return (wide / (self.k + self.alpha * around) ** self.beta).to(x.dtype)


class ScaleNorm(Norm):
    """w sqrt(d) x / |x|: one learned length for all tokens. Nguyen & Salazar 2019, arXiv:1910.05895."""

    def __init__(self, d: int, eps: float = 1e-10, **kind: Any) -> None:
        super().__init__("... d -> ...", gain=Learned("", bias=False), eps=eps, center=False, d=d, **kind)


class L2Norm(nn.Module):
    """x / |x| along the last axis."""

    pattern, center = "... d -> ...", False

    def __init__(self, eps: float = 1e-12) -> None:
        super().__init__()
        self.eps = number("eps", eps, least=0)

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x)
        y: Tensor = normalize(x, self.pattern, eps=self.eps / max(1, x.shape[-1]), center=self.center)
        out: Tensor = y / math.sqrt(x.shape[-1])
        return out


class PartialRMSNorm(Norm):
    """w x / sqrt(mean of the first p d of x^2 + eps): the scale read off a part of each row.

    Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    first: Tensor

    def __init__(self, d: int, p: float = 0.0625, eps: float = 1e-8, **kind: Any) -> None:
        super().__init__("... d -> ...", gain=Learned("d", bias=False), eps=eps, center=False, d=d, **kind)
        if not 0 < real(p) <= 1:
            raise ValueError(f"p={said(p)} is the share of each row that is measured, above 0 and at most 1.")
        self.register_buffer("first", torch.arange(d, device=kind.get("device")) < max(1, int(d * p)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = super().forward(x, self.first)
        return y


class IBN(nn.Module):
    """IN(x_c) for the first `share` of the channels, BN(x_c) for the others: instance and batch norm side by side.

    Pan et al. 2018, arXiv:1807.09441.
    """

    def __init__(self, channels: int, share: float = 0.5) -> None:
        super().__init__()
        channels, self.first = whole("channels", channels), int(channels * number("share", share, 0, 1))
        if not 0 < self.first < channels:
            raise ValueError(f"share={share} of {channels} channels leaves none to one of the two norms.")
        self.instance = InstanceNorm2d(self.first, affine=True)
        self.batch = BatchNorm2d(channels - self.first)

    def forward(self, x: Tensor) -> Tensor:
        style, content = x[:, : self.first], x[:, self.first :]
        return torch.cat([self.instance(style), self.batch(content)], 1)
