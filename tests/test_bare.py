"""NumPy arrays take the compiled kernels, and get what float64 gets."""

import numpy as np
import pytest

import homeostat as hs
from homeostat.kernels import bare, cpu
from homeostat.kernels.reference import Job
from homeostat.plan import plan_for

pytestmark = pytest.mark.skipif(cpu.native is None, reason=f"no native part: {cpu.info().get('reason')}")
LABELS = np.array([2, 0, 0, 1, 2, 2, 0, 1, 1, 1])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("pattern", "shape", "given"),
    [
        ("cell gene -> gene", (10, 300), {}),
        ("cell gene -> cell", (10, 300), {}),
        ("cell gene -> lab[cell] gene", (10, 300), {"lab": (LABELS, 4)}),
        ("n (g c) t -> n g", (3, 12, 50), {"g": 4}),
    ],
)
@pytest.mark.parametrize("weighed", [False, True])
def test_an_array_is_measured_and_normalized_as_in_float64(pattern, shape, given, dtype, order, weighed):
    rng = np.random.default_rng(0)
    offset = 1e4 if dtype == np.float32 else 3
    x = np.asarray(rng.normal(size=shape) + offset, dtype=dtype, order=order)
    where = rng.random(shape) > 0.3 if weighed else None
    y, reading = hs.normalize(x, pattern, where=where, return_reading=True, **given)
    want_y, want = hs.normalize(x.astype(np.float64), pattern, where=where, return_reading=True, **given)
    assert y.dtype == dtype
    single = dtype == np.float32  # who was not measured may lie many spreads from his group: relative to that
    np.testing.assert_allclose(y, want_y, rtol=1e-6 if single else 1e-3, atol=5e-6 if single else 5e-3)
    for moments in (reading.moments, hs.measure(x, pattern, where=where, **given)):
        np.testing.assert_allclose(moments.mean, want.moments.mean, rtol=1e-9, atol=1e-7)  # of a spread of 1
        np.testing.assert_allclose(moments.m2, want.moments.m2, rtol=2e-6, atol=1e-9)
        np.testing.assert_array_equal(np.broadcast_to(moments.count, want.mean.shape), want.moments.count)


def test_the_kernels_serve_where_they_should_and_stand_back_where_they_cannot():
    job = Job(plan_for(hs.Frame.parse("n d -> n"), (8, 6)))
    x = np.zeros((8, 12), np.float32)
    assert bare.prepare(x[:, :6].copy(), None, job) is not None
    assert bare.prepare(x[:, ::2], None, job) is None  # gaps
    assert bare.prepare(np.zeros((8, 6)), None, job) is None  # float64
    assert bare.prepare(x[:, :6].copy(), None, job._replace(eps="auto")) is None


def test_a_missing_value_is_left_out_and_stays_missing():
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    x[1, 2] = np.nan
    y = hs.normalize(x, "n d -> d", where=~np.isnan(x), eps=0.0)
    assert np.isnan(y[1, 2])
    assert np.isfinite(np.delete(y.ravel(), 6)).all()
    kept = np.delete(x[:, 2], 1).astype(float)
    np.testing.assert_allclose(np.delete(y[:, 2], 1), (kept - kept.mean()) / kept.std(), rtol=1e-6)
