"""The pool hands out memory nobody uses, keeps no more than it may, and changes no result."""

import pytest
import torch

import homeostat as hs
from homeostat.kernels import outputs

ROWS = 32 << 20 >> 12  # of 1024 floats: 32 MiB


def test_memory_of_tensors_that_are_gone_is_used_again_and_of_tensors_in_use_never():
    x = torch.randn(ROWS, 1024)
    with hs.kernels.pool(100 << 20) as pool:
        a = pool.like(x)
        b = pool.like(x)
        assert a.data_ptr() != b.data_ptr()
        kept, at = a[5:7], a.data_ptr()
        del a
        assert pool.like(x).data_ptr() != at  # a view still needs it
        del kept
        assert pool.like(x).data_ptr() == at


def test_the_pool_keeps_no_more_than_it_may_and_nothing_small():
    x = torch.empty(ROWS, 1024)
    with hs.kernels.pool(40 << 20) as pool:
        outputs.output_like(torch.empty(8, 8))
        assert pool.held == 0
        held = [outputs.output_like(x) for _ in range(3)]
        assert pool.held == 32 << 20
        del held
        outputs.output_like(torch.empty(ROWS + 1, 1024))
        assert pool.held <= 40 << 20
        pool.clear()
        assert pool.held == 0
    assert outputs._active is None


def test_a_layer_gives_the_same_from_the_pool():
    torch.manual_seed(0)
    x, layer = torch.randn(ROWS, 1024), hs.nn.LayerNorm(1024)
    want = layer(x).detach()
    with hs.kernels.pool(200 << 20):
        for _ in range(3):
            z = x.clone().requires_grad_()
            y = layer(z)
            y.sum().backward()
            assert torch.equal(y, want)
            assert z.grad.abs().max() < 1e-2


def test_a_size_that_is_no_number_of_bytes_is_refused():
    with pytest.raises(ValueError, match="how many bytes"):
        hs.kernels.pool(-1)
