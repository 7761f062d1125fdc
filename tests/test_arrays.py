"""NumPy, torch, JAX and Dask: the same numbers, arrays like those that came in, and nothing done behind one's back.

families.py says what every pattern means; a variant says who is measured and how.
"""

from functools import cache

import dask
import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import DATE, FAMILIES, LAB, REGION, SHAPE, C, H, N, W, closed_form, gradient, moments
from tolerances import TOL, TOL_AT_MEAN_1E4, assert_close

import homeostat as hs

LIBRARIES = ("numpy", "torch", "jax", "dask")
CHUNKS = (4, 8, 3, 5)

MASK = np.random.default_rng(2).random((6, 1, 4, 5)) < 0.7
WEIGHTS = MASK * np.random.default_rng(3).integers(1, 4, (6, 8, 1, 5)) / 2.0
VARIANTS = {
    "plain": {},
    "weights": {"where": WEIGHTS},
    "not centred": {"center": False},
    "eps by itself": {"eps": "auto"},
    "all at once": {"where": MASK, "center": False, "eps": "auto"},
}
# To trace and to compile takes seconds, so JAX and Dask are asked for these only; test_eps.py asks JAX for the others.
FEWER = ("plain", "weights", "all at once")
# What concerns dtypes, chunks and transforms is asked of these.
SOME = ("group", "spanning label")
# Half the time of compiling goes into making fast what runs once, on a thousand values.
QUICKLY = {"xla_backend_optimization_level": 0}

every_library = pytest.mark.parametrize("library", LIBRARIES)
every_family = pytest.mark.parametrize("name", FAMILIES)
some_families = pytest.mark.parametrize("name", SOME)


# ---- the same numbers ----


@every_library
@every_family
def test_every_library_measures_and_normalizes_as_the_closed_form_says(library, name):
    for x, table in (
        (numbers(dtype="float32"), TOL),
        (numbers(dtype="float32", mean=1e4, spread=1.0), TOL_AT_MEAN_1E4),
    ):
        for variant, (y, *m) in everything(library, name, x, "float32").items():
            options = VARIANTS[variant]
            assert_close(y, closed_form(x, FAMILIES[name].group, **options, dtype="float32"), "float32", table)
            assert m[1].shape == m[2].shape == FAMILIES[name].groups
            want = moments(x, FAMILIES[name], options.get("where"), options.get("center", True))
            for got, part in zip(m, want, strict=True):
                assert_close(np.broadcast_to(got, part.shape), part, "float32", table)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_at_mean_1e4_and_spread_1_float32_keeps_its_digits_over_many_values(library):
    x = numbers((4, 4, 128, 256), "float32", mean=1e4, spread=1.0)
    for pattern, axes in (("n c h w -> c", (0, 2, 3)), ("n (g c) ... -> n g", None), ("n c h w -> n h", (1, 3))):
        y = back(hs.normalize(make(library, x, "float32"), pattern, **({"g": 2} if axes is None else {})))
        z = x.reshape(4, 2, -1) if axes is None else x
        z = (z - z.mean(axes or 2, keepdims=True)) / np.sqrt(z.var(axes or 2, keepdims=True) + 1e-5)
        np.testing.assert_allclose(y, z.reshape(x.shape), rtol=0, atol=TOL_AT_MEAN_1E4["float32"])


# ---- arrays like those that came in ----


@some_families
@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        *(("numpy", dtype) for dtype in ("float16", "float32", "float64")),
        *(("torch", dtype) for dtype in ("float16", "bfloat16", "float32", "float64")),
        *(("jax", dtype) for dtype in ("float16", "bfloat16", "float64")),
        *(("dask", dtype) for dtype in ("float16", "float64")),
    ],
)
def test_type_and_dtype_are_kept_and_the_numbers_are_as_good_as_the_dtype(library, dtype, name):
    with jax.enable_x64(dtype == "float64"):
        x = numbers(dtype=dtype)
        given = make(library, x, dtype)
        for variant, (y, *_m) in outcome(library, name, x, dtype).items():
            assert type(y) is (np.ndarray if library == "dask" else type(given))
            assert y.dtype == given.dtype
            want = closed_form(x, FAMILIES[name].group, **VARIANTS[variant], dtype=dtype)
            assert_close(back(y), want, dtype)


