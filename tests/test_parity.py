"""Every preset returns what torch.nn returns: y, all gradients, running statistics, dtype, memory format, state_dict.

Two judges, the closed form (oracle.py) and torch.nn itself. torch gets contiguous copies: on channels_last its
GroupNorm takes a variance in one pass, and its InstanceNorm backward (2.13, CPU) is wrong for one affine sample. The
values do not depend on how a tensor lies in memory, so nothing is lost.

Where the library differs on purpose, a test here says so:

    InstanceNorm        counts num_batches_tracked, which torch keeps at 0
    momentum=None       is the cumulative average in InstanceNorm too, where torch reads it as 0
"""

import itertools
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import oracle
import pytest
import torch
from tolerances import TOL

import homeostat as hs


class Case(NamedTuple):
    """One layer, and the shape and mode it is called with."""

    preset: str
    args: tuple
    kwargs: dict
    shape: tuple
    training: bool = True

    def __str__(self):
        words = [f"{k}={v}" for k, v in self.kwargs.items()]
        args = ",".join(map(str, self.args)).replace(" ", "")
        shape = "x".join(map(str, self.shape))
        return "-".join([f"{self.preset}({args})", shape, *words, "train" if self.training else "eval"])


SHAPES = (
    ("BatchNorm1d", (6,), (8, 6)),
    ("BatchNorm1d", (6,), (5, 6, 7)),
    ("BatchNorm2d", (6,), (3, 6, 5, 4)),
    ("BatchNorm3d", (6,), (3, 6, 2, 3, 4)),
    ("LayerNorm", (6,), (4, 5, 6)),
    ("LayerNorm", ((5, 6),), (4, 5, 6)),
    ("LayerNorm", ((6, 5, 4),), (3, 6, 5, 4)),
    ("RMSNorm", (6,), (4, 5, 6)),
    ("RMSNorm", ((5, 6), 1e-3), (4, 5, 6)),
    ("RMSNorm", ((6, 5, 4),), (3, 6, 5, 4)),
    ("GroupNorm", (2, 12), (4, 12)),
    ("GroupNorm", (1, 6), (4, 6, 7)),
    ("GroupNorm", (3, 6), (3, 6, 5, 4)),
    ("GroupNorm", (2, 6), (2, 6, 2, 3, 4)),
    ("InstanceNorm1d", (6,), (4, 6, 7)),
    ("InstanceNorm1d", (6,), (6, 7)),
    ("InstanceNorm2d", (6,), (3, 6, 5, 4)),
    ("InstanceNorm2d", (6,), (1, 6, 5, 4)),
    ("InstanceNorm2d", (6,), (6, 5, 4)),
    ("InstanceNorm3d", (6,), (2, 6, 2, 3, 4)),
    ("InstanceNorm3d", (6,), (6, 2, 3, 4)),
)
LAYOUTS = ("contiguous", "channels_last", "slice", "transposed")
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def gains(preset):
    """Every way to have or not have a learned affine."""
    if preset == "RMSNorm":
        return [{"elementwise_affine": True}, {"elementwise_affine": False}]
    affine = "elementwise_affine" if preset == "LayerNorm" else "affine"
    return [{affine: True}, {affine: True, "bias": False}, {affine: False}]


def modes(preset):
    """Memory on or off, training and evaluation, where that makes a difference."""
    if "Batch" not in preset and "Instance" not in preset:
        return [({}, True)]
    return [({"track_running_stats": True}, True), ({"track_running_stats": True}, False)] + [
        ({"track_running_stats": False}, training) for training in ([True, False] if "Batch" in preset else [False])
    ]


CASES = [
    Case(preset, args, gain | memory, shape, training)
    for preset, args, shape in SHAPES
    for gain, (memory, training) in itertools.product(gains(preset), modes(preset))
]
FULL_GAIN = [case for case in CASES if all(v for k, v in case.kwargs.items() if k != "track_running_stats")]
FULL_GAIN = [case for case in FULL_GAIN if "bias" not in case.kwargs]


