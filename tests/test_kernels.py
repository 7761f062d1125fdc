"""The compiled kernels agree with float64 on whatever shape, layout, dtype, gain and number of threads is drawn."""

import os
import random
import subprocess
import sys

import pytest
import torch

import homeostat as hs
from homeostat.frame import Frame
from homeostat.kernels import cpu
from homeostat.kernels.layout import extents
from homeostat.kernels.task import STREAMED
from homeostat.plan import plan_for

pytestmark = pytest.mark.skipif(cpu.native is None, reason=f"no native part: {cpu.info().get('reason')}")

# Widths around vectors (4, 8, 16 lanes), tiles and chunks, odd ones included.
WIDTHS = (2, 3, 7, 8, 16, 17, 33, 64, 100, 257, 512, 1024, 4097, 9001)
CHANNELS = (2, 4, 6, 12, 16, 30, 48, 64, 96)


def draw(rng):
    """A layer, an input, and how its elements are grouped: a view to pool over, its axes, and the gain's shape."""
    kind = rng.choice(["batch", "group", "instance", "layer", "rms"])
    gain = rng.choice([0, 1, 2])
    if kind in ("layer", "rms"):
        n, d = rng.choice([1, 2, 5, 37, 300]), rng.choice(WIDTHS)
        if kind == "layer":
            layer = hs.nn.LayerNorm(d, elementwise_affine=gain > 0, bias=gain > 1)
        else:
            layer = hs.nn.RMSNorm(d, eps=1e-5, elementwise_affine=gain > 0)
        return layer, (n, d), (n, d), (1,), (1, d)
    n, c, h, w = rng.randint(2, 9), rng.choice(CHANNELS), rng.choice([1, 2, 7, 14, 56]), rng.choice([2, 3, 7, 33])
    shape, view, axes = (n, c, h, w), (n, c, h, w), (2, 3)
    if kind == "batch":
        layer, axes = hs.nn.BatchNorm2d(c, affine=gain > 0, track_running_stats=False), (0, 2, 3)
    elif kind == "instance":
        layer = hs.nn.InstanceNorm2d(c, affine=gain > 0)
    else:
        g = rng.choice([g for g in (1, 2, 3, c // 2, c) if c % g == 0])
        layer, view, axes = hs.nn.GroupNorm(g, c, affine=gain > 0), (n, g, c // g, h, w), (2, 3, 4)
    return layer, shape, view, axes, (1, c, 1, 1)


def truth(layer, x, dy, view, axes, gain_shape):
    """y, dx and the gain's gradients in float64, by closed form."""
    x, dy = x.double(), dy.double()
    d = x.reshape(view)
    d = d if isinstance(layer, torch.nn.RMSNorm) else d - d.mean(axes, keepdim=True)
    r = ((d * d).mean(axes, keepdim=True) + 1e-5) ** -0.5
    xhat = (d * r).reshape(x.shape)
    w, b = ((None if p is None else p.detach().double().view(gain_shape)) for p in (layer.weight, layer.bias))
    y = xhat if w is None else xhat * w
    y = y if b is None else y + b
    g, h = (dy if w is None else dy * w).reshape(view), xhat.reshape(view)
    pull = h * (g * h).mean(axes, keepdim=True)
    if not isinstance(layer, torch.nn.RMSNorm):
        pull = pull + g.mean(axes, keepdim=True)
    out = {"y": y, "dx": (r * (g - pull)).reshape(x.shape)}
    over = [i for i, n in enumerate(gain_shape) if n == 1]
    if w is not None:
        out["dw"] = (dy * xhat).sum(over)
    if b is not None:
        out["db"] = dy.sum(over)
    return out, r.max().item()


def check(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    layer, shape, view, axes, gain_shape = draw(rng)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p) / 3)
    dtype = rng.choice([torch.float32, torch.float32, torch.bfloat16])
    x = (torch.randn(shape) + rng.choice([0, 3, 1e4 if dtype == torch.float32 else 5])).to(dtype)
    dy = torch.randn(shape).to(dtype)
    if len(shape) == 4 and rng.random() < 0.5:
        x = x.contiguous(memory_format=torch.channels_last)
    if rng.random() < 0.2:  # an address that is no multiple of a vector's
        room = torch.empty(x.numel() + 3, dtype=dtype)[3:]
        x = room.as_strided(x.shape, x.stride(), room.storage_offset()).copy_(x)
    want, steepest = truth(layer, x, dy, view, axes, gain_shape)
    before = torch.get_num_threads()
    torch.set_num_threads(rng.choice([1, 2, 3]))
    try:
        z = x.detach().requires_grad_()
        y = layer(z)
        y.backward(dy)
    finally:
        torch.set_num_threads(before)
    got = {
        "y": y.detach(),
        "dx": z.grad,
        "dw": getattr(layer.weight, "grad", None),
        "db": getattr(layer.bias, "grad", None),
    }
    said = f"seed {seed}: {layer} of {shape}, {dtype}, strides {x.stride()}"
    assert y.stride() == x.stride(), said
    single = dtype == torch.float32
    # y at most 10 here: 5e-6 is a few roundings at that size. bfloat16 keeps 8 bits: half a unit is 2^-9.
    bound = (
        {"y": 5e-6, "dx": 5e-6 * max(steepest, 1), "dw": 1e-5, "db": 1e-5} if single else dict.fromkeys(want, 2.0**-8)
    )
    for name, value in want.items():
        error = (got[name].double() - value).abs().max().item()
        size = value.abs().max().item() if name in ("dw", "db") or not single else 1
        floor = 1e-4 * steepest if name == "dx" else 1e-6  # what cancels to nothing is known to the size of its parts
        assert error <= bound[name] * (size + floor), f"{said}: {name} is off by {error:.1e}"


@pytest.mark.parametrize("block", range(8))
def test_any_layer_on_any_input_agrees_with_float64(block):
    for seed in range(50 * block, 50 * (block + 1)):
        check(seed)


@pytest.mark.parametrize("isa", ["v2", "v3", "v4", "v4b"])
def test_every_instruction_set_this_machine_has_agrees_with_float64(isa):
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_kernels\n"  # noqa: PTH120
    code += "for seed in range(1000, 1120): test_kernels.check(seed)\n"
    code += "import homeostat; print(homeostat.kernels.info()['instructions'])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"HOMEOSTAT_ISA": isa},
        capture_output=True,
        text=True,
    )
    if "or this machine does not have it" in done.stderr:
        pytest.skip(f"this machine has no {isa} instructions")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == isa


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_fixed_number_of_threads_gives_the_same_bits_every_time(threads, channels_last):
    torch.manual_seed(0)
    x, dy = torch.randn(6, 8, 33, 31) + 100, torch.randn(6, 8, 33, 31)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    layers = hs.nn.BatchNorm2d(8), hs.nn.GroupNorm(2, 8), hs.nn.InstanceNorm2d(8, affine=True), hs.nn.LayerNorm(31)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for layer in layers:
            results = []
            for _ in range(5):
                layer.zero_grad()
                z = x.detach().requires_grad_()
                y = layer(z)
                y.backward(dy)
                results.append((y.detach(), z.grad, layer.weight.grad, layer.bias.grad))
            assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


def test_large_outputs_written_past_the_cache_are_the_same():
    x = torch.randn(3, 64, 120, 97)
    assert x.numel() * 4 >= STREAMED
    for z in (x, x.contiguous(memory_format=torch.channels_last), x.view(3 * 64, -1)):
        layer = hs.nn.LayerNorm(z.shape[-1]) if z.dim() == 2 else hs.nn.GroupNorm(4, 64)
        wide = z.double() if z.dim() == 2 else z.double().reshape(3, 4, 16, 120, 97)
        axes = (1,) if z.dim() == 2 else (2, 3, 4)
        d = wide - wide.mean(axes, keepdim=True)
        want = (d * ((d * d).mean(axes, keepdim=True) + 1e-5) ** -0.5).reshape(z.shape)
        torch.testing.assert_close(layer(z).double(), want, rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("pattern", "shape", "order", "gain", "sizes", "want"),
    [  # A B T C P S, and the gain's strides along A B C P S
        ("n c h w -> c", (8, 6, 5, 4), (0, 1, 2, 3), "c", {}, ((1, 8, 1, 6, 1, 20), (0, 0, 1, 0, 0))),
        ("n c h w -> c", (8, 6, 5, 4), (0, 2, 3, 1), "c", {}, ((1, 160, 1, 6, 1, 1), (0, 0, 1, 0, 0))),
        ("n c h w -> c", (8, 6, 5, 4), (0, 1, 2, 3), "n c", {}, ((1, 8, 1, 6, 1, 20), (0, 6, 1, 0, 0))),
        ("n c h w -> c", (8, 6, 5, 4), (0, 2, 3, 1), "n c", {}, ((1, 8, 20, 6, 1, 1), (0, 6, 1, 0, 0))),
        ("b t d -> b t", (2, 3, 64), (0, 1, 2), "d", {}, ((6, 1, 1, 1, 1, 64), (0, 0, 0, 0, 1))),
        ("b t d -> b t", (2, 3, 64), (0, 1, 2), "b d", {}, ((2, 1, 1, 3, 1, 64), (64, 0, 0, 0, 1))),
        ("b t (h d) -> b t h", (2, 3, 64), (0, 1, 2), "(h d)", {"h": 4}, ((6, 1, 1, 4, 1, 16), (0, 0, 16, 0, 1))),
        ("n (g c) h w -> n g", (2, 6, 5, 4), (0, 1, 2, 3), "(g c)", {"g": 3}, ((2, 1, 1, 3, 2, 20), (0, 0, 2, 1, 0))),
        ("n (g c) h w -> n g", (2, 6, 5, 4), (0, 2, 3, 1), "(g c)", {"g": 3}, ((2, 20, 1, 3, 1, 2), (0, 0, 2, 0, 1))),
        ("n c h w -> n c", (2, 6, 5, 4), (0, 1, 2, 3), "c", {}, ((2, 1, 1, 6, 1, 20), (0, 0, 1, 0, 0))),
        ("n c h w -> n c", (2, 6, 5, 4), (0, 2, 3, 1), "c", {}, ((2, 20, 1, 6, 1, 1), (0, 0, 1, 0, 0))),
        ("a b c d e -> b d", (2, 3, 4, 5, 6), (0, 1, 2, 3, 4), None, {}, None),  # pooled, kept, pooled, kept, pooled
        ("a b -> b a", (2, 3), (0, 1), None, {}, None),
    ],
)
def test_a_plan_and_strides_become_extents(pattern, shape, order, gain, sizes, want):
    frame = Frame.parse(pattern)
    x = torch.empty([shape[i] for i in order]).permute([order.index(i) for i in range(len(order))])
    plan = plan_for(frame, shape, sizes)
    strides = x.view(plan.shape).stride()
    found = extents(plan, strides, None if gain is None else plan.keep(frame.keep(gain)))
    assert (found and (found.sizes, found.gain)) == want


@pytest.mark.parametrize(
    ("pattern", "shape", "order", "counts", "want"),
    [
        ("cell gene -> lab[cell] gene", (50, 20), (0, 1), {"lab": 3}, ((1, 50, 1, 20, 1, 1), 3)),
        ("n c h w -> lab[n] c", (8, 6, 5, 4), (0, 1, 2, 3), {"lab": 3}, ((1, 8, 1, 6, 1, 20), 3)),
        ("n c h w -> lab[n] c", (8, 6, 5, 4), (0, 2, 3, 1), {"lab": 3}, ((1, 8, 20, 6, 1, 1), 3)),
        ("b t d -> e[b t]", (2, 3, 16), (0, 1, 2), {"e": 4}, ((1, 6, 1, 1, 1, 16), 4)),
        ("b t d -> b e[t]", (2, 3, 16), (0, 1, 2), {"e": 4}, None),  # two tables of labels
        ("cell gene -> gene lab[cell]", (50, 20), (0, 1), {"lab": 3}, None),
    ],
)
def test_labels_become_tables_of_groups(pattern, shape, order, counts, want):
    x = torch.empty([shape[i] for i in order]).permute([order.index(i) for i in range(len(order))])
    plan = plan_for(Frame.parse(pattern), shape, {}, counts)
    found = extents(plan, x.stride(), None)
    assert (found and (found.sizes, found.labels)) == want


def test_memory_with_gaps_takes_the_reference():
    x = torch.randn(4, 6, 10, 10)[:, :, ::2, ::2]
    layer = hs.nn.BatchNorm2d(6)
    d = x.double() - x.double().mean((0, 2, 3), keepdim=True)
    want = d * ((d * d).mean((0, 2, 3), keepdim=True) + 1e-5) ** -0.5
    torch.testing.assert_close(layer(x).double(), want, rtol=0, atol=3e-6)


@pytest.mark.parametrize("first", ["torch", "homeostat._native"])
def test_one_pool_of_threads_serves_both_whichever_is_imported_first(first):
    """Two OpenMP runtimes in one process fight for the cores: alternating calls would be a hundred times slower."""
    code = (
        f"import {first}\n"
        + """
import torch, homeostat as hs
torch.set_num_threads(2)
hs.nn.LayerNorm(64)(torch.randn(4096, 64)); torch.randn(512, 512) @ torch.randn(512, 512)
maps = {line.split()[-1] for line in open("/proc/self/maps") if "/libgomp" in line}
print(len(maps))
"""
    )
    if sys.platform != "linux":
        pytest.skip("looks into /proc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_forked_worker_can_normalize():
    code = """
import os, torch, homeostat as hs
layer, x = hs.nn.LayerNorm(64), torch.randn(4096, 64)
want = layer(x)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(layer(x), want) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_running_statistics_come_out_of_the_kernel():
    torch.manual_seed(0)
    for channels_last in (False, True):
        x = torch.randn(8, 6, 9, 9) * 3 + 50
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        layer = hs.nn.BatchNorm2d(6, momentum=1.0)
        layer(x)
        torch.testing.assert_close(layer.running_mean, x.double().mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
        torch.testing.assert_close(layer.running_var, x.double().var((0, 2, 3)).float(), rtol=1e-6, atol=0)


# ---------------------------------------------------------------- what the kernels must not be handed


def test_the_default_dtype_and_device_do_not_reach_the_kernels():
    layer, x = hs.nn.LayerNorm(8), torch.randn(100, 8)
    want = layer(x)
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            assert torch.equal(layer(x), want)
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        assert torch.equal(layer(x), want)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
def test_a_parameter_or_buffer_of_another_length_is_refused(name, training):
    layer = hs.nn.BatchNorm1d(8).train(training)
    wrong = torch.ones(3)
    setattr(layer, name, torch.nn.Parameter(wrong) if name in ("weight", "bias") else wrong)
    with pytest.raises(RuntimeError):
        layer(torch.randn(5, 8))


def test_a_weight_of_another_shape_is_refused_by_name():
    layer = hs.nn.LayerNorm((3, 4))
    layer.weight = torch.nn.Parameter(torch.ones(4, 3))
    with pytest.raises(RuntimeError, match=r"LayerNorm.weight has shape \(4, 3\); this input needs \(3, 4\)"):
        layer(torch.randn(2, 3, 4))


def test_lazy_negations_and_symbolic_zeros_are_what_they_stand_for():
    layer, x = hs.nn.LayerNorm(8), torch.randn(3, 8)
    torch.testing.assert_close(layer(torch._neg_view(x)), layer(-x))
    z = x.clone().requires_grad_()
    zero = torch.autograd.grad(layer(z), z, torch._efficientzerotensor((3, 8)))[0]
    assert not zero.any()
    g = torch.randn(3, 8)
    want = torch.autograd.grad(layer(z), z, -g)[0]
    torch.testing.assert_close(torch.autograd.grad(layer(z), z, torch._neg_view(g))[0], want)


def test_fake_tensors_and_dispatch_modes_see_plain_operators():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        assert hs.nn.BatchNorm1d(8)(torch.randn(3, 8)).shape == (3, 8)
    with FlopCounterMode(display=False):
        y = hs.nn.LayerNorm(8)(torch.ones(3, 8))
    assert not y.any()


def test_squares_beyond_float32_make_nan_and_never_zeros():
    x = torch.randn(8, 64) * 1e25
    for y in (
        hs.nn.LayerNorm(64)(x),
        hs.normalize(x, "n d -> n"),
        hs.normalize(x, "n d -> lab[n] d", lab=list("aabbaabb")),
    ):
        assert torch.isnan(y).all() or (y.abs().amax() > 0.5 and torch.isfinite(y).all())
    assert torch.isfinite(hs.normalize(x, "n d -> n", eps="auto")).all()


def test_a_code_out_of_range_fails_in_compiled_code_too():
    layer = torch.compile(hs.Norm("n d -> lab[n] d", d=3), fullgraph=True)
    x = torch.randn(8, 3)
    layer(x, lab=(torch.tensor([3, 3, 0, 0, 1, 1, 2, 2]), 4))
    for wrong in (-1, 4):
        with pytest.raises((RuntimeError, IndexError)):
            layer(x, lab=(torch.tensor([wrong, wrong, 0, 0, 1, 1, 2, 2]), 4))
