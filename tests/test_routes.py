"""Every way of differentiating a layer, compiled or not, agrees with torch.nn: a wrong tangent raises no error."""

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

import homeostat as hs
import homeostat.memory  # registers the operators that remember
from homeostat import routes
from homeostat.frame import Frame
from homeostat.kernels import cpu, fused
from homeostat.kernels.reference import Job
from homeostat.plan import plan_for
from homeostat.trust import Fixed

PAIRS = {
    "layer norm": (lambda m: m.LayerNorm(6), (4, 6)),
    "RMS norm": (lambda m: m.RMSNorm(6, eps=1e-5), (4, 6)),
    "group norm": (lambda m: m.GroupNorm(2, 6), (4, 6, 3)),
    "instance norm": (lambda m: m.InstanceNorm1d(6, affine=True), (4, 6, 5)),
    "batch norm": (lambda m: m.BatchNorm1d(6, track_running_stats=False), (4, 6)),
    "frozen batch norm": (lambda m: m.BatchNorm1d(6).eval(), (4, 6)),
}


def pair(name):
    torch.manual_seed(0)
    build, shape = PAIRS[name]
    theirs, ours = build(torch.nn), build(hs.nn)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) / 3)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, torch.randn(shape) * 2 + 1, torch.randn(shape)


def tangent(f, x, t):
    return jvp(f, (x,), (t,))[1]


def dual(f, x, t):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, t))).tangent


def second(f, x):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad((f(x) ** 3).sum(), x, create_graph=True)
    return torch.autograd.grad((g**2).sum(), x)[0]


def cubed(f):
    return grad(lambda x: (f(x) ** 3).sum())


WAYS = {
    "jvp": (lambda f, x, t: tangent(f, x, t), tangent),
    "jvp of compiled": (lambda f, x, t: tangent(torch.compile(f), x, t), tangent),
    "compiled jvp": (lambda f, x, t: torch.compile(lambda x, t: tangent(f, x, t))(x, t), tangent),
    "dual numbers": (dual, tangent),
    "second derivative": (lambda f, x, t: second(f, x), lambda f, x, t: second(f, x)),
    "func.grad of compiled": (lambda f, x, t: cubed(torch.compile(f))(x), lambda f, x, t: cubed(f)(x)),
    "compiled func.grad": (lambda f, x, t: torch.compile(cubed(f))(x), lambda f, x, t: cubed(f)(x)),
    "compiled vmap": (
        lambda f, x, t: torch.compile(vmap(f))(torch.stack([x, t])),
        lambda f, x, t: torch.stack([f(x), f(t)]),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PAIRS)
def test_every_way_of_differentiating_gives_what_torch_gives(name, way):
    ours, theirs, x, t = pair(name)
    torch._dynamo.reset()
    got, want = WAYS[way]
    torch.testing.assert_close(got(ours, x, t), want(theirs, x, t), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_dual_numbers_are_refused_by_a_compiled_layer_as_torch_refuses_them(name):
    ours, theirs, x, t = pair(name)
    for layer in (ours, theirs):
        torch._dynamo.reset()
        with pytest.raises(NotImplementedError, match="jvp"):
            dual(torch.compile(layer), x, t)


@pytest.mark.skipif(cpu.native is None, reason=f"no native part: {cpu.info().get('reason')}")
@pytest.mark.parametrize("strides", [None, "channels_last", "gaps"])
@pytest.mark.parametrize("fixed", [False, True])
def test_the_registered_operator_passes_torchs_own_check(strides, fixed):
    """opcheck: schema, fake against real, autograd registration, and compilation with dynamic shapes."""
    x = torch.randn(4, 6, 5, 3)
    if strides == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if strides == "gaps":
        x = torch.randn(4, 6, 5, 6)[..., ::2]
    x.requires_grad_()
    w, b = torch.rand(6).add(0.5).requires_grad_(), torch.randn(6, requires_grad=True)
    given = (torch.randn(6), torch.rand(6) + 0.5) if fixed else (None, None)
    words = ("n c ... -> c", "n c ... -> c", [], [], 1e-5, True, [])
    kinds = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    with torch.no_grad():  # scratch holds nothing that could be compared where constants are trusted
        torch.library.opcheck(torch.ops.homeostat.normalize.default, (x, w, b, *given, *words), test_utils=kinds[:2])
    y, _scratch = torch.ops.homeostat.normalize(x, w, b, *given, *words)
    want = torch.nn.functional.batch_norm(x.double(), *given, w.double(), b.double(), not fixed) if not fixed else None
    if fixed:
        mean, var = (p.double().view(1, 6, 1, 1) for p in given)
        want = (x.double() - mean) * (var + 1e-5) ** -0.5 * w.double().view(1, 6, 1, 1) + b.double().view(1, 6, 1, 1)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, w, b), dy)
    torch.testing.assert_close(got, torch.autograd.grad(want, (x, w, b), dy.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(cpu.native is None, reason=f"no native part: {cpu.info().get('reason')}")
@pytest.mark.parametrize("strides", [None, "channels_last", "gaps"])
def test_the_operators_that_measure_pass_torchs_own_check(strides):
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5, 6)[..., ::2] if strides == "gaps" else torch.randn(4, 6, 5, 3)
    if strides == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    ops, kinds = torch.ops.homeostat, ("test_schema", "test_faketensor")
    words = ("n c ... -> c", "", [], [], 1e-5, True, [])
    torch.library.opcheck(ops.measure.default, (x, *words), test_utils=kinds[1:])  # it leaves room it does not fill
    scratch, dy, wide = ops.measure(x, *words), torch.randn(4, 6, 5, 3), x.double()
    torch.library.opcheck(ops.pull.default, (dy, x, scratch, *words), test_utils=kinds)
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    torch.testing.assert_close(scratch.view(6, 6)[3:5], torch.stack([mean, var * 60]), rtol=1e-6, atol=1e-6)
    xhat = (wide - mean.view(6, 1, 1)) / (var + 1e-5).sqrt().view(6, 1, 1)
    want = torch.stack([dy.double().sum((0, 2, 3)), (dy * xhat).sum((0, 2, 3))])
    torch.testing.assert_close(ops.pull(dy, x, scratch, *words).double(), want, rtol=1e-5, atol=1e-5)
    memory = [torch.zeros(6), torch.ones(6), torch.tensor(0), torch.tensor(0)]
    torch.library.opcheck(ops.average.default, (*memory, *scratch.view(6, 6)[3:5], 60, 0.1), test_utils=kinds)


SHARED = {
    "batch norm": lambda: hs.nn.BatchNorm2d(6),
    "without gain": lambda: hs.nn.BatchNorm2d(6, affine=False),
    "cumulative": lambda: hs.nn.BatchNorm2d(6, momentum=None),
    "bfloat16 gain": lambda: hs.nn.BatchNorm2d(6).to(torch.bfloat16),
    "renorm": lambda: hs.Norm("n c ... -> c", source=hs.Renorm(0.1, 1.5, 0.3), gain=hs.Learned("c"), c=6),
    "not centred": lambda: hs.Norm("n c ... -> c", source=hs.Running(0.1), gain=hs.Learned("c"), center=False, c=6),
    "gain elsewhere": lambda: hs.Norm("n c h w -> c", gain=hs.Learned("h"), h=5),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", SHARED)
def test_what_the_batch_shares_is_the_same_compiled(name, layout):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = SHARED[name]()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p) / 3)
    again, found = copy.deepcopy(layer), []
    kind = torch.bfloat16 if name == "bfloat16 gain" else torch.float32
    x, dy = (torch.randn(4, 6, 5, 3).to(kind).contiguous(memory_format=layout) for _ in range(2))
    for one, call in ((layer, layer), (again, torch.compile(again))):
        leaf = (x * 2 + 1).requires_grad_()
        for _ in range(2):  # the second step trusts what the first one left
            y = call(leaf)
        y.backward(dy)
        found.append([y, leaf.grad, *(p.grad for p in one.parameters()), *one.buffers()])
    digits = {"rtol": 2e-2, "atol": 2e-2} if kind is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found[1], found[0], **digits)


