"""Style: every norm of a network sees the reference's mean and spread, over pixels or over tokens."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import homeostat as hs


def pictures():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), hs.nn.GroupNorm(2, 4), nn.ReLU()
    ).eval()


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)). torch's own reads a bias of its norms; RMS norm has none."""

    def __init__(self, norm):
        super().__init__()
        self.norm1, self.norm2, self.attention = norm(), norm(), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        z = self.norm1(x)
        x = x + self.attention(z, z, z, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def tokens(norm):
    """Two blocks of a transformer on tokens [b, t, 5]."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), Block(norm), Block(norm)).eval()


TOKEN_NORMS = {
    "torch's LayerNorm": lambda: nn.LayerNorm(8),
    "torch's RMSNorm": lambda: nn.RMSNorm(8),
    "LayerNorm": lambda: hs.nn.LayerNorm(8),
    "RMSNorm": lambda: hs.nn.RMSNorm(8),
    "ScaleNorm": lambda: hs.nn.ScaleNorm(8),
    "ModalityNorm": lambda: hs.nn.ModalityNorm((5, 3)),
    "per head": lambda: hs.Norm("b t (h d) -> b t h", center=False, gain=hs.Learned("d"), h=2, d=4),
    "per token": lambda: hs.Norm("b t d -> b t", gain=hs.Learned("d"), d=8),
}


@contextmanager
def watched(model, names):
    """What reaches these norms."""
    seen, modules = {}, dict(model.named_modules())
    hooks = [
        modules[name].register_forward_hook(lambda _, args, y, name=name: seen.update({name: args[0].double()}))
        for name in names
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def assert_every_norm_sees_the_style_of(model, content, reference, names, positions):
    before = copy.deepcopy(model.state_dict())
    wanted = hs.styles(model, reference)
    assert list(wanted) == names
    with watched(model, names) as own:
        model(reference)
    with watched(model, names) as seen:
        y = hs.restyle(model, content, reference)
    for name, x in seen.items():
        for read in (lambda z: z.mean(positions), lambda z: z.std(positions, correction=0)):
            torch.testing.assert_close(read(x), read(own[name]).expand(len(x), -1), rtol=1e-3, atol=1e-4)
    assert y.shape == model(content).shape
    assert all(torch.equal(a, before[k]) for k, a in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_restyled_every_norm_of_pictures_sees_the_references_channels_over_its_pixels():
    content, reference = torch.randn(2, 3, 12, 12), torch.randn(1, 3, 16, 16) * 3 + 2
    assert_every_norm_sees_the_style_of(pictures(), content, reference, ["1", "4"], (2, 3))


@pytest.mark.parametrize("norm", TOKEN_NORMS.values(), ids=TOKEN_NORMS)
def test_restyled_every_norm_of_tokens_sees_the_references_features_over_its_tokens(norm):
    content, reference = torch.randn(2, 7, 5), torch.randn(1, 11, 5) * 3 + 2
    names = ["1.norm1", "1.norm2", "2.norm1", "2.norm2"]
    assert_every_norm_sees_the_style_of(tokens(norm), content, reference, names, 1)


@pytest.mark.parametrize(
    ("model", "content"),
    [(pictures(), torch.randn(2, 3, 12, 12)), *((tokens(norm), torch.randn(2, 7, 5)) for norm in TOKEN_NORMS.values())],
    ids=["pictures", *TOKEN_NORMS],
)
def test_restyled_by_itself_an_input_gives_what_it_gave(model, content):
    torch.testing.assert_close(hs.restyle(model, content, content), model(content), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        hs.restyle(model, content, hs.styles(model, content)), model(content), rtol=1e-4, atol=1e-4
    )


def test_tokens_on_a_grid_are_measured_over_the_grid():
    norm, grid = hs.nn.LayerNorm(6), torch.randn(2, 4, 5, 6) + 1
    style = hs.styles(norm, grid)[""]
    torch.testing.assert_close(style.mean, grid.double().mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert style.mean.shape == (2, 6)


def test_a_restyled_input_has_a_gradient():
    model, content = tokens(lambda: hs.nn.LayerNorm(8)), torch.randn(2, 7, 5, requires_grad=True)
    hs.restyle(model, content, torch.randn(1, 11, 5)).square().sum().backward()
    assert content.grad.abs().sum() > 0


def test_where_there_is_no_style_one_is_told():
    with pytest.raises(ValueError, match="has no norm that saw channels with positions"):
        hs.styles(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), torch.randn(4, 3))
    model = pictures()
    style = hs.styles(model, torch.randn(1, 3, 12, 12))
    with pytest.raises(ValueError, match="no style for the norm '4'; it has 1"):
        hs.restyle(model, torch.randn(1, 3, 12, 12), {"1": style["1"]})


def test_a_norm_that_is_called_by_keyword_is_restyled_too():
    class ByName(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = hs.nn.InstanceNorm2d(3)

        def forward(self, x):
            return self.norm(input=x)

    content, reference = torch.randn(1, 3, 6, 6), torch.randn(1, 3, 7, 7) * 3 + 2
    plain = torch.nn.Sequential(hs.nn.InstanceNorm2d(3))
    torch.testing.assert_close(hs.restyle(ByName(), content, reference), hs.restyle(plain, content, reference))


def test_a_norm_of_one_position_has_no_style_and_stays_as_it_is():
    squeezed = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    net = nn.Sequential(nn.BatchNorm2d(3), squeezed).eval()
    content, reference = torch.randn(2, 3, 6, 6), torch.randn(1, 3, 9, 9) * 3 + 2
    assert list(hs.styles(net, reference)) == ["0"]
    plain = hs.restyle(net[:1], content, reference)
    torch.testing.assert_close(hs.restyle(net, content, reference), squeezed(plain))
