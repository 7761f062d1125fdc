"""Each source against what it says it is, computed in float64 by torch's own operators or a closed form."""

import copy

import pytest
import torch
import torch.nn.functional as F
from presets import assert_same, everything

import homeostat as hs

SHAPE = (8, 6, 5, 3)


def data(shape=SHAPE, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=dtype) * 2 + torch.arange(shape[1], dtype=dtype)[:, None, None] + 3


def layer(source, dtype=torch.float32, **kwargs):
    torch.manual_seed(1)
    norm = hs.nn.BatchNorm2d(6, source=source, **kwargs).to(dtype)
    with torch.no_grad():
        norm.weight.add_(torch.randn(6, dtype=dtype) / 3)
        norm.bias.add_(torch.randn(6, dtype=dtype))
    return norm


def by_hand(norm, x, mean, var):
    """The gain put on (x - mean) / sqrt(var + eps); statistics of any shape that broadcasts against x."""
    y = (x.double() - mean) / (var + norm.eps).sqrt()
    return y * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]


def assert_same_with_gradient(got, want, x, norm, rtol=1e-5, atol=1e-5):
    """y, dx and the gradients of every parameter."""
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol)
    w = torch.linspace(-1, 1, want.numel(), dtype=torch.float64).view_as(want)
    parameters = tuple(p for p in norm.parameters())
    of_got = torch.autograd.grad((got * w).sum(), (x, *parameters))
    of_want = torch.autograd.grad((want * w).sum(), (x, *parameters))
    for a, b in zip(of_got, of_want, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * rtol, atol=10 * atol)


def moments(x, axes):
    x = x.double()
    return x.mean(axes, keepdim=True), x.var(axes, keepdim=True, correction=0)


# ---------------------------------------------------------------- parts of a batch


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 20])
def test_ghost_is_a_loop_of_batch_norms_over_parts_of_the_batch(size):
    norm, x = layer(hs.Ghost(size)), data().requires_grad_()
    parts = x.split(size)
    want = torch.cat([by_hand(norm, part, *moments(part, (0, 2, 3))) for part in parts])
    assert_same_with_gradient(norm(x), want, x, norm)
    mean = torch.stack([part.double().mean((0, 2, 3)) for part in parts]).mean(0)
    var = torch.stack([part.double().var((0, 2, 3)) for part in parts]).mean(0)
    torch.testing.assert_close(norm.running_mean.double(), 0.1 * mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * var, rtol=1e-5, atol=1e-6)


def test_ghost_of_the_whole_batch_is_the_batch():
    assert_same(everything(layer(hs.Ghost(8)), data()), everything(layer(hs.Running(0.1)), data()), 0, 0)


def test_ghost_measures_nothing_in_evaluation():
    norm, x = layer(hs.Ghost(2)), data()
    norm(x)
    norm.eval()
    want = by_hand(norm, x, *(b.double()[:, None, None] for b in (norm.running_mean, norm.running_var)))
    torch.testing.assert_close(norm(x).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [4, 3])
def test_ghost_serves_a_gain_per_sample_too(size):
    norm = hs.Norm("n c h w -> c", source=hs.Ghost(size), gain=hs.FiLM("n c", width=5), c=6)
    x, cond = data(), torch.randn(8, 5)
    s, t = norm.modulation(cond).double().view(8, 2, 6).unbind(1)
    y = torch.cat(
        [(part.double() - (m := moments(part, (0, 2, 3)))[0]) / (m[1] + 1e-5).sqrt() for part in x.split(size)]
    )
    want = y * (1 + s)[:, :, None, None] + t[:, :, None, None]
    torch.testing.assert_close(norm(x, cond=cond).double(), want, rtol=1e-5, atol=1e-5)


def test_what_ghost_cannot_part_is_refused():
    with pytest.raises(hs.FrameError, match="does not pool over that"):
        hs.Norm("n c h w -> n c", source=hs.Ghost(2), c=6)(data())
    with pytest.raises(TypeError, match="measures every sample by itself already"):
        hs.Ghost(2, hs.Virtual())
    with pytest.raises(ValueError, match="whole number of at least 1"):
        hs.Ghost(0)


# ---------------------------------------------------------------- domains


