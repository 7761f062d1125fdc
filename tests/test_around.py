"""A source around a source is what each of them says: by law, one layer per part or domain; or by a closed form."""

import copy

import pytest
import torch
from presets import assert_same

import homeostat as hs

SHAPE = (10, 6, 5, 3)
DOMAIN = torch.tensor([0, 2, 0, 0, 2, 2, 0, 2, 0, 0])  # of three; nobody is of the second
SCHEDULE = ((0, 1.5, 0.5), (3, 3.0, 5.0))


def data(step=0, n=10):
    torch.manual_seed(step)
    x = torch.randn(n, *SHAPE[1:], dtype=torch.float64) * (2 + step) + torch.arange(6)[:, None, None]
    return x + torch.arange(n)[:, None, None, None] / 4


def layer(source, dtype=torch.float64):
    torch.manual_seed(1)
    norm = hs.nn.BatchNorm2d(6, source=source, dtype=dtype)
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(torch.randn_like(p) / 3)
    return norm


def seasoned(source, dtype=torch.float64):
    """A layer with memory that is not its beginning."""
    norm = layer(source, dtype)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def call(norm, x, codes=DOMAIN):
    with hs.given(domain=codes):
        return norm(x)


def spread(m):
    return 0.25 * m.mean, m.var() * 2


def slope(y):
    return torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).cos()


def of(x, axes):
    """Mean and variance over these axes, beside x."""
    return x.mean(axes, keepdim=True).expand_as(x), x.var(axes, correction=0, keepdim=True).expand_as(x)


def by_hand(norm, x, mean, var):
    y = (x - mean) / (var + norm.eps).sqrt()
    return y * norm.weight[:, None, None] + norm.bias[:, None, None]


