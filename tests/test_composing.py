"""Laws of whatever composes: docs/composing.md says `works` for a pair only where they hold."""

import copy
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from presets import assert_same

import homeostat as hs

page = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tools" / "composing.py")))
PAIRS = {
    **{f"{outer} of {inner}": make for (outer, inner), make in page.composed().items()},
    **{f"{source} on {frame}": make for (frame, source), make in page.framed().items()},
    **{f"{source} beside {gain}": make for (gain, source), make in page.gained().items()},
}
WORKING = {name: make for name, make in PAIRS.items() if page.tried(make) == page.WORKS}
COMPANY = re.compile("(?:^| of )(?:Batch|By|Partial|Shrunk)(?: |$)|^Frozen of")  # these measure in evaluation too
AVERAGES = (hs.Running, hs.Cumulative, lambda: hs.Running("auto"))
WRAPPERS = (
    lambda s: hs.Ghost(2, s),
    lambda s: hs.Shrunk(4, s),
    lambda s: hs.Mixed(inner=s),
    lambda s: hs.Blended(inner=s),
)


def call(layer, n=4):
    with hs.given(**page.given(n)):
        return layer(page.X[:n])


@pytest.mark.parametrize(("outer", "inner"), page.composed())
def test_a_source_goes_around_another_or_says_why_not_when_it_is_made(outer, inner):
    inside, said = page.SOURCES[inner](), ""
    try:
        source = page.AROUND[outer](inside)
    except TypeError as refusal:
        said = str(refusal)
    if said:
        assert re.fullmatch(rf"{outer} does not go around {re.escape(str(inside))}: .+\.", said)
        return

    def make():
        return hs.nn.BatchNorm2d(6, source=source)

    layer = page.trained(make)
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    again, twin = make(), copy.deepcopy(layer)
    again.load_state_dict(layer.state_dict(), strict=True)
    for training in (True, False):
        want = call(layer.train(training))
        assert want.isfinite().all()
        torch.testing.assert_close(call(again.train(training)), want, rtol=0, atol=0)
        torch.testing.assert_close(call(twin.train(training)), want, rtol=0, atol=0)
    assert_same(dict(again.named_buffers()), dict(layer.named_buffers()), 0, 0)


def test_three_sources_go_around_each_other_wherever_every_two_do():
    pairs = {pair for pair, make in page.composed().items() if page.tried(make) == page.WORKS}
    inside = {name: page.SOURCES[name] for name in ("Cumulative", "Renorm")}
    found = set()
    for outer, first in page.AROUND.items():
        for middle, second in page.AROUND.items():
            for inner, last in inside.items():
                if {(outer, middle), (middle, inner), (outer, inner)} <= pairs:
                    found.add(page.tried(lambda: hs.nn.BatchNorm2d(6, source=first(second(last())))))  # noqa: B023
    assert found == {page.WORKS}


@pytest.mark.parametrize("name", [name for name, make in WORKING.items() if make().source.names])
def test_what_is_frozen_evaluates_in_training(name):
    layer = page.trained(PAIRS[name])
    want, before = call(copy.deepcopy(layer).eval()), copy.deepcopy(dict(layer.named_buffers()))
    torch.testing.assert_close(call(hs.freeze(layer, inplace=True)[0].train()), want, rtol=0, atol=0)
    for key, buffer in layer.named_buffers():
        torch.testing.assert_close(buffer, before[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in WORKING if not COMPANY.search(name)])
