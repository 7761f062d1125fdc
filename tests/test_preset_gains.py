"""A preset of torch's puts back what its gain= says, and is torch's otherwise."""

import pytest
import torch
import torch.nn.functional as F

import homeostat as hs

PER_CHANNEL, LAST = hs.Learned("c"), hs.Learned("d")
SAME = {  # with torch's own w and b, with the gain that is the same, an input
    "BatchNorm1d": ((6,), PER_CHANNEL, (5, 6)),
    "BatchNorm2d": ((6,), PER_CHANNEL, (5, 6, 3, 2)),
    "BatchNorm3d": ((6,), PER_CHANNEL, (5, 6, 3, 2, 2)),
    "InstanceNorm1d": ((6,), PER_CHANNEL, (5, 6, 4)),
    "InstanceNorm2d": ((6,), PER_CHANNEL, (6, 4, 3)),  # one sample without its axis
    "InstanceNorm3d": ((6,), PER_CHANNEL, (5, 6, 3, 2, 2)),
    "GroupNorm": ((2, 6), hs.Learned("(g c)"), (5, 6, 4)),
    "LayerNorm": ((6,), LAST, (5, 3, 6)),
    "RMSNorm": ((6,), hs.Learned("d", bias=False), (5, 3, 6)),
}


@pytest.mark.parametrize("name", SAME)
def test_a_preset_with_torchs_gain_given_takes_torchs_checkpoint_and_is_torchs(name):
    torch.manual_seed(0)
    args, gain, shape = SAME[name]
    theirs = getattr(torch.nn, name)(*args, **({"affine": True} if "Instance" in name else {}))
    ours = getattr(hs.nn, name)(*args, gain=gain)
    for p in theirs.parameters():
        p.data.normal_()
    assert all(torch.equal(p, torch.full_like(p, name == "weight")) for name, p in ours.named_parameters())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape) * 2 + 3
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    ours.reset_parameters()
    assert all((p == (name == "weight")).all() for name, p in ours.named_parameters())
    assert ours.extra_repr().endswith(f"gain={gain}")


def modulated(f, cond):
    return (part.double() for part in f.modulation(cond).chunk(2, -1))


def balanced(f):
    parts = [v * (3 / (v * v).sum()) ** 0.5 for v in f.weight.double().split((2, 4))]
    return torch.cat(parts), 0


COND, KIND = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 1, 0])
TOKENS = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(2))
GIVEN = {  # the preset, its input, what comes with the call, torch's layer without w and b, and these by hand
    "BatchNorm2d, Conditional": (
        lambda: hs.nn.BatchNorm2d(6, gain=hs.Conditional("kind[n] c", classes=3)),
        (4, 6, 5, 3),
        {"kind": KIND},
        lambda: torch.nn.BatchNorm2d(6, affine=False),
        lambda f: (p.double()[KIND][:, :, None, None] for p in (f.weight, f.bias)),
    ),
    "GroupNorm, FiLM": (
        lambda: hs.nn.GroupNorm(2, 6, gain=hs.FiLM("n (g c)", width=5)),
        (4, 6, 5),
        {"cond": COND},
        lambda: torch.nn.GroupNorm(2, 6, affine=False),
        lambda f: (part[:, :, None] + one for part, one in zip(modulated(f, COND), (1, 0), strict=True)),
    ),
    "LayerNorm, FiLM of every token": (
        lambda: hs.nn.LayerNorm(6, gain=hs.FiLM("... d", width=5)),
        (4, 3, 6),
        {"cond": TOKENS},
        lambda: torch.nn.LayerNorm(6, elementwise_affine=False),
        lambda f: (part + one for part, one in zip(modulated(f, TOKENS), (1, 0), strict=True)),
    ),
    "RMSNorm, Balanced": (
        lambda: hs.nn.RMSNorm(6, gain=hs.Balanced("d", bias=False, blocks=(2, 4))),
        (4, 3, 6),
        {},
        lambda: torch.nn.RMSNorm(6, elementwise_affine=False),
        balanced,
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_preset_puts_back_the_gain_it_was_given(name):
    torch.manual_seed(0)
    make, shape, given, plain, by_hand = GIVEN[name]
    ours, x = make(), torch.randn(shape) * 2 + 3
    for p in ours.parameters():
        p.data.add_(torch.randn_like(p) / 4)
    x.requires_grad_()
    got, y = ours(x, **given), plain().double()(x.double())
    w, b = by_hand(ours)
    want = y * w + b
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    wanted, dy = (x, *ours.parameters()), torch.randn_like(x)
    of_want = torch.autograd.grad(want, wanted, dy.double())
    torch.testing.assert_close(torch.autograd.grad(got, wanted, dy), of_want, rtol=1e-4, atol=1e-4)
    with hs.given(**given):
        assert torch.equal(ours.eval()(x), ours(x, **given))
        if hasattr(ours, "add"):
            torch.testing.assert_close(ours.add(x, x), (2 * x, ours(2 * x)))


def test_a_gain_and_what_it_decides_may_not_both_be_given():
    gain = hs.Learned("c")
    for make, said in (
        (lambda: hs.nn.BatchNorm2d(6, affine=False, gain=gain), "BatchNorm2d: gain=.* decides affine= itself"),
        (lambda: hs.nn.BatchNorm2d(6, 1e-5, 0.1, True, gain=gain), "decides affine= itself"),
        (lambda: hs.nn.LayerNorm(6, elementwise_affine=True, gain=LAST), "decides elementwise_affine= itself"),
        (lambda: hs.nn.LayerNorm(6, bias=False, gain=LAST), "decides bias= itself"),
        (lambda: hs.nn.RMSNorm(6, gain=LAST), "RMSNorm puts back no b: give Learned bias=False"),
        (lambda: hs.nn.LazyBatchNorm2d(gain=gain), "LazyBatchNorm2d learns its size later.* use BatchNorm2d"),
        (lambda: hs.nn.BatchNorm2d(6, gain="c"), "gain='c' is not a gain"),
    ):
        with pytest.raises(TypeError, match=said):
            make()
    with pytest.raises(hs.FrameError, match="keeps d, which is not an axis"):
        hs.nn.BatchNorm2d(6, gain=hs.Learned("d"))


@pytest.mark.parametrize("name", ["GroupNorm", "LayerNorm", "RMSNorm"])
def test_what_nobody_asks_for_is_refused(name):
    args, _, shape = SAME[name]
    plain, x = getattr(hs.nn, name)(*args), torch.randn(shape)
    for call in (plain, *((lambda x, **given: plain.add(x, x, **given),) if hasattr(plain, "add") else ())):
        with pytest.raises(hs.FrameError, match="no label kind"):
            call(x, kind=(KIND, 3))


def test_a_preset_with_a_gain_goes_with_a_source_and_is_not_released():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5, 3)
    layer = hs.nn.BatchNorm2d(6, source=hs.Domain(3), gain=hs.Conditional("kind[n] c", classes=3))
    y = layer(x, kind=KIND, domain=(KIND, 3))
    for k in range(3):
        mine = k == KIND
        torch.testing.assert_close(y[mine], F.batch_norm(x[mine], None, None, training=True))
    with pytest.warns(UserWarning, match="torch.nn has no (source|gain)"):
        assert type(hs.release(layer)) is hs.nn.BatchNorm2d
    with pytest.warns(UserWarning, match="torch.nn has no gain Conditional"):
        hs.release(hs.nn.BatchNorm2d(6, gain=hs.Conditional("kind[n] c", classes=3)))
