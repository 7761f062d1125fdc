"""Laws: Moments add, Affines compose and undo themselves, Readings come back, and normalizing knows no units.

Numbers come from hypothesis; the other side of every equation is NumPy in float64.
"""

import functools
import io
import itertools
import math
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import FAMILIES, LAB, SHAPE, N, closed_form, gradient, moments
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tolerances import assert_close

import homeostat as hs
from homeostat import Affine, Moments

settings.register_profile("laws", derandomize=True, deadline=None, database=None, max_examples=30)
law = settings(settings.get_profile("laws"))

CHANNELS = 3
# Half the time of compiling goes into making fast what runs once, on a thousand values.
QUICKLY = {"xla_backend_optimization_level": 0}
UNIT = 2.0**-52

every_family = pytest.mark.parametrize("name", FAMILIES)
NUMPY = pytest.param(np.asarray, id="numpy")
TORCH = pytest.param(torch.as_tensor, id="torch")
JAX = pytest.param(jnp.asarray, id="jax")
numpy_and_torch = pytest.mark.parametrize("library", [NUMPY, TORCH])
every_library = pytest.mark.parametrize("library", [NUMPY, TORCH, JAX])


def numbers(limit=1e3):
    """Everyday numbers: no denormals, which would be all that hypothesis tries."""
    return st.floats(-limit, limit, allow_subnormal=False)


def tables(least=0):
    return st.integers(least, 6).flatmap(lambda n: arrays(np.float64, (n, CHANNELS), elements=numbers()))


def many(strategy):
    return st.lists(strategy, min_size=1, max_size=5)


any_moments = st.builds(
    lambda n, mean, m2: Moments(n, mean * (n > 0), m2 * (n > 0)),
    st.one_of(st.integers(0, 9).map(float), arrays(np.float64, CHANNELS, elements=st.integers(0, 9).map(float))),
    arrays(np.float64, CHANNELS, elements=numbers()),
    arrays(np.float64, CHANNELS, elements=st.floats(0, 1e6, allow_subnormal=False)),
)
seeds = st.integers(0, 2**32 - 1)


# ---- Moments: a commutative monoid ----


@law
@given(any_moments, any_moments, any_moments)
def test_adding_moments_is_associative(a, b, c):
    assert_same_moments((a + b) + c, a + (b + c))


@law
@given(any_moments, any_moments)
def test_adding_moments_is_commutative(a, b):
    assert_same_moments(a + b, b + a)


@law
@given(
    arrays(np.float64, CHANNELS, elements=st.floats(allow_nan=False, allow_infinity=False)),
    arrays(np.float64, CHANNELS, elements=st.floats(0, allow_infinity=False)),
    st.integers(1, 2**50),
)
def test_adding_nothing_changes_nothing_not_by_one_bit(mean, m2, n):
    m = Moments(float(n), mean, m2)
    for same in (m + Moments.identity(), Moments.identity() + m):
        assert (same.count, same.mean.tolist(), same.m2.tolist()) == (m.count, m.mean.tolist(), m.m2.tolist())


@law
@given(many(any_moments))
def test_sum_adds_moments(parts):
    assert_same_moments(sum(parts), functools.reduce(lambda a, b: a + b, parts))


def test_moments_add_to_nothing_but_moments():
    with pytest.raises(TypeError):
        Moments.identity() + 1.0
    with pytest.raises(TypeError):
        1 + Moments.identity()


# ---- Moments: measuring a concatenation is adding the parts ----


@numpy_and_torch
@law
@given(many(tables()))
def test_adding_moments_equals_measuring_the_concatenation(library, parts):
    whole = np.concatenate(parts)
    m = sum(hs.measure(library(part), "n c -> c") for part in parts)
    assert_moments(m, whole, np.ones(whole.shape))
    assert_moments(hs.measure(library(whole), "n c -> c"), whole, np.ones(whole.shape))


@numpy_and_torch
@law
@given(many(tables()), seeds)
def test_adding_moments_equals_measuring_the_concatenation_with_weights(library, parts, seed):
    rng = np.random.default_rng(seed)
    weights = [rng.integers(0, 4, part.shape) / 2.0 for part in parts]
    m = sum(hs.measure(library(x), "n c -> c", where=library(w)) for x, w in zip(parts, weights, strict=True))
    assert_moments(m, np.concatenate(parts), np.concatenate(weights))


