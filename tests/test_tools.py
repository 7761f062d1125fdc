"""Tools: noise, sharing, coupling, gains that change nothing, and the first verb, choose."""

import json
import math

import numpy as np
import pytest
import torch

import homeostat as hs
from homeostat import cli
from homeostat.choosing import TASKS
from homeostat.shapes import LAYOUTS, PICTURES

# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("m", [4, 16, 100])
def test_expected_noise_is_what_gaussian_samples_show(m):
    x = np.random.default_rng(0).normal(size=(200_000, m))
    noise = hs.expected_noise(m)
    assert x.mean(1).std() == pytest.approx(noise.mean, rel=0.02)
    assert x.var(1, ddof=1).std() == pytest.approx(noise.var, rel=0.03)


def test_groups_are_as_many_as_the_budget_allows():
    for channels in (6, 64, 96, 512):
        for spatial in (1, 4, 49, 3136):
            for batch in (1, 8):
                quiet = [
                    g
                    for g in range(1, channels + 1)
                    if channels % g == 0
                    and (m := channels // g * spatial) > 1
                    and math.sqrt(2 / (m - 1)) <= 0.1 * math.sqrt(batch)
                ]
                assert hs.groups_for(channels, spatial, batch, 0.1) == max(quiet, default=1)
    with pytest.raises(ValueError, match="channels=0"):
        hs.groups_for(0)
    with pytest.raises(ValueError, match="above 0"):
        hs.groups_for(4, budget=0)


def test_the_sharing_tax_is_what_the_best_shared_line_costs():
    rng = np.random.default_rng(0)
    one, other = rng.normal(2, 3, 5000), rng.normal(-1, 0.5, 5000)
    ideal = (1.3, 0.2), (0.4, -2.0)
    rows = [np.stack([x, np.ones_like(x)], 1) for x in (one, other)]
    wanted = [a @ t for a, t in zip(rows, ideal, strict=True)]
    weights = np.array([0.7, 0.3])
    a = np.concatenate([np.sqrt(w / len(r)) * r for w, r in zip(weights, rows, strict=True)])
    y = np.concatenate([np.sqrt(w / len(t)) * t for w, t in zip(weights, wanted, strict=True)])
    best = np.linalg.lstsq(a, y, rcond=None)[0]
    cost = float(((a @ best - y) ** 2).sum())
    assert hs.sharing_tax(one, other, *ideal, weights=(0.7, 0.3)) == pytest.approx(cost, rel=1e-9)


def test_for_standardized_inputs_the_tax_is_the_product_of_the_weights_and_the_distance():
    x = np.array([-1.0, 1.0])
    assert hs.sharing_tax(x, x, (1, 0), (3, 1), weights=(0.25, 0.75)) == pytest.approx(0.25 * 0.75 * 5)
    assert hs.sharing_tax(x, x, (1, 2), (1, 2)) == pytest.approx(0)


@pytest.mark.parametrize(("size", "mean"), [(1e8, 0.0), (1e-9, 0.0), (1.0, 1e8), (1e-3, 1e4)])
def test_the_tax_is_the_same_in_whatever_units_the_modalities_come(size, mean):
    x = np.array([-1.0, 1.0]) * size + mean
    dw, db = 2 / size, 1.0
    exact = 0.25 * 0.75 * ((dw * size) ** 2 + (db + dw * mean) ** 2)  # of (x - mean) / size, which is -1 and 1
    assert hs.sharing_tax(x, x, (1 / size, 0), (3 / size, 1), weights=(0.25, 0.75)) == pytest.approx(exact, rel=1e-6)


def test_groups_of_very_many_channels_are_found_at_once():
    assert hs.groups_for(10**9 + 7, 1000) == 10**9 + 7  # a prime


# ---------------------------------------------------------------- coupling


@pytest.mark.parametrize(
    ("norm", "said"),
    [
        (torch.nn.LocalResponseNorm(3), "n: apart, c: all together, h: apart, w: apart"),
        (hs.nn.BatchNorm2d(6), "n: all together, c: apart, h: all together, w: all together"),
        (hs.nn.GroupNorm(3, 6), "n: apart, c: 3 groups, h: all together, w: all together"),
        (hs.nn.InstanceNorm2d(6), "n: apart, c: apart, h: all together, w: all together"),
        (torch.nn.GroupNorm(1, 6), "n: apart, c: all together, h: all together, w: all together"),
        (hs.nn.LayerNorm(2), "n: apart, c: apart, h: apart, w: all together"),
        (hs.nn.BatchNorm2d(6).eval(), "n: apart, c: apart, h: apart, w: apart"),
        (hs.nn.BatchNorm2d(6, source=hs.Ghost(2)), "n: 2 groups, c: apart, h: all together, w: all together"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_coupling_shows_who_shares_a_statistic(norm, said):
    torch.manual_seed(0)
    found = hs.coupling(norm, torch.randn(4, 6, 3, 2), "n c h w")
    assert str(found) == said
    assert found.kept == tuple(part.split(":")[0] for part in said.split(", ") if part.endswith("apart"))


def test_coupling_leaves_the_layer_as_it_was_and_refuses_what_it_cannot_compare():
    norm = hs.nn.BatchNorm2d(6)
    hs.coupling(norm, torch.randn(4, 6, 3, 2))
    assert norm.num_batches_tracked == 0
    with pytest.raises(ValueError, match="names 2 axes; x has 4"):
        hs.coupling(norm, torch.randn(4, 6, 3, 2), "n c")
    with pytest.raises(ValueError, match="compares positions"):
        hs.coupling(torch.nn.Flatten(), torch.randn(4, 6, 3))


# ---------------------------------------------------------------- gains that change nothing


def batches(count=4):
    torch.manual_seed(0)
    return [torch.randn(8, 6, 5, 3) * torch.arange(1, 7)[:, None, None] + 3 for _ in range(count)]


def test_an_inserted_batch_norm_changes_nothing_in_evaluation():
    norm, data = hs.nn.BatchNorm2d(6), batches()
    left = hs.identity_on(norm, data)
    assert left < 1e-6
    norm.eval()
    for x in data:
        torch.testing.assert_close(norm(x), x, rtol=1e-5, atol=1e-5)
    whole = torch.cat(data).double()
    torch.testing.assert_close(norm.running_mean.double(), whole.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hs.nn.GroupNorm(3, 6),
        lambda: hs.nn.InstanceNorm2d(6, affine=True),
        lambda: hs.Norm("n (g c) h w -> n g", gain=hs.Learned("(g c)"), g=2, c=3),
        lambda: hs.nn.RMSNorm((6, 5, 3)),
    ],
    ids=["group", "instance", "Norm", "RMS"],
)
def test_elsewhere_no_other_gain_would_be_nearer_to_the_identity(make):
    norm, data = make(), batches()
    left = hs.identity_on(norm, data)
    x = torch.cat(data)

    def off():
        with torch.no_grad():
            y = norm(x)
        return float((y.double() - x.double()).square().sum())

    best = off()
    assert left == pytest.approx(math.sqrt(best / float((x - x.mean()).double().square().sum())), rel=1e-4)
    for p in norm.parameters():
        for step in (0.01, -0.01):
            with torch.no_grad():
                p.view(-1)[0] += step
                assert off() > best
                p.view(-1)[0] -= step


def test_a_swapped_norm_takes_the_place_of_the_one_before():
    torch.manual_seed(0)
    old, data = torch.nn.BatchNorm2d(6), batches()
    for x in data:
        old(x)
    old.eval()
    with torch.no_grad():
        old.weight.normal_()
        old.bias.normal_()
        new = hs.nn.BatchNorm2d(6)
        assert hs.identity_on(new, data, old) < 1e-5
        new.eval()
        torch.testing.assert_close(new(data[0]), old(data[0]), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="has no gain to set"):
        hs.identity_on(hs.nn.BatchNorm2d(6, affine=False), data)
    with pytest.raises(TypeError, match="makes its own"):
        hs.identity_on(hs.nn.GemmaRMSNorm(3), data)
    with pytest.raises(TypeError, match="remembers otherwise"):
        hs.identity_on(hs.nn.BatchNorm2d(6, source=hs.Domain(2)), data)
    with pytest.raises(ValueError, match="at least one batch"):
        hs.identity_on(new, [])


# ---------------------------------------------------------------- choose


def example(code, task):
    """An input, and what comes with the call, for a recommended layer."""
    codes = {"kind": (torch.tensor([0, 1, 0, 1]), 10), "expert": (torch.arange(4) % 2, 2)}
    if "Conditional" in code:
        return torch.randn(4, 64, 5, 5), {"kind": codes["kind"]}
    if "Expert" in code:
        return torch.randn(4, 64), {"expert": codes["expert"]}
    if "Ada" in code:
        with_call = {"style": torch.randn(4, 64, 7, 7)} if "IN" in code else {"cond": torch.randn(4, 256)}
        return torch.randn(4, 64, 5, 5), with_call
    if "QK" in code:
        return torch.randn(4, 3, 64), {"k": torch.randn(4, 3, 64)}
    if any(word in code for word in ("Batch", "Group", "Orbit")):
        return torch.randn(4, 64, 5, 5), {"domain": torch.arange(4) % 2} if "Domain" in code else {}
    return torch.randn(4, 64) if "Graph" in code else torch.randn(4, 3, 64), {}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shape", [{}, {"batch": 2, "spatial": 25}, {"domains": 2, "classes": 10}], ids=str)
def test_every_recommendation_runs_as_it_is_written(task, shape):
    choice = hs.choose(task, **shape)
    layer = eval(choice.norm, {"hs": hs})
    x, given = example(choice.norm, task)
    y = layer(x, **given)
    assert torch.isfinite(y[0] if isinstance(y, tuple) else y).all()
    assert choice.why
    assert choice.noise is None or choice.noise > 0


@pytest.mark.parametrize("sizes", [{}, {"batch": 2}, {"classes": 10}, {"batch": 2, "classes": 10}], ids=str)
@pytest.mark.parametrize("task", PICTURES)
def test_channels_last_are_normalized_as_channels_first(task, sizes):
    torch.manual_seed(0)
    first = hs.choose(task, shape=(64, 5, 5), **sizes)
    last = hs.choose(task, shape=(5, 5, 64), layout="channels_last", **sizes)
    ours, theirs = (eval(choice.norm, {"hs": hs}) for choice in (first, last))
    theirs.load_state_dict({k: v.view_as(theirs.state_dict()[k]) for k, v in ours.state_dict().items()})
    x, given = example(first.norm, task)
    want = ours(x, **given)
    if "style" in given:
        given = {"style": given["style"].movedim(1, -1)}
    torch.testing.assert_close(theirs(x.movedim(1, -1), **given), want.movedim(1, -1), rtol=1e-5, atol=1e-5)
    assert (first.source, first.noise, first.why) == (last.source, last.noise, last.why)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [{}, {"batch": 2}, {"classes": 10}, {"domains": 2}], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_a_choice_says_the_frame_and_the_source_that_its_norm_has(task, sizes, layout):
    choice = hs.choose(task, **sizes, **({"layout": layout} if task in PICTURES else {}))
    norm = eval(choice.norm, {"hs": hs})
    if not isinstance(getattr(norm, "frame", None), hs.Frame):
        return  # of two norms, or without a layer of its own
    frame = choice.frame.split(", gain ")[0].replace("domain[n] c", "c")  # Domain groups by its own label
    assert frame == str(norm.frame)
    assert choice.source.split("(")[0] == type(norm.source).__name__


@pytest.mark.parametrize("channels", [48, 72, 100, 7])
@pytest.mark.parametrize("task", ["images", "critic", "generation"])
def test_odd_widths_get_groups_that_divide_them(task, channels):
    for shape in ({"batch": 2, "spatial": 10_000}, {"batch": 1, "spatial": 1, "domains": 4, "classes": 3}):
        norm = eval(hs.choose(task, channels=channels, **shape).norm, {"hs": hs})
        assert sum(p.numel() for p in norm.parameters())


def test_a_frozen_layer_keeps_its_place_and_takes_the_batches_in():
    norm, _ = hs.freeze(hs.nn.BatchNorm2d(6, momentum=None))
    assert hs.identity_on(norm, batches()) < 1e-6
    want = torch.cat(batches()).double().mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean.double(), want, rtol=1e-5, atol=1e-5)


def test_a_cumulative_mean_counts_the_batches_it_was_fitted_on():
    norm, data = hs.nn.BatchNorm2d(6, momentum=None), batches()
    hs.identity_on(norm, data)
    norm(data[0] + 10)
    want = torch.cat([*data, data[0] + 10]).double().mean((0, 2, 3))  # five batches alike
    torch.testing.assert_close(norm.running_mean.double(), want, rtol=1e-5, atol=1e-5)


def test_small_batches_and_critics_are_kept_from_the_batch():
    assert "BatchNorm" in hs.choose("images", channels=256, spatial=196, batch=64).norm
    for task, batch in (("images", 4), ("segmentation", 1), ("critic", 256)):
        norm = eval(hs.choose(task, channels=64, spatial=25, batch=batch).norm, {"hs": hs})
        assert "n" in hs.coupling(norm, torch.randn(3, 64, 2, 2), "n c h w").kept
    told = hs.choose("detection", channels=256, spatial=196, batch=2, ranks=16)
    assert any("synced over the 16 devices" in other for other in told.instead)


def test_what_choose_does_not_know_is_refused_by_name():
    with pytest.raises(ValueError, match="task='soup' is none of images"):
        hs.choose("soup")
    with pytest.raises(TypeError, match="no size height"):
        hs.choose("images", height=3)
    with pytest.raises(ValueError, match="batch=0"):
        hs.choose("images", batch=0)


def test_the_command_line_says_the_same(capsys):
    assert cli.main(["choose", "images", "--batch", "2", "--channels", "256", "--spatial", "196"]) == 0
    assert capsys.readouterr().out.strip() == str(hs.choose("images", batch=2, channels=256, spatial=196))
    assert cli.main(["choose", "modalities", "--blocks", "3", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["norm"] == "hs.nn.ModalityNorm((3, 5))"
    assert cli.main(["choose", "style", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["noise"] is None
    assert cli.main(["choose", "soup"]) == 2
    assert "none of images" in capsys.readouterr().err


def test_identity_on_and_coupling_refuse_values_that_are_not_finite():
    norm, x = hs.nn.BatchNorm2d(3), torch.full((4, 3, 2, 2), float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        hs.identity_on(norm, [x])
    assert norm.running_mean.tolist() == [0] * 3
    with pytest.raises(ValueError, match="not finite"):
        hs.coupling(norm, x)
    with torch.no_grad():
        assert hs.coupling(hs.nn.GroupNorm(2, 4), torch.randn(2, 4, 3), "n c t").groups("c") == 2