DOMAINS = torch.tensor([0, 2, 0, 0, 2, 2, 0, 2])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_every_domain_is_a_batch_norm_of_its_own(momentum):
    norm, x = layer(hs.Domain(4, hs.Running(momentum))), data().requires_grad_()
    alone = {d: layer(hs.Running(momentum)) for d in (0, 2)}
    want = torch.empty(SHAPE, dtype=torch.float64)
    for d in (0, 2):
        own = d == DOMAINS
        want[own] = by_hand(norm, x[own], *moments(x[own], (0, 2, 3)))
        alone[d](x[own])
    assert_same_with_gradient(norm(x, domain=DOMAINS), want, x, norm)
    for d in (0, 2):
        torch.testing.assert_close(norm.running_mean[d], alone[d].running_mean)
        torch.testing.assert_close(norm.running_var[d], alone[d].running_var)
    assert norm.num_batches_tracked.tolist() == [1, 0, 1, 0]
    assert norm.running_mean[1].eq(0).all()


def test_one_domain_is_a_running_average():
    with hs.given(domain=torch.zeros(8, dtype=torch.int64)):
        got = everything(layer(hs.Domain(1)), data())
    want = everything(layer(hs.Running(0.1)), data())
    assert_same({k: v.view_as(want[k]) for k, v in got.items()}, want)


def test_in_evaluation_a_domain_takes_its_own_memory_and_an_unseen_one_all_of_them_pooled():
    norm, x = layer(hs.Domain(4)), data()
    for _ in range(3):
        norm(x, domain=DOMAINS)
    norm.eval()
    mean, var = norm.running_mean.double(), norm.running_var.double()
    pooled = mean[[0, 2]].mean(0), var[[0, 2]].mean(0) + mean[[0, 2]].var(0, correction=0)
    rows = {0: (mean[0], var[0]), 2: (mean[2], var[2]), 1: pooled, 3: pooled}
    codes = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    want = torch.cat(
        [by_hand(norm, x[i : i + 1], *(p[:, None, None] for p in rows[int(c)])) for i, c in enumerate(codes)]
    )
    torch.testing.assert_close(norm(x, domain=codes).double(), want, rtol=1e-5, atol=1e-5)
    without = by_hand(norm, x, *(p[:, None, None] for p in pooled))
    torch.testing.assert_close(norm(x).double(), without, rtol=1e-5, atol=1e-5)


def test_in_training_a_missing_domain_is_refused_by_name_and_nothing_is_remembered():
    norm = layer(hs.Domain(4))
    with pytest.raises(hs.FrameError, match="call layer"):
        norm(data())
    with pytest.raises(hs.FrameError, match="code 4"):
        norm(data(), domain=DOMAINS + 2)
    with pytest.raises(hs.FrameError, match="remembers 4 domains; these labels take 5"):
        norm(data(), domain=(DOMAINS, 5))
    assert norm.num_batches_tracked.sum() == 0


