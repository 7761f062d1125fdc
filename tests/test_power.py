"""Power norm step by step, in float64 without autograd."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import homeostat as hs


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_five_steps_are_those_of_the_paper(warmup, checkpointed):
    torch.manual_seed(0)
    norm, k, eps = hs.nn.PowerNorm(3, momentum=0.2, warmup=warmup).double(), 0.2, 1e-5
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    square, nu = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for step in range(5):
        x = (torch.randn(8, 3, 4, dtype=torch.float64) * (step + 1)).requires_grad_()
        dy = torch.randn_like(x)
        y = checkpoint(norm, x, use_reentrant=False) if checkpointed else norm(x)
        y.backward(dy)
        own = x.detach().square().mean((0, 2))
        psi = ((own if step < warmup else square) + eps).sqrt()[:, None]
        xhat, g = x.detach() / psi, dy * norm.weight.detach()[:, None]
        torch.testing.assert_close(y, xhat * norm.weight[:, None] + norm.bias[:, None])
        torch.testing.assert_close(x.grad, (g - nu[:, None] * xhat) / psi)
        square = (1 - k) * square + k * own
        nu = nu * (1 - k * xhat.square().mean((0, 2))) + k * (g * xhat).mean((0, 2))
        torch.testing.assert_close(norm.running_square, square)
        torch.testing.assert_close(norm.running_pull, nu)
    assert norm.num_batches_tracked == 5
    x = torch.randn(8, 3, 4, dtype=torch.float64)
    want = x / (square + eps).sqrt()[:, None] * norm.weight[:, None] + norm.bias[:, None]
    torch.testing.assert_close(norm.eval()(x), want)


def test_a_batch_that_is_not_finite_moves_nothing():
    norm = hs.nn.PowerNorm(2)
    norm(torch.tensor([[1.0, math.inf]]))
    assert norm.num_batches_skipped == 1
    assert norm.num_batches_tracked == 0
    assert norm.running_square.eq(1).all()


def test_a_second_derivative_is_refused():
    norm, x = hs.nn.PowerNorm(2), torch.randn(4, 2, requires_grad=True)
    (dx,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_frozen_and_tried_power_norm_remembers_nothing():
    norm = hs.nn.PowerNorm(2)
    before = {name: b.clone() for name, b in norm.named_buffers()}
    with hs.trial(norm):
        norm(torch.randn(4, 2))
    hs.freeze(norm, inplace=True)
    norm(torch.randn(4, 2))
    assert all(torch.equal(b, before[name]) for name, b in norm.named_buffers())
    hs.unfreeze(norm, inplace=True)[0](torch.randn(4, 2))
    assert norm.num_batches_tracked == 1
