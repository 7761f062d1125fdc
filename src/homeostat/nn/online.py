"""Online norm: every sample by what was seen before it, and a backward of its own that is held by two controls.

    y_t = (x_t - mu) / sigma      mu <- mu + k (m_t - mu)      sigma^2 <- (1 - k) (sigma^2 + k (m_t - mu)^2) + k v_t
    g'  = g_t - j a y_t           a <- a + mean (g' y_t)
    dx  = g' / sigma - j b        b <- b + mean dx

On the right stands what was there before sample t. m_t and v_t are its mean and variance, channel by channel, k and j
the shares of a new sample. a and b stand for what would flow back through sigma and mu: they grow until the gradient
has no component along y and no mean.

From one sample to the next go four numbers per channel, each by s <- r s + u, where r and u are known for all samples
at once: a batch is no different from its samples one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homeostat import memory
from homeostat.errors import number, whole
from homeostat.nn.inputs import check_input
from homeostat.reading import measure, normalize


class OnlineNorm(nn.Module):
    """z / sqrt(mean_n z^2 + eps), z = w (x - mu_c) / sigma_c + b, mu and sigma running over the samples before.

    The root is over all channels of a sample (layer scaling), so that an error of mu and sigma does not grow from
    layer to layer. `momentum` and `control` are the shares of a new sample, forwards and backwards. x is [n, c, ...].
    Chiley et al. 2019, arXiv:1905.05894.
    """

    pattern = "n c ... -> n c"
    running_mean: Tensor
    running_var: Tensor
    running_along: Tensor
    running_level: Tensor
    num_batches_skipped: Tensor

    def __init__(
        self, channels: int, momentum: float = 0.001, control: float = 0.01, eps: float = 1e-5, **kind: Any
    ) -> None:
        super().__init__()
        channels, self.eps = whole("channels", channels), number("eps", eps, least=0)
        self.momentum, self.control = number("momentum", momentum, 0, 1), number("control", control, 0, 1)
        self.frozen = False  # by hs.freeze
        self.weight = nn.Parameter(torch.ones(channels, **kind))
        self.bias = nn.Parameter(torch.zeros(channels, **kind))
        for name in ("mean", "var", "along", "level"):
            self.register_buffer(f"running_{name}", torch.full((channels,), float(name == "var"), **kind))
        skipped = torch.zeros((), dtype=torch.int64, device=kind.get("device"))
        self.register_buffer("num_batches_skipped", skipped, persistent=False)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its backward writes memory, which no graph may
    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.weight.shape[0], axis=1)
        if not self.training or self.frozen:
            rate = (self.running_var + self.eps).rsqrt()
            y = (x - _beside(self.running_mean, x)) * _beside(rate, x)
        else:
            y = _Online.apply(x, self)  # type: ignore[no-untyped-call]
        z = y * _beside(self.weight, x) + _beside(self.bias, x)
        scaled: Tensor = normalize(z, "n ... -> n", eps=self.eps, center=False)
        return scaled.to(x.dtype)


class _Online(torch.autograd.Function):
    """(x - mu) / sigma; its backward takes what a and b say off the gradient, and all four move."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: OnlineNorm) -> Tensor:
        held = {"running_mean": layer.running_mean, "running_var": layer.running_var}
        mean, var = (before.double() for before in memory.recall(held, True, True).values())
        k, m = layer.momentum, measure(x, layer.pattern)
        stay = torch.full_like(m.mean, 1 - k)
        mu, mean = _walk(mean, stay, k * m.mean)
        sigma2, var = _walk(var, stay, k * m.var() + k * (1 - k) * (m.mean - mu) ** 2)
        memory.move(held, [mean, var], layer.num_batches_skipped, [m.mean, m.m2])
        rate = (sigma2 + layer.eps).rsqrt()
        y = ((x.double() - _beside(mu, x)) * _beside(rate, x)).to(x.dtype)
        ctx.layer = layer
        ctx.save_for_backward(y, rate)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        kept, rate = ctx.saved_tensors
        layer, j, kind, y, g = ctx.layer, ctx.layer.control, g.dtype, kept.double(), g.double()
        held = {"running_along": layer.running_along, "running_level": layer.running_level}
        along, level = (before.double() for before in held.values())
        pull = _means(g * y)
        a, along = _walk(along, 1 - j * _means(y * y), pull)
        b, level = _walk(level, torch.full_like(rate, 1 - j), (_means(g) - j * a * _means(y)) * rate)
        memory.move(held, [along, level], layer.num_batches_skipped, [pull], again=True)
        dx = (g - j * _beside(a, g) * y) * _beside(rate, g) - j * _beside(b, g)
        return dx.to(kind), None


def _walk(state: Tensor, stay: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """s <- stay_t s + new_t, t by t: what stood before each t, and after the last.

    Two steps are one, (r, u) then (r', u') = (r r', r' u + u'), so that runs of 1, 2, 4, ... steps are joined.
    """
    run = 1
    while run < len(new):
        new = torch.cat([new[:run], new[run:] + stay[run:] * new[:-run]])
        stay = torch.cat([stay[:run], stay[run:] * stay[:-run]])
        run *= 2
    states = torch.cat([state[None], stay * state + new])
    return states[:-1], states[-1]


def _means(x: Tensor) -> Tensor:
    """Of each channel of each sample."""
    return x.flatten(2).mean(-1) if x.dim() > 2 else x


def _beside(p: Tensor, x: Tensor) -> Tensor:
    """A number per channel, or per sample and channel, beside x [n, c, ...]."""
    return p.view(*p.shape, *(1,) * (x.dim() - 2))