def fits(case, layout):
    if layout == "channels_last":
        return len(case.shape) in CHANNELS_LAST and case.preset[-2:] != f"{len(case.shape)}d"
    return True


def laid_out(cases, layouts=LAYOUTS):
    pairs = [(case, layout) for case, layout in itertools.product(cases, layouts) if fits(case, layout)]
    return pytest.mark.parametrize(("case", "layout"), pairs, ids=lambda value: str(value))


def lay(values, layout):
    """The same values, otherwise in memory."""
    if layout == "contiguous":
        return values.contiguous()
    if layout == "channels_last":
        return values.contiguous(memory_format=CHANNELS_LAST[values.ndim])
    if layout == "slice":
        return torch.stack([values, values + 1], -1).flatten(-2)[..., ::2]
    return values.transpose(0, -1).contiguous().transpose(0, -1)


def numbers(shape, dtype, seed=0, mean=1.5, spread=2.0):
    values = np.random.default_rng(seed).normal(mean, spread, shape)
    return torch.from_numpy(values).to(dtype)


def pair(case, dtype=torch.float64, parameters=None):
    """Our layer and torch's, with the same parameters and running statistics, none of them trivial."""
    kind = {"dtype": parameters or dtype}
    theirs = getattr(torch.nn, case.preset)(*case.args, **case.kwargs, **kind)
    with torch.no_grad():
        for i, (name, tensor) in enumerate([*theirs.named_parameters(), *theirs.named_buffers()]):
            if tensor.is_floating_point():
                drawn = numbers(tensor.shape, tensor.dtype, seed=10 + i, mean=1.0, spread=0.5)
                tensor.copy_(drawn.abs() + 0.1 if "var" in name else drawn)
    ours = getattr(hs.nn, case.preset)(*case.args, **case.kwargs, **kind)
    ours.load_state_dict(theirs.state_dict())
    return ours.train(case.training), theirs.train(case.training)


def everything(layer, x, dy):
    """y and every gradient, by name."""
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(dy)
    grads = {name: p.grad for name, p in layer.named_parameters()}
    return {"y": y.detach(), "dx": x.grad} | grads


def closed_form(layer, x, dy):
    found = oracle.of(layer, x, dy)
    return {"y": found.y, "dx": found.dx, "weight": found.dw, "bias": found.db}


def distance(got, want):
    """The largest difference, relative to the largest value."""
    want = torch.as_tensor(want).double()
    return ((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-300)).item()


def assert_close(got, want, tolerance):
    far = {name: distance(value, want[name]) for name, value in got.items()}
    assert max(far.values()) <= tolerance, f"relative to the largest value: {far}, allowed {tolerance}"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors this small gain nothing from threads, and two test workers that share cores wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- values ----