@numpy_and_torch
@law
@given(many(tables()), seeds)
def test_adding_moments_equals_measuring_the_concatenation_with_labels(library, parts, seed):
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, 4, len(part)) for part in parts]
    m = sum(
        hs.measure(library(x), "n c -> lab[n] c", lab=(library(lab), 4)) for x, lab in zip(parts, codes, strict=True)
    )
    whole, lab = np.concatenate(parts), np.concatenate(codes)
    for k in range(4):
        here = Moments(*(np.asarray(part)[k] for part in (m.count, m.mean, m.m2)))
        assert_moments(here, whole[lab == k], np.ones((int((lab == k).sum()), CHANNELS)))


@law
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.floats(-1e8, 1e8), seeds)
def test_a_stream_far_from_zero_loses_no_digits(sizes, mean, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(mean, 1.0, (n, CHANNELS)) for n in sizes]
    whole = np.concatenate(parts)
    m = sum(hs.measure(part, "n c -> c") for part in parts)
    exact = np.array([math.fsum(column) / len(whole) for column in whole.T])
    np.testing.assert_allclose(m.mean, exact, rtol=8 * UNIT, atol=8 * UNIT)
    np.testing.assert_allclose(m.m2, whole.var(0) * len(whole), rtol=1e-7, atol=1e-7)  # NumPy, too, takes two passes


# ---- Moments: what they say ----


@law
@given(tables(2), st.sampled_from([0, 1, 1.5]))
def test_var_and_std_are_those_of_numpy(x, ddof):
    for library in (np.asarray, torch.as_tensor):
        m = hs.measure(library(x), "n c -> c")
        np.testing.assert_allclose(m.var(ddof), np.var(x, axis=0, ddof=ddof), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(m.std(ddof), np.std(x, axis=0, ddof=ddof), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("array", [float, np.float32, np.asarray, torch.as_tensor, jnp.asarray])
def test_var_is_nan_where_there_is_nothing_to_divide_by(array):
    one, none = Moments(array(1.0), array(2.0), array(0.0)), Moments(array(0.0), array(0.0), array(0.0))
    assert all(math.isnan(value) for value in (none.var(), one.var(ddof=1), one.std(ddof=2)))
    assert one.var() == 0


def test_var_is_nan_in_just_those_groups_that_nobody_was_measured_in():
    m = hs.measure(np.arange(6.0).reshape(3, 2), "n c -> lab[n] c", lab=(np.array([0, 0, 2]), 4))
    assert np.isnan(m.var())[:, 0].tolist() == [False, True, False, True]
    assert np.isnan(m.var(ddof=1))[:, 0].tolist() == [False, True, True, True]


# ---- Moments: on disk ----

bits = st.one_of(
    *(
        arrays(dtype, shape, elements=st.floats(width=8 * np.dtype(dtype).itemsize))
        for dtype, shape in itertools.product((np.float32, np.float64), ((), (3,), (2, 1), (0, 2)))
    )
)


@law
@given(st.one_of(st.floats(), bits), bits, bits)
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path_factory, count, mean, m2):
    path = tmp_path_factory.mktemp("moments") / "m.safetensors"
    m = Moments(count, mean, m2)
    m.save(path)
    back = Moments.load(path)
    for name in ("count", "mean", "m2"):
        want, got = np.asarray(getattr(m, name)), getattr(back, name)
        assert (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())


@every_library
def test_moments_of_every_library_are_saved_as_they_lie(library, tmp_path):
    x = library(np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32))
    m = hs.measure(x, "n c w -> w n")
    m.save(tmp_path / "m")
    back = Moments.load(tmp_path / "m")
    assert np.array_equal(back.mean, np.asarray(m.mean))
    assert np.array_equal(back.m2, np.asarray(m.m2))
    assert_same_moments(back + back, m + m)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "m"
    old, new = (Moments(n, np.array([n]), np.array([n])) for n in (1.0, 2.0))
    old.save(path)
    before = path.read_bytes()
    for method, failing in (("open", lambda part, mode: FullDisk(part, mode.strip("b"))), ("replace", FullDisk.write)):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, failing)
            with pytest.raises(OSError, match="disk full"):
                new.save(path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["m"]


class FullDisk(io.FileIO):
    def write(self, _data):
        raise OSError("disk full")


def test_whoever_may_read_a_new_file_may_read_saved_moments(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    Moments.identity().save(tmp_path / "m")
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_loading_never_runs_code(tmp_path):
    path, sign = tmp_path / "m", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Touch(str(sign))))
    with pytest.raises(Exception, match=r"(?i)header"):
        Moments.load(path)
    assert not sign.exists()


