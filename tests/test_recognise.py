"""Norms are recognised by what they do: the frames of hand-written ones, and silence about everything else."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import homeostat as hs


class Lambda(nn.Module):
    """A module without a name that would give it away."""

    def __init__(self, f, *shape, buffers=(), **attributes):
        super().__init__()
        self.f = f
        for name, value in attributes.items():
            setattr(self, name, value)
        if shape:
            self.gain = nn.Parameter(torch.ones(shape))

    def forward(self, x, *more, **words):
        return self.f(self, x, *more, **words)


def rms(m, x):
    y = x.float()
    return m.gain * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def layer_2d(m, x):
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    return (x - mean) / (var + 1e-5).sqrt() * m.gain[:, None, None]


def group(m, x, groups=2):
    z = x.reshape(len(x), groups, -1)
    z = (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-5)
    return z.reshape(x.shape) * m.gain[:, None, None]


def strided(m, x):  # channels 0, 2, 4 | 1, 3, 5
    z = x.unflatten(1, (3, 2))
    z = (z - z.mean((1, 3, 4), keepdim=True)) / z.std((1, 3, 4), keepdim=True)
    return z.reshape(x.shape) * m.gain[:, None, None]


def heads(m, x, h=2):
    z = x.unflatten(-1, (h, -1))
    return (z / z.square().mean(-1, keepdim=True).add(1e-6).sqrt()).flatten(-2) * m.gain


def batch(m, x):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


class RunningNorm(nn.Module):
    """Batch norm with names of its own, a gain that starts at 0, and work in place."""

    def __init__(self, c):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(c, 1, 1))
        self.register_buffer("mu", torch.zeros(c, 1, 1))
        self.register_buffer("s2", torch.ones(c, 1, 1))

    def forward(self, x):
        if self.training:
            mu, s2 = x.mean((0, 2, 3))[:, None, None], x.var((0, 2, 3))[:, None, None]
            self.mu.lerp_(mu, 0.1)
            self.s2.lerp_(s2, 0.1)
        else:
            mu, s2 = self.mu, self.s2
        return x.sub_(mu).div_((s2 + 1e-3).sqrt()).mul_(self.scale)


class Frozen(nn.Module):
    def __init__(self, c):
        super().__init__()
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, torch.full((c,), value))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


PICTURES, TOKENS = (2, 6, 5, 4), (3, 7, 6)
HANDMADE = {
    # module, shape of x, frame, centred, source, gain, fused
    "RMS": (Lambda(rms, 6), TOKENS, "... d -> ...", False, "sample", "d", False),
    "layer norm of channels": (Lambda(layer_2d, 6), PICTURES, "n c ... -> n ...", True, "sample", "c", False),
    "group": (Lambda(group, 6), PICTURES, "n (g c) ... -> n g", True, "sample", "(g c)", False),
    "group of one picture": (Lambda(group, 6), (1, 6, 5, 4), "n (g c) ... -> n g", True, "sample", "(g c)", False),
    "strided groups": (Lambda(strided, 6), PICTURES, "n (c g) ... -> n g", True, "sample", "(c g)", False),
    "per head": (Lambda(heads, 6), TOKENS, "... (h d) -> ... h", False, "sample", "(h d)", False),
    "batch statistics now": (Lambda(batch), PICTURES, "n c ... -> c", True, "batch", None, False),
    "running statistics": (RunningNorm(6), PICTURES, "n c ... -> c", True, "running", "c", False),
    "one picture, running": (RunningNorm(6), (1, 6, 5, 4), "n c ... -> c", True, "running", "c", False),
    "frozen": (Frozen(6), PICTURES, "n c ... -> c", True, "running", None, False),
    "length": (Lambda(lambda m, x: F.normalize(x, dim=1)), PICTURES, "n c ... -> n ...", False, "sample", None, False),
    "group and relu": (
        Lambda(lambda m, x: F.relu_(group(m, x)), 6), PICTURES, "n (g c) ... -> n g", True, "sample", "(g c)", True
    ),
    "RMS and silu": (Lambda(lambda m, x: F.silu(rms(m, x)), 6), TOKENS, "... d -> ...", False, "sample", "d", True),
    "a tuple": (Lambda(lambda m, x: (x.sum(), rms(m, x)), 6), TOKENS, "... d -> ...", False, "sample", "d", False),
    "over time": (
        Lambda(lambda m, x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) * m.gain, 6),
        TOKENS, "n t d -> n d", True, "sample", "d", False,
    ),
    "over everything": (
        Lambda(lambda m, x: F.layer_norm(x, x.shape) * m.gain, 1), TOKENS, "n c t ->", True, "batch", "", False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HANDMADE)
def test_a_norm_written_by_hand_is_given_its_frame(name):
    torch.manual_seed(0)
    module, shape, frame, center, source, gain, fused = HANDMADE[name]
    (found,) = hs.recognise(nn.Sequential(module), [torch.randn(shape) * 3 + 1])
    assert (str(found.frame), found.source, found.gain, found.fused) == (frame, source, gain, fused)
    assert found.center == (found.frame if center else None)
    assert (found.name, found.by, found.shape) == ("0", "behaviour", shape)


def test_what_it_finds_is_what_it_computes():
    """The frame, given back to the library, makes the same numbers."""
    torch.manual_seed(0)
    for name in ("RMS", "layer norm of channels", "per head", "strided groups", "batch statistics now"):
        module, shape, *_ = HANDMADE[name]
        x = torch.randn(shape, dtype=torch.float64) * 3 + 1
        (found,) = hs.recognise(module, [x])
        y = hs.normalize(x, found.frame, center=found.center is not None, eps=0.0, **found.sizes)
        slope = (module(x) / y).detach()
        torch.testing.assert_close(slope, torch.ones_like(slope), rtol=0.05, atol=0)  # of n - 1 and n


OTHERS = {
    "softmax": lambda m, x: x.softmax(-1),
    "saturating": lambda m, x: torch.tanh(9 * x),
    "sign": lambda m, x: x.sign(),
    "clamp": lambda m, x: x.clamp(-1, 1),
    "largest": lambda m, x: (x == x.amax(-1, keepdim=True)).to(x.dtype),
    "centring alone": lambda m, x: x - x.mean(-1, keepdim=True),
    "gate": lambda m, x: x * x.sigmoid(),
    "response (GRN)": lambda m, x: x + x * x.norm(dim=1, keepdim=True) / x.norm(dim=(1, 2), keepdim=True),
    "cosine head": lambda m, x: F.normalize(x, dim=-1) @ F.normalize(m.gain[: x.shape[-1]], dim=0),
    "cosine loss": lambda m, x: F.cosine_similarity(x, x.roll(1, 0), dim=-1),
    "mixed afterwards": lambda m, x: F.layer_norm(x, x.shape[-1:]) @ m.gain,
    "constant": lambda m, x: x * 0 + 1,
    "nothing": lambda m, x: x,
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_norm_is_not_found_whatever_its_name(name):
    kind = type("BatchNorm2d", (Lambda,), {})
    model = nn.Sequential(kind(OTHERS[name], 6, 6, eps=1e-5))
    found = hs.recognise(model, [torch.randn(TOKENS)])
    assert len(found) == 0
    assert found.left == ()


def test_what_behaves_like_a_norm_in_no_frame_is_said_so():
    part = Lambda(lambda m, x: x / x[..., :2].square().mean(-1, keepdim=True).sqrt())
    largest = Lambda(lambda m, x: x / x.abs().amax(-1, keepdim=True))
    found = hs.recognise(nn.Sequential(part, largest), [torch.randn(TOKENS)])
    assert len(found) == 0
    left = dict(found.left)
    assert "behaves like a norm" in left["0"] or "no regular part" in left["0"]
    assert "something else than a spread" in left["1"]


def test_graphs_in_one_batch_are_a_label():
    def graph(m, x, graphs):
        total = torch.zeros(int(graphs.max()) + 1, 6, dtype=x.dtype)
        count = torch.bincount(graphs)[:, None]
        d = x - (total.index_add(0, graphs, x) / count)[graphs]
        return d / (total.index_add(0, graphs, d * d) / count + 1e-5).sqrt()[graphs]

    class Graph(nn.Module):
        def forward(self, x, graphs):
            return graph(self, x, graphs)

    x, graphs = torch.randn(9, 6), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    (found,) = hs.recognise(Graph(), [(x, graphs)], forward=lambda m, b: m(*b))
    assert str(found.frame) == "n d -> graphs[n] d"
    assert found.source == "sample"


def test_a_residual_added_inside_and_a_gate_beside_do_not_hide_a_norm():
    def added(m, x, residual):
        return rms(m, x + residual), x + residual

    def gated(m, x, gate):
        return rms(m, x) * F.silu(gate)

    def gated_before(m, x, gate):
        return rms(m, x * F.silu(gate))

    for f in (added, gated, gated_before):
        module = Lambda(f, 6)
        (found,) = hs.recognise(module, [torch.randn(2, *TOKENS)], forward=lambda m, b: m(b[0], b[1]))
        assert str(found.frame) == "... d -> ..."
        assert found.fused


def test_known_classes_are_taken_at_their_word_and_subclasses_are_tried():
    class Loud(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    class Same(nn.LayerNorm):
        pass

    x = torch.randn(PICTURES)
    model = nn.Sequential(
        nn.BatchNorm2d(6), hs.nn.GroupNorm(3, 6), Loud(6), nn.InstanceNorm2d(6), nn.SyncBatchNorm(6), Same([6, 5, 4]),
        nn.LocalResponseNorm(2), hs.Norm("n c h w -> n h", gain=hs.Learned("h"), h=5),
    )  # fmt: skip
    found = hs.recognise(model, [x])
    assert [(one.name, one.by, str(one.frame), one.fused) for one in found] == [
        ("0", "class", "n c ... -> c", False),
        ("1", "class", "n (g c) ... -> n g", False),
        ("2", "behaviour", "n c ... -> c", True),
        ("3", "class", "n c ... -> n c", False),
        ("4", "class", "n c ... -> c", False),
        ("5", "behaviour", "n c h w -> n", False),
        ("7", "class", "n c h w -> n h", False),
    ]
    assert found["5"].gain == "c h w"
    assert [one.shape for one in found] == [PICTURES] * 7
    assert 'gain "(g c)"' in str(found)


def test_a_model_is_to_the_bit_what_it_was():
    class Counting(RunningNorm):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            self.mu += 1
            random.random()
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(Counting(6), nn.Dropout(), nn.BatchNorm2d(6), Lambda(group, 6)).train()
    model[2].eval()
    hook = model[0].register_forward_hook(lambda *_: None)
    x = torch.randn(PICTURES, requires_grad=True)
    before = copy.deepcopy(model.state_dict())
    attributes = [dict(vars(m)) for m in model.modules()]
    modes, state, other = [m.training for m in model.modules()], torch.get_rng_state(), random.getstate()
    found = hs.recognise(model, [x])
    assert len(found) == 3
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert [m.training for m in model.modules()] == modes
    assert [list(vars(m)) for m in model.modules()] == [list(one) for one in attributes]
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == other
    assert [len(m._forward_hooks) for m in model.modules()] == [0, 1, 0, 0, 0]
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert not any(p.grad is not None for p in model.parameters())
    hook.remove()


def test_what_cannot_be_tried_is_listed_with_the_reason():
    class Locked(nn.Module):
        def __deepcopy__(self, memo):
            raise RuntimeError("one of a kind")

        def forward(self, x):
            return x

    class Single(nn.Module):
        def forward(self, x):
            return (x.float() @ torch.ones(6, 6)).to(x.dtype) if x.dtype == torch.float32 else 1 / 0

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.locked, self.single = Lambda(rms, 6), Locked(), Single()
            self.scripted = torch.jit.script(nn.BatchNorm1d(6))
            self.compiled = torch.compile(nn.LayerNorm(6), backend="eager")

        def forward(self, x):
            return self.single(self.locked(x))

    found = hs.recognise(Outer(), [torch.randn(7, 6)])
    left = dict(found.left)
    assert len(found) == 0
    assert "do not reach it" in left["idle"]
    assert "cannot be copied: RuntimeError: one of a kind" in left["locked"]
    assert "float64" in left["single"]
    assert "torch.jit.script" in left["scripted"]
    assert "torch.compile" in left["compiled"]
    lazy = nn.Sequential(nn.LazyBatchNorm1d(), nn.LayerNorm(6))
    found = hs.recognise(lazy, [torch.randn(7, 6)])
    assert [one.name for one in found] == ["1"]
    assert "not seen an input" in dict(found.left)["0"]
    assert type(lazy[0]) is nn.LazyBatchNorm1d
    assert "there are none" in dict(hs.recognise(Outer()).left)["idle"]


def test_a_norm_of_weights_is_none_of_activations():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)), nn.LayerNorm(6))
    nn.utils.parametrize.register_parametrization(model[1], "weight", Lambda(lambda m, w: w / w.norm()))
    found = hs.recognise(model, [torch.randn(4, 6)])
    assert [(one.name, one.kind) for one in found] == [("1", "LayerNorm")]
    assert found.left == ()


def test_eps_is_read_where_it_has_one_of_its_usual_names():
    module = Lambda(rms, 6, variance_epsilon=1e-6)
    assert hs.recognise(module, [torch.randn(TOKENS)])[""].eps == 1e-6
    assert hs.recognise(Lambda(rms, 6), [torch.randn(TOKENS)])[""].eps is None
    with pytest.raises(KeyError, match="no norm was recognised under the name 'x'"):
        hs.recognise(module)["x"]
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module"):
        hs.recognise(torch.relu)
