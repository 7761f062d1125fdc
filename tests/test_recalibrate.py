"""Recalibrated statistics are those of all batches together; what changed is what the certificate says."""

import copy

import pytest
import torch

import homeostat as hs


def batches(n=5, shape=(8, 3, 4, 4)):
    """Batches whose own means differ."""
    torch.manual_seed(0)
    return [torch.randn(shape) * (1 + i) + 10 * i for i in range(n)]


def net(norm=hs.nn.BatchNorm2d):
    torch.manual_seed(1)
    return torch.nn.Sequential(norm(3), torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), norm(4), torch.nn.Dropout(0.5))


def pooled(x):
    wide = x.double().movedim(1, 0).flatten(1)
    return wide.mean(1), wide.var(1)


def assert_statistics(layer, x):
    mean, var = pooled(x)
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [hs.nn.BatchNorm2d, torch.nn.BatchNorm2d])
def test_every_layer_gets_the_moments_of_all_batches_together_in_the_order_they_run(norm):
    data = batches()
    new, _ = hs.recalibrate(net(norm), data)
    whole = torch.cat(data)
    assert_statistics(new[0], whole)
    with torch.no_grad():
        assert_statistics(new[3], new[2](new[1](new[0].eval()(whole))))


def test_pooling_keeps_what_averaging_the_variance_of_every_batch_loses():
    data = batches()
    new, _ = hs.recalibrate(net(), data)
    average = torch.stack([pooled(x)[1] for x in data]).mean(0)
    true = pooled(torch.cat(data))[1]
    assert (average / true < 0.1).all()  # nearly all of the variance is between these batches
    torch.testing.assert_close(new[0].running_var.double(), true, rtol=1e-5, atol=0)


