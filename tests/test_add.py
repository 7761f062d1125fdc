"""`layer.add(x, r)` is x + r and the layer of that, with both gradients, wherever it runs."""

import pytest
import torch

import homeostat as hs
from homeostat.kernels import cpu

LAYERS = {
    "layer norm": lambda: hs.nn.LayerNorm(64),
    "layer norm without bias": lambda: hs.nn.LayerNorm(64, bias=False),
    "layer norm without gain": lambda: hs.nn.LayerNorm(64, elementwise_affine=False),
    "RMS norm": lambda: hs.nn.RMSNorm(64, eps=1e-5),
    "per head": lambda: hs.Norm("b t (h d) -> b t h", gain=hs.Learned("d"), h=4, d=16),
    "group norm": lambda: hs.Norm("b t d -> b d", gain=hs.Learned("d"), d=64),
}


def results(f, layer, x, r, weights):
    x, r = x.detach().clone().requires_grad_(), r.detach().clone().requires_grad_()
    layer.zero_grad()
    total, y = f(x, r)
    loss = sum((w * t).sum() for w, t in zip(weights, (total, y), strict=True) if w is not None)
    loss.backward()
    return (total.detach(), y.detach(), x.grad, r.grad, *(p.grad for p in layer.parameters()))


@pytest.mark.parametrize("used", ["both", "sum", "normalized"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compiled", [False, True])
def test_adding_and_normalizing_in_one_pass_is_adding_and_then_normalizing(name, used, dtype, compiled):
    torch.manual_seed(0)
    layer = LAYERS[name]().to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p) / 3)
    x, r = torch.randn(3, 5, 64, dtype=dtype) + 2, torch.randn(3, 5, 64, dtype=dtype)
    weights = (None if used == "normalized" else torch.randn_like(x), None if used == "sum" else torch.randn_like(x))
    got = results(torch.compile(layer.add) if compiled else layer.add, layer, x, r, weights)
    want = results(lambda x, r: (x + r, layer(x + r)), layer, x, r, weights)
    for a, b in zip(got, want, strict=True):
        if used == "sum" and (a is None or b is None):  # nothing flowed to the gain
            assert a is None or not a.any()
            continue
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_sum_is_rounded_to_its_dtype_before_it_is_normalized():
    torch.manual_seed(0)
    x, r = torch.randn(4, 64).bfloat16(), torch.randn(4, 64).bfloat16()
    layer = hs.nn.LayerNorm(64)
    total, y = layer.add(x, r)
    assert torch.equal(total, x + r)
    assert torch.equal(y, layer(x + r))


@pytest.mark.skipif(cpu.native is None, reason=f"no native part: {cpu.info().get('reason')}")
def test_a_second_derivative_goes_through_the_reference():
    torch.manual_seed(0)
    layer = hs.nn.LayerNorm(8)
    x, r = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8)

    def second(f):
        total, y = f(x, r)
        (g,) = torch.autograd.grad((y**3).sum() + (total**2).sum(), x, create_graph=True)
        return torch.autograd.grad((g**2).sum(), x)[0]

    torch.testing.assert_close(second(layer.add), second(lambda x, r: (x + r, layer(x + r))), rtol=1e-4, atol=1e-3)


def test_tensors_of_other_shapes_and_strides_are_added_as_torch_adds_them():
    layer = hs.nn.LayerNorm(8)
    x = torch.randn(3, 4, 8)
    for r in (torch.randn(8), torch.randn(3, 4, 16)[..., ::2], torch.randn(4, 3, 8).transpose(0, 1), torch.randn(())):
        total, y = layer.add(x, r)
        torch.testing.assert_close(total, x + r)
        torch.testing.assert_close(y, layer(x + r))
