"""eps="auto" = max(u^2 / 12 (mean^2 + var), floor): units do not show, and nothing overflows on the way there or back.

u is the spacing of the dtype at 1, so the first term is the variance that rounding alone makes at this size of x. The
floor is for groups around 0: it keeps 1 / std below 1e12 in float32 and below 4096 in float16.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import FLOOR, SPACING
from tolerances import TOL, assert_close

import homeostat as hs

DTYPES = ("float64", "float32", "bfloat16", "float16")
LARGEST = {"float64": 1e307, "float32": 3e38, "bfloat16": 3e38, "float16": 6e4}
SMALLEST = {"float64": 5e-324, "float32": 1e-45, "bfloat16": 1e-40, "float16": 6e-8}  # above 0
SMALLEST_NORMAL = {"float64": 2.0**-1022, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}
PATTERN = "n c -> n"
LENGTH = 64
# Half the time of compiling goes into making fast what runs once, on a thousand values.
QUICKLY = {"xla_backend_optimization_level": 0}

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_library = pytest.mark.parametrize(
    ("library", "dtype"),
    [(name, dtype) for name in ("numpy", "torch", "jax") for dtype in DTYPES if (name, dtype) != ("numpy", "bfloat16")],
)


# ---- what eps is ----


@every_library
def test_eps_is_the_variance_of_rounding_at_the_size_of_x_but_never_less_than_the_floor(library, dtype):
    near_one = np.array([[1.0, 1, 1, 1], [1, 1 + 4 * SPACING[dtype], 1, 1], [1, 2, 3, 4], [1e-3, -1e-3, 2e-3, 0]])
    x = rounded(np.concatenate([near_one * size for size in (0.0, 1e-10, 1e-2, 1.0, 1e3)]), dtype)
    y, _dx = results(library, dtype, x)
    assert_close(y, closed_form(x, dtype)[0], dtype)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_the_default_is_that_of_torch_1e_5(library):
    x = rounded(np.random.default_rng(0).normal(0, 1e-3, (4, LENGTH)), "float32")
    y = back(hs.normalize(make(library, x, "float32"), PATTERN))
    assert_close(y, closed_form(x, "float32", eps=1e-5)[0], "float32")
    assert_close(y, torch.nn.functional.layer_norm(torch.from_numpy(x), (LENGTH,)), "float32")


def test_a_small_number_for_eps_overflows_float16_where_auto_does_not():
    x = torch.zeros(1, LENGTH, dtype=torch.float16)
    dy = torch.from_numpy(signs(x.shape)).half()
    _y, pull = torch.func.vjp(lambda z: hs.normalize(z, PATTERN, eps=1e-12), x)
    assert pull(dy)[0].isinf().any()
    _y, pull = torch.func.vjp(lambda z: hs.normalize(z, PATTERN, eps="auto"), x)
    assert pull(dy)[0].isfinite().all()


@every_dtype
def test_remembered_statistics_are_given_the_floor_of_the_dtype_of_x_too(dtype):
    layer = hs.Norm("n c -> c", source=hs.Running(), eps="auto", c=4).eval()
    layer.running_var.zero_()
    x = torch.full((2, 4), 0.25, dtype=getattr(torch, dtype), requires_grad=True)
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert_close(back(dx) * FLOOR[dtype] ** 0.5, np.ones(x.shape), dtype)
    assert_close(back(y) * FLOOR[dtype] ** 0.5, np.full(x.shape, 0.25), dtype)


# ---- units do not show ----


@every_library
def test_a_change_of_unit_does_not_show_above_the_floor(library, dtype):
    x = np.random.default_rng(0).normal(1.0, 1.0, LENGTH)
    want = closed_form(rounded(x[None], dtype), dtype)[0]
    step = {"float64": 1e25, "float32": 1e3, "bfloat16": 1e3, "float16": 10.0}[dtype]
    scaled = rounded(np.stack([x * step**k for k in range(-4, 5)]), dtype)
    scaled = scaled[np.isfinite(scaled).all(1)]  # float16 ends at 65504
    y, _dx = results(library, dtype, scaled)
    below = FLOOR[dtype] / scaled.var(-1, keepdims=True)  # how near the floor is: 1 where it is all of the variance
    assert (below < 1e-6).sum() >= 4
    assert (np.abs(y - want) <= (8 * TOL[dtype] + below) * np.abs(want).max()).all()


# ---- nothing overflows, there and back, while |dy| <= 1 ----


@every_dtype
@pytest.mark.parametrize("route", ["torch", "torch.func", "jax"])
@pytest.mark.parametrize(
    ("pattern", "center"), [("n c -> n", True), ("n c -> n", False), ("n c -> lab[n]", True)], ids=str
)
def test_y_and_dx_are_finite_and_right_for_every_extreme_group(route, dtype, pattern, center):
    x = np.stack(list(extremes(dtype).values()))
    label = {"lab": (np.arange(len(x))[::-1].copy(), len(x))} if "lab" in pattern else {}
    for dy in (signs(x.shape), np.where(x > 0, 1.0, -1.0), np.ones(x.shape)):
        y, dx = results(route, dtype, x, dy, pattern, center=center, **label)
        want, slope, rate = closed_form(x, dtype, dy, center)
        for i, name in enumerate(extremes(dtype)):
            assert np.isfinite(y[i]).all(), name
            assert np.isfinite(dx[i]).all(), name
            assert_close(y[i], want[i], dtype)
            far = np.abs(dx[i] - slope[i]).max()
            assert far <= 4 * TOL[dtype] * rate[i] * np.abs(y[i]).max(initial=1.0) + SMALLEST_NORMAL[dtype], name


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("center", [True, False])
def test_numpy_says_nothing_about_extreme_groups(dtype, center):
    x = np.stack(list(extremes(dtype).values()))
    with np.errstate(all="raise", under="ignore"):  # what becomes 0 may become 0
        y = hs.normalize(x.astype(dtype), PATTERN, eps="auto", center=center)
    assert_close(y, closed_form(x, dtype, center=center)[0], dtype)


@pytest.mark.parametrize(
    ("route", "dtype"),
    [*itertools.product(["torch", "torch.func"], DTYPES), ("jax", "float32")],
)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("eps", ["auto", 1e-5])
def test_fillings_that_are_not_measured_do_not_reach_the_others(route, dtype, center, eps):
    x = rounded(np.random.default_rng(0).normal(0.0, 0.01, (6, LENGTH)), dtype)  # so that y is larger than x
    where = np.random.default_rng(1).random(x.shape) < 0.8
    options = {"dy": signs(x.shape) * where, "where": where, "center": center, "eps": eps}
    want, slope = results(route, dtype, np.where(where, x, 0), **options)
    for filling in (-np.inf, np.nan, -LARGEST[dtype], LARGEST[dtype]):
        y, dx = results(route, dtype, np.where(where, x, filling), **options)
        assert np.array_equal(y[where], want[where])
        assert np.array_equal(dx[where], slope[where])
        assert (dx[~where] == 0).all()


def extremes(dtype):
    """Groups of LENGTH values that are hard on squares, quotients and their gradients."""
    rng = np.random.default_rng(0)
    normal, largest, smallest = rng.standard_normal(LENGTH), LARGEST[dtype], SMALLEST[dtype]
    outlier = np.eye(LENGTH)[3]
    groups = {
        "zeros": 0 * normal,
        "constant": np.full(LENGTH, 3.0),
        "constant, largest": np.full(LENGTH, largest),
        "constant, smallest": np.full(LENGTH, smallest),
        "one step from constant": 1 + outlier * SPACING[dtype],
        "a few steps from constant": 3 + 2 * rng.integers(-2, 3, LENGTH) * SPACING[dtype],
        "some smallest": smallest * rng.integers(-3, 4, LENGTH),
        "small": 1e-12 * normal,
        "floor": np.sqrt(FLOOR[dtype]) * normal,
        "below the floor": 1e-3 * np.sqrt(FLOOR[dtype]) * normal,
        "largest of both signs": largest * np.sign(normal),
        "up to the largest": largest * normal / np.abs(normal).max(),
        "one outlier": outlier,
        "one outlier, largest": outlier * largest,
        "one outlier, smallest": outlier * smallest,
        "one outlier beside a constant": 1 + outlier * np.sqrt(largest),
    }
    return {name: rounded(x, dtype) for name, x in groups.items()}


# ---- tools ----


def closed_form(x, dtype, dy=None, center=True, eps="auto"):
    """y, dx and 1 / std per row. Rows larger than 1 are first divided by a power of two, so that their squares fit."""
    size = np.maximum(1.0, 2.0 ** np.frexp(np.abs(x).max(-1, keepdims=True))[1].astype(np.float64))
    z = x / size
    mean = exact_mean(z) * center
    d = z - mean
    d = d - exact_mean(d) * center  # what rounding the mean to float64 has left
    var = np.square(d).mean(-1, keepdims=True)
    relative, floor = SPACING[dtype] ** 2 / 12 * (mean**2 + var), FLOOR[dtype] / size / size
    r = 1 / np.sqrt(var + (np.maximum(relative, floor) if eps == "auto" else eps / size / size))
    y = d * r
    if dy is None:
        return y, None, None
    pull = dy.mean(-1, keepdims=True) * center + y * (dy * y).mean(-1, keepdims=True)
    return y, r / size * (dy - pull), r / size


def exact_mean(x):
    return np.array([[math.fsum(row) / len(row)] for row in x])


def results(route, dtype, x, dy=None, pattern=PATTERN, where=None, eps="auto", **given):
    """y and dx as NumPy float64."""
    dy = np.ones(x.shape) if dy is None else dy
    if route == "numpy":
        return hs.normalize(x.astype(dtype), pattern, eps=eps, **given).astype(np.float64), None
    with jax.enable_x64(dtype == "float64"):
        x, dy = (make(route, a, dtype) for a in (x, dy))
        where = where if where is None else make(route, where, "bool")

        def function(z):
            return hs.normalize(z, pattern, eps=eps, where=where, **given)

        if route == "jax":
            codes, n = given.pop("lab", (None, 0))
            y, dx = _jax(x, dy, where, codes, n, pattern, eps, **given)
        elif route == "torch":
            x.requires_grad_()
            y = function(x)
            (dx,) = torch.autograd.grad(y, x, dy)
        else:
            y, pull = torch.func.vjp(function, x)
            (dx,) = pull(dy)
        assert dx.dtype == y.dtype == x.dtype
        return back(y), back(dx)


@partial(jax.jit, static_argnames=("n", "pattern", "eps", "center"), compiler_options=QUICKLY)
def _jax(x, dy, where, codes, n, pattern, eps, center=True):
    label = {} if codes is None else {"lab": (codes, n)}
    y, pull = jax.vjp(lambda z: hs.normalize(z, pattern, eps=eps, center=center, where=where, **label), x)
    return y, pull(dy)[0]


def signs(shape):
    return np.sign(np.random.default_rng(4).standard_normal(shape))


def rounded(x, dtype):
    """float64 values that the dtype can hold."""
    return torch.from_numpy(np.asarray(x, np.float64)).to(getattr(torch, dtype)).double().numpy()


def make(route, x, dtype):
    if route == "numpy":
        return x.astype(dtype)
    if route == "jax":
        return jnp.asarray(x).astype(dtype)
    return torch.from_numpy(np.array(x)).to(getattr(torch, dtype))


def back(y):
    return y.detach().double().numpy() if isinstance(y, torch.Tensor) else np.asarray(y).astype(np.float64)