SLICED = {
    "without its first token": lambda: (hs.nn.LayerNorm(6), torch.randn(4, 8, 6)[:, 1:]),
    "heads of one projection": lambda: (hs.nn.RMSNorm(6), torch.randn(2, 5, 3, 4, 6).permute(2, 0, 3, 1, 4)[0]),
    "cropped": lambda: (hs.nn.BatchNorm2d(6), torch.randn(4, 6, 8, 8)[:, :, 1:-1, 1:-1]),
    "every other": lambda: (hs.nn.GroupNorm(2, 6), torch.randn(4, 6, 8)[..., ::2]),
}


@pytest.mark.parametrize("name", SLICED)
def test_a_slice_is_copied_once_and_takes_the_kernels(name, monkeypatch):
    torch.manual_seed(0)
    layer, x = SLICED[name]()
    taken, was = [], fused.normalize
    monkeypatch.setattr(fused, "normalize", lambda *args: taken.append(1) or was(*args))
    found = []
    for leaf in (x.detach().requires_grad_(), x.detach().contiguous().requires_grad_()):
        layer.zero_grad()
        y = layer(leaf)
        y.backward(torch.ones_like(y) + y.detach())
        found.append([y, leaf.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert len(taken) == (2 if cpu.native is not None else 0)


@pytest.mark.parametrize("make", [lambda m: m.LayerNorm(6), lambda m: m.RMSNorm(6)])
def test_rows_that_lie_across_memory_come_out_along_it_as_in_torch(make):
    """Tokens are often a transposed picture; the linear layer that follows is slow on such."""
    x = torch.randn(4, 6, 9).transpose(1, 2)
    assert make(hs.nn)(x).stride() == make(torch.nn)(x).stride() == (54, 6, 1)


@pytest.mark.skipif(cpu.native is None, reason=f"no native part: {cpu.info().get('reason')}")
def test_a_second_derivative_of_the_operator_itself_is_refused():
    x = torch.randn(4, 6, requires_grad=True)
    y, _ = torch.ops.homeostat.normalize(x, None, None, None, None, "n d -> n", "", [], [], 1e-5, True, [])
    (g,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="call the layer uncompiled"):
        g.sum().backward()


@pytest.mark.parametrize(
    ("make", "want"),
    [
        (lambda: (torch.randn(4, 6), {}), "fused"),
        (lambda: (torch.randn(4, 6).half(), {}), "fused"),
        (lambda: (torch.randn(4, 6).double(), {}), "eager"),
        (lambda: (torch.randn(4, 12)[:, ::2], {}), "eager"),
        (lambda: (torch.randn(4, 6), {"eps": "auto"}), "composite"),
        (lambda: (torch.randn(4, 6, device="meta"), {}), "aten"),
    ],
)
def test_the_route_of_a_call(make, want):
    x, given = make()
    if cpu.native is None and want == "fused":
        want = "eager"
    plan = plan_for(Frame.parse("n d -> n"), tuple(x.shape))
    assert routes.route(x, None, None, None, Job(plan, **given))[0] == want


def test_constants_take_the_kernels_too():
    x = torch.randn(4, 6)
    job = Job(plan_for(Frame.parse("n c -> c"), (4, 6)), trust=Fixed(torch.zeros(6), torch.ones(6)))
    assert routes.route(x, None, None, None, job)[0] == ("eager" if cpu.native is None else "fused")