WRONG = {
    "too large": (DOMAINS + 2, "code 4 is not in"),
    "negative": (DOMAINS - 1, "code -1 is not in"),
    "too few": (DOMAINS[:5], "spans"),
    "fractions": (DOMAINS.double(), "codes are integers"),
    "of NumPy, too large": (DOMAINS.numpy() + 2, "code 4 is not in"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_call_that_went_well_lets_no_wrong_codes_in_later(name):
    (wrong, said), x = WRONG[name], data()
    for dtype in (torch.float32, torch.float64):
        domains = layer(hs.Domain(4), dtype)
        kinds = hs.Norm("n c h w -> kind[n] c", hs.Running(), c=6, kind=4, dtype=dtype)
        for norm, key in ((domains, "domain"), (kinds, "kind")):
            norm(x.to(dtype), **{key: (DOMAINS, 4)})
            with pytest.raises(hs.FrameError, match=said):
                norm(x.to(dtype), **{key: (wrong, 4)})
            with pytest.raises(hs.FrameError, match="4"):
                norm(x.to(dtype), **{key: (DOMAINS, 5)})
            assert norm.num_batches_tracked.max() == 1


def test_every_domain_starts_from_a_plain_checkpoint_and_the_way_back_is_strict_too():
    plain = torch.nn.BatchNorm2d(6)
    plain(data())
    norm = layer(hs.Domain(3))
    norm.load_state_dict(plain.state_dict())
    assert all(torch.equal(row, plain.running_mean) for row in norm.running_mean)
    assert norm.num_batches_tracked.tolist() == [1, 1, 1]
    back = layer(hs.Running(0.1))
    back.load_state_dict(norm.state_dict())
    torch.testing.assert_close(back.running_var, plain.running_var, rtol=0, atol=0)
    torch.testing.assert_close(back.running_mean, plain.running_mean, rtol=0, atol=0)
    whole = hs.Norm("n c h w -> c", source=hs.Domain(3), gain=hs.Learned("c"), c=6)
    whole.load_state_dict(plain.state_dict())
    assert whole.running_mean.shape == (3, 6)


def test_a_layer_deep_in_a_model_gets_its_domains_from_given():
    model = torch.nn.Sequential(torch.nn.Conv2d(6, 6, 1), layer(hs.Domain(3)), torch.nn.ReLU())
    x = data()
    with hs.given(domain=DOMAINS, something_else=1):
        y = model(x)
    want = copy.deepcopy(model[1])(model[0](x), domain=DOMAINS).relu()
    torch.testing.assert_close(y, want)
    with pytest.raises(hs.FrameError):
        model(x)


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize("samples", [0, 3, 16.5])
@pytest.mark.parametrize("training", [True, False])
def test_shrunk_pools_this_tensor_with_memory(samples, training):
    norm, x = layer(hs.Shrunk(samples)).train(training), data().requires_grad_()
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    old, spread = norm.running_mean.double()[:, None, None], norm.running_var.double()[:, None, None]
    mean, var = moments(x, (0, 2, 3))
    n = len(x)
    both = (n * mean + samples * old) / (n + samples)
    pooled = (n * var + samples * spread) / (n + samples) + n * samples / (n + samples) ** 2 * (mean - old) ** 2
    before = norm.running_mean.clone()
    assert_same_with_gradient(norm(x), by_hand(norm, x, both, pooled), x, norm)
    assert torch.equal(before, norm.running_mean) is not training


@pytest.mark.parametrize("training", [True, False])
def test_virtual_is_batch_norm_of_the_reference_and_the_sample_together(training):
    norm, x = layer(hs.Virtual()).train(training), data().requires_grad_()
    reference = torch.randn(11, 6, 5, 3) - 1
    with hs.recording():
        in_batch = norm(reference)
    torch.testing.assert_close(
        in_batch.double(), by_hand(norm, reference, *moments(reference, (0, 2, 3))), rtol=1e-5, atol=1e-5
    )
    want = []
    for sample in x.split(1):
        mean, var = moments(torch.cat([reference, sample]), (0, 2, 3))
        want.append(by_hand(norm, sample, mean, var))
    assert_same_with_gradient(norm(x), torch.cat(want), x, norm)


def test_virtual_does_not_see_companions_and_remembers_by_recording_alone():
    norm, x = layer(hs.Virtual()), data()
    with hs.recording():
        norm(data((5, 6, 5, 3)) - 2)
    before = {name: b.clone() for name, b in norm.named_buffers()}
    torch.testing.assert_close(norm(x)[:1], norm(x[:1]))
    assert_same(dict(norm.named_buffers()), before, 0, 0)


@pytest.mark.parametrize("training", [True, False])
def test_mixed_is_a_weighted_mean_of_instance_layer_and_batch_statistics(training):
    norm, x = layer(hs.Mixed()), data().requires_grad_()
    with torch.no_grad():
        norm.mix_mean.normal_()
        norm.mix_var.normal_()
        norm(x.detach())
    norm.train(training)
    p, q = norm.mix_mean.double().softmax(0), norm.mix_var.double().softmax(0)
    of_batch = moments(x, (0, 2, 3))
    if not training:
        of_batch = tuple(b.double()[:, None, None] for b in (norm.running_mean, norm.running_var))
    parts = moments(x, (2, 3)), moments(x, (1, 2, 3)), of_batch
    mean = sum(a * part[0] for a, part in zip(p, parts, strict=True))
    var = sum(a * part[1] for a, part in zip(q, parts, strict=True))
    assert_same_with_gradient(norm(x), by_hand(norm, x, mean, var), x, norm)


def test_mixed_remembers_what_batch_norm_would():
    norm, plain, x = layer(hs.Mixed()), layer(hs.Running(0.1)), data()
    norm(x)
    plain(x)
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)


@pytest.mark.parametrize("training", [True, False])
def test_blended_is_a_weighted_mean_of_the_outputs_of_batch_and_instance_norm(training):
    norm, x = layer(hs.Blended()), data().requires_grad_()
    with torch.no_grad():
        norm.rho.uniform_(0.1, 0.9)
        norm(x.detach())
    norm.train(training)
    running = (None, None) if training else (norm.running_mean.double(), norm.running_var.double())
    z, rho = x.double(), norm.rho.double()[:, None, None]
    y = rho * F.batch_norm(z, *running, training=training) + (1 - rho) * F.instance_norm(z)
    want = y * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
    assert_same_with_gradient(norm(x), want, x, norm)


# ---------------------------------------------------------------- momentum and schedules


def test_cumulative_is_the_mean_of_all_batches():
    norm, xs = layer(hs.Cumulative()), [data() * k for k in (1, 2, 5)]
    for x in xs:
        norm(x)
    want = torch.stack([x.double().mean((0, 2, 3)) for x in xs]).mean(0)
    torch.testing.assert_close(norm.running_mean.double(), want, rtol=1e-5, atol=1e-6)


def test_the_best_momentum_is_that_of_the_scalar_riccati_equation():
    for drift, noise in ((0.01, 1.0), (0.3, 0.7), (5.0, 1.0)):
        p = 1.0
        for _ in range(10_000):  # variance before a batch, and after
            p = (p + drift) * noise / (p + drift + noise)
        assert hs.optimal_momentum(drift, noise) == pytest.approx((p + drift) / (p + drift + noise), rel=1e-9)
    assert hs.optimal_momentum(1.0, 0.0) == 1.0
    assert hs.optimal_momentum(0.0, 1.0) == 0.0
    with pytest.raises(ValueError, match="not both 0"):
        hs.optimal_momentum(0.0, 0.0)


@pytest.mark.parametrize(("drift", "noise"), [(0.04, 1.0), (0.5, 0.5)])
def test_auto_finds_the_best_momentum_from_the_stream(drift, noise):
    torch.manual_seed(0)
    norm = hs.nn.BatchNorm1d(256, source=hs.Running("auto"))
    true, error = torch.zeros(256), []
    for t in range(600):
        true = true + torch.randn(256) * drift**0.5
        z = torch.randn(8, 256)
        norm((z - z.mean(0)) / z.std(0, correction=0) + true + torch.randn(256) * noise**0.5)
        if t >= 300:
            error.append(float((norm.running_mean - true).square().mean()))
    best = hs.optimal_momentum(drift, noise) * noise
    assert sum(error) / len(error) < 1.1 * best


def test_auto_without_drift_is_the_mean_of_all_batches():
    torch.manual_seed(0)
    norm, all_ = hs.nn.BatchNorm1d(64, source=hs.Running("auto")), hs.nn.BatchNorm1d(64, momentum=None)
    for _ in range(300):
        x = torch.randn(16, 64) + 5
        norm(x)
        all_(x)
    assert (norm.running_mean - 5).square().mean() < 3 * (all_.running_mean - 5).square().mean()


def test_a_schedule_opens_renorm_from_batch_norm_to_its_bounds():
    source = hs.Renorm(schedule=((2, 1.0, 0.0), (4, 3.0, 5.0)))
    norm, plain = layer(source), layer(hs.Running(0.1))
    found = []
    for k in range(6):
        found.append(norm.source.bounds(norm.num_batches_tracked))
        x = data() * (k + 1)
        y, want = norm(x), plain(x)
        if k <= 2:
            torch.testing.assert_close(y, want)
    assert found == [(1.0, 0.0), (1.0, 0.0), (1.0, 0.0), (2.0, 2.5), (3.0, 5.0), (3.0, 5.0)]
    with pytest.raises(ValueError, match="steps rising"):
        hs.Renorm(schedule=((4, 1.0, 0.0), (2, 3.0, 5.0)))


@pytest.mark.parametrize(
    "source",
    [hs.Ghost(4), hs.Domain(2), hs.Shrunk(4), hs.Virtual(), hs.Mixed(), hs.Blended(), hs.Running("auto"), hs.Renorm()],
    ids=lambda source: type(source).__name__,
)
def test_a_source_is_saved_loaded_reset_and_frozen_like_any_other(source):
    norm, x = layer(source), data()
    with hs.given(domain=torch.arange(8) % 2), hs.recording():
        norm(x)
    again = layer(source)
    again.load_state_dict(norm.state_dict())
    norm.eval()
    again.eval()
    with hs.given(domain=torch.arange(8) % 2):
        torch.testing.assert_close(again(x), norm(x), rtol=0, atol=0)
    hs.freeze(norm, inplace=True)[0].train()
    before = {name: b.clone() for name, b in norm.named_buffers()}
    with hs.given(domain=torch.arange(8) % 2):
        norm(x + 1)
    assert_same(dict(norm.named_buffers()), before, 0, 0)
    hs.unfreeze(norm, inplace=True)
    assert norm.source == source


# ---------------------------------------------------------------- memory that is read and written in one forward

READING = {
    "Renorm": lambda: hs.Renorm(r_max=9.0, d_max=9.0),  # bounds that are never reached: reached ones would hide it
    "Renorm on a schedule": lambda: hs.Renorm(schedule=((0, 9.0, 9.0), (9, 20.0, 20.0))),
    "Domain of renorm": lambda: hs.Domain(2, hs.Renorm(r_max=9.0, d_max=9.0)),
    "Shrunk": lambda: hs.Shrunk(4),
    "Mixed": lambda: hs.Mixed(),
    "Running auto": lambda: hs.Running("auto"),
}


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", READING)
def test_three_compiled_steps_have_the_gradients_and_the_memory_of_three_eager_ones(name, backend):
    plain, twin = (layer(READING[name](), torch.float64) for _ in range(2))
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    given = {"domain": (torch.arange(8) % 2, 2)} if "Domain" in name else {}
    for k in range(3):
        xs = [(data(dtype=torch.float64) * (k + 1) - k).requires_grad_() for _ in range(2)]
        for norm, f, x in ((plain, plain, xs[0]), (twin, compiled, xs[1])):
            norm.zero_grad()
            (f(x, **given) * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum().backward()
        torch.testing.assert_close(xs[1].grad, xs[0].grad, rtol=1e-7, atol=1e-9)
        for a, b in zip(twin.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9)
        assert_same(dict(twin.named_buffers()), dict(plain.named_buffers()), 1e-9, 1e-9)
    torch._dynamo.reset()


def test_renorm_of_domains_compares_each_with_its_own_memory():
    norm, x = layer(hs.Domain(3, hs.Renorm(r_max=100.0, d_max=100.0)), torch.float64), data(dtype=torch.float64)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    old = norm.running_mean.clone()[DOMAINS], norm.running_var.clone()[DOMAINS]
    y = norm(x, domain=DOMAINS)  # unbounded, it normalizes as memory says
    torch.testing.assert_close(y, by_hand(norm, x, *(p[:, :, None, None] for p in old)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["Renorm", "Shrunk"])
def test_a_recomputed_forward_sees_the_memory_that_the_first_one_saw(name):
    from torch.utils.checkpoint import checkpoint

    plain, twin = (layer(READING[name](), torch.float64) for _ in range(2))
    for k in range(3):
        grads = []
        for f in (plain, lambda x: checkpoint(twin, x, use_reentrant=False)):
            x = (data(dtype=torch.float64) * (k + 1)).requires_grad_()
            (f(x) * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum().backward()
            grads.append(x.grad)
        torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)
        assert_same(dict(twin.named_buffers()), dict(plain.named_buffers()), 0, 0)


# ---------------------------------------------------------------- odd inputs


RULES = {
    "Shrunk": lambda: layer(hs.Shrunk(4)),
    "Mixed": lambda: layer(hs.Mixed()),
    "Blended": lambda: layer(hs.Blended()),
    "By": lambda: layer(hs.By(lambda m: (m.mean, m.var()))),
    "Virtual": lambda: recorded(layer(hs.Virtual())),
}


def recorded(norm):
    with hs.recording():
        norm(data() - 1)
    return norm


@pytest.mark.parametrize("name", RULES)
def test_a_sample_or_channel_nobody_is_measured_in_makes_no_nan(name):
    norm, x = RULES[name](), data().requires_grad_()
    where = torch.ones(SHAPE, dtype=torch.bool)
    where[2], where[:, 3] = False, False
    y = norm_with(norm, x, where)
    y.square().sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in norm.parameters() if p.grad is not None)


def norm_with(norm, x, where):
    twin = hs.Norm("n c h w -> c", source=norm.source, gain=hs.Learned("c"), c=6)
    twin.load_state_dict(norm.state_dict())
    return twin(x, where=where)


@pytest.mark.parametrize("name", RULES)
def test_rules_serve_an_eps_of_auto(name):
    made = RULES[name]()
    auto, tiny = (hs.Norm("n c h w -> c", made.source, hs.Learned("c"), eps, c=6) for eps in ("auto", 1e-12))
    for norm in (auto, tiny):
        norm.load_state_dict(made.state_dict())
    x = data() * 100
    torch.testing.assert_close(auto(x), tiny(x), rtol=1e-4, atol=1e-4)


def test_a_layer_with_a_source_or_a_gain_of_its_own_adds_a_residual_like_any_other():
    x, other = torch.randn(4, 6), torch.randn(4, 6)
    for norm in (
        hs.nn.GemmaRMSNorm(6),
        hs.nn.LayerNorm(6, source=hs.By(lambda m: (0 * m.mean, m.var() * 4))),
        hs.Norm("... d -> ...", gain=hs.Balanced("d", blocks=(2, 4)), d=6),
    ):
        total, y = norm.add(x, other)
        torch.testing.assert_close(total, x + other)
        torch.testing.assert_close(y, norm(x + other))


def test_what_a_source_cannot_hold_is_refused_by_name():
    for make in (
        lambda: hs.Renorm("auto"),
        lambda: hs.Domain(2, hs.Virtual()),
        lambda: hs.Domain(2, 0.1),
        lambda: hs.Shrunk(4, hs.Renorm()),
    ):
        with pytest.raises((TypeError, ValueError)):
            make()
    norm = hs.nn.BatchNorm2d(6)
    with pytest.raises(TypeError, match="when making it"):
        norm.source = hs.Domain(3)
    with pytest.raises(RuntimeError, match="record a reference"):
        hs.nn.BatchNorm1d(6, source=hs.Virtual())(torch.randn(4, 6))


def test_the_order_in_which_frames_are_written_changes_nothing():
    x = torch.randn(8, 6, 5)
    a, b = (hs.nn.BatchNorm1d(6, source=hs.Mixed(keeps)) for keeps in (("n c", "n", "c"), ("c n", "n", "c")))
    torch.testing.assert_close(a(x), b(x))
    alone, plain = hs.nn.BatchNorm1d(6, source=hs.Mixed(("c",))), hs.nn.BatchNorm1d(6)
    for norm in (alone, plain):
        norm(x)
        norm.eval()
    torch.testing.assert_close(alone(x), plain(x))


def test_rho_finds_back_from_beyond_its_bounds():
    norm, x = layer(hs.Blended()), data()
    with torch.no_grad():
        norm.rho.fill_(1.01)
    norm(x).pow(3).sum().backward()
    assert norm.rho.grad.abs().min() > 0


def test_a_single_sample_is_what_shrunk_and_virtual_are_for():
    shrunk = hs.nn.BatchNorm1d(6, source=hs.Shrunk(4))
    virtual = hs.nn.BatchNorm1d(6, source=hs.Virtual())
    with hs.recording():
        virtual(torch.randn(9, 6))
    for norm in (shrunk, virtual):
        assert torch.isfinite(norm.eval()(torch.randn(1, 6))).all()
    assert torch.isfinite(virtual.half()(torch.randn(4, 6).half())).all()


@pytest.mark.parametrize("name", ["Running auto", "Virtual", "Domain"])
def test_reset_forgets_everything(name):
    source = {"Running auto": hs.Running("auto"), "Virtual": hs.Virtual(), "Domain": hs.Domain(2)}[name]
    norm, fresh = hs.nn.BatchNorm2d(6, source=source), hs.nn.BatchNorm2d(6, source=source)
    with hs.recording(), hs.given(domain=torch.arange(8) % 2):
        norm(data())
    norm.reset_running_stats()
    assert_same(dict(norm.named_buffers()), dict(fresh.named_buffers()), 0, 0)


def test_renorms_gradient_is_batch_norms_times_r():
    """r and d are constants to the gradient: y = (xhat r + d) w + b, so dx is batch norm's, r times as large."""
    norm, plain = layer(hs.Renorm(r_max=1e6, d_max=1e6), torch.float64), layer(hs.Batch(), torch.float64)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x, dy = data(dtype=torch.float64).requires_grad_(), torch.randn(SHAPE, dtype=torch.float64)
    r = ((moments(x.detach(), (0, 2, 3))[1] + norm.eps) / (norm.running_var[:, None, None] + norm.eps)).sqrt()
    want = by_hand(norm, x.detach(), norm.running_mean[:, None, None].clone(), norm.running_var[:, None, None].clone())
    y = norm(x)
    torch.testing.assert_close(y, want)
    (got,) = torch.autograd.grad(y, x, dy)
    (of_batch,) = torch.autograd.grad(plain(x), x, dy)
    torch.testing.assert_close(got, of_batch * r)