def test_loading_something_else_says_what_it_holds(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, tmp_path / "m")
    with pytest.raises(ValueError, match="holds weight; saved Moments hold count, mean and m2"):
        Moments.load(tmp_path / "m")


class Touch:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


# ---- Affine: composes, inverts, folds ----

scales = st.one_of(st.floats(0.01, 100.0), st.floats(-100.0, -0.01))
affines = st.one_of(
    st.builds(Affine, numbers(), scales, numbers()),
    st.builds(
        Affine, *(arrays(np.float64, CHANNELS, elements=elements) for elements in (numbers(), scales, numbers()))
    ),
)
points = arrays(np.float64, (4, CHANNELS), elements=numbers())


@law
@given(affines, affines, points)
def test_then_is_one_after_the_other(a, b, x):
    assert_near(a.then(b)(x), b(a(x)))


@law
@given(affines, affines, affines, points)
def test_composing_affines_is_associative(a, b, c, x):
    assert_near(a.then(b).then(c)(x), a.then(b.then(c))(x))


@law
@given(affines, points)
def test_an_affine_and_its_inverse_undo_each_other(a, x):
    assert_near(a.inverse()(a(x)), x)
    assert_near(a(a.inverse()(x)), x)
    assert_near(a.then(a.inverse())(x), x)


@law
@given(affines, points)
def test_the_inverse_of_the_inverse_is_the_affine(a, x):
    again = a.inverse().inverse()
    assert np.array_equal(again.c, a.c)
    assert np.array_equal(again.t, a.t)
    np.testing.assert_allclose(again.s, a.s, rtol=2 * UNIT)


@law
@given(affines, points)
def test_the_affine_of_no_arguments_is_the_identity(a, x):
    one = Affine()
    assert np.array_equal(one(x), x)
    assert np.array_equal(one.inverse()(x), x)
    assert np.array_equal(a.then(one)(x), a(x))
    assert_near(one.then(a)(x), a(x))


@pytest.mark.parametrize("zero", [0.0, np.float32(0), np.zeros(2), torch.tensor([1.0, 0.0]), jnp.zeros(2)], ids=str)
def test_an_affine_that_maps_everything_to_one_point_says_that_it_has_no_inverse(zero):
    with pytest.raises(ValueError, match="scale of 0"):
        Affine(1.0, zero, 2.0).inverse()


def test_affines_invert_where_values_cannot_be_looked_at():
    s, x = np.array([2.0, 4.0]), np.array([1.0, 3.0])
    assert_near(jax.jit(lambda s, x: Affine(1.0, s, 0.5).inverse()(x))(s, x), (x - 0.5) / s + 1)
    y = torch.vmap(lambda s, x: Affine(1.0, s, 0.5).inverse()(x))(torch.tensor(s), torch.tensor(x))
    assert_near(y, (x - 0.5) / s + 1)


@law
@given(affines, seeds, st.booleans())
def test_folding_into_a_linear_layer_is_applying_after_it(a, seed, with_bias):
    rng = np.random.default_rng(seed)
    weight, bias, x = rng.normal(size=(CHANNELS, 5)), rng.normal(size=CHANNELS), rng.normal(size=(4, 5))
    folded, shift = a.fold_into(weight, bias if with_bias else None)
    assert folded.shape == weight.shape
    assert_near(x @ folded.T + shift, a(x @ weight.T + bias * with_bias))


