"""Every named norm against its formula, written out in float64 without this library."""

import math

import pytest
import torch
import torch.nn.functional as F

import homeostat as hs
from homeostat import nn as H

D = torch.float64


def randomized(layer):
    """Its parameters away from the identity."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p) / 4)
    return layer


def standard(x, axes, eps, center=True):
    x = x.to(D)
    mean = x.mean(axes, keepdim=True) if center else 0.0
    return (x - mean) / ((x - mean).square().mean(axes, keepdim=True) + eps).sqrt()


def column(p, x):
    """A parameter per channel beside x [n, c, ...]."""
    return p.to(D).view(-1, *(1,) * (x.dim() - 2))


def picture(n=4, c=6, h=5, w=3):
    torch.manual_seed(0)
    return torch.randn(n, c, h, w) * 2 + torch.arange(c)[:, None, None]


def tokens(n=4, t=7, d=8):
    torch.manual_seed(0)
    return torch.randn(n, t, d) * 2 + 1


COND = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
MAP = torch.randn(4, 2, 10, 6, generator=torch.Generator().manual_seed(3))
STYLE = torch.randn(4, 6, 9, 8, generator=torch.Generator().manual_seed(4)) * 3 - 1
GRAPH = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
EXPERT = torch.tensor([0, 2, 1, 0, 2, 2, 1, 0, 0, 2])


def modulated(layer, y, cond, shape):
    made = layer.modulation(cond.to(layer.modulation.weight.dtype))
    s, t = (part.to(D).view(shape) for part in made.chunk(2, -1))
    return y * (1 + s) + t


def by_graph(x, f, graph=GRAPH):
    """f on the nodes of each graph."""
    y = torch.empty_like(x, dtype=D)
    for g in graph.unique():
        y[graph == g] = f(x[graph == g].to(D))
    return y


def nodes():
    torch.manual_seed(0)
    return torch.randn(10, 6) * 2 + 1


def graph_norm(layer, x):
    def one(z):
        d = z - layer.mean_scale.to(D) * z.mean(0)
        return d / (d.square().mean(0) + 1e-5).sqrt()

    return by_graph(x, one) * layer.weight.to(D) + layer.bias.to(D)


def spade(layer, x):
    m = F.interpolate(MAP.to(x.dtype), x.shape[2:], mode="nearest")
    s, t = layer.modulation(F.relu(layer.shared(m))).to(D).chunk(2, 1)
    return standard(x, (0, 2, 3), 1e-5) * (1 + s) + t


def adain(layer, x):
    style = STYLE.to(D)
    spread = (style.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    return standard(x, (2, 3), 1e-5) * spread + style.mean((2, 3), keepdim=True)


def evonorm(layer, x):
    z = x.to(D)
    var = z.view(4, 3, 2, 5, 3).var((2, 3, 4), keepdim=True, correction=0).expand(4, 3, 2, 5, 3).reshape(x.shape)
    v, w, b = (column(p, x) for p in (layer.v, layer.weight, layer.bias))
    return z * torch.sigmoid(v * z) / (var + 1e-5).sqrt() * w + b


def evonorm_b0(layer, x):
    z = x.to(D)
    own, shared = (z.var(axes, keepdim=True, correction=0).add(1e-5).sqrt() for axes in ((2, 3), (0, 2, 3)))
    v, w, b = (column(p, x) for p in (layer.v, layer.weight, layer.bias))
    return z / torch.maximum(shared, v * z + own) * w + b


def dain(layer, x):
    z = x.to(D)
    z = z - z.mean(1, keepdim=True) @ layer.shift.weight.to(D).T
    spread = (z.square().mean(1, keepdim=True) + 1e-8).sqrt() @ layer.scale.weight.to(D).T
    z = z / torch.where(spread > 1e-8, spread, 1)
    return z * torch.sigmoid(z.mean(1, keepdim=True) @ layer.gate.weight.to(D).T + layer.gate.bias.to(D))


def grn(layer, x):
    z = x.to(D)
    length = z.norm(dim=(1, 2), keepdim=True)
    ratio = length / (length.mean(-1, keepdim=True) + 1e-6)
    return layer.weight.to(D) * z * ratio + layer.bias.to(D) + z


def blocks(x, widths):
    return torch.cat([standard(part, (-1,), 1e-5) for part in x.split(widths, -1)], -1)


def orbit(layer, x, center):
    y = standard(x.view(4, 3, 2, 5, 3), (0, 2, 3, 4), 1e-5, center)
    y = y * layer.weight.to(D).view(3, 1, 1, 1)
    return (y if layer.bias is None else y + layer.bias.to(D).view(3, 1, 1, 1)).view(x.shape)


def per_kind(layer, x, kind):
    y = by_graph(x, lambda z: standard(z, (0,), 1e-5), kind)
    return y * layer.weight.to(D)[kind] + layer.bias.to(D)[kind]


def diff_group(layer, x):
    s = torch.softmax(x.to(D) @ layer.assign.weight.to(D).T, -1)
    y = x.to(D)
    for k in range(3):
        z = standard(s[:, k : k + 1] * x.to(D), (0,), 1e-5)
        y = y + 0.01 * (z * layer.norm.weight[k].to(D) + layer.norm.bias[k].to(D))
    return y


# name: how it is made, its input, what comes with the call, the formula
CASES = {
    "ConditionalBatchNorm": (
        lambda: H.ConditionalBatchNorm(6, 3),
        picture,
        {"kind": (torch.tensor([0, 2, 1, 0]), 3)},
        lambda f, x: (
            standard(x, (0, 2, 3), 1e-5) * f.weight.to(D)[[0, 2, 1, 0]][:, :, None, None]
            + f.bias.to(D)[[0, 2, 1, 0]][:, :, None, None]
        ),
    ),
    "FiLMBatchNorm": (
        lambda: H.FiLMBatchNorm(6, 5),
        picture,
        {"cond": COND},
        lambda f, x: modulated(f, standard(x, (0, 2, 3), 1e-5), COND, (4, 6, 1, 1)),
    ),
    "AdaLayerNorm": (
        lambda: H.AdaLayerNorm(8, 5),
        tokens,
        {"cond": COND},
        lambda f, x: modulated(f, standard(x, (-1,), 1e-6), F.silu(COND.to(x.dtype)), (4, 1, 8)),
    ),
    "AdaRMSNorm": (
        lambda: H.AdaRMSNorm(8, 5),
        tokens,
        {"cond": COND},
        lambda f, x: standard(x, (-1,), 1e-6, False) * (1 + f.modulation(F.silu(COND.to(x.dtype))).to(D).view(4, 1, 8)),
    ),
    "AdaGroupNorm": (
        lambda: H.AdaGroupNorm(3, 6, 5),
        picture,
        {"cond": COND},
        lambda f, x: modulated(f, standard(x.view(4, 3, -1), (-1,), 1e-5).view(x.shape), COND, (4, 6, 1, 1)),
    ),
    "AdaIN": (lambda: H.AdaIN(6), picture, {"style": STYLE}, adain),
    "SPADE": (lambda: H.SPADE(6, 2, hidden=4), picture, {"map": MAP}, spade),
    "FRN": (
        lambda: H.FRN(6),
        picture,
        {},
        lambda f, x: standard(x, (2, 3), 1e-6, False) * column(f.weight, x) + column(f.bias, x),
    ),
    "TLU": (lambda: H.TLU(6), picture, {}, lambda f, x: torch.maximum(x.to(D), column(f.threshold, x))),
    "GRN": (lambda: H.GRN(6), lambda: picture().permute(0, 2, 3, 1), {}, grn),
    "EvoNormS0": (lambda: H.EvoNormS0(3, 6), picture, {}, evonorm),
    "EvoNormB0": (lambda: H.EvoNormB0(6), picture, {}, evonorm_b0),
    "LRN": (
        lambda: H.LRN(3, 0.5, 0.6, 2.0),
        picture,
        {},
        lambda f, x: F.local_response_norm(x.to(D), 3, 0.5, 0.6, 2.0),
    ),
    "LRN, even": (lambda: H.LRN(4, 0.5), picture, {}, lambda f, x: F.local_response_norm(x.to(D), 4, 0.5)),
    "DAIN": (lambda: H.DAIN(8), tokens, {}, dain),
    "ScaleNorm": (
        lambda: H.ScaleNorm(8),
        tokens,
        {},
        lambda f, x: f.weight.to(D) * math.sqrt(8) * x.to(D) / x.to(D).norm(dim=-1, keepdim=True),
    ),
    "L2Norm": (lambda: H.L2Norm(), tokens, {}, lambda f, x: F.normalize(x.to(D), dim=-1)),
    "PartialRMSNorm": (
        lambda: H.PartialRMSNorm(8, 0.4),
        tokens,
        {},
        lambda f, x: x.to(D) / (x[..., :3].to(D).square().mean(-1, keepdim=True) + 1e-8).sqrt() * f.weight.to(D),
    ),
    "IBN": (
        lambda: H.IBN(6, 1 / 3),
        picture,
        {},
        lambda f, x: torch.cat(
            [
                standard(x[:, :2], (2, 3), 1e-5) * column(f.instance.weight, x) + column(f.instance.bias, x),
                standard(x[:, 2:], (0, 2, 3), 1e-5) * column(f.batch.weight, x) + column(f.batch.bias, x),
            ],
            1,
        ),
    ),
    "HeadNorm": (
        lambda: H.HeadNorm(2, 4),
        tokens,
        {},
        lambda f, x: (standard(x.view(4, 7, 2, 4), (-1,), 1e-6, False).reshape(x.shape)) * f.weight.to(D),
    ),
    "HeadScale": (lambda: H.HeadScale(6), picture, {}, lambda f, x: x.to(D) * f.weight.to(D).view(1, 6, 1, 1)),
    "ModalityNorm": (
        lambda: H.ModalityNorm((3, 5)),
        tokens,
        {},
        lambda f, x: blocks(x, (3, 5)) * f.weight.to(D) + f.bias.to(D),
    ),
    "ModalityNorm, shared": (
        lambda: H.ModalityNorm((3, 5), shared=True),
        tokens,
        {},
        lambda f, x: blocks(x, (3, 5)) * f.weight.to(D) + f.bias.to(D),
    ),
    "ExpertNorm": (
        lambda: H.ExpertNorm(6, 3),
        nodes,
        {"expert": (EXPERT, 3)},
        lambda f, x: standard(x, (-1,), 1e-5) * f.weight.to(D)[EXPERT] + f.bias.to(D)[EXPERT],
    ),
    "ExpertNorm, shared within an expert": (
        lambda: H.ExpertNorm(6, 3, source=hs.Running()),
        nodes,
        {"expert": (EXPERT, 3)},
        lambda f, x: per_kind(f, x, EXPERT),
    ),
    "GemmaRMSNorm": (
        lambda: H.GemmaRMSNorm(8),
        tokens,
        {},
        lambda f, x: standard(x, (-1,), 1e-6, False) * (1 + f.weight.to(D)),
    ),
    "OrbitNorm": (lambda: H.OrbitNorm(3, 2), picture, {}, lambda f, x: orbit(f, x, True)),
    "OrbitNorm of vectors": (lambda: H.OrbitNorm(3, 2, vectors=True), picture, {}, lambda f, x: orbit(f, x, False)),
    "GraphNorm": (lambda: H.GraphNorm(6), nodes, {"batch": GRAPH}, graph_norm),
    "GraphInstanceNorm": (
        lambda: H.GraphInstanceNorm(6),
        nodes,
        {"batch": GRAPH},
        lambda f, x: by_graph(x, lambda z: standard(z, (0,), 1e-5)),
    ),
    "GraphLayerNorm": (
        lambda: H.GraphLayerNorm(6),
        nodes,
        {"batch": GRAPH},
        lambda f, x: by_graph(x, lambda z: standard(z, (0, 1), 1e-5)) * f.weight.to(D) + f.bias.to(D),
    ),
    "MeanSubtraction": (
        lambda: H.MeanSubtraction(6),
        nodes,
        {"batch": GRAPH},
        lambda f, x: by_graph(x, lambda z: z - z.mean(0)),
    ),
    "PairNorm": (
        lambda: H.PairNorm(6, 1.7),
        nodes,
        {"batch": GRAPH},
        lambda f, x: by_graph(
            x, lambda z: 1.7 * (z - z.mean(0)) / ((z - z.mean(0)).square().sum(1).mean() + 1e-5).sqrt()
        ),
    ),
    "NodeNorm": (
        lambda: H.NodeNorm(3.0),
        nodes,
        {},
        lambda f, x: x.to(D) / x.to(D).std(1, keepdim=True, correction=0) ** (1 / 3),
    ),
    "HeteroNorm": (
        lambda: H.HeteroNorm(6, 3),
        nodes,
        {"kind": (EXPERT, 3)},
        lambda f, x: per_kind(f, x, EXPERT),
    ),
    "GraphSizeNorm": (
        lambda: H.GraphSizeNorm(),
        nodes,
        {"batch": GRAPH},
        lambda f, x: by_graph(x, lambda z: z / len(z) ** 0.5),
    ),
    "DiffGroupNorm": (lambda: H.DiffGroupNorm(6, 3), nodes, {}, diff_group),
    "DyT": (
        lambda: H.DyT(8),
        tokens,
        {},
        lambda f, x: torch.tanh(f.alpha.to(D) * x.to(D)) * f.weight.to(D) + f.bias.to(D),
    ),
    "Derf": (
        lambda: H.Derf(8),
        tokens,
        {},
        lambda f, x: torch.erf(f.alpha.to(D) * x.to(D) + f.shift.to(D)) * f.weight.to(D) + f.bias.to(D),
    ),
    "LayerScale": (lambda: H.LayerScale(8), tokens, {}, lambda f, x: x.to(D) * f.weight.to(D)),
    "ReZero": (lambda: H.ReZero(), tokens, {}, lambda f, x: x.to(D) * f.weight.to(D)),
    "Balanced": (
        lambda: hs.Norm("... d -> ...", gain=hs.Balanced("d", blocks=(2, 6)), d=8),
        tokens,
        {},
        lambda f, x: standard(x, (-1,), 1e-5) * balanced(f)[0] + balanced(f)[1],
    ),
    "Given": (
        lambda: hs.Norm("n c ... -> n c", gain=hs.Given("n c"), c=6),
        picture,
        {"w": STYLE[:, :, 0, 0], "b": STYLE[:, :, 1, 1]},
        lambda f, x: standard(x, (2, 3), 1e-5) * STYLE[:, :, :1, :1].to(D) + STYLE[:, :, 1:2, 1:2].to(D),
    ),
    "WeightStandardization": (
        lambda: H.WeightStandardization(),
        picture,
        {},
        lambda f, x: standard(x, (1, 2, 3), 1e-5),
    ),
    "WeightNorm": (
        lambda: H.WeightNorm(4),
        picture,
        {},
        lambda f, x: F.normalize(x.to(D).flatten(1)).view(x.shape) * 90**0.5 * f.weight.to(D).view(4, 1, 1, 1),
    ),
}


def balanced(f):
    out = []
    for part in (slice(0, 2), slice(2, 8)):
        v, u = f.weight[part].to(D), f.bias[part].to(D)
        scale = (4 / (v.square() + u.square()).sum()).sqrt()
        out.append((v * scale, u * scale))
    return tuple(torch.cat(parts) for parts in zip(*out, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_each_is_its_formula_and_so_are_its_gradients(name):
    make, inputs, given, formula = CASES[name]
    layer, x = randomized(make()), inputs().requires_grad_()
    got, want = layer(x, **given), formula(layer, x)
    torch.testing.assert_close(got.to(D), want, rtol=2e-5, atol=2e-5)
    w = torch.linspace(-1, 1, want.numel(), dtype=D).view_as(want)
    wanted = (x, *(p for p in layer.parameters() if p.requires_grad))
    of_got = torch.autograd.grad((got * w).sum(), wanted)
    of_want = torch.autograd.grad((want * w).sum(), wanted)
    for a, b in zip(of_got, of_want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_each_is_double_precise_in_double(name):
    make, inputs, given, formula = CASES[name]
    layer, x = randomized(make().double()), inputs().double()
    given = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in given.items()}
    torch.testing.assert_close(layer(x, **given), formula(layer, x), rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------- what they are for


def test_zero_begins_at_the_identity_and_around_is_one_plus():
    x = tokens()
    plain = F.layer_norm(x, (8,), eps=1e-6)
    torch.testing.assert_close(H.AdaLayerNorm(8, 5, zero=True)(x, cond=COND), plain)
    torch.testing.assert_close(H.GemmaRMSNorm(8)(x), F.rms_norm(x, (8,), eps=1e-6))


def test_every_block_keeps_its_share_of_the_energy_through_training():
    torch.manual_seed(0)
    norm = hs.Norm("n d -> d", gain=hs.Balanced("d", blocks=(2, 6)), d=8)
    rate = torch.optim.SGD(norm.parameters(), 0.5)
    for _ in range(50):
        x = torch.randn(32, 8)
        loss = (norm(x) - torch.randn(32, 8) * 5).square().mean()
        rate.zero_grad()
        loss.backward()
        rate.step()
    w, b = (p.detach() for p in norm.gain.at(norm, x, {}))
    energy = [float((w[part] ** 2 + b[part] ** 2).sum()) for part in (slice(0, 2), slice(2, 8))]
    assert energy == pytest.approx([4, 4], rel=1e-6)


def test_style_is_transferred_exactly():
    x, norm = picture(), H.AdaIN(6)
    y = norm(x, style=STYLE).double()
    torch.testing.assert_close(y.mean((2, 3)), STYLE.double().mean((2, 3)), rtol=1e-5, atol=1e-5)
    spread = STYLE.double().std((2, 3), correction=0)
    torch.testing.assert_close(y.std((2, 3), correction=0), spread, rtol=1e-4, atol=1e-4)
    m = hs.measure(STYLE, "n c ... -> n c")
    torch.testing.assert_close(norm(x, style=m), norm(x, style=STYLE), rtol=0, atol=0)


def test_queries_and_keys_are_normalized_each_by_its_own_gain():
    norm = randomized(H.QKNorm(8))
    q, k = tokens(), tokens() * 3 + 1
    got = norm(q, k)
    for y, x, part in zip(got, (q, k), (norm.query, norm.key), strict=True):
        want = standard(x, (-1,), 1e-6, False) * part.weight.double()
        torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


def test_a_sector_norm_compares_with_peers_and_gives_the_sectors_means_as_features():
    x = tokens()
    norm = H.SectorNorm({"tech": 3, "oil": 5})
    y, means = norm(x)
    torch.testing.assert_close(y.double(), blocks(x, (3, 5)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(means, torch.stack([x[..., :3].mean(-1), x[..., 3:].mean(-1)], -1))
    alone = H.SectorNorm((3, 5), center_only=True)(x)[0]
    torch.testing.assert_close(alone, torch.cat([p - p.mean(-1, keepdim=True) for p in x.split((3, 5), -1)], -1))
    with pytest.raises(hs.ShapeError, match="2 sectors take 8 features; x has 5"):
        norm(x[..., :5])


def test_the_means_of_sectors_are_features_with_a_gradient():
    x, w = tokens().requires_grad_(), torch.linspace(-1, 1, 8)
    y, means = H.SectorNorm((3, 5), center_only=True)(x)
    of_means = torch.autograd.grad(means.sum(), x, retain_graph=True)[0]
    torch.testing.assert_close(of_means, torch.tensor([1 / 3] * 3 + [1 / 5] * 5).expand_as(x))
    of_y = torch.autograd.grad((y * w).sum(), x)[0]
    centred = torch.cat([part - part.mean() for part in w.split((3, 5))])
    torch.testing.assert_close(of_y, centred.expand_as(x))


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("eps", [1e-5, 0.1, "auto"])
def test_what_is_done_with_a_reading_has_the_gradient_of_its_formula(eps, dtype):
    x, w = tokens().to(dtype).requires_grad_(), torch.linspace(-1, 1, 8, dtype=dtype)
    other = torch.randn(4, 3, 8, dtype=dtype)
    _, reading = hs.normalize(x, "n t d -> n d", eps=eps, return_reading=True)
    got = (reading.inverse(other) * w).sum() + (reading(other) * w).sum() + ((reading.mean + reading.std) * w).sum()
    z = x.detach().to(D).requires_grad_()
    mean, var = z.mean(1, keepdim=True), z.var(1, keepdim=True, correction=0)
    spread = (var + (0 if eps == "auto" else eps)).sqrt()
    want = ((other * spread + mean) * w).sum() + ((other - mean) / spread * w).sum() + ((mean + var.sqrt()) * w).sum()
    of_got, of_want = torch.autograd.grad(got, x)[0].to(D), torch.autograd.grad(want, z)[0]
    torch.testing.assert_close(of_got, of_want, rtol=1e-4, atol=1e-5 if dtype is torch.float32 else 1e-10)


def test_pono_gives_back_what_it_took():
    x = picture()
    y, reading = H.PONO()(x)
    torch.testing.assert_close(y.double(), standard(x, (1,), 1e-5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reading.inverse(y), x, rtol=1e-5, atol=1e-5)
    assert reading.mean.shape == (4, 5, 3)


def test_evonorm_b0_remembers_as_batch_norm_does_and_evaluates_by_it():
    ours, theirs, x = randomized(H.EvoNormB0(6, momentum=0.3)), torch.nn.BatchNorm2d(6, momentum=0.3), picture()
    for batch in (x, x * 3 + 1, x * torch.nan, x - 5):
        ours(batch)
        if batch.isfinite().all():
            theirs(batch)
    hs.freeze(ours, inplace=True)[0](x)
    for name, want in theirs.named_buffers():
        torch.testing.assert_close(getattr(ours, name), want, rtol=1e-5, atol=1e-5)
    assert ours.num_batches_skipped == 1
    own = x.var((2, 3), keepdim=True, correction=0).add(1e-5).sqrt()
    v, w, b, var = (p.view(6, 1, 1) for p in (ours.v, ours.weight, ours.bias, theirs.running_var))
    want = x / torch.maximum((var + 1e-5).sqrt(), v * x + own) * w + b
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hs.unfreeze(ours)[0].eval()(x), want, rtol=1e-5, atol=1e-5)


def test_messages_take_the_length_of_the_node_they_reach():
    x, message = nodes(), nodes().flip(0)
    y = H.MessageNorm(True)(x, message)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(F.normalize(y, dim=1), F.normalize(message, dim=1))


def test_attention_scores_are_normalized_among_those_that_reach_the_same_node():
    scores, receiver = nodes(), torch.tensor([3, 3, 0, 0, 0, 1, 1, 1, 1, 3])
    y = H.GraphInstanceNorm(6)(scores, receiver, 5)
    want = by_graph(scores, lambda z: standard(z, (0,), 1e-5), receiver)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- symmetry


ROTATIONS = [lambda x, k=k: torch.rot90(x, k, (-2, -1)) for k in range(4)]


def p4(x, k):
    """A quarter turn of a field on p4: the picture turns, and the four orientations move on."""
    n, c, h, w = x.shape
    return torch.rot90(x.view(n, c // 4, 4, h, w).roll(k, 2), k, (-2, -1)).reshape(n, c, h, w)


def test_orbit_norm_commutes_with_its_group_and_a_norm_per_channel_does_not():
    x = torch.randn(4, 12, 6, 6) + torch.arange(12)[:, None, None]
    actions = [lambda z, k=k: p4(z, k) for k in range(4)]
    orbit_norm = randomized(H.OrbitNorm(3, 4))
    assert hs.assert_equivariant(orbit_norm, actions, x) < 1e-6
    with pytest.raises(AssertionError, match="does not commute with action 1"):
        hs.assert_equivariant(randomized(H.BatchNorm2d(12)), actions, x)


def test_orbit_norm_of_vectors_commutes_with_rotations_and_a_centred_one_does_not():
    torch.manual_seed(0)
    x = torch.randn(16, 9, 5) + 2  # three vectors of three components each
    q, _ = torch.linalg.qr(torch.randn(3, 3))

    def turn(z):
        return torch.einsum("ij,nfjt->nfit", q, z.view(16, 3, 3, 5)).reshape(z.shape)

    assert hs.assert_equivariant(randomized(H.OrbitNorm(3, 3, vectors=True)), [turn], x) < 1e-5
    with pytest.raises(AssertionError):
        hs.assert_equivariant(randomized(H.OrbitNorm(3, 3)), [turn], x)


# ---------------------------------------------------------------- weights


def test_a_weight_parted_into_length_and_direction_stays_what_it_was_and_equals_torchs():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(5, 4), torch.nn.Linear(5, 4)
    theirs.load_state_dict(ours.state_dict())
    before = ours.weight.detach().clone()
    H.normalize_weight(ours)
    torch.testing.assert_close(ours.weight, before)
    torch.nn.utils.parametrizations.weight_norm(theirs)
    for layer in (ours, theirs):
        layer(torch.ones(2, 5)).square().sum().backward()
    g = ours.parametrizations.weight[0].weight
    length, direction = (getattr(theirs.parametrizations.weight, f"original{i}").grad for i in (0, 1))
    torch.testing.assert_close(ours.parametrizations.weight.original.grad, direction)
    torch.testing.assert_close(g.grad / 5**0.5, length.flatten())


def test_a_standardized_convolution_ignores_shift_and_scale_of_its_weight():
    torch.manual_seed(0)
    conv, x = H.standardize_weight(torch.nn.Conv2d(3, 4, 3, bias=False)), torch.randn(2, 3, 6, 6)
    y = conv(x)
    with torch.no_grad():
        conv.parametrizations.weight.original.mul_(7).add_(2)
    torch.testing.assert_close(conv(x), y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_outputs_of_a_transposed_convolution_are_its_second_axis(groups):
    torch.manual_seed(0)
    conv = torch.nn.ConvTranspose2d(6, 9, 3, groups=groups, bias=False)
    raw = conv.weight.detach().double().view(groups, 6 // groups, 9 // groups, 3, 3)
    got = H.standardize_weight(conv).weight.double().view_as(raw)
    torch.testing.assert_close(got, standard(raw, (1, 3, 4), 1e-5), rtol=1e-5, atol=1e-5)


def test_a_transposed_convolution_is_parted_into_length_and_direction_as_torchs_of_axis_1():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.ConvTranspose2d(6, 4, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    before = ours.weight.detach().clone()
    H.normalize_weight(ours)
    torch.nn.utils.parametrizations.weight_norm(theirs, dim=1)
    torch.testing.assert_close(ours.weight, before)
    for layer in (ours, theirs):
        layer(torch.ones(2, 6, 5, 5)).square().sum().backward()
    length, direction = (getattr(theirs.parametrizations.weight, f"original{i}").grad for i in (0, 1))
    torch.testing.assert_close(ours.parametrizations.weight.original.grad, direction, rtol=1e-4, atol=1e-5)
    g = ours.parametrizations.weight[0].weight.grad
    torch.testing.assert_close(g.flatten() / (6 * 9) ** 0.5, length.flatten(), rtol=1e-4, atol=1e-5)


def test_a_spectral_weight_has_the_largest_singular_value_1():
    torch.manual_seed(0)
    layer = H.spectral_weight(torch.nn.Linear(5, 4), n_power_iterations=30)
    assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1, rel=1e-3)


# ---------------------------------------------------------------- series


def test_a_reversible_norm_puts_back_constants_to_the_bit_and_the_rest_to_rounding():
    torch.manual_seed(0)
    x = torch.randn(5, 40, 4) * torch.tensor([1e-3, 1.0, 1e3, 1.0]) + torch.tensor([0.0, 1e4, 7.0, 0.0])
    x[2, :, 1], x[3, :, 2], x[4, :, 3] = 3.3, -1e7, 0.0
    for affine in (False, True):
        norm = randomized(H.Reversible(4, affine))
        y, reading = norm(x)
        back = norm.inverse(y, reading)
        size = torch.maximum(x.abs().amax(1, keepdim=True), x.std(1, keepdim=True))
        assert ((back - x).abs() <= 4e-7 * size).all()
        if not affine:
            for n, c in ((2, 1), (3, 2), (4, 3)):
                assert torch.equal(back[n, :, c], x[n, :, c])


def test_a_reversible_norm_skips_what_is_missing_and_serves_a_forecast_of_another_length():
    torch.manual_seed(0)
    x = torch.randn(2, 30, 3) * 4 + 10
    x[0, 5:9, 1] = torch.nan
    norm = H.Reversible()
    y, reading = norm(x)
    seen = torch.isfinite(x[0, :, 1])
    column_ = x[0, seen, 1].double()
    want = (column_ - column_.mean()) / column_.std(correction=0)
    torch.testing.assert_close(y[0, seen, 1].double(), want, rtol=1e-5, atol=1e-5)
    assert y[0, 5:9, 1].eq(0).all()
    forecast = torch.zeros(2, 7, 3)
    torch.testing.assert_close(norm.inverse(forecast, reading)[0, 0, 1].double(), column_.mean(), rtol=1e-6, atol=1e-6)
    assert not list(norm.buffers())


def test_what_dain_begins_with_is_the_standardized_series_gated_by_its_bias_alone():
    norm, x = H.DAIN(8), tokens()
    y, _ = H.Reversible(eps=1e-8)(x)
    torch.testing.assert_close(norm(x), y * torch.sigmoid(norm.gate.bias), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm(x * 1e3 + 1e4), norm(x), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        norm.scale.weight.neg_()
    centred = x - x.mean(1, keepdim=True)  # a scale below 0 is none
    torch.testing.assert_close(norm(x), centred * torch.sigmoid(norm.gate.bias), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- placements


@pytest.mark.parametrize("placement", ["pre", "post", "deep", "sandwich", "peri"])
def test_a_residual_is_its_formula(placement):
    torch.manual_seed(0)
    f, x = torch.nn.Linear(8, 8), tokens()
    block = H.Residual(f, H.LayerNorm(8), placement, scale=0.5, branches=48 if placement == "deep" else None)
    n = lambda z: F.layer_norm(z, (8,))  # noqa: E731
    want = {
        "pre": lambda: x + 0.5 * f(n(x)),
        "post": lambda: n(x + 0.5 * f(x)),
        "deep": lambda: n((2 * 24) ** 0.25 * x + 0.5 * f(x)),
        "sandwich": lambda: x + 0.5 * n(f(n(x))),
        "peri": lambda: x + 0.5 * n(f(n(x))),
    }[placement]()
    torch.testing.assert_close(block(x), want)


def test_a_residuals_norms_are_learned_apart_and_its_scale_may_be_a_module():
    block = H.Residual(torch.nn.Linear(8, 8), H.RMSNorm(8), "peri", scale=H.ReZero())
    assert len({id(p) for p in block.parameters()}) == 2 + 2 + 1
    torch.testing.assert_close(block(tokens()), tokens())


def test_sub_norms_what_the_last_map_of_a_branch_is_given_at_its_own_width():
    torch.manual_seed(0)
    inner, out, x = torch.nn.Linear(8, 20), torch.nn.Linear(20, 8), tokens()
    norms = H.LayerNorm(8), randomized(H.LayerNorm(20))
    block = H.Residual((inner, out), norms, "sub")
    within = F.layer_norm(inner(F.layer_norm(x, (8,))), (20,), norms[1].weight, norms[1].bias)
    torch.testing.assert_close(block(x), x + out(within))
    as_pre = H.Residual(torch.nn.Sequential(inner, norms[1], out), norms[0])
    torch.testing.assert_close(block(x), as_pre(x), rtol=0, atol=0)
    assert len(dict(block.named_parameters())) == 8


@pytest.mark.parametrize("layers", [6, 100])
def test_initial_gains_are_those_of_the_papers(layers):
    assert H.initial_gain("deep", 2 * layers) == pytest.approx((8 * layers) ** -0.25)  # of an encoder, or a decoder
    assert H.initial_gain("deep", 3 * layers) == pytest.approx((12 * layers) ** -0.25)  # of a decoder that reads one
    assert H.initial_gain("sub", 2 * layers) == pytest.approx(math.log(2 * layers) ** 0.5)
    assert H.initial_gain("pre", 2 * layers) == 1


def test_a_placement_refuses_what_it_has_no_place_for():
    norm, f = H.RMSNorm(8), torch.nn.Identity()
    with pytest.raises(ValueError, match="is none of pre, post, deep, sandwich, peri, sub"):
        H.Residual(f, norm, "around")
    with pytest.raises(ValueError, match=r"f is a pair \(inner, out\)"):
        H.Residual(f, norm, "sub")
    with pytest.raises(ValueError, match="one branch for every other"):
        H.Residual((f, f), norm)
    with pytest.raises(ValueError, match='"post" has one norm'):
        H.Residual(f, (norm, norm), "post")
    with pytest.raises(ValueError, match='"deep" needs them'):
        H.Residual(f, norm, "deep")
    with pytest.raises(ValueError, match="no other takes any"):
        H.Residual(f, norm, branches=12)


@pytest.mark.parametrize("size", [1e-21, 1.0, 1e20])
def test_an_orthogonal_update_removes_what_is_along_a_stream_of_any_size(size):
    x = torch.randn(4, 8) * size
    left = H.residual.orthogonal_to(3 * x / size, x)
    assert (left - (3 * x / size).mean(-1, keepdim=True)).abs().max() < 1e-5


def test_the_scale_of_a_branch_may_be_a_parameter():
    scale, f, x = torch.nn.Parameter(torch.full((8,), 0.5)), torch.nn.Linear(8, 8), tokens()
    block = H.Residual(f, H.RMSNorm(8), scale=scale)
    assert any(p is scale for p in block.parameters())
    torch.testing.assert_close(block(x), x + 0.5 * f(block.norm(x)))
    with pytest.raises(ValueError, match="branches=-2"):
        H.Residual(f, H.RMSNorm(8), "deep", branches=-2)


def test_a_balanced_gain_at_zero_has_a_finite_gradient():
    norm = hs.Norm("n d -> d", gain=hs.Balanced("d", blocks=(2, 6)), d=8)
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.zero_()
    norm(torch.randn(5, 8)).square().sum().backward()
    assert torch.isfinite(norm.weight.grad).all()


def test_an_infinite_value_is_not_missing_from_a_series():
    x = torch.tensor([1.0, float("inf"), 3.0]).view(1, 3, 1)
    assert not torch.isfinite(H.Reversible()(x)[0]).any()
    assert H.Reversible()(torch.tensor([1.0, float("nan"), 3.0]).view(1, 3, 1))[0][0, 1, 0] == 0


def test_an_orthogonal_update_adds_nothing_along_the_stream_token_by_token():
    torch.manual_seed(0)
    f, x = torch.nn.Linear(8, 8), tokens()
    u = H.Residual(f, H.LayerNorm(8), orthogonal=True)(x) - x
    centred = lambda z: (z - z.mean(-1, keepdim=True)).double()  # noqa: E731
    cosine = F.cosine_similarity(centred(u), centred(x), dim=-1)
    assert cosine.abs().max() < 1e-5
    plain = f(F.layer_norm(x, (8,)))
    torch.testing.assert_close(u.mean(-1), plain.mean(-1), rtol=1e-4, atol=1e-5)
    left = centred(plain) - centred(u)
    ratio = left / centred(x)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- dead inputs


def test_dead_channels_and_constant_nodes_have_no_nan_in_their_gradient():
    x = torch.randn(2, 3, 3, 4)
    x[..., 1] = 0
    z = torch.randn(5, 6)
    z[2] = 3.0
    for norm, given in ((H.GRN(4), x), (H.NodeNorm(3.0), z)):
        given.requires_grad_()
        norm(given).square().sum().backward()
        assert torch.isfinite(given.grad).all()


def test_a_graph_without_nodes_makes_no_nan():
    norm, x = H.GraphNorm(6), nodes()
    norm(x, torch.tensor([0] * 5 + [2] * 5)).square().sum().backward()
    assert torch.isfinite(norm.mean_scale.grad).all()


@pytest.mark.parametrize("norm", [H.GraphNorm(6), H.GraphSizeNorm()], ids=lambda norm: type(norm).__name__)
def test_graphs_may_come_from_given_or_from_a_list(norm):
    x = nodes()
    with hs.given(batch=GRAPH):
        torch.testing.assert_close(norm(x), norm(x, GRAPH))
    torch.testing.assert_close(norm(x, GRAPH.tolist()), norm(x, GRAPH))


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (H.DyT(6), (5, 6)),
        (H.Derf(6), (5, 6)),
        (H.LayerScale(6), (5, 6)),
        (H.ReZero(), (5, 6)),
        (H.TLU(6), (2, 6, 4, 4)),
        (H.GRN(6), (2, 4, 4, 6)),
        (H.EvoNormS0(2, 6), (2, 6, 4, 4)),
        (H.EvoNormB0(6), (2, 6, 4, 4)),
        (H.HeadScale(6), (2, 6, 4, 8)),
        (H.PowerNorm(6), (2, 6, 4, 4)),
        (H.PowerNorm(6).eval(), (2, 6, 4, 4)),
        (H.OnlineNorm(6), (2, 6, 4, 4)),
        (H.LRN(3), (2, 6, 4, 4)),
        (H.GraphSizeNorm(), (5, 6)),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, torch.nn.Module) else "",
)
def test_members_with_arithmetic_of_their_own_keep_the_dtype_of_their_input(norm, shape):
    x = torch.randn(shape)
    half = norm(x.bfloat16())
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), norm(x.bfloat16().float()), rtol=2e-2, atol=2e-2)
