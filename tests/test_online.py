"""Online norm sample by sample, in float64 without autograd, as its paper has it."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import homeostat as hs

D = torch.float64
SHAPES = [(6, 3, 4, 2), (5, 3, 7), (7, 3), (1, 3, 4), (0, 3, 4)]


class Paper:
    """One sample after the other: x_t [c, pixels], alpha the share that stays, e the two accumulated errors."""

    def __init__(self, channels, alpha_f=0.8, alpha_b=0.7, eps=1e-5):
        self.alpha_f, self.alpha_b, self.eps = alpha_f, alpha_b, eps
        self.mu, self.var = torch.zeros(channels, 1, dtype=D), torch.ones(channels, 1, dtype=D)
        self.e_y, self.e_1 = torch.zeros(channels, 1, dtype=D), torch.zeros(channels, 1, dtype=D)

    def forward(self, x):
        sigma = (self.var + self.eps).sqrt()
        y, level = (x - self.mu) / sigma, x.mean(1, keepdim=True)
        spread, a = (x - level).square().mean(1, keepdim=True), self.alpha_f
        self.var = a * self.var + (1 - a) * spread + a * (1 - a) * (level - self.mu).square()
        self.mu = a * self.mu + (1 - a) * level
        return y, sigma

    def backward(self, dy, y, sigma):
        along = dy - (1 - self.alpha_b) * self.e_y * y
        self.e_y = self.e_y + (along * y).mean(1, keepdim=True)
        dx = along / sigma - (1 - self.alpha_b) * self.e_1
        self.e_1 = self.e_1 + dx.mean(1, keepdim=True)
        return dx


def made(shape):
    torch.manual_seed(0)
    norm = hs.nn.OnlineNorm(3, momentum=0.2, control=0.3).double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    return norm, [torch.randn(shape, dtype=D) * (step + 1) + step for step in range(4)]


def layer_scaled(norm, y):
    """What follows the statistics, which autograd may differentiate."""
    z = y * norm.weight.view(3, *(1,) * (y.dim() - 2)) + norm.bias.view(3, *(1,) * (y.dim() - 2))
    return z / (z.square().mean(tuple(range(1, y.dim())), keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_four_batches_are_those_of_the_paper_sample_by_sample(shape, checkpointed):
    norm, batches = made(shape)
    paper = Paper(3)
    for x in batches:
        x.requires_grad_()
        got = checkpoint(norm, x, use_reentrant=False) if checkpointed else norm(x)
        dz = torch.randn_like(got)
        samples = [paper.forward(sample.detach().reshape(3, -1)) for sample in x]
        y = torch.cat([y.reshape(1, *shape[1:]) for y, _ in samples] + [x.detach()[:0]]).requires_grad_()
        want = layer_scaled(norm, y)
        torch.testing.assert_close(got, want)
        norm.zero_grad()
        got.backward(dz)
        dy, dw, db = torch.autograd.grad(want, (y, norm.weight, norm.bias), dz)
        dx = [paper.backward(g.reshape(3, -1), *sample) for g, sample in zip(dy, samples, strict=True)]
        torch.testing.assert_close(x.grad, torch.stack(dx).view(shape) if dx else x.detach())
        torch.testing.assert_close(norm.weight.grad, dw)
        torch.testing.assert_close(norm.bias.grad, db)
        for name, want in (("mean", paper.mu), ("var", paper.var), ("along", paper.e_y), ("level", paper.e_1)):
            torch.testing.assert_close(getattr(norm, f"running_{name}"), want[:, 0])
    x = torch.randn(4, *shape[1:], dtype=D)
    y = torch.stack([((z.reshape(3, -1) - paper.mu) / (paper.var + 1e-5).sqrt()).view(shape[1:]) for z in x])
    torch.testing.assert_close(norm.eval()(x), layer_scaled(norm, y))


def test_a_batch_is_its_samples_one_by_one():
    whole, (x, g, *_) = made((6, 3, 4))
    single, _ = made((6, 3, 4))
    for norm, parts in ((whole, 1), (single, 6)):
        norm.got = []
        for part, dy in zip(x.chunk(parts), g.chunk(parts), strict=True):
            part = part.clone().requires_grad_()
            norm(part).backward(dy)
            norm.got.append(part.grad)
    torch.testing.assert_close(torch.cat(whole.got), torch.cat(single.got))
    for name, b in whole.named_buffers():
        torch.testing.assert_close(b, single.get_buffer(name))


def test_the_controls_take_from_the_gradient_its_mean_and_what_is_along_x():
    def left(control):
        torch.manual_seed(0)
        norm = hs.nn.OnlineNorm(3, momentum=0.02, control=control).double()
        for _ in range(40):
            x = (torch.randn(64, 3, 8, dtype=D) * 2 + 3).requires_grad_()
            z = norm(x)
            z.backward(torch.tensor([[1.0], [-1.0], [0.5]]) * (z.detach() + 1))
        around = x.detach() - x.mean((0, 2), keepdim=True).detach()
        return x.grad.mean((0, 2)).abs(), (x.grad * around).mean((0, 2)).abs()

    for controlled, free in zip(left(0.05), left(0.0), strict=True):
        assert (controlled < free / 10).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision_stays_what_it_is_and_near(dtype, tolerance):
    want, (_, x, *_) = made((6, 3, 4))
    norm = hs.nn.OnlineNorm(3, momentum=0.2, control=0.3)
    norm.load_state_dict(want.state_dict())
    for mode in (True, False):
        y = norm.train(mode)(x.to(dtype))
        assert y.dtype is dtype
        torch.testing.assert_close(y.double(), want.train(mode)(x), rtol=tolerance, atol=tolerance)


def test_a_batch_that_is_not_finite_moves_nothing():
    norm = hs.nn.OnlineNorm(2)
    norm(torch.tensor([[1.0, math.inf], [1.0, 2.0]]))
    assert norm.num_batches_skipped == 1
    x = torch.randn(3, 2, requires_grad=True)
    norm(x).backward(torch.full_like(x, math.nan))
    assert norm.num_batches_skipped == 2
    assert norm.running_along.eq(0).all()
    assert norm.running_level.eq(0).all()


def test_frozen_and_tried_online_norm_remembers_nothing():
    norm = hs.nn.OnlineNorm(2)
    before = {name: b.clone() for name, b in norm.named_buffers()}
    with hs.trial(norm):
        norm(torch.randn(4, 2, requires_grad=True)).sum().backward()
    hs.freeze(norm, inplace=True)
    norm(torch.randn(4, 2, requires_grad=True)).sum().backward()
    assert all(torch.equal(b, before[name]) for name, b in norm.named_buffers())
    hs.unfreeze(norm, inplace=True)[0](torch.randn(4, 2))
    assert not norm.running_mean.eq(0).all()


def test_a_second_derivative_is_refused():
    norm, x = hs.nn.OnlineNorm(2), torch.randn(4, 2, requires_grad=True)
    (dx,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
