"""What a check says of statistics that are remembered, of what freezes them, and of what rounding takes."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import homeostat as hs

torch.manual_seed(0)


def measured(report, code):
    (result,) = [one for one in report.results if one.code == code]
    return {m["where"]: m for m in result.measured}


def state(report, code):
    return next(one.state for one in report.results if one.code == code)


def warm(model, batches, times=20):
    with torch.no_grad():
        for _ in range(times):
            for x in batches:
                model.train()(x)
    return model.eval()


def data(*shape, of=4, level=0.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [level + torch.randn(*shape, generator=draw) for _ in range(of)]


# ---- HS104 ----


def table(width=8, **how):
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm1d(width, **how), nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("step", [0.7, 2.0])
def test_means_that_many_deviations_off_are_measured_as_that_many(step):
    model, batches = table(), data(256, 8)
    x = torch.cat(batches)
    model[0].running_mean.copy_(x.mean(0) - step * x.std(0))
    model[0].running_var.copy_(x.var(0))
    model[0].num_batches_tracked.fill_(1000)
    report = hs.check(model.eval(), batches, select="HS104")
    found = measured(report, "HS104")["0"]
    assert found["value"] == pytest.approx(step, rel=0.02)
    assert found["low"] < step < found["high"]
    assert report.codes == ["HS104"]


def test_variances_off_that_change_no_answer_are_measured_and_not_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(8, affine=False), nn.Linear(8, 4, bias=False))  # the largest stays the largest
    batches = data(256, 8)
    warm(model, [x / 2 for x in batches])
    report = hs.check(model, batches, select="HS104")
    assert measured(report, "HS104")["0"]["value"] == pytest.approx(1.0, rel=0.05)  # ln 4 / (2 ln 2)
    assert report.codes == []


def test_only_the_norm_whose_own_input_has_moved_is_named_stale():
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    batches = data(128, 8)
    warm(model, batches)
    report = hs.check(model, [x + 3 for x in batches], select="HS104")
    assert [finding.module for finding in report] == ["0"]


# ---- HS105 ----


def test_the_start_that_is_left_in_an_average_is_measured_as_its_weight():
    model, batches = table(momentum=0.02), data(128, 8, level=3.0)
    warm(model, batches, times=10)
    found = measured(hs.check(model, batches, select="HS105"), "HS105")["0"]
    assert found["value"] == pytest.approx(0.98**40, rel=0.02)


def test_statistics_measured_anew_are_warm_whatever_the_count_of_batches_says():
    model, batches = table(momentum=0.02), data(128, 8, level=3.0)
    new, _ = hs.recalibrate(model, batches)
    assert hs.check(new, batches, select="HS105").codes == []
    assert int(new[0].num_batches_tracked) == 4


def test_a_mean_of_all_batches_has_no_momentum_to_judge():
    report = hs.check(warm(table(momentum=None), data(64, 8)), data(64, 8), select="HS105")
    assert state(report, "HS105") == "not applicable"


def test_a_norm_of_ours_whose_source_has_the_momentum_of_keras_is_turned_too():
    model = nn.Sequential(hs.nn.BatchNorm1d(8, source=hs.Running(0.99)), nn.Linear(8, 3))
    report = hs.check(warm(model, data(64, 8)), data(64, 8), select="HS105")
    assert report.codes == ["HS105"]
    fixed = report.fix("HS105")
    assert fixed.model[0].source.momentum == pytest.approx(0.01)


# ---- HS111 ----


class Halves(nn.Module):
    """An RMS norm that squares in the type of its input."""

    def __init__(self, width, wide):
        super().__init__()
        self.weight, self.wide = nn.Parameter(torch.ones(width)), wide

    def forward(self, x):
        u = x.float() if self.wide else x
        return (self.weight * u * torch.rsqrt(u.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


@pytest.mark.parametrize("wide", [False, True])
def test_squares_that_overflow_in_half_precision_are_seen_and_those_in_float32_are_not(wide):
    torch.manual_seed(0)
    model = nn.Sequential(Halves(32, wide), nn.Linear(32, 3)).half()
    report = hs.check(model, [300 * x.half().sign() + x.half() for x in data(16, 32)], select="HS111")
    assert report.codes == ([] if wide else ["HS111"])
    assert len(measured(report, "HS111")) == 1


def test_the_share_of_pools_that_eps_shrinks_is_counted():
    small = torch.ones(8, 10, 1)
    small[:, :3] = 1e-3  # three tokens of ten
    model = nn.Sequential(nn.LayerNorm(32))
    report = hs.check(model, [small * x for x in data(8, 10, 32)], select="HS111")
    assert measured(report, "HS111")["0"]["value"] == pytest.approx(0.3)


def test_pools_that_do_not_vary_are_not_blamed_on_eps():
    batches = data(8, 10, 32)
    for x in batches:
        x[:, :5] = 0.1
    assert hs.check(nn.Sequential(nn.LayerNorm(32)), batches, select="HS111").codes == []


def test_a_mean_so_large_that_the_type_holds_no_spread_is_named():
    model = nn.Sequential(nn.LayerNorm(64)).bfloat16()
    batches = [(x + 100).bfloat16() for x in data(8, 64)]
    assert hs.check(model, batches, select="HS111").codes == ["HS111"]


# ---- HS113 ----


def test_a_norm_that_no_batch_reaches_is_named():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.LayerNorm(8), nn.LayerNorm(8)

        def forward(self, x):
            return self.used(x)

    assert [f.module for f in hs.check(Spare(), data(8, 8), select="HS113")] == ["spare"]


class Residual(nn.Module):
    def __init__(self, reaches):
        super().__init__()
        self.inner, self.norm, self.reaches = nn.Linear(8, 8), nn.LayerNorm(8), reaches
        nn.init.zeros_(self.norm.weight)

    def forward(self, x):
        return x + self.norm(self.inner(x)) * self.reaches


@pytest.mark.parametrize(("reaches", "codes"), [(1.0, []), (0.0, ["HS113"])])
def test_gains_of_0_are_named_only_where_no_gradient_reaches_them(reaches, codes):
    assert hs.check(Residual(reaches), data(16, 8), select="HS113").codes == codes


def test_a_model_whose_train_keeps_its_norms_asleep_is_not_named():
    class Asleep(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[0].eval()
            return self

    model = Asleep(nn.BatchNorm1d(8), nn.Linear(8, 2))
    assert hs.check(model.train(), data(16, 8), select="HS113").codes == []
    plain = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))
    plain[0].eval()
    assert hs.check(plain, data(16, 8), select="HS113").codes == ["HS113"]


# ---- HS115 ----


@pytest.mark.parametrize(
    ("norm", "size", "taken"),
    [
        (lambda: nn.InstanceNorm2d(8), 5, 2 / 25),
        (lambda: nn.GroupNorm(4, 8), 5, 2 / 50),
        (lambda: nn.GroupNorm(8, 8), 1, 1.0),
        (lambda: nn.RMSNorm(4), 4, 1 / 4),
    ],
)
def test_what_normalizing_takes_is_two_of_the_values_that_share_a_statistic(norm, size, taken):
    report = hs.check(nn.Sequential(norm()), data(4, 8, size, size), select="HS115")
    assert measured(report, "HS115")["0"]["value"] == pytest.approx(taken)


# ---- HS116 ----


class Twice(nn.Module):
    """One norm for two things."""

    def __init__(self, apart):
        super().__init__()
        self.norm, self.out, self.apart = nn.BatchNorm1d(8), nn.Linear(8, 3), apart

    def forward(self, x):
        a, b = x.chunk(2, 1)
        return self.out(self.norm(a) + self.norm(b + self.apart))


@pytest.mark.parametrize(("apart", "codes"), [(0.0, []), (3.0, ["HS116"])])
def test_a_norm_that_two_calls_share_is_named_where_they_are_unlike(apart, codes):
    assert hs.check(Twice(apart), data(32, 16), select="HS116").codes == codes


def test_a_frozen_norm_may_be_called_on_unlike_things():
    frozen, _ = hs.freeze(Twice(3.0))
    assert hs.check(frozen, data(32, 16), select="HS116").codes == []


class Again(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x.detach().requires_grad_(), use_reentrant=True)


def test_updates_that_checkpointing_repeats_are_counted_and_ours_are_not_repeated():
    torch.manual_seed(0)
    model = nn.Sequential(Again(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 2))
    report = hs.check(model, data(16, 8), select="HS116")
    assert report.codes == ["HS116"]
    assert report.facts.layers[0].step.back == 1
    assert hs.check(hs.adopt(model), data(16, 8), select="HS116").codes == []


def test_a_training_step_leaves_gradients_as_they_were():
    model, batches = table(), data(16, 8)
    model(batches[0]).sum().backward()
    held = [p.grad for p in model.parameters()]
    values = [grad.clone() for grad in held]
    report = hs.check(model, batches)
    assert report.changed == ()
    assert all(p.grad is grad for p, grad in zip(model.parameters(), held, strict=True))
    assert all(torch.equal(grad, value) for grad, value in zip(held, values, strict=True))


def zeroed(p):
    p.data.zero_()


@pytest.mark.parametrize(
    "watched",
    [
        lambda model: model[1].weight.register_post_accumulate_grad_hook(zeroed),
        lambda model: model[1].weight.register_hook(lambda _: zeroed(model[1].weight)),
        lambda model: model[1].register_full_backward_hook(lambda *_: zeroed(model[1].weight)),
    ],
)
def test_no_step_is_taken_where_something_acts_on_gradients(watched):
    model = table()
    watched(model)
    before = model[1].weight.clone()
    report = hs.check(model, data(16, 8), select="HS113")
    assert state(report, "HS113") == "not measured"
    assert torch.equal(model[1].weight, before)


# ---- HS117 ----


class Branch(nn.Module):
    """The convolution is read by its norm, and by the sum or not."""

    def __init__(self, both):
        super().__init__()
        self.conv, self.norm, self.both = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), both

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        return (z + y if self.both else z).mean((2, 3))


@pytest.mark.parametrize(("both", "codes"), [(False, []), (True, ["HS117"])])
def test_a_norm_whose_convolution_others_read_is_named(both, codes):
    torch.manual_seed(0)
    model, batches = Branch(both), data(8, 3, 6, 6)
    report = hs.check(warm(model, batches), batches, select="HS117")
    assert report.codes == codes
    _, certificate = hs.fold(model, batches)
    assert bool(certificate.left) == both  # fold says the same


def test_a_norm_before_its_convolution_is_not_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    batches = data(8, 3, 8, 8)
    assert hs.check(warm(model, batches), batches, select="HS117").codes == []


def test_a_frozen_norm_in_training_mode_is_not_named():
    model, batches = warm(table(), data(16, 8)), data(16, 8)
    frozen, _ = hs.freeze(model)
    frozen[0].train()
    assert hs.check(frozen, batches, select="HS117").codes == []
    model[0].train()
    assert hs.check(model, batches, select="HS117").codes == ["HS117"]