@law
@given(affines, seeds)
def test_folding_into_a_convolution_is_applying_after_it(a, seed):
    rng = np.random.default_rng(seed)
    weight, bias, x = (torch.from_numpy(rng.normal(size=shape)) for shape in ((CHANNELS, 2, 3), (CHANNELS,), (4, 2, 7)))
    a = Affine(*(torch.as_tensor(part) if isinstance(part, np.ndarray) else part for part in (a.c, a.s, a.t)))
    folded, shift = a.fold_into(weight, bias)
    got = torch.nn.functional.conv1d(x, folded, shift)
    want = a(torch.nn.functional.conv1d(x, weight, bias).mT).mT
    assert_near(got, want)


# ---- Reading: applies to others, and comes back ----


@every_family
def test_a_reading_of_x_normalizes_x_as_normalize_does(name):
    x, family = normal(), FAMILIES[name]
    for library, options in itertools.product((np.asarray, torch.as_tensor), ({}, {"center": False}, {"eps": "auto"})):
        y, reading = hs.normalize(library(x), family.pattern, **family.given, **options, return_reading=True)
        assert_close(y, closed_form(x, family.group, **options), "float64")
        assert_close(reading(library(x)), y, "float64")


@pytest.mark.parametrize("name", ["instance", "labelled"])
def test_in_float32_too_where_the_mean_is_large(name):
    x, family = normal(mean=1e4, spread=1.0).astype(np.float32), FAMILIES[name]
    for library in (np.asarray, torch.as_tensor):
        y, reading = hs.normalize(library(x), family.pattern, **family.given, return_reading=True)
        np.testing.assert_allclose(reading(library(x)), closed_form(x, family.group), rtol=0, atol=5e-6)
        np.testing.assert_allclose(reading.inverse(y), x, rtol=2.0**-23)


@law
@given(st.sampled_from(sorted(FAMILIES)), st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), seeds)
def test_a_reading_undoes_its_normalizing(name, mean, spread, seed):
    x, family = normal(seed, mean, spread), FAMILIES[name]
    _y, reading = hs.normalize(x, family.pattern, **family.given, return_reading=True)
    size = max(np.abs(x).max(), spread)
    np.testing.assert_allclose(reading.inverse(reading(x)), x, rtol=0, atol=8 * UNIT * size)


@every_family
@pytest.mark.parametrize("eps", [1e-5, "auto"])
def test_constants_come_back(name, eps):
    family = FAMILIES[name]
    for constant, library in itertools.product((0.0, 0.1, -7e5, 1e30), (np.asarray, torch.as_tensor)):
        x = library(np.full(SHAPE, constant))
        y, reading = hs.normalize(x, family.pattern, **family.given, eps=eps, return_reading=True)
        np.testing.assert_allclose(y, 0, atol=1e-9)
        np.testing.assert_allclose(reading.inverse(y), constant, rtol=4 * UNIT)


@every_family
def test_a_reading_knows_the_mean_and_spread_of_each_group(name):
    x, family = normal(), FAMILIES[name]
    _y, reading = hs.normalize(x, family.pattern, **family.given, return_reading=True)
    count, mean, m2 = moments(x, family)
    assert_close(reading.mean, mean, "float64")
    with np.errstate(invalid="ignore"):
        assert_close(np.nan_to_num(reading.std), np.nan_to_num(np.sqrt(m2 / count)), "float64")


def test_a_reading_applies_to_other_lengths_and_to_labels_by_name():
    x, other = normal(), normal(seed=1)[:3]
    _y, reading = hs.normalize(x, "n c h w -> c", return_reading=True)
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    assert_close(reading(other), (other - mean) / np.sqrt(var + 1e-5), "float64")

    _y, reading = hs.normalize(x, "n c h w -> lab[n]", lab=[*"abacab"], return_reading=True)
    for key, y in zip("cab", reading(other, lab=[*"cab"]), strict=True):
        theirs = x[[i for i, k in enumerate("abacab") if k == key]]
        assert_close(y, (other["cab".index(key)] - theirs.mean()) / np.sqrt(theirs.var() + 1e-5), "float64")


# ---- normalize: units do not show ----


@law
@given(st.sampled_from(sorted(FAMILIES)), seeds)
def test_stretching_and_shifting_each_group_changes_nothing(name, seed):
    family, rng = FAMILIES[name], np.random.default_rng(seed)
    x = normal(seed)
    stretch, shift = rng.uniform(0.01, 100, family.group.max() + 1), rng.uniform(-10, 10, family.group.max() + 1)
    moved = x * stretch[family.group] + shift[family.group]
    y, same = (hs.normalize(z, family.pattern, **family.given, eps=1e-16) for z in (x, moved))
    np.testing.assert_allclose(same, y, rtol=0, atol=1e-9)