def test_in_evaluation_no_sample_sees_its_companions(name):
    layer = page.trained(PAIRS[name]).eval()
    torch.testing.assert_close(call(layer, 2), call(layer)[:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("around", WRAPPERS, ids=["Ghost", "Shrunk", "Mixed", "Blended"])
def test_the_inner_average_decides_what_is_remembered_and_not_what_is_trusted(around):
    layers = [hs.nn.BatchNorm2d(6, source=around(average())) for average in AVERAGES]
    plain = [hs.nn.BatchNorm2d(6, source=average()) for average in AVERAGES]
    ys = [call(layer) for layer in layers]
    for y, layer, alone in zip(ys, layers, plain, strict=True):
        torch.testing.assert_close(y, ys[0])
        for step in range(3):
            with hs.given(**page.given(4)):
                layer(page.X * step - 1)
        for x in (page.X, *(page.X * step - 1 for step in range(3))):
            alone(x)
        torch.testing.assert_close(layer.running_mean, alone.running_mean)


@pytest.mark.parametrize("size", [2, 3])
def test_ghost_parts_every_label_apart(size):
    norm, kind = hs.Norm("n c h w -> kind[n] c", hs.Ghost(size), c=6, kind=3), torch.tensor([0, 1, 0, 0])
    y, want = norm(page.X, kind=(kind, 3)), torch.empty_like(page.X)
    part = torch.arange(4) // size
    for k in (0, 1):
        means = []
        for own in (((kind == k) & (part == i)) for i in part.unique()):
            if own.any():
                want[own] = F.batch_norm(page.X[own], None, None, training=True)
                means.append(page.X[own].mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_mean[k], 0.1 * torch.stack(means).mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "frame", "sizes"),
    [
        (hs.Renorm(), "n c h w -> n c", {"c": 6}),
        (hs.Shrunk(4), "n (g c) h w -> n g", {"g": 2, "c": 3}),
        (hs.Partial(), "n c h w -> c n", {"c": 6}),
    ],
)
def test_memory_that_does_not_fit_the_groups_is_refused_when_the_layer_is_made(source, frame, sizes):
    with pytest.raises(hs.FrameError, match=r"beside its memory|write these last"):
        hs.Norm(frame, source, **sizes)


def test_a_preset_refuses_it_too_and_when_a_source_is_set_later():
    with pytest.raises(hs.FrameError, match="beside its memory"):
        hs.nn.InstanceNorm2d(6, source=hs.Renorm())
    layer = hs.nn.InstanceNorm2d(6, track_running_stats=True)
    with pytest.raises(hs.FrameError, match="beside its memory"):
        layer.source = hs.Shrunk(4)
    assert layer.source == hs.Running(0.1)


@pytest.mark.parametrize("frame", ["n c h w -> kind[n] c", "n (f k) h w -> f", "n c h w -> w c"])
def test_a_mixture_refuses_what_its_keeps_do_not_name(frame):
    sizes = {"kind": 3} if "kind" in frame else {"f": 3, "k": 2} if "f" in frame else {"w": 3}
    layer = hs.Norm(frame, hs.Mixed(), **({"c": 6} if "k) h" not in frame else {}), **sizes)
    with pytest.raises(hs.FrameError, match="does not fit"):
        call(layer)


def test_a_mixture_of_groups_takes_the_batchs_part_from_memory():
    source = hs.Mixed(("n f", "n", "f"))
    layer = page.trained(lambda: hs.Norm("n (f k) h w -> f", source, f=3, k=2)).eval()
    torch.testing.assert_close(call(layer, 2), call(layer)[:2])


@pytest.mark.parametrize(("groups", "axes"), [(1, (1, 2, 3)), (6, (2, 3))])
def test_group_norm_of_one_group_is_layer_norm_and_of_single_channels_instance_norm(groups, axes):
    other = hs.nn.LayerNorm(page.X.shape[1:], elementwise_affine=False) if groups == 1 else hs.nn.InstanceNorm2d(6)
    x = page.X.clone().requires_grad_()
    got, want = hs.nn.GroupNorm(groups, 6, affine=False)(x), other(x)
    torch.testing.assert_close(got, want)
    dy = page.X.flip(0)
    torch.testing.assert_close(torch.autograd.grad(got, x, dy), torch.autograd.grad(want, x, dy), rtol=1e-5, atol=1e-6)
    var, mean = torch.var_mean(page.X, axes, correction=0, keepdim=True)
    torch.testing.assert_close(got, (page.X - mean) / (var + 1e-5).sqrt(), rtol=1e-5, atol=1e-5)
