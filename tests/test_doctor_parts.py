"""What a check sees of heads, experts, features, blocks and gradients, beside closed forms; and what roles may say."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import homeostat as hs
from homeostat.doctor.probe import probe
from homeostat.doctor.rule import every_rule


def result(report, code):
    return next(one for one in report.results if one.code == code)


def judged(code, model, batches, **told):
    return result(hs.check(model, batches, select=code, **told), code)


# ---- heads ----


class Attention(nn.Module):
    """Says its heads and projects them, as most libraries do."""

    def __init__(self, d=16, heads=4):
        super().__init__()
        self.num_heads, self.qkv, self.o_proj = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("batch_first", [True, False])
def test_what_torchs_heads_say_is_their_attention_times_their_part_of_the_projection(batch_first):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(16, 4, batch_first=batch_first)
    x = torch.randn(6, 5, 16)
    seen = probe(model, [x], lambda m, x: m(x, x, x, need_weights=False)[0]).parts.heads[0].energy
    first = x if batch_first else x.transpose(0, 1)
    rows = first.double()
    wv, bv = model.in_proj_weight[32:].double(), model.in_proj_bias[32:].double()
    weights = model(x, x, x, average_attn_weights=False)[1].double()  # [samples, heads, tokens, tokens]
    values = (rows @ wv.T + bv).unflatten(-1, (4, 4)).transpose(1, 2)
    said = (weights @ values).transpose(1, 2)  # [samples, tokens, heads, d]
    parts = torch.einsum("bthd,ohd->bthod", said, model.out_proj.weight.double().unflatten(1, (4, 4))).sum(-1)
    expected = (parts - parts.mean((0, 1))).square().sum(-1).mean(1)
    np.testing.assert_allclose(seen, expected.detach().numpy(), rtol=1e-4)


def test_heads_are_heard_at_a_projection_of_a_usual_name_and_the_same_way():
    torch.manual_seed(0)
    model, x, held = Attention(), torch.randn(6, 5, 16), []
    model.o_proj.register_forward_pre_hook(lambda _, args: held.append(args[0]))
    seen = probe(model, [x]).parts.heads[0].energy
    a = held[-1].double().detach().unflatten(-1, (4, 4))
    parts = torch.einsum(
        "bthd,ohd->btho", a - a.mean((0, 1)), model.o_proj.weight.double().detach().unflatten(1, (4, 4))
    )
    np.testing.assert_allclose(seen, parts.square().sum(-1).mean(1).numpy(), rtol=1e-4)


def test_a_head_that_says_the_same_to_all_tokens_is_not_loud():
    torch.manual_seed(0)
    model = Attention()
    with torch.no_grad():
        model.qkv.weight[32:36] = 0
        model.qkv.bias[32:36] = 100
    measured = judged("HS106", model, [torch.randn(8, 5, 16) for _ in range(2)]).measured[0]
    assert measured["value"] < 0.5


def test_a_loud_head_to_which_nobody_listens_is_told_as_quiet():
    torch.manual_seed(0)
    body = Attention()
    with torch.no_grad():
        body.o_proj.weight[:, :4] *= 20
    last = nn.Linear(16, 3)
    with torch.no_grad():
        body.o_proj.weight[1:, :4] = 0  # it writes to one feature, which is not read
        last.weight[:, 0] = 0
    found = judged("HS106", nn.Sequential(body, last), [torch.randn(8, 5, 16) for _ in range(2)])
    assert found.state == "passed"
    assert "stay as they are" in found.measured[0]["said"]


def test_a_loud_head_is_tried_without_and_the_norm_behind_it_both_free_and_held():
    torch.manual_seed(0)
    body, norm, head = Attention(), nn.LayerNorm(16), nn.Linear(16, 3)
    with torch.no_grad():
        body.o_proj.weight[:, :4] *= 20
        norm.bias.normal_()
    model, x, held = nn.Sequential(body, norm, head), torch.randn(8, 5, 16), []
    seen = probe(model, [x]).parts.heads[0]
    body.o_proj.register_forward_pre_hook(lambda _, args: held.append(args[0].detach()))
    with torch.no_grad():
        whole = body(x)
        a = held[0].double()
        a[..., :4] = a[..., :4].mean((0, 1))
        less = a @ body.o_proj.weight.double().T + body.o_proj.bias.double()
        outputs = [whole.double(), less, less]
        sigma = [y.std(-1, correction=0, keepdim=True) for y in outputs]
        free, held_back = sigma[1], sigma[0]
        y = [(o - o.mean(-1, keepdim=True)) / s for o, s in zip(outputs, (sigma[0], free, held_back), strict=True)]
        first, second, third = ((n * norm.weight + norm.bias) @ head.weight.double().T for n in y)
    spread = (first - first.mean(0)).square().mean().sqrt()
    assert seen.moved == pytest.approx(float((second - first).square().mean().sqrt() / spread), rel=1e-3)
    assert seen.held == pytest.approx(float((third - first).square().mean().sqrt() / spread), rel=1e-3)
    assert seen.louder == pytest.approx(float((held_back / free).median()), rel=1e-3)
    assert seen.moved != pytest.approx(seen.held, rel=0.05)


# ---- experts ----


def test_a_stack_of_layers_of_one_shape_is_no_bank_of_experts():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.norm = nn.ModuleList(nn.Linear(8, 8) for _ in range(4)), nn.LayerNorm(8)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.norm(x)

    found = judged("HS107", Stack(), [torch.randn(16, 8) for _ in range(2)])
    assert found.state == "not applicable"
    assert "one shape" in found.why


@pytest.mark.parametrize(("residual", "state"), [(0.0, "passed"), (1.0, "not applicable")])
def test_a_norm_of_experts_is_one_that_is_given_nothing_else_and_routing_does_not_hide_it(residual, state):
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts, self.norm = nn.ModuleList(nn.Linear(16, 16) for _ in range(3)), nn.LayerNorm(16)

        def forward(self, x):
            flat = x.reshape(-1, 16)
            y, best = torch.zeros_like(flat), flat[:, :3].argmax(1)
            for k, expert in enumerate(self.experts):
                y[best == k] = 0.5 * expert(flat[best == k])
            return self.norm(residual * x + y.reshape(x.shape))

    torch.manual_seed(0)
    assert judged("HS107", Routed(), [torch.randn(4, 10, 16) for _ in range(2)]).state == state


# ---- features ----


def test_scales_of_features_are_their_standard_deviations_over_samples_and_places():
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 4.0, 400.0, 2.0])
    x = [torch.randn(16, 4, 3, 3) * scale[:, None, None] + 7 for _ in range(2)]
    measured = judged("HS109", nn.Sequential(nn.GroupNorm(2, 4)), x).measured
    std = torch.cat(x).double().transpose(0, 1).flatten(1).std(1, correction=0)
    expected = sorted([float(std[1] / std[0]), float(std[2] / std[3])])
    assert sorted(m["value"] for m in measured) == pytest.approx(expected, rel=1e-5)


def test_units_that_are_told_are_compared_and_single_features_are_not():
    torch.manual_seed(0)
    x = [torch.randn(32, 4) * torch.tensor([1.0, 1e3, 1.0, 1e3]) for _ in range(2)]
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    assert judged("HS109", model, x).state == "found"
    assert judged("HS109", model, x, roles={"units": {"0": ["m", "m", "s", "s"]}}).state == "passed"
    assert judged("HS109", model, x, roles={"units": {"0": ["m", "s", "m", "s"]}}).state == "found"


def test_a_block_without_its_share_is_told_with_that_share():
    torch.manual_seed(0)
    case = every_rule()["HS118"].bad(0)
    measured = judged("HS118", case.model, case.batches, **case.told).measured[0]
    x = torch.cat(case.batches).double()[:64]
    energy = (x - x.mean(1, keepdim=True)).square().sum(0)
    assert measured["value"] == pytest.approx(float(16 / 64 / (energy[48:].sum() / energy.sum())), rel=1e-5)
    assert "text has" in measured["said"]


def test_blocks_with_statistics_of_their_own_share_nothing():
    case = every_rule()["HS118"].bad(0)
    model = nn.Sequential(hs.nn.ModalityNorm((48, 16)), nn.Linear(64, 3))
    assert judged("HS118", model, case.batches, **case.told).state == "not applicable"


def test_a_one_hot_block_is_left_out():
    torch.manual_seed(0)
    x = [torch.cat([torch.randn(32, 48) * 5, F.one_hot(torch.randint(16, (32,)), 16)], 1) for _ in range(2)]
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 3))
    assert judged("HS118", model, x, roles={"blocks": {"0": (48, 16)}}).state == "not measured"


def test_blocks_of_tokens_and_blocks_of_features_are_told_apart():
    case = every_rule()["HS108"].bad(0)
    assert judged("HS118", case.model, case.batches, **case.told).state == "not applicable"
    other = every_rule()["HS118"].bad(0)
    assert judged("HS108", other.model, other.batches, **other.told).state == "not applicable"


# ---- gradients ----


def test_gradients_are_autograds_own_and_neither_grad_nor_hooks_of_parameters_are_reached():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(part for _ in range(4) for part in (nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(inplace=True)))
    )
    x, y = torch.randn(16, 8), torch.randint(8, (16,))
    called = []
    hook = model[0].weight.register_hook(lambda g: called.append(1))
    seen = probe(model, [(x, y)], loss=F.cross_entropy).parts.gradients
    assert [one.name for one in seen] == ["1", "4", "7", "10"]
    assert all(p.grad is None for p in model.parameters())
    hook.remove()
    z = [model[0](x)]
    for i in range(1, 12):
        z.append(model[i](z[-1].clone()))
    expected = [g.double().square().mean().sqrt() for g in torch.autograd.grad(F.cross_entropy(z[-1], y), z[0:12:3])]
    assert [one.rms for one in seen] == pytest.approx([float(g) for g in expected], rel=1e-5)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({}, "no loss is given"),
        ({"loss": lambda y: y}, "one number"),
        ({"loss": F.cross_entropy, "labels": [torch.zeros(3)]}, "raises"),
    ],
)
def test_without_a_gradient_the_reason_is_told(told, why):
    model = nn.Sequential(*(nn.LayerNorm(8) for _ in range(4)))
    found = judged("HS110", model, [torch.randn(4, 8)], **told)
    assert found.state == "not measured"
    assert why in found.why


def test_labels_come_from_the_batch_or_beside_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), *(nn.LayerNorm(8) for _ in range(4)))
    x, y = [torch.randn(6, 8) for _ in range(2)], [torch.randint(8, (6,)) for _ in range(2)]
    pairs = list(zip(x, y, strict=True))
    loss = F.cross_entropy
    ways = [
        judged("HS110", model, pairs, loss=loss),
        judged("HS110", model, x, loss=loss, labels=y),
        judged("HS110", model, x, loss=loss, labels=lambda batch: y[0] if batch is x[0] else y[1]),
        judged(
            "HS110", model, [{"input": a, "labels": b} for a, b in pairs], loss=loss, forward=lambda m, b: m(b["input"])
        ),
    ]
    assert all(way.measured and way.measured == ways[0].measured for way in ways)


# ---- roles ----


def test_a_critic_whose_batches_hold_one_kind_each_is_measured_too():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.LeakyReLU(), nn.Linear(16, 1))
    batches = [torch.randn(32, 8) + 2 * (i % 2) for i in range(8)]
    with torch.no_grad():
        for _ in range(10):
            for x in batches:
                critic(x)
    found = judged("HS112", critic, batches, roles={"real_fake": [[i % 2 == 0] * 32 for i in range(8)]})
    assert found.state == "found"
    assert "by turns" in found.measured[0]["said"]


def test_a_critic_that_measures_each_sample_alone_has_nothing_to_mix():
    case = every_rule()["HS112"].bad(0)
    critic = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 1))
    assert judged("HS112", critic, case.batches, **case.told).state == "not applicable"


def test_the_symmetry_of_a_norm_is_told_by_its_own_name():
    case = every_rule()["HS114"].bad(0)
    report = hs.check(case.model, case.batches, select="HS114", **case.told)
    assert {finding.module for finding in report} == {"", "norm"}


@pytest.mark.parametrize("code", [code for code, rule in every_rule().items() if any("roles" in a for a in rule.asks)])
def test_a_rule_that_needs_a_role_says_so_without_it(code):
    case = every_rule()[code].bad(0)
    found = judged(code, case.model, case.batches)
    assert found.state == "not measured"
    assert "no tool can guess" in found.why
    assert "roles={" in found.why


@pytest.mark.parametrize(
    ("roles", "why"),
    [
        ({"block": {}}, "roles has 'block'; what can be told is"),
        ({"blocks": (48, 16)}, "is a dict"),
        ({"blocks": {"0": {"a": -1}}}, "blocks are widths"),
        ({"group_action": {"output": lambda y: y}}, "no 'batch'"),
        ({"group_action": {"batch": lambda x: x, "nobody": lambda x: x}}, "no such module"),
        ({"real_fake": [[True]] * 2}, "1 entries for batch 0 of 8 samples"),
    ],
)
def test_a_role_that_cannot_be_read_is_refused_in_a_sentence(roles, why):
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.BatchNorm1d(8))
    with pytest.raises((ValueError, TypeError), match=why.replace("(", r"\(")):
        hs.check(model, [torch.randn(8, 4) for _ in range(2)], roles=roles)


def test_widths_that_do_not_add_up_are_told_with_what_there_is():
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))
    found = judged("HS118", model, [torch.randn(8, 6) for _ in range(2)], roles={"blocks": {"0": (4, 4)}})
    assert found.state == "not measured"
    assert "add up to 8, and it has 6 features" in found.why
