"""A plain batch norm's checkpoint loads, strictly, into every source that keeps a running average, and back."""

import pytest
import torch
from presets import NAMES, assert_same, make

import homeostat as hs

SHAPES = {"BatchNorm1d": (8, 6), "BatchNorm2d": (8, 6, 5, 3), "BatchNorm3d": (8, 6, 2, 3, 2)}
SOURCES = {
    "Running": hs.Running,
    "Cumulative": hs.Cumulative,
    "Running auto": lambda: hs.Running("auto"),
    "Renorm": hs.Renorm,
    "Renorm on a schedule": lambda: hs.Renorm(schedule=((0, 1.0, 0.0), (9, 3.0, 5.0))),
    "Domain": lambda: hs.Domain(3),
    "Domain of renorm": lambda: hs.Domain(3, hs.Renorm()),
    "Domain of auto": lambda: hs.Domain(3, hs.Running("auto")),
    "Domain of shrunk": lambda: hs.Domain(3, hs.Shrunk(1e12)),
    "Domain of ghost": lambda: hs.Domain(3, hs.Ghost(2)),
    "Ghost of domain": lambda: hs.Ghost(4, hs.Domain(3)),
    "Ghost of renorm": lambda: hs.Ghost(4, hs.Renorm()),
    "Shrunk of domain": lambda: hs.Shrunk(1e12, hs.Domain(3)),
    "Blended of domain": lambda: hs.Blended(inner=hs.Domain(3)),
    "Ghost": lambda: hs.Ghost(4),
    "Shrunk": lambda: hs.Shrunk(1e12),  # memory alone speaks
    "Frozen": hs.Frozen,
    "Blended": hs.Blended,  # begins as batch norm
}
every_kind = pytest.mark.parametrize("kind", SHAPES)


def plain(kind):
    torch.manual_seed(0)
    layer, x = getattr(torch.nn, kind)(6), torch.randn(SHAPES[kind]) * 2 + 3
    torch.nn.init.normal_(layer.weight)
    for step in range(3):
        layer(x + step)
    return layer.eval(), x


@every_kind
@pytest.mark.parametrize("name", SOURCES)
def test_a_plain_checkpoint_loads_strictly_and_evaluates_as_before(kind, name):
    before, x = plain(kind)
    layer = getattr(hs.nn, kind)(6, source=SOURCES[name]()).eval()
    layer.load_state_dict(before.state_dict(), strict=True)
    torch.testing.assert_close(layer(x), before(x), rtol=1e-5, atol=1e-5)
    assert all((layer.num_batches_tracked == 3).reshape(-1))


@every_kind
@pytest.mark.parametrize("name", [name for name in SOURCES if "Blended" not in name])
def test_the_way_back_is_strict_too(kind, name):
    before, x = plain(kind)
    layer = getattr(hs.nn, kind)(6, source=SOURCES[name]()).train()
    layer.load_state_dict(before.state_dict(), strict=True)
    with hs.given(domain=torch.arange(8) % 3):
        layer(x)
    back = getattr(hs.nn, kind)(6).eval()
    back.load_state_dict(layer.state_dict(), strict=True)
    torch.testing.assert_close(back(x), layer.eval()(x), rtol=1e-5, atol=1e-5)
    if layer.state_dict().keys() == before.state_dict().keys() and "omain" not in name:
        before.load_state_dict(layer.state_dict(), strict=True)
        torch.testing.assert_close(before(x), layer(x), rtol=1e-5, atol=1e-5)


def test_what_was_learned_is_begun_anew_and_never_dropped():
    before, _ = plain("BatchNorm2d")
    layer = hs.nn.BatchNorm2d(6, source=hs.Mixed())
    with torch.no_grad():
        layer.mix_mean.fill_(0.25)
    layer.load_state_dict(before.state_dict(), strict=True)
    torch.testing.assert_close(layer.running_mean, before.running_mean, rtol=0, atol=0)
    assert layer.mix_mean.eq(0.25).all()
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "mix_mean", "mix_var"'):
        before.load_state_dict(layer.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "reference_count"'):
        hs.nn.BatchNorm2d(6, source=hs.Virtual()).load_state_dict(before.state_dict(), strict=True)


def test_a_momentum_goes_on_being_chosen_after_a_plain_checkpoint():
    before, x = plain("BatchNorm2d")
    layer = hs.nn.BatchNorm2d(6, source=hs.Running("auto"))
    layer.load_state_dict(before.state_dict())
    old = before.running_mean.clone()
    for step in range(40):
        layer(x + 5 * (step % 2))
    assert layer.running_mean.isfinite().all()
    assert (layer.running_mean - x.mean((0, 2, 3)) - 2.5).abs().max() < 2.5
    assert (layer.running_mean - old).abs().min() > 0


def test_a_model_without_a_source_keeps_loading_one_of_ours_inside_another():
    model, other = (
        torch.nn.Sequential(torch.nn.Conv2d(6, 6, 1), hs.nn.BatchNorm2d(6, source=source))
        for source in (hs.Running("auto"), hs.Domain(2))
    )
    model(torch.randn(8, 6, 5, 3))
    other.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(other[1].running_mean[1], model[1].running_mean, rtol=0, atol=0)


INNER = {"Running": hs.Running, "Running auto": lambda: hs.Running("auto"), "Ghost": lambda: hs.Ghost(2)}


@pytest.mark.parametrize("name", INNER)
def test_domains_that_are_new_start_from_those_that_were_saved_pooled_and_count_as_unseen(name):
    old, new = (hs.nn.BatchNorm2d(6, source=hs.Domain(n, INNER[name]())).double() for n in (3, 5))
    x = torch.randn(8, 6, 5, 3, dtype=torch.float64) * 2 + 3
    for step in range(3):
        old(x * (step + 1), domain=torch.arange(8) % 2 * 2)  # nobody is of the second
    new.load_state_dict(old.state_dict(), strict=True)
    mean, var = old.running_mean[[0, 2]], old.running_var[[0, 2]]
    for d in (3, 4):
        torch.testing.assert_close(new.running_mean[d], mean.mean(0))
        torch.testing.assert_close(new.running_var[d], var.mean(0) + mean.var(0, correction=0))
    assert_same({"rows": new.running_mean[:3]}, {"rows": old.running_mean}, 0, 0)
    assert new.num_batches_tracked.tolist() == [3, 0, 3, 0, 0]
    codes = torch.arange(8) % 5
    want = old.eval()(x, domain=torch.tensor([0, 1, 2, 1, 1])[codes])  # in evaluation unseen ones are all the same
    torch.testing.assert_close(new.eval()(x, domain=codes), want)
    new.train()(x, domain=codes)
    assert all(b.isfinite().all() for b in new.buffers())


def test_domains_that_were_saved_are_not_dropped():
    old, new = (hs.nn.BatchNorm2d(6, source=hs.Domain(n)) for n in (5, 3))
    with pytest.raises(RuntimeError, match=r"remembers 3 domains, and 5 were saved: make it Domain\(5\)"):
        new.load_state_dict(old.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for running_mean"):
        hs.nn.BatchNorm2d(7, source=hs.Domain(3)).load_state_dict(old.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_buffers_carry_a_version(name):
    layer, _ = make(name)
    version = layer.state_dict()._metadata[""]["version"]
    assert version == (2 if isinstance(layer, torch.nn.modules.batchnorm._NormBase) else 1)