@laid_out(CASES)
def test_y_and_all_gradients_equal_the_closed_form_and_torch_in_float64(case, layout):
    ours, theirs = pair(case)
    x, dy = (numbers(case.shape, torch.float64, seed=seed) for seed in (1, 2))
    want = closed_form(ours, x, dy)
    got = everything(ours, lay(x, layout), lay(dy, layout))
    assert_close(got, want, TOL[torch.float64])
    assert_close(got, everything(theirs, x, dy), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@laid_out(FULL_GAIN)
def test_y_and_all_gradients_equal_the_closed_form_and_torch_in_lower_precision(case, layout, dtype):
    ours, theirs = pair(case, dtype)
    x, dy = (numbers(case.shape, dtype, seed=seed) for seed in (1, 2))
    want = closed_form(ours, x, dy)
    got = everything(ours, lay(x, layout), lay(dy, layout))
    assert {name: value.dtype for name, value in got.items()} == dict.fromkeys(got, dtype)
    assert_close(got, want, TOL[dtype])
    assert_close(got, everything(theirs, x, dy), 4 * TOL[dtype])  # torch rounds more often


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rms_norm_without_an_eps_takes_the_spacing_of_the_dtype_it_computes_in(dtype):
    case = Case("RMSNorm", (64,), {}, (4, 64))
    ours, theirs = pair(case, dtype)
    x = numbers(case.shape, dtype, mean=0.0, spread=1e-3)  # small, so that eps decides
    dy = numbers(case.shape, dtype, seed=2)
    got = everything(ours, x, dy)
    assert_close(got, closed_form(ours, x, dy), TOL[dtype])
    assert_close(got, everything(theirs, x, dy), 4 * TOL[dtype])


@laid_out([case for case in FULL_GAIN if len(case.shape) == 4], ["contiguous", "channels_last"])
def test_gradients_take_a_grad_output_that_lies_otherwise_than_x(case, layout):
    ours, _theirs = pair(case)
    x, dy = (numbers(case.shape, torch.float64, seed=seed) for seed in (1, 2))
    other = "channels_last" if layout == "contiguous" else "transposed"
    got = everything(ours, lay(x, layout), lay(dy, other) if fits(case, other) else lay(dy, "slice"))
    assert_close(got, closed_form(ours, x, dy), TOL[torch.float64])


@pytest.mark.parametrize("case", FULL_GAIN, ids=str)
def test_gradients_take_an_expanded_grad_output(case):
    ours, _theirs = pair(case)
    x = numbers(case.shape, torch.float64, seed=1)
    dy = torch.tensor(0.25, dtype=torch.float64).expand(case.shape)  # what y.mean().backward() hands down
    got, want = everything(ours, x, dy), closed_form(ours, x, dy)
    assert all(np.abs(value.numpy() - want[name]).max() < 1e-12 for name, value in got.items())


@pytest.mark.parametrize("case", FULL_GAIN, ids=str)
@pytest.mark.parametrize("asked", ["dx", "weight", "bias"])
def test_a_single_gradient_is_the_same_as_among_all(case, asked):
    ours, _theirs = pair(case)
    x, dy = (numbers(case.shape, torch.float64, seed=seed) for seed in (1, 2))
    if asked == "bias" and getattr(ours, "bias", None) is None:
        pytest.skip("this layer has no bias")
    want = everything(ours, x, dy)[asked]
    for parameter in ours.parameters():
        parameter.requires_grad_(False)
    of = x.requires_grad_() if asked == "dx" else getattr(ours, asked).requires_grad_()
    (got,) = torch.autograd.grad(ours(x), of, dy)
    assert torch.equal(got, want)


# ---- running statistics ----

REMEMBERING = [case for case in FULL_GAIN if case.kwargs.get("track_running_stats") and case.training]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
@pytest.mark.parametrize("case", REMEMBERING, ids=str)
def test_running_statistics_after_ten_steps_equal_the_formula_and_torch(case, momentum, dtype):
    ours, theirs = pair(case, dtype)
    ours.momentum = theirs.momentum = momentum
    mean, var = (oracle.float64(getattr(ours, name)) for name in ("running_mean", "running_var"))
    for step in range(1, 11):
        x = numbers(case.shape, dtype, seed=step, mean=step)
        k = 1 / step if momentum is None else momentum
        mean, var = oracle.remembered(mean, var, oracle.of(ours, x, torch.zeros_like(x)), k)
        ours(x), theirs(x)
    got = {name: getattr(ours, name) for name in ("running_mean", "running_var")}
    assert all(value.dtype == dtype for value in got.values())
    assert_close(got, {"running_mean": mean, "running_var": var}, TOL[dtype])
    assert ours.num_batches_tracked == 10
    if not (momentum is None and "Instance" in case.preset):
        assert_close(got, theirs.state_dict(), 2 * TOL[dtype])


def test_instance_norm_counts_its_batches_where_torch_does_not():
    ours, theirs = pair(Case("InstanceNorm1d", (6,), {"track_running_stats": True}, (4, 6, 7)))
    x = numbers((4, 6, 7), torch.float64)
    for _ in range(3):
        ours(x), theirs(x)
    assert (ours.num_batches_tracked, theirs.num_batches_tracked) == (3, 0)


def test_momentum_none_is_the_cumulative_average_in_instance_norm_where_torch_never_moves():
    ours, theirs = pair(Case("InstanceNorm1d", (6,), {"track_running_stats": True, "momentum": None}, (4, 6, 7)))
    before = theirs.running_mean.clone()
    batches = [numbers((4, 6, 7), torch.float64, seed=seed) for seed in range(5)]
    for x in batches:
        ours(x), theirs(x)
    torch.testing.assert_close(ours.running_mean, torch.stack(batches).mean((0, 1, 3)), rtol=1e-12, atol=0)
    assert torch.equal(theirs.running_mean, before)


@pytest.mark.parametrize("case", REMEMBERING, ids=str)
def test_evaluation_leaves_the_memory_as_it_is(case):
    ours, _theirs = pair(case)
    ours.eval()
    before = {name: value.clone() for name, value in ours.named_buffers()}
    ours(numbers(case.shape, torch.float64))
    assert all(torch.equal(value, before[name]) for name, value in ours.named_buffers())


# ---- state_dict ----


@pytest.mark.parametrize("case", [case for case in CASES if case.training], ids=str)
def test_a_state_dict_has_torchs_keys_in_order_and_loads_strictly_both_ways(case):
    ours, theirs = pair(case)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    fresh = getattr(torch.nn, case.preset)(*case.args, **case.kwargs, dtype=torch.float64)
    fresh.load_state_dict(ours.state_dict(), strict=True)
    back = getattr(hs.nn, case.preset)(*case.args, **case.kwargs, dtype=torch.float64)
    back.load_state_dict(fresh.state_dict(), strict=True)
    for name, value in back.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])