@every_family
def test_numpy_arrays_may_be_read_only(name):
    x = numbers()
    x.setflags(write=False)
    for y, *_m in outcome("numpy", name, x, "float64").values():
        assert not np.shares_memory(x, y)


@every_family
@pytest.mark.parametrize("eager", [True, False])
def test_torch_tensors_are_left_as_they_were(name, eager):
    x = torch.from_numpy(numbers())
    before, version = x.clone(), x._version
    function = only_y(every_variant(name), weights("torch"))
    function(x) if eager else torch.func.vjp(function, x)
    assert x._version == version
    assert torch.equal(x, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_family
def test_on_another_device_torch_stays_there(name):
    x = numbers(dtype="float32")
    family = FAMILIES[name]
    for options in VARIANTS.values():
        options = {key: torch.as_tensor(v).cuda() if key == "where" else v for key, v in options.items()}
        y = hs.normalize(make("torch", x, "float32").cuda(), family.pattern, **family.given, **options)
        assert y.is_cuda


@every_family
@pytest.mark.parametrize(
    "lay",
    [
        np.asfortranarray,
        lambda x: x[::-1, :, ::-1].copy()[::-1, :, ::-1],
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x.transpose(2, 0, 3, 1).copy().transpose(1, 3, 0, 2),
    ],
    ids=["Fortran order", "negative strides", "every second", "transposed"],
)
def test_numpy_arrays_may_lie_in_memory_as_they_like(name, lay):
    x = lay(numbers())
    for variant, (y, *_m) in outcome("numpy", name, x, "float64").items():
        assert_close(y, closed_form(x, FAMILIES[name].group, **VARIANTS[variant]), "float64")


def test_a_broadcast_array_is_its_values():
    x = np.broadcast_to(numbers((6, 1, 4, 1)), SHAPE)
    for library in ("numpy", "torch"):
        given = x if library == "numpy" else torch.from_numpy(x[:, :1, :, :1].copy()).expand(SHAPE)
        assert_close(back(hs.normalize(given, "n c h w -> n")), closed_form(x, N), "float64")


# ---- Dask computes nothing until asked ----


@every_family
def test_dask_computes_nothing(name):
    family, x = FAMILIES[name], poisoned(SHAPE, "float32")
    where = poisoned(MASK.shape, bool)
    y, reading = hs.normalize(x, family.pattern, **family.given, where=where, eps="auto", return_reading=True)
    m = hs.measure(x, family.pattern, **family.given)
    lazy = [y, reading(x), reading.inverse(y), reading.mean, reading.std, (m + m).mean, (m + m).var(1)]
    assert all(isinstance(value, da.Array) for value in lazy)
    with pytest.raises(Exception, match="somebody computed"):
        y.compute(scheduler="sync")


@pytest.mark.parametrize("chunks", [-1, 1, (2, 5, 3, 4), ((1, 5), (2, 6), (3, 1), (2, 3))], ids=str)
@some_families
def test_however_dask_cuts_x_the_numbers_are_the_same_and_the_result_is_cut_alike(name, chunks):
    x, family = numbers(), FAMILIES[name]
    given = da.from_array(x, chunks=(3, 8, 2, 5) if chunks == 1 else chunks)
    y, reading = hs.normalize(given, family.pattern, **family.given, return_reading=True)
    assert y.chunks == given.chunks or ("(" in family.pattern and cuts_are_finer(y, given))
    want = closed_form(x, family.group)
    for value in dask.compute(y, reading(given), scheduler="sync"):
        assert_close(value, want, "float64")


def test_labels_of_many_rows_never_make_dask_hold_all_rows_at_once():
    rows = 1_000_000
    x = da.zeros((rows, 2000), chunks=(10_000, 500), dtype="float32")
    y = hs.normalize(x, "cell gene -> lab[cell] gene", lab=(np.arange(rows) % 7, 7))
    limit = 2 * dask.utils.parse_bytes(dask.config.get("array.chunk-size"))
    assert max(y.chunks[0]) <= 10_000
    assert all(layer.get("chunksize", limit) <= limit for layer in sizes_of_layers(y))


def test_moments_of_dask_blocks_add_up_to_those_of_the_whole():
    x = numbers()
    parts = [hs.measure(da.from_array(part), "n c h w -> c") for part in np.split(x, 3)]
    m = sum(parts)
    count, mean, m2 = moments(x, FAMILIES["batch"])
    assert_close(np.broadcast_to(m.count, 8), count, "float64")
    assert_close(m.mean.compute(), mean, "float64")
    assert_close(m.m2.compute(), m2, "float64")


# ---- JAX under its transforms ----


@some_families
def test_jax_differentiates_through_the_statistics(name):
    x, dy, family = numbers(dtype="float32"), numbers(seed=9), FAMILIES[name]

    def gradients(x, dy, where):
        _y, pull = jax.vjp(only_y(every_variant(name, FEWER), where), x)
        return {v: pull({other: dy * (v == other) for other in FEWER})[0] for v in FEWER}

    found = jax.jit(gradients, compiler_options=QUICKLY)(*(make("jax", a, "float32") for a in (x, dy)), weights("jax"))
    for variant in FEWER:
        options = VARIANTS[variant]
        eps = 0.0 if options.get("eps") == "auto" else 1e-5
        want = gradient(dy, x, family.group, **{**options, "eps": eps})
        assert_close(back(found[variant]), want, "float32", times=2)


def test_inside_jit_codes_may_come_as_an_argument():
    @jax.jit
    def function(x, codes, region):
        return hs.normalize(x, "n c h w -> lab[n] c region[n h w]", lab=(codes, 3), region=(region, 3), center=False)

    x = numbers(dtype="float32")
    y = function(make("jax", x, "float32"), jnp.asarray(LAB), jnp.asarray(REGION))
    assert_close(back(y), closed_form(x, (LAB[N] * 8 + C) * 3 + REGION[N, H, W], center=False), "float32")


def test_inside_jit_codes_may_be_known_already():
    x, codes = numbers(dtype="float32"), jnp.asarray(LAB)
    y = jax.jit(lambda x: hs.normalize(x, "n c h w -> lab[n] c", lab=(codes, 3)))(make("jax", x, "float32"))
    assert_close(back(y), closed_form(x, LAB[N] * 8 + C), "float32")


def test_inside_jit_weights_may_be_known_already():
    x, where = numbers(dtype="float32"), jnp.asarray(WEIGHTS)
    y = jax.jit(lambda x: hs.normalize(x, "n c h w -> c", where=where))(make("jax", x, "float32"))
    assert_close(back(y), closed_form(x, C, WEIGHTS), "float32")


def test_a_reading_may_be_taken_and_undone_inside_jit():
    x = numbers(dtype="float32", mean=1e4, spread=1.0)

    @jax.jit
    def function(x):
        y, reading = hs.normalize(x, "n c h w -> n c", return_reading=True)
        return reading(x), reading.inverse(y)

    y, same = function(make("jax", x, "float32"))
    np.testing.assert_allclose(back(y), closed_form(x, N * 8 + C), rtol=0, atol=TOL_AT_MEAN_1E4["float32"])
    np.testing.assert_allclose(back(same), x, rtol=2.0**-23)


def test_jax_vmap_is_a_loop():
    x = numbers(dtype="float32")
    y = jax.vmap(lambda z: hs.normalize(z, "c h w -> lab[w] c", lab=(DATE[:5], 2)))(make("jax", x, "float32"))
    assert_close(back(y), closed_form(x, (N * 2 + DATE[W]) * 8 + C), "float32")


# ---- torch under vmap ----


@every_family
def test_torch_vmap_is_a_loop(name):
    x, family = np.stack([numbers(seed=seed) for seed in (0, 1, 2)]), FAMILIES[name]
    found = torch.vmap(only_y(every_variant(name), weights("torch")))(torch.from_numpy(x))
    for variant, ys in found.items():
        for z, y in zip(x, ys, strict=True):
            assert_close(back(y), closed_form(z, family.group, **VARIANTS[variant]), "float64")


def test_torch_vmap_takes_a_mask_and_codes_for_each_sample():
    x = numbers()
    where = MASK[:, 0]
    codes = np.random.default_rng(5).integers(0, 2, (6, 5))

    def function(z, where, codes):
        return hs.normalize(z, "c h w -> lab[w] c", where=where[None], lab=(codes, 2))

    y = torch.vmap(function)(*(torch.from_numpy(a) for a in (x, where, codes)))
    assert_close(back(y), closed_form(x, (N * 2 + codes[N, W]) * 8 + C, where=MASK), "float64")


# ---- tools ----


def numbers(shape=SHAPE, dtype="float64", mean=1.5, spread=2.0, seed=0):
    """Normal values that the dtype can hold, as float64."""
    x = np.random.default_rng(seed).normal(mean, spread, shape)
    return torch.from_numpy(x).to(getattr(torch, dtype)).double().numpy()


def make(library, x, dtype):
    """x as an array of that library."""
    if library == "torch":
        return torch.from_numpy(np.ascontiguousarray(x)).to(getattr(torch, dtype))
    if library == "jax":
        return jnp.asarray(x).astype(dtype)
    x = x.astype(dtype, copy=False)
    return x if library == "numpy" else da.from_array(x, chunks=CHUNKS)


def like(library, where):
    """A mask or weights as an array of that library."""
    kind = {"numpy": np.asarray, "torch": torch.as_tensor, "jax": jnp.asarray, "dask": da.from_array}[library]
    return where if where is None else kind(where)


def back(y):
    """The values as NumPy float64."""
    return y.detach().double().numpy() if isinstance(y, torch.Tensor) else np.asarray(y).astype(np.float64)


def every_variant(name, variants=tuple(VARIANTS)):
    """A function of x and the weights of each variant that has some: y, count, mean and M2 of every variant."""
    family = FAMILIES[name]

    def function(x, where):
        out = {}
        for variant in variants:
            options = VARIANTS[variant]
            given = family.given | ({"where": where[variant]} if variant in where else {})
            m = hs.measure(x, family.pattern, center=options.get("center", True), **given)
            y = hs.normalize(x, family.pattern, **{**options, **given})
            out[variant] = y, m.count, m.mean, m.m2
        return out

    return function


def only_y(function, where):
    return lambda x: {variant: y for variant, (y, *_m) in function(x, where).items()}


def weights(library):
    return {variant: like(library, given["where"]) for variant, given in VARIANTS.items() if "where" in given}


@cache
def compiled(name):
    return jax.jit(every_variant(name, FEWER), compiler_options=QUICKLY)


def outcome(library, name, x, dtype):
    """What the library returns for every variant; Dask's answers are computed."""
    variants = FEWER if library == "dask" else tuple(VARIANTS)
    function = compiled(name) if library == "jax" else every_variant(name, variants)
    before = np.array(x)
    found = function(make(library, x, dtype), weights(library))
    if library == "dask":
        assert all(isinstance(y, da.Array) for y, *_ in found.values())
        found = dask.compute(found, scheduler="sync", optimize_graph=False)[0]
    assert np.array_equal(x, before)
    return found


def everything(library, name, x, dtype):
    """y, count, mean and M2 of every variant as NumPy float64."""
    return {variant: [back(part) for part in parts] for variant, parts in outcome(library, name, x, dtype).items()}


def poisoned(shape, dtype):
    """A Dask array that nobody can compute."""

    def refuse(block):
        raise AssertionError("somebody computed")

    chunks = tuple(min(n, c) for n, c in zip(shape, CHUNKS, strict=True))
    return da.zeros(shape, chunks=chunks, dtype=dtype).map_blocks(refuse, meta=np.empty((0,) * len(shape), dtype))


def cuts_are_finer(y, x):
    """A split axis cannot be cut inside a group, so it may be cut elsewhere; never coarser, and no other axis."""
    other = [i for i, (ours, theirs) in enumerate(zip(y.chunks, x.chunks, strict=True)) if ours != theirs]
    return other == [1] and len(y.chunks[1]) >= len(x.chunks[1]) and y.shape == x.shape


def sizes_of_layers(y):
    """What Dask knows of every layer that is an array."""
    layers = [layer.collection_annotations or {} for layer in y.dask.layers.values()]
    return [
        {"chunksize": int(np.prod(info["chunksize"])) * np.dtype(info["dtype"]).itemsize}
        for info in layers
        if info.get("type") == "dask.array.core.Array"
    ]