def test_a_prior_counts_as_so_many_samples_beside_the_new_ones():
    data, model = batches(), net()
    with torch.no_grad():
        model[0].running_mean.copy_(torch.tensor([5.0, -3.0, 0.5]))
        model[0].running_var.copy_(torch.tensor([2.0, 0.3, 9.0]))
    old_mean, old_var = model[0].running_mean.double(), model[0].running_var.double()
    new, _ = hs.recalibrate(model, data, prior=60, layers="0")
    wide = torch.cat(data).double().movedim(1, 0).flatten(1)
    n, N = 40, 60
    mean = (n * wide.mean(1) + N * old_mean) / (n + N)
    var = (n * wide.var(1, correction=0) + N * old_var) / (n + N) + n * N / (n + N) ** 2 * (
        wide.mean(1) - old_mean
    ) ** 2
    var *= (n + N) * 16 / ((n + N) * 16 - 1)  # unbiased, as torch remembers it; a sample has 16 values
    torch.testing.assert_close(new[0].running_mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(new[0].running_var.double(), var, rtol=1e-6, atol=1e-6)
    assert new[3].running_var.tolist() == model[3].running_var.tolist()
    little, none = (hs.recalibrate(model, data, prior=N)[0] for N in (1e-9, 0))
    torch.testing.assert_close(little[0].running_var, none[0].running_var, rtol=1e-6, atol=0)


def test_in_one_pass_each_layer_normalizes_by_the_batch_at_hand():
    data, model = batches(), net()
    new, _ = hs.recalibrate(model, data, one_by_one=False)
    with torch.no_grad():
        deep = [new[2](new[1](copy.deepcopy(new[0]).train()(x))) for x in data]
    assert_statistics(new[0], torch.cat(data))
    assert_statistics(new[3], torch.cat(deep))


def test_the_model_given_stays_as_it_is_unless_it_is_asked_for():
    model, data = net().train(), batches()
    model[1].eval()
    before, modes, state = (
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
        torch.get_rng_state(),
    )
    new, _ = hs.recalibrate(model, data)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert [m.training for m in model.modules()] == [m.training for m in new.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_pre_hooks for m in (*model.modules(), *new.modules()))
    same, _ = hs.recalibrate(model, data, inplace=True)
    assert same is model
    assert torch.equal(model[3].running_var, new[3].running_var)


def test_the_certificate_says_how_far_statistics_and_outputs_moved():
    model, data = net().eval(), batches()
    new, certificate = hs.recalibrate(model, data)
    assert [change.layer for change in certificate.changed] == ["0", "3"]
    assert certificate.samples == 40
    with torch.no_grad():
        steps = [(new(x) - model(x)).abs().max() / model(x).square().mean().sqrt() for x in data]
    torch.testing.assert_close(certificate.drift, float(max(steps)), rtol=1e-5, atol=0)
    with torch.no_grad():
        steps = [(new[0](x) - model[0](x)).abs().max() / model[0](x).square().mean().sqrt() for x in data]
    torch.testing.assert_close(certificate.changed[0].drift, float(max(steps)), rtol=1e-5, atol=0)
    mean, var = pooled(torch.cat(data))
    torch.testing.assert_close(
        certificate.changed[0].mean, float((mean / (1 + 1e-5) ** 0.5).abs().max()), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(certificate.changed[0].var, float((var + 1e-5).max() / (1 + 1e-5)), rtol=1e-5, atol=0)
    assert "recalibrated: 2 layers on 40 samples" in str(certificate)
    _, again = hs.recalibrate(new, data)
    assert again.drift < 1e-5


class Odd(torch.nn.Module):
    """Remembers, and uses it in no way that is known."""

    def __init__(self, c):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(c))
        self.register_buffer("running_var", torch.ones(c))

    def forward(self, x):
        return x.tanh() - self.running_mean


def test_layers_that_cannot_be_taken_are_named_with_the_reason():
    model = torch.nn.ModuleDict(
        {
            "used": hs.nn.BatchNorm1d(4),
            "idle": hs.nn.BatchNorm1d(4),
            "mixed": hs.nn.BatchNorm1d(4, source=hs.Mixed()),
            "heads": hs.Norm("b t (h d) -> b t h", source=hs.Running(), h=2),
            "virtual": hs.nn.BatchNorm1d(4, source=hs.Virtual()),
            "power": hs.nn.PowerNorm(4),
            "scripted": torch.jit.script(torch.nn.BatchNorm1d(4)),
            "odd": Odd(4),
        }
    )
    _, certificate = hs.recalibrate(model, [torch.randn(9, 4)], forward=lambda m, x: m["used"](x))
    left = dict(certificate.left)
    assert [change.layer for change in certificate.changed] == ["used"]
    assert "do not reach it" in left["idle"]
    assert "otherwise than a running average" in left["mixed"]
    assert "come and go" in left["heads"]
    assert "hs.recording()" in left["virtual"]
    assert "runs along with its gradient" in left["power"]
    assert "torch.jit.script" in left["scripted"]
    assert "was not seen to normalize by" in left["odd"]
    with pytest.raises(ValueError, match="no layer of that name has running statistics"):
        hs.recalibrate(model, [torch.randn(9, 4)], layers="head.*")


def test_masks_are_respected_and_batches_may_be_pairs_words_or_a_stream():
    layer = hs.Norm("n c ... -> c", source=hs.Running(), c=4)
    x, where = torch.randn(30, 4) + 2, (torch.arange(30) % 3 > 0)[:, None]
    new, _ = hs.recalibrate(layer, [(x, where)], forward=lambda m, b: m(b[0], where=b[1]))
    assert_statistics(new, x[where[:, 0]])
    w = torch.rand(30, 1).double() * 3
    new, _ = hs.recalibrate(layer, [(x[:9], w[:9]), (x[9:], w[9:])], forward=lambda m, b: m(b[0], where=b[1].float()))
    mean = (w * x).sum(0) / w.sum()
    torch.testing.assert_close(new.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    var = (w * (x - mean) ** 2).sum(0) / (w.sum() - 1)
    torch.testing.assert_close(new.running_var.double(), var, rtol=1e-5, atol=1e-5)
    for given in ([(x, torch.zeros(30))], [{"x": x}], iter([x]), (part for part in x.split(10))):
        new, _ = hs.recalibrate(layer, given)
        assert_statistics(new, x)


def test_batches_that_are_not_finite_are_an_error_and_change_nothing():
    model = hs.nn.BatchNorm1d(4)
    x = torch.randn(5, 4)
    x[2, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        hs.recalibrate(model, [x], inplace=True)
    assert model.running_mean.tolist() == [0] * 4


def test_shift_measures_how_far_new_batches_are_from_what_is_stored():
    model, data = net(), batches()
    model, _ = hs.recalibrate(model, data)
    before = copy.deepcopy(model.state_dict())
    assert max(change.mean for change in hs.shift(model, data)) < 1e-4
    spread = model[0].running_var.sqrt()
    first, _deeper = hs.shift(model, [x + 2 * spread[:, None, None] for x in data])
    assert first.mean == pytest.approx(2, rel=1e-3)
    assert first.var == pytest.approx(1, rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_batches_without_samples_are_an_error_and_one_value_alone_says_nothing_of_a_spread():
    model = torch.nn.Sequential(hs.nn.BatchNorm1d(3))
    for given in ([], [torch.randn(0, 3)]):
        with pytest.raises(ValueError, match="a single sample"):
            hs.recalibrate(model, given)
    with pytest.raises(ValueError, match="reach no layer"):
        hs.shift(model, [])
    new, _ = hs.recalibrate(model, [torch.full((1, 3), 4.0), torch.randn(0, 3)])
    assert new[0].running_mean.tolist() == [4] * 3
    assert new[0].running_var.tolist() == [1] * 3


def test_in_one_pass_a_source_that_trusts_its_memory_trusts_the_batch_as_well():
    data = [torch.randn(16, 3) * 5 + 4]
    found = []
    for source in (hs.Running(), hs.Renorm(), hs.Frozen()):
        torch.manual_seed(2)
        first, second = (hs.nn.BatchNorm1d(3, source=source) for _ in range(2))
        new, _ = hs.recalibrate(torch.nn.Sequential(first, torch.nn.Linear(3, 3), second), data, one_by_one=False)
        assert new[0].source == source
        found.append(new[2].running_var)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_a_layer_that_runs_twice_does_not_thin_the_prior_of_the_others():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = hs.nn.BatchNorm1d(3), hs.nn.BatchNorm1d(3)
            self.same = self.b

        def forward(self, x):
            return self.same(self.b(self.a(x)))

    x = torch.randn(8, 3) + 4
    new, certificate = hs.recalibrate(Twice(), [x], prior=8)
    torch.testing.assert_close(new.a.running_mean, x.mean(0) / 2)
    assert certificate.samples == 8
    assert [change.layer for change in hs.recalibrate(Twice(), [x], layers="same")[1].changed] == ["same"]


def test_a_loader_that_shuffles_shows_every_pass_the_same():
    data = torch.utils.data.TensorDataset(torch.randn(13, 3) * 3)
    loader = torch.utils.data.DataLoader(data, batch_size=5, shuffle=True)
    new, _ = hs.recalibrate(hs.nn.BatchNorm1d(3), loader)
    _, again = hs.recalibrate(new, loader)
    assert again.drift < 1e-5


def test_drift_is_nan_where_outputs_are_or_where_nothing_can_be_compared():
    norm, x = hs.nn.BatchNorm1d(3), torch.randn(9, 3) * 3
    ways = {"nan": lambda m, b: m(b) * float("nan"), "none": lambda m, b: m(b) is None, "held": lambda m, b: Held(m(b))}
    drifts = {name: hs.recalibrate(norm, [x], forward=way)[1].drift for name, way in ways.items()}
    assert str(drifts["nan"]) == str(drifts["none"]) == "nan"
    assert drifts["held"] == pytest.approx(hs.recalibrate(norm, [x])[1].drift)


class Held:
    def __init__(self, logits):
        self.logits = logits


def test_an_error_leaves_even_a_model_changed_in_place_as_it_was():
    model = torch.nn.Sequential(hs.nn.BatchNorm1d(3), torch.nn.Linear(3, 3), hs.nn.BatchNorm1d(3))
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        hs.recalibrate(model, [torch.randn(9, 3)], inplace=True)
    assert model[0].running_mean.tolist() == [0] * 3
    half = torch.nn.BatchNorm1d(3).half()
    with pytest.raises(ValueError, match=r"not finite in torch\.float16"):
        hs.recalibrate(half, [(torch.randn(64, 3) * 3000).half()])


def test_what_cannot_be_a_list_of_batches_or_a_prior_is_said_so():
    norm, x = hs.nn.BatchNorm1d(3), torch.randn(9, 3)
    with pytest.raises(TypeError, match=r"pass a list of batches, \[x\]"):
        hs.recalibrate(norm, x)
    with pytest.raises(ValueError, match="how many samples"):
        hs.recalibrate(norm, [x], prior="3")
    with pytest.raises(ValueError, match="has not seen an input yet"):
        hs.shift(hs.nn.LazyBatchNorm1d(), [x])
    with pytest.raises(ValueError, match="reach no layer"):
        hs.shift(norm, [x[:0]])


@pytest.mark.parametrize("inplace", [False, True])
def test_what_was_recalibrated_is_undone_to_the_bit_and_nothing_else(inplace):
    model = net(torch.nn.BatchNorm2d)
    model.train()(batches()[1])
    before = copy.deepcopy(model.state_dict())
    new, certificate = hs.recalibrate(model, batches(), prior=3, inplace=inplace)
    assert not torch.equal(new[0].running_var, before["0.running_var"])
    with torch.no_grad():
        new[1].weight.add_(1)
    back = certificate.undo(new, inplace=inplace)
    assert (back is new) == inplace
    before["1.weight"] += 1
    assert all(torch.equal(a, b) for a, b in zip(before.values(), back.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="this certificate is of another model"):
        certificate.undo(torch.nn.Sequential(hs.nn.BatchNorm2d(4)))


AROUND = [hs.Synced(), hs.Ghost(4), hs.Shrunk(8), hs.Frozen(hs.Synced()), hs.Renorm(), hs.Cumulative()]


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("source", AROUND, ids=str)
def test_whatever_trusts_or_shares_the_memory_it_becomes_that_of_all_batches(source, one_by_one):
    data, layer = batches(), hs.nn.BatchNorm2d(3, source=source)
    new, _ = hs.recalibrate(torch.nn.Sequential(layer), data, one_by_one=one_by_one)
    assert_statistics(new[0], torch.cat(data))
    assert new[0].source == source
    assert new[0].num_batches_tracked == len(data)  # a cumulative mean goes on from all of these


def test_each_domain_becomes_that_of_its_own_samples_and_the_unseen_stay_as_they_are():
    data, codes = batches(), [torch.arange(8) % 2 + (i == 3) for i in range(5)]
    layer = hs.nn.BatchNorm2d(3, source=hs.Domain(4))
    layer.running_mean.fill_(7)

    def run(model, batch):
        return model[0](batch[0], domain=batch[1])

    pairs = list(zip(data, codes, strict=True))
    for how in ({}, {"one_by_one": False}):
        new, _ = hs.recalibrate(torch.nn.Sequential(layer), pairs, forward=run, **how)
        for k in range(3):
            mean, var = pooled(torch.cat([x[c == k] for x, c in pairs]))
            torch.testing.assert_close(new[0].running_mean[k].double(), mean, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(new[0].running_var[k].double(), var, rtol=1e-5, atol=1e-5)
        assert new[0].running_mean[3].tolist() == [7] * 3
        assert new[0].num_batches_tracked.tolist() == [5, 5, 5, 0]  # 0 is a domain that was never seen
    new, _ = hs.recalibrate(torch.nn.Sequential(layer), pairs, forward=run, prior=10)
    mine = torch.cat([x[c == 2] for x, c in pairs])
    mean = (len(mine) * pooled(mine)[0] + 10 * 7) / (len(mine) + 10)
    torch.testing.assert_close(new[0].running_mean[2].double(), mean, rtol=1e-5, atol=1e-5)
    with hs.given(domain=codes[0]):
        assert len(hs.recalibrate(torch.nn.Sequential(layer), data[:1])[1].changed) == 1
    with pytest.raises(ValueError, match=r"0 remembers each domain apart: give it, domain=codes\."):
        hs.recalibrate(torch.nn.Sequential(layer), data)


@pytest.mark.parametrize("norm", [hs.nn.InstanceNorm2d, torch.nn.InstanceNorm2d])
def test_an_instance_norm_remembers_the_average_of_all_samples(norm):
    data, layer = [*batches(2), torch.randn(3, 4, 4)], norm(3, track_running_stats=True)
    x = torch.cat([*data[:2], data[2][None]]).double().flatten(2)
    mean, var = x.mean(2).mean(0), x.var(2).mean(0)
    for prior in (0, 4):
        new, _ = hs.recalibrate(torch.nn.Sequential(layer), data, prior=prior)
        torch.testing.assert_close(new[0].running_mean.double(), 17 * mean / (17 + prior), rtol=1e-5, atol=1e-6)
        want = (17 * var + prior) / (17 + prior)
        torch.testing.assert_close(new[0].running_var.double(), want, rtol=1e-5, atol=1e-6)


def test_a_running_mean_square_is_recalibrated_about_zero():
    layer, data = hs.Norm("n c ... -> c", source=hs.Running(), center=False, c=3), batches()
    new, _ = hs.recalibrate(layer, data)
    square = torch.cat(data).double().square().sum((0, 2, 3)) / (40 * 16 - 1)  # as it remembers batches
    assert new.running_mean.tolist() == [0] * 3
    torch.testing.assert_close(new.running_var.double(), square, rtol=1e-6, atol=0)


class FrozenNorm(torch.nn.Module):
    """Somebody else's, all of it buffers, such as torchvision's."""

    def __init__(self, c):
        super().__init__()
        for name, value in {"weight": 2.0, "bias": 1.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, torch.full((c,), value))

    def forward(self, x):
        c, v, w, b = (t[:, None, None] for t in (self.running_mean, self.running_var, self.weight, self.bias))
        return (x - c) / (v + 1e-5).sqrt() * w + b


def test_memory_written_by_hand_is_taken_where_it_is_seen_to_be_that_and_streams_stay_streams():
    data = batches()
    new, _ = hs.recalibrate(torch.nn.Sequential(FrozenNorm(3)), data)
    assert_statistics(new[0], torch.cat(data))
    assert hs.shift(new, iter(data))[0].mean < 1e-4
    with pytest.raises(ValueError, match="0: it cannot normalize by the batch at hand: one_by_one=True"):
        hs.recalibrate(new, data, one_by_one=False)


def test_compiled_models_that_have_run_are_looked_into_as_well():
    model = torch.compile(net(torch.nn.BatchNorm2d).eval(), backend="eager")
    data = batches()
    model(data[0])
    new, certificate = hs.recalibrate(model, data)
    assert_statistics(new._orig_mod[0], torch.cat(data))
    assert [one.layer for one in hs.shift(model, data)] == [one.layer for one in certificate.changed]