def assert_same_with_gradient(norm, got, want, x):
    """y, dx and the gradient of everything that is learned."""
    near = 1e-9 if got.dtype is torch.float64 else 2e-5
    torch.testing.assert_close(got.double(), want.double(), rtol=near, atol=near)
    leaves = (x, *norm.parameters())
    pairs = zip(*(torch.autograd.grad((y * slope(want.double())).sum(), leaves) for y in (got, want)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=100 * near, atol=100 * near)


def shrunk(n, mean, var, s, mean0, var0):
    """The moments of n samples and of s more."""
    both = (n * mean + s * mean0) / (n + s)
    return both, (n * var + s * var0) / (n + s) + n * s / (n + s) ** 2 * (mean - mean0) ** 2


# ---------------------------------------------------------------- laws

INNER = {
    "Batch": hs.Batch,
    "Running": hs.Running,
    "Cumulative": hs.Cumulative,
    "Running auto": lambda: hs.Running("auto"),
    "Renorm": lambda: hs.Renorm(r_max=1.5, d_max=0.5),
    "Renorm, cumulative and scheduled": lambda: hs.Renorm(None, schedule=SCHEDULE),
    "Shrunk": lambda: hs.Shrunk(3.5),
    "Shrunk of Cumulative": lambda: hs.Shrunk(3.5, hs.Cumulative()),
    "By": lambda: hs.By(spread),
}
OF_DOMAIN = INNER | {
    "Ghost": lambda: hs.Ghost(2),
    "Ghost of Renorm": lambda: hs.Ghost(2, hs.Renorm(r_max=1.5, d_max=0.5)),
    "Ghost of Shrunk": lambda: hs.Ghost(3, hs.Shrunk(3.5)),
}
OF_GHOST = INNER | {"Partial": hs.Partial, "Mixed": hs.Mixed, "Blended": hs.Blended}


@pytest.mark.parametrize("name", OF_DOMAIN)
def test_domain_is_a_layer_per_domain(name):
    whole, alone = layer(hs.Domain(3, OF_DOMAIN[name]())), {d: layer(OF_DOMAIN[name]()) for d in (0, 1, 2)}
    for step, codes in enumerate((DOMAIN, DOMAIN * 0, DOMAIN, 2 - DOMAIN // 2, DOMAIN)):
        x = data(step).requires_grad_()
        want = torch.empty_like(x)
        for d in codes.unique().tolist():
            for p, own in zip(whole.parameters(), alone[d].parameters(), strict=True):
                own.data = p  # so that what reaches it reaches the one they share
            want[codes == d] = torch.func.functional_call(alone[d], dict(whole.named_parameters()), (x[codes == d],))
        assert_same_with_gradient(whole, call(whole, x, codes), want, x)
        for key in whole.source.names:
            rows = getattr(whole, key)
            rows = rows.movedim(1, 0) if key in ("candidates", "errors") else rows
            for d in (0, 1, 2):
                torch.testing.assert_close(rows[d], getattr(alone[d], key), rtol=1e-9, atol=1e-9)
    whole.eval()
    for d in (0, 1, 2):
        got = call(whole, x, torch.full((10,), d))
        torch.testing.assert_close(got, alone[d].eval()(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [2, 4, 5])
@pytest.mark.parametrize("name", OF_GHOST)
def test_ghost_is_a_layer_per_part_that_starts_from_one_memory(name, size):
    whole, before = layer(hs.Ghost(size, OF_GHOST[name]())), layer(OF_GHOST[name]())
    for step in range(3):
        x = data(step).requires_grad_()
        before.load_state_dict(whole.state_dict())
        parts = [copy.deepcopy(before) for _ in x.split(size)]
        shared = dict(whole.named_parameters())
        want = torch.cat(
            [torch.func.functional_call(p, shared, (z,)) for p, z in zip(parts, x.split(size), strict=True)]
        )
        assert_same_with_gradient(whole, whole(x), want, x)
        for key in set(whole.source.names) - {"candidates", "errors"} if name != "Running auto" else ():
            mean = torch.stack([getattr(part, key).double() for part in parts]).mean(0)
            torch.testing.assert_close(getattr(whole, key).double(), mean, rtol=1e-9, atol=1e-9)
    assert_same(
        {"y": whole.eval()(x)}, {"y": torch.func.functional_call(before.eval(), whole.state_dict(), (x,))}, 0, 0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [2, 4])
def test_ghost_of_domains_is_a_layer_of_domains_per_part(size, dtype):
    whole, before = layer(hs.Ghost(size, hs.Domain(3)), dtype), layer(hs.Domain(3), dtype)
    parts = [copy.deepcopy(before) for _ in range(-(-10 // size))]
    x, shared = data().to(dtype).requires_grad_(), dict(whole.named_parameters())
    want = [
        torch.func.functional_call(part, shared, (z,), {"domain": codes})
        for part, z, codes in zip(parts, x.split(size), DOMAIN.split(size), strict=True)
    ]
    assert_same_with_gradient(whole, call(whole, x), torch.cat(want), x)
    for d in (0, 2):
        mean = torch.stack([p.running_mean[d] for p in parts if p.num_batches_tracked[d]]).mean(0)
        torch.testing.assert_close(whole.running_mean[d], mean)
    assert whole.num_batches_tracked.tolist() == [1, 0, 1]


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [5, 4])
def test_ghosts_are_renormed_towards_the_memory_they_share(size, dtype):
    norm, x = seasoned(hs.Ghost(size, hs.Renorm(r_max=1.5, d_max=0.5)), dtype), data().to(dtype).requires_grad_()
    mean, var = (b.to(torch.float64, copy=True)[:, None, None] for b in (norm.running_mean, norm.running_var))
    want = []
    for part in x.double().split(size):
        m, v = of(part, (0, 2, 3))
        r = ((v + norm.eps) / (var + norm.eps)).sqrt().clamp(1 / 1.5, 1.5).detach()
        d = ((m - mean) / (var + norm.eps).sqrt()).clamp(-0.5, 0.5).detach()
        y = (part - m) / (v + norm.eps).sqrt() * r + d
        want.append(y * norm.weight[:, None, None] + norm.bias[:, None, None])
    assert_same_with_gradient(norm, norm(x), torch.cat(want), x)


@pytest.mark.parametrize("around", [lambda: hs.Shrunk(3.5, hs.Domain(3)), lambda: hs.Domain(3, hs.Shrunk(3.5))])
@pytest.mark.parametrize("training", [True, False])
def test_a_domain_is_shrunk_towards_its_own_memory_and_an_unseen_one_towards_all_pooled(around, training):
    norm, x = seasoned(around()).train(training), data().requires_grad_()
    norm.num_batches_tracked.copy_(torch.tensor([4, 0, 2]))
    codes = DOMAIN if training else DOMAIN - (DOMAIN == 2).long()  # the unseen one, in evaluation
    old, var = norm.running_mean.clone(), norm.running_var.clone()
    pooled = old[[0, 2]].mean(0), var[[0, 2]].mean(0) + old[[0, 2]].var(0, correction=0)
    prior = {0: (old[0], var[0]), 1: pooled, 2: (old[2], var[2])}
    want = torch.empty_like(x)
    for d in codes.unique().tolist():
        part = x[codes == d]
        towards = (b[:, None, None] for b in prior[d])
        want[codes == d] = by_hand(norm, part, *shrunk(len(part), *of(part, (0, 2, 3)), 3.5, *towards))
    assert_same_with_gradient(norm, call(norm, x, codes), want, x)
    assert torch.equal(norm.running_mean, old) is not training


def test_shrunk_of_what_is_frozen_takes_new_batches_beside_a_memory_that_stays():
    norm, x = seasoned(hs.Shrunk(3.5, hs.Frozen())), data().requires_grad_()
    mean, var = (b.to(torch.float64, copy=True)[:, None, None] for b in (norm.running_mean, norm.running_var))
    want = by_hand(norm, x, *shrunk(10, *of(x, (0, 2, 3)), 3.5, mean, var))
    assert_same_with_gradient(norm, norm(x), want, x)
    torch.testing.assert_close(norm.running_mean[:, None, None], mean, rtol=0, atol=0)


def parts_of_the_batch(norm, x, kind, training):
    """The batch's mean and variance beside x, as each source inside a mixture has it."""
    old, var = norm.running_mean.clone(), norm.running_var.clone()
    if kind == "Domain":
        mean, spread = torch.empty_like(x), torch.empty_like(x)
        for d in (0, 2):
            own = d == DOMAIN
            found = of(x[own], (0, 2, 3)) if training else (b[d][:, None, None] for b in (old, var))
            mean[own], spread[own] = found
        return mean, spread
    mean0, var0 = old[:, None, None].expand_as(x), var[:, None, None].expand_as(x)
    if kind == "Shrunk":
        return shrunk(10, *of(x, (0, 2, 3)), 3.5, mean0, var0)
    if kind == "Ghost" and training:
        return tuple(torch.cat(part) for part in zip(*(of(z, (0, 2, 3)) for z in x.split(4)), strict=True))
    return mean0, var0  # Frozen, and Ghost in evaluation


INSIDE = {
    "Domain": lambda: hs.Domain(3),
    "Shrunk": lambda: hs.Shrunk(3.5),
    "Ghost": lambda: hs.Ghost(4),
    "Frozen": lambda: hs.Frozen(),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", INSIDE)
def test_a_mixture_takes_the_batchs_part_as_the_source_inside_it_has_it(kind, training):
    norm, x = seasoned(hs.Mixed(inner=INSIDE[kind]())).train(training), data().requires_grad_()
    if kind == "Domain":
        norm.num_batches_tracked.fill_(1)
    with torch.no_grad():
        norm.mix_mean.normal_()
        norm.mix_var.normal_()
    p, q = norm.mix_mean.softmax(0), norm.mix_var.softmax(0)
    batch = parts_of_the_batch(norm, x, kind, training)
    parts = of(x, (2, 3)), of(x, (1, 2, 3)), batch
    mean = sum(a * part[0] for a, part in zip(p, parts, strict=True))
    var = sum(a * part[1] for a, part in zip(q, parts, strict=True))
    assert_same_with_gradient(norm, call(norm, x), by_hand(norm, x, mean, var), x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", INSIDE)
def test_a_blend_takes_the_batchs_part_as_the_source_inside_it_has_it(kind, training):
    norm, x = seasoned(hs.Blended(inner=INSIDE[kind]())).train(training), data().requires_grad_()
    if kind == "Domain":
        norm.num_batches_tracked.fill_(1)
    with torch.no_grad():
        norm.rho.uniform_(0.2, 0.8)
    rho, batch = norm.rho[:, None, None], parts_of_the_batch(norm, x, kind, training)
    of_batch, of_sample = ((x - m) / (v + norm.eps).sqrt() for m, v in (batch, of(x, (2, 3))))
    want = (rho * of_batch + (1 - rho) * of_sample) * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert_same_with_gradient(norm, call(norm, x), want, x)


@pytest.mark.parametrize("kind", ["Domain", "Ghost"])
def test_a_mixture_remembers_what_the_source_inside_it_would(kind):
    norm, plain, x = layer(hs.Mixed(inner=INSIDE[kind]())), layer(INSIDE[kind]()), data()
    for one in (norm, plain):
        call(one, x)
    for key in plain.source.names:
        torch.testing.assert_close(getattr(norm, key), getattr(plain, key), rtol=1e-12, atol=1e-12)


def test_a_sample_that_a_mixture_measures_nothing_of_changes_nothing_for_the_others():
    norm, x = hs.Norm("n c h w -> c", hs.Mixed(), c=6, dtype=torch.float64), data()
    where = torch.ones(10, 1, 1, 1)
    where[2] = 0
    got, rest = norm(x, where=where), x[torch.arange(10) != 2]
    torch.testing.assert_close(got[torch.arange(10) != 2], norm(rest), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got[2], x[2], rtol=0, atol=0)


def test_a_mixture_of_the_batch_alone_remembers_nothing():
    norm, x = layer(hs.Mixed(inner=hs.Batch())), data()
    y = norm(x)
    torch.testing.assert_close(norm.eval()(x), y)
    assert not {name for name, _ in norm.named_buffers()} & set(hs.Running.names)


def test_codes_that_lie_apart_in_memory_are_read_where_they_lie():
    every = torch.stack([DOMAIN, 2 - DOMAIN], 1)
    for dtype in (torch.float32, torch.float64):
        x, norm = data().to(dtype), layer(hs.Domain(3)).to(dtype)
        torch.testing.assert_close(call(norm, x, every[:, 0]), call(norm, x), rtol=0, atol=0)
        by_code = (hs.normalize(x, "n c h w -> d[n] c", d=(codes, 3)) for codes in (every[:, 0], DOMAIN))
        torch.testing.assert_close(*by_code, rtol=0, atol=0)
