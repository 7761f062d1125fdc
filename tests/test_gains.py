"""A gain by label is a table of gains, looked up per sample."""

import pytest
import torch
import torch.nn.functional as F

import homeostat as hs


def layer(last=False):
    torch.manual_seed(0)
    norm = hs.Norm("n c h w -> c", source=hs.Running(0.1), gain=hs.Conditional("kind[n] c"), kind=3, c=6)
    with torch.no_grad():
        norm.weight.add_(torch.randn(3, 6) / 3)
        norm.bias.add_(torch.randn(3, 6))
    x = torch.randn(5, 6, 7, 9) * 2 + 3
    return norm, x.contiguous(memory_format=torch.channels_last) if last else x, torch.tensor([2, 0, 0, 1, 2])


def by_hand(norm, x, kind, training=True):
    running = (None, None) if training else (norm.running_mean.double(), norm.running_var.double())
    y = F.batch_norm(x.double(), *running, training=training)
    w, b = norm.weight.double()[kind], norm.bias.double()[kind]
    return y * w[:, :, None, None] + b[:, :, None, None]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_each_sample_gets_the_gain_of_its_kind_and_each_kind_its_gradient(last, compiled):
    norm, x, kind = layer(last)
    f = torch.compile(norm) if compiled else norm
    dy = torch.randn_like(x)
    x.requires_grad_()
    y = f(x, kind=(kind, 3))
    got = torch.autograd.grad(y, (x, norm.weight, norm.bias), dy)
    want_y = by_hand(norm, x, kind)
    torch.testing.assert_close(y.double(), want_y, rtol=1e-5, atol=1e-5)
    want = torch.autograd.grad(want_y, (x, norm.weight, norm.bias), dy.double())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_in_evaluation_the_remembered_statistics_serve():
    norm, x, kind = layer()
    norm(x, kind=(kind, 3))
    norm.eval()
    torch.testing.assert_close(norm(x, kind=(kind, 3)).double(), by_hand(norm, x, kind, False), rtol=1e-5, atol=1e-5)


def test_labels_that_are_missing_or_of_another_number_are_refused_by_name():
    norm, x, kind = layer()
    for given in ({}, {"kind": kind.float()}, {"kind": (kind, 4)}):
        with pytest.raises(hs.FrameError, match=r"or \(codes, 3\)"):
            norm(x, **given)
    for given in (kind + 1, (kind + 1, 3)):
        with pytest.raises(hs.FrameError, match="code 3"):
            norm(x, kind=given)
    with pytest.raises(hs.FrameError, match="stands first"):
        hs.Norm("n c -> c", gain=hs.Conditional("c kind[n]"), kind=3, c=6)


def test_a_table_of_gains_is_saved_and_loaded():
    norm, x, kind = layer()
    again, _, _ = layer()
    with torch.no_grad():
        again.weight.zero_()
    again.load_state_dict(norm.state_dict())
    assert torch.equal(again(x, kind=(kind, 3)), norm(x, kind=(kind, 3)))


def test_codes_alone_are_enough_where_the_layer_knows_how_many_kinds_there_are():
    torch.manual_seed(0)
    norm = hs.Norm("n c -> c", gain=hs.Conditional("kind[n] c"), kind=3, c=4)
    with torch.no_grad():
        norm.weight.normal_()
    x, codes = torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    torch.testing.assert_close(norm(x, kind=codes), norm(x, kind=(codes, 3)))
