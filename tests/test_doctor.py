"""A check: every rule fires on its sick model, is silent on its healthy one, and touches neither."""

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat.doctor.rule import CORRECTNESS, every_rule

CODES = sorted(every_rule())
SEEDS = range(3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("code", CODES)
def test_every_rule_fires_on_its_sick_model(code, seed):
    case = every_rule()[code].bad(seed)
    report = hs.check(case.model, case.batches, select=code, **case.told)
    assert report.codes == [code]
    assert all(finding.effect > finding.limit and finding.low > finding.null for finding in report)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("code", CODES)
def test_every_rule_is_silent_on_its_healthy_model_and_did_measure_it(code, seed):
    case = every_rule()[code].good(seed)
    report = hs.check(case.model, case.batches, select=code, **case.told)
    assert report.codes == []
    assert [result.state for result in report.results] == ["passed"]


@pytest.mark.parametrize("code", [code for code in CODES if every_rule()[code].cure])
def test_a_cured_copy_is_found_healthy_and_the_model_itself_stays_sick(code):
    case = every_rule()[code].bad(0)
    report = hs.check(case.model, case.batches, select=code, **case.told)
    fixed = report.fix(code)
    assert not {finding.module for finding in fixed.after} & {finding.module for finding in report}
    again = hs.check(case.model, case.batches, select=code, **case.told)
    assert again.findings == report.findings


@pytest.mark.parametrize("code", [code for code in CODES if every_rule()[code].cure])
def test_a_cured_copy_still_tells_samples_apart(code):
    case = every_rule()[code].bad(0)
    fixed = hs.check(case.model, case.batches, select=code, **case.told).fix(code)
    seen = hs.check(fixed.model, case.batches, select="all", **case.told).facts.evaluated
    assert seen is None or seen.rows.std(0).max() > 1e-3 * abs(seen.rows).max()


@pytest.mark.parametrize("code", CODES)
def test_what_a_rule_says_of_itself_names_what_why_false_alarms_fix_and_references(code):
    text = hs.explain(code)
    for word in ("What it is.", "Why it matters.", "Known false alarms.", "Fix.", "References."):
        assert word in text


def test_a_check_leaves_modes_buffers_gradients_hooks_and_random_states_as_they_were():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    model[1].eval()
    model(torch.randn(6, 4)).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes, gradient = [m.training for m in model.modules()], model[0].weight.grad.clone()
    batches = [torch.randn(6, 4) for _ in range(3)]
    random = torch.get_rng_state()
    report = hs.check(model, batches)
    assert report.changed == ()
    assert "unchanged (verified)" in str(report).splitlines()[0]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(gradient, model[0].weight.grad)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(random, torch.get_rng_state())


def test_a_model_that_changes_itself_where_nobody_looks_is_told_as_changed():
    model = nn.Sequential(nn.Linear(4, 3))

    def forward(one, x):
        one[0].weight.data.add_(1)
        return one(x)

    assert any("parameter 0.weight" in part for part in hs.check(model, [torch.randn(6, 4)], forward=forward).changed)


def test_correctness_rules_find_nothing_in_networks_fresh_from_their_constructors():
    nets = [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)),
        nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.LayerNorm(16), nn.Linear(16, 5)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 5)),
    ]
    for net in nets:
        report = hs.check(net, [torch.randn(16, 3, 8, 8) for _ in range(4)], select=CORRECTNESS)
        assert report.codes == []


def test_an_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="HS101"):
        hs.check(nn.Linear(2, 2), [torch.randn(4, 2)], select="HS999")


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="no batches"):
        hs.check(nn.Linear(2, 2), [])