@law
@given(st.sampled_from(sorted(FAMILIES)), st.integers(-13, 100), seeds, st.sampled_from([np.float32, np.float64]))
def test_with_eps_auto_a_power_of_two_changes_not_one_bit(name, power, seed, dtype):
    family = FAMILIES[name]
    x = normal(seed, mean=1.0, spread=1.0).astype(dtype)
    for library in (np.asarray, torch.as_tensor):
        y, same = (
            hs.normalize(library(z), family.pattern, **family.given, eps="auto") for z in (x, np.ldexp(x, power))
        )
        assert np.array_equal(y, same)


def test_with_eps_auto_a_power_of_two_changes_not_one_bit_in_jax():
    x = normal(mean=1.0, spread=1.0).astype(np.float32)
    function = jax.jit(lambda z: hs.normalize(z, "n c h w -> n c", eps="auto"))
    for power in (-13, -1, 3, 100):
        assert np.array_equal(function(x), function(np.ldexp(x, power)))


@law
@given(st.sampled_from(sorted(FAMILIES)), st.floats(-1e3, 1e3), st.floats(0.1, 1e3), seeds)
def test_every_group_comes_out_with_mean_0_and_variance_1(name, mean, spread, seed):
    family = FAMILIES[name]
    y = hs.normalize(normal(seed, mean, spread), family.pattern, **family.given, eps=1e-20)
    count, centre, m2 = moments(y, family)
    np.testing.assert_allclose(centre, 0, atol=1e-11)
    np.testing.assert_allclose(m2, count, rtol=1e-11)


@numpy_and_torch
def test_layer_norm_and_instance_norm_are_the_two_ends_of_group_norm(library):
    x = library(normal().astype(np.float32))
    for g, pattern in ((1, "n c ... -> n"), (8, "n c ... -> n c")):
        y, same = hs.normalize(x, "n (g c) ... -> n g", g=g), hs.normalize(x, pattern)
        assert_close(y, same, "float32")


# ---- where: who is measured ----


@law
@given(st.sampled_from(sorted(FAMILIES)), seeds, st.sampled_from([0.1, 0.5, 0.9]), st.booleans())
def test_where_measures_only_the_chosen_and_normalizes_everyone(name, seed, share, center):
    x, family = normal(seed), FAMILIES[name]
    where = np.random.default_rng(seed).random((6, 8, 4, 1)) < share
    want = closed_form(x, family.group, where, center)
    for library in (np.asarray, torch.as_tensor):
        y = hs.normalize(library(x), family.pattern, **family.given, where=library(where), center=center)
        assert_close(y, want, "float64")


@every_library
@pytest.mark.parametrize("name", ["batch", "group", "labelled", "spanning label"])
def test_what_is_not_measured_and_not_finite_reaches_nobody_else(library, name):
    x, family = normal().astype(np.float32), FAMILIES[name]
    where = np.random.default_rng(5).random(SHAPE) < 0.7
    dy = np.random.default_rng(6).normal(size=SHAPE).astype(np.float32)
    broken = x.copy()
    broken[~where] = np.resize([np.nan, np.inf, -np.inf, 1.5], (~where).sum())
    odd = ~np.isfinite(broken)
    dy[odd] = 0
    y, dx = y_and_gradient(library, broken, dy, family, where)
    finite = np.where(odd, 0, broken)
    assert_close(y[~odd], closed_form(finite, family.group, where)[~odd], "float32")
    assert np.isnan(y[odd]).all()
    if dx is not None:
        assert_close(dx[~odd], gradient(dy, finite, family.group, where)[~odd], "float32")
        assert (dx[odd] == 0).all()


@every_library
def test_a_group_in_which_nobody_is_measured_keeps_its_values_and_its_gradient(library):
    x, dy = (normal(seed).astype(np.float32) for seed in (0, 1))
    where = np.ones(SHAPE, bool)
    where[LAB[N] == 2] = False
    y, dx = y_and_gradient(library, x, dy, FAMILIES["labelled"], where)
    ours = LAB[N] == 2
    assert np.array_equal(y[ours], x[ours])
    assert dx is None or np.array_equal(dx[ours], dy[ours])
    assert_close(y, closed_form(x, FAMILIES["labelled"].group, where), "float32")


