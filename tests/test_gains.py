"""Gains: a table looked up by label or mixed by shares, and a style that is kept."""

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


# ---------------------------------------------------------------- shares of the kinds


def test_shares_mix_the_gains_of_the_kinds_and_get_a_gradient_as_x_and_the_table_do():
    norm, x, _ = layer()
    shares = torch.randn(5, 3).requires_grad_()  # they need not add up to 1
    dy = torch.randn_like(x)
    x.requires_grad_()
    y = norm(x, kind=shares)
    w, b = (shares.double() @ table.double() for table in (norm.weight, norm.bias))
    want = F.batch_norm(x.double(), None, None, training=True) * w[:, :, None, None] + b[:, :, None, None]
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
    wanted = (x, shares, norm.weight, norm.bias)
    got = torch.autograd.grad(y, wanted, dy)
    torch.testing.assert_close(got, torch.autograd.grad(want, wanted, dy.double()), rtol=1e-4, atol=1e-4)


def test_shares_that_are_one_hot_are_codes_to_the_bit():
    norm, x, kind = layer()
    assert torch.equal(norm(x, kind=F.one_hot(kind, 3).float()), norm(x, kind=kind))
    with hs.given(kind=F.one_hot(kind, 3).double()):
        assert torch.equal(norm(x), norm(x, kind=(kind, 3)))


def test_a_label_may_span_several_axes_and_keep_one_number_or_a_table_per_kind():
    torch.manual_seed(0)
    x, codes = torch.randn(2, 4, 6), torch.randint(0, 3, (2, 4))
    shares = torch.rand(2, 4, 3)
    y = F.layer_norm(x.double(), (6,))
    for keep, shape in (("kind[n t]", (1,)), ("kind[n t] d", (6,)), ("kind[n t] h k", (6,))):
        pattern, sizes = ("n t (h k) -> n t", {"h": 2, "k": 3}) if "h" in keep else ("n t d -> n t", {"d": 6})
        norm = hs.Norm(pattern, gain=hs.Conditional(keep, classes=3), **sizes)
        with torch.no_grad():
            norm.weight.normal_(), norm.bias.normal_()
        w, b = (p.detach().double().view(3, *shape) for p in (norm.weight, norm.bias))
        torch.testing.assert_close(norm(x, kind=codes).double(), y * w[codes] + b[codes], rtol=1e-5, atol=1e-5)
        mixed = y * (shares.double() @ w) + shares.double() @ b
        torch.testing.assert_close(norm(x, kind=shares).double(), mixed, rtol=1e-5, atol=1e-5)


def test_an_embedding_of_kinds_that_layers_share_is_film():
    torch.manual_seed(0)
    x, kind, embedding = torch.randn(5, 6, 4, 4), torch.tensor([2, 0, 0, 1, 2]), torch.nn.Embedding(3, 7)
    film = hs.nn.BatchNorm2d(6, gain=hs.FiLM("n c", width=7))
    table = hs.nn.BatchNorm2d(6, gain=hs.Conditional("kind[n] c", classes=3))
    with torch.no_grad():
        s, t = film.modulation(embedding.weight).chunk(2, -1)
        table.weight.copy_(1 + s), table.bias.copy_(t)
    with hs.given(cond=embedding(kind), kind=kind):
        torch.testing.assert_close(film(x), table(x))


def test_shares_that_do_not_fit_are_refused_in_a_sentence():
    norm, x, kind = layer()
    for shape in ((5, 2), (4, 3), (5, 3, 1)):
        with pytest.raises(hs.ShapeError, match=r"needs shares of shape \(5, 3\) for this x"):
            norm(x, kind=torch.rand(shape))
    grouped = hs.Norm("n c -> kind[n] c", gain=hs.Conditional("kind[n] c"), kind=3, c=6)
    with pytest.raises(hs.FrameError, match=r"measures each kind by itself, so kind= takes codes and no shares"):
        grouped(torch.randn(5, 6), kind=F.one_hot(kind, 3).float())
    with pytest.raises(hs.FrameError, match=r"code -1 is not in 0\.\.2"):
        norm(x, kind=kind - 1)


def test_the_number_of_kinds_is_the_gains_or_the_layers_and_not_two():
    gain = hs.Conditional("kind[n] c", classes=3)
    for norm in (hs.Norm("n c -> c", gain=gain, c=4), hs.Norm("n c -> c", gain=gain, c=4, kind=3)):
        assert norm.weight.shape == (3, 4)
    for bad in ({"kind": 4}, {"kind": 2}):
        with pytest.raises(hs.FrameError, match="give their number, classes="):
            hs.Norm("n c -> c", gain=gain, c=4, **bad)
    with pytest.raises(hs.FrameError, match="is told no kinds: give their number, classes="):
        hs.Norm("n c -> c", gain=hs.Conditional("kind[n] c"), c=4)
    for bad in (-3, 2.5, True):
        with pytest.raises(ValueError, match="give a whole number of at least 1"):
            hs.nn.BatchNorm1d(4, gain=hs.Conditional("kind[n] c", classes=bad))


# ---------------------------------------------------------------- a style that is kept


def test_a_reference_is_kept_as_the_style_of_every_call_that_brings_none():
    torch.manual_seed(0)
    x, reference, other = torch.randn(4, 6, 5, 3), torch.randn(1, 6, 9, 8) * 3 - 1, torch.randn(1, 6, 7, 7)
    asked = hs.Norm("n c ... -> n c", gain=hs.Style("n c"), c=6)
    kept = hs.Norm("n c ... -> n c", gain=hs.Style("n c", reference=reference), c=6)
    moments = hs.Norm("n c ... -> n c", gain=hs.Style("n c", reference=hs.measure(reference, "n c ... -> n c")), c=6)
    assert torch.equal(kept(x), asked(x, style=reference))
    assert torch.equal(moments(x), kept(x))
    assert torch.equal(kept(x, style=other), asked(x, style=other))
    fresh = hs.Norm("n c ... -> n c", gain=hs.Style("n c", reference=other), c=6)
    fresh.load_state_dict(kept.state_dict())
    assert torch.equal(fresh(x), kept(x))
    assert kept.gain == asked.gain  # the layer holds two numbers per channel, and not the picture
    with pytest.raises(TypeError, match="needs the tensor or the Moments whose style it puts on"):
        asked(x)


def test_a_style_without_a_mean_puts_on_the_spread_alone():
    torch.manual_seed(0)
    x, style = torch.randn(4, 6, 5, 3) + 2, torch.randn(4, 6, 9, 8) * 3 - 1
    y = hs.Norm("n c ... -> n c", gain=hs.Style("n c", bias=False), c=6)(x, style=style)
    assert y.mean((2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(y.std((2, 3), correction=0), style.std((2, 3), correction=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [4, "ab", (2.0, 6.0), (True, 7), (0, 8), (-1, 9)])
def test_blocks_that_are_no_widths_are_refused_in_one_sentence(blocks):
    with pytest.raises(ValueError, match=r"blocks.*give (a )?whole number"):
        hs.Balanced("d", blocks=blocks)


@pytest.mark.parametrize(
    ("groups", "said"), [(4, "do not part into 4 equal groups"), (0, "groups=0: give a whole number")]
)
def test_an_adaptive_group_norm_refuses_groups_that_do_not_divide(groups, said):
    with pytest.raises(ValueError, match=said):
        hs.nn.AdaGroupNorm(groups, 6, 5)
