"""Power norm: batch norm's forward by a running quadratic mean, and a backward of its own that runs along with it.

    y = w x / psi + b            psi^2 <- a psi^2 + (1 - a) mean x^2
    dx = (g - nu xhat) / psi     nu <- nu (1 - (1 - a) mean xhat^2) + (1 - a) mean (g xhat)
                                 g = w dy, xhat = x / psi

No batch is normalized by its own statistic, so none is noisy by its own smallness; nu stands for what would flow back
through the statistic. It is no derivative of the forward, which is why it has code of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homeostat import memory
from homeostat.errors import number, whole
from homeostat.nn.inputs import check_input


class PowerNorm(nn.Module):
    """w x / psi + b, psi^2 a running mean of x^2 and the gradient through it a running mean too.

    For the first `warmup` batches psi is the batch's own. x is [n, c, ...]. Shen et al. 2020, arXiv:2003.07845.
    """

    pattern, center = "n c ... -> c", False
    running_square: Tensor
    running_pull: Tensor
    num_batches_tracked: Tensor
    num_batches_skipped: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, warmup: int = 0, eps: float = 1e-5, **kind: Any) -> None:
        super().__init__()
        channels, self.eps = whole("channels", channels), number("eps", eps, least=0)
        self.momentum, self.warmup = number("momentum", momentum, 0, 1), whole("warmup", warmup, 0)
        self.frozen = False  # by hs.freeze
        self.weight = nn.Parameter(torch.ones(channels, **kind))
        self.bias = nn.Parameter(torch.zeros(channels, **kind))
        self.register_buffer("running_square", torch.ones(channels, **kind))
        self.register_buffer("running_pull", torch.zeros(channels, **kind))
        for name, kept in (("num_batches_tracked", True), ("num_batches_skipped", False)):
            count = torch.zeros((), dtype=torch.int64, device=kind.get("device"))
            self.register_buffer(name, count, persistent=kept)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its backward writes memory, which no graph may
    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.weight.shape[0], axis=1)
        w, b = (p.view(-1, *(1,) * (x.dim() - 2)) for p in (self.weight, self.bias))
        if not self.training or self.frozen:
            return (x * (self.running_square + self.eps).rsqrt().view(w.shape) * w + b).to(x.dtype)
        xhat: Tensor = _Running.apply(x, self)  # type: ignore[no-untyped-call]
        return (xhat * w + b).to(x.dtype)


class _Running(torch.autograd.Function):
    """x / psi; its backward takes nu xhat off the gradient, and both move."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PowerNorm) -> Tensor:
        axes = tuple(i for i in range(x.dim()) if i != 1)
        held = {"running_square": layer.running_square, "num_batches_tracked": layer.num_batches_tracked}
        before, tracked = memory.recall(held, True, True).values()
        square = x.double().square().mean(axes)
        psi = torch.where(tracked < layer.warmup, square, before.double()) + layer.eps
        rate = psi.rsqrt().to(x.dtype).view(-1, *(1,) * (x.dim() - 2))
        xhat = x * rate
        k = layer.momentum
        new = (1 - k) * before.double() + k * square
        memory.move(held, [new, tracked + 1], layer.num_batches_skipped, [square])
        ctx.layer, ctx.axes = layer, axes
        ctx.save_for_backward(xhat, rate)
        return xhat

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        xhat, rate = ctx.saved_tensors
        layer, axes, k = ctx.layer, ctx.axes, ctx.layer.momentum
        nu = layer.running_pull.double()
        dx = (g - nu.to(g.dtype).view(rate.shape) * xhat) * rate
        along, energy = (g * xhat).double().mean(axes), xhat.double().square().mean(axes)
        new = nu * (1 - k * energy) + k * along
        memory.move({"running_pull": layer.running_pull}, [new], layer.num_batches_skipped, [along], again=True)
        return dx, None