@law
@given(seeds)
def test_whole_weights_are_repetition(seed):
    rng = np.random.default_rng(seed)
    x, times = rng.normal(size=(7, CHANNELS)), rng.integers(0, 4, 7)
    assume(times.sum() > 1)
    repeated = np.repeat(x, times, axis=0)
    m, same = hs.measure(x, "n c -> c", where=times[:, None]), hs.measure(repeated, "n c -> c")
    assert_same_moments(m, same)
    y = hs.normalize(x, "n c -> c", where=times[:, None])
    assert_close(np.repeat(y, times, axis=0), hs.normalize(repeated, "n c -> c"), "float64")


# ---- the gradient, against finite differences ----


@pytest.mark.parametrize("options", [{}, {"center": False}], ids=["centred", "not centred"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(
    ("pattern", "given_"),
    [
        ("n c h -> c", {}),
        ("n (g c) h -> n g", {"g": 2}),
        ("n c h -> lab[n] c", {"lab": (torch.tensor([0, 1, 0]), 3)}),
        ("n c h -> region[n h] lab[n]", {"lab": (torch.tensor([0, 1, 0]), 2), "region": (torch.eye(3, 2).long(), 2)}),
    ],
    ids=["batch", "group", "labelled", "crossed labels"],
)
def test_the_gradient_and_its_gradient_are_right(pattern, given_, masked, options):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(3, 2, 2))).requires_grad_()
    where = torch.from_numpy(rng.integers(0, 3, (3, 2, 2)) / 2.0) if masked else None

    def function(z):
        return hs.normalize(z, pattern, where=where, eps=0.1, **given_, **options)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize("name", ["group", "spanning label"])
def test_the_gradient_of_eps_auto_is_right(name):
    x, dy, family = torch.from_numpy(normal()).requires_grad_(), normal(seed=1), FAMILIES[name]
    y = hs.normalize(x, family.pattern, **family.given, eps="auto")
    (dx,) = torch.autograd.grad(y, x, torch.from_numpy(dy))
    assert_close(dx, gradient(dy, x.detach().numpy(), family.group, eps=0.0), "float64")


# ---- tools ----


def normal(seed=0, mean=1.5, spread=2.0):
    return np.random.default_rng(seed).normal(mean, spread, SHAPE)


def assert_near(got, want):
    """float64: a hundred roundings of the largest number on the way, which is below 1e8."""
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-6)


def assert_same_moments(a, b):
    size = max(1.0, np.abs(np.asarray(a.mean)).max())
    np.testing.assert_allclose(a.count, b.count, rtol=1e-15)
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=16 * UNIT * size)
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-12, atol=1e-12 * size * size)


def assert_moments(m, x, weight):
    """m is what NumPy finds in the columns of x."""
    n = weight.sum(0)
    mean = (x * weight).sum(0) / np.maximum(n, 1e-300)
    size = max(1.0, np.abs(x).max(initial=0.0))
    np.testing.assert_allclose(np.broadcast_to(m.count, n.shape), n, rtol=1e-15)
    np.testing.assert_allclose(m.mean, mean, rtol=0, atol=16 * UNIT * size)
    np.testing.assert_allclose(m.m2, (weight * (x - mean) ** 2).sum(0), rtol=1e-12, atol=1e-12 * size * size)


def y_and_gradient(library, x, dy, family, where):
    """y and dx as NumPy; NumPy itself has no dx."""
    x, dy, where = library(x), library(dy), library(where)

    def function(z):
        return hs.normalize(z, family.pattern, **family.given, where=where)

    if library is np.asarray:
        return function(x), None
    if library is jnp.asarray:
        y, dx = jax.jit(lambda x, dy: (function(x), jax.vjp(function, x)[1](dy)[0]), compiler_options=QUICKLY)(x, dy)
        return np.asarray(y), np.asarray(dx)
    y = function(x.requires_grad_())
    return y.detach().numpy(), torch.autograd.grad(y, x, dy)[0].numpy()