@pytest.mark.parametrize("case", REMEMBERING, ids=str)
def test_an_old_state_dict_without_a_batch_count_loads_strictly_and_counts_from_zero(case):
    ours, theirs = pair(case)
    old = OrderedDict((k, v) for k, v in ours.state_dict().items() if k != "num_batches_tracked")  # and no version
    for layer in (ours, theirs):
        layer.load_state_dict(old.copy(), strict=True)
        assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("case", REMEMBERING[:1], ids=str)
def test_a_new_state_dict_without_a_batch_count_is_refused_as_torch_does(case):
    for layer in pair(case):
        cut = layer.state_dict()
        del cut["num_batches_tracked"]
        with pytest.raises(RuntimeError, match="num_batches_tracked"):
            layer.load_state_dict(cut, strict=True)


# ---- dtype and memory format ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@laid_out(FULL_GAIN, ["contiguous", "channels_last"])
def test_half_precision_inputs_work_with_float32_parameters_as_in_torch(case, layout, dtype):
    ours, theirs = pair(case, dtype, parameters=torch.float32)
    x, dy = (numbers(case.shape, dtype, seed=seed) for seed in (1, 2))
    want = closed_form(ours, x, dy)
    got, reference = everything(ours, lay(x, layout), lay(dy, layout)), everything(theirs, x, dy)
    assert {name: value.dtype for name, value in got.items()} == {n: v.dtype for n, v in reference.items()}
    assert_close(got, want, TOL[dtype])
    assert_close(got, reference, 4 * TOL[dtype])
    assert all(b.dtype == theirs.state_dict()[name].dtype for name, b in ours.state_dict().items())


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", FULL_GAIN, ids=str)
def test_the_output_has_torchs_dtype_in_and_out_of_autocast(case, x_dtype, autocast):
    ours, theirs = pair(case, torch.float32)
    x = numbers(case.shape, x_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert ours(x).dtype == theirs(x).dtype


@laid_out(CASES, ["contiguous", "channels_last"])
def test_y_and_dx_lie_in_memory_as_x_does(case, layout):
    ours, _theirs = pair(case)
    memory_format = torch.contiguous_format if layout == "contiguous" else CHANNELS_LAST[len(case.shape)]
    x, dy = (lay(numbers(case.shape, torch.float64, seed=seed), layout) for seed in (1, 2))
    got = everything(ours, x, dy)
    assert got["y"].is_contiguous(memory_format=memory_format)
    assert got["dx"].is_contiguous(memory_format=memory_format)
