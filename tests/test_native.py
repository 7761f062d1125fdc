"""The compiled update of running statistics, against the same formula written again in NumPy."""

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from homeostat.kernels import cpu

needs_native = pytest.mark.skipif(cpu.native is None, reason=f"no native part: {cpu.info().get('reason')}")

CUMULATIVE = math.nan
MOMENTA = (0.1, 1.0, 0.0, 1e-3, CUMULATIVE)
GROUPS = (1, 7, 33, 128)

# Relative to the largest magnitude in the array.
TOLERANCE = {
    np.float32: 2.0**-24,  # half a unit in the last place: one rounding, on store
    np.float16: 2.0**-11,  # the same, of 11 bits
    np.float64: 1e-15,  # the same operations in the same order
}


DTYPES = (np.float32, "bfloat16", np.float16, np.float64)


class Running:
    """The four buffers of a normalisation layer, as NumPy arrays."""

    def __init__(self, groups, dtype, rng):
        self.mean = rng.normal(size=groups).astype(dtype)
        self.var = rng.uniform(0.5, 2.0, size=groups).astype(dtype)
        self.tracked = np.zeros(1, np.int64)
        self.skipped = np.zeros(1, np.int64)

    def update(self, mean, m2, count, momentum, /, **replaced):
        addresses = {name: array.ctypes.data for name, array in vars(self).items()}
        addresses |= {"m_mean": mean.ctypes.data, "m_m2": m2.ctypes.data, "m_count": 0}
        sizes = {"count": count, "groups": len(mean)}
        flags = {"momentum": momentum, "dtype": DTYPES.index(self.mean.dtype)}
        return cpu.native.update_running(**(addresses | sizes | flags | replaced))

    def bytes(self):
        return {name: array.tobytes() for name, array in vars(self).items()}


def oracle(buffer, new, k):
    return (1 - k) * buffer.astype(np.float64) + k * new


def moments(rng, groups, count):
    mean = rng.normal(3.0, 2.0, size=groups)
    m2 = rng.uniform(0.1, 4.0, size=groups) * count
    return mean, m2


def assert_close(got, want, dtype):
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=TOLERANCE[dtype] * np.abs(want).max())


@needs_native
@pytest.mark.parametrize("count", [0, 1, 2, 640.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("groups", GROUPS)
def test_three_updates_agree_with_the_formula(groups, momentum, dtype, count):
    rng = np.random.default_rng(groups)
    running = Running(groups, dtype, rng)
    for step in (1, 2, 3):
        mean, m2 = moments(rng, groups, max(count, 1))
        k = 1 / step if math.isnan(momentum) else momentum
        want_mean = oracle(running.mean, mean, k)
        want_var = oracle(running.var, m2 / max(count - 1, 1), k)
        assert running.update(mean, m2, count, momentum) is True
        assert_close(running.mean, want_mean, dtype)
        assert_close(running.var, want_var, dtype)
        assert (running.tracked[0], running.skipped[0]) == (step, 0)


@needs_native
def test_cumulative_updates_arrive_at_the_plain_average_of_all_batches():
    rng = np.random.default_rng(0)
    running = Running(6, np.float64, rng)
    batches = [moments(rng, 6, 10) for _ in range(50)]
    for mean, m2 in batches:
        running.update(mean, m2, 10, CUMULATIVE)
    # 50 roundings of 1e-16 each, and room
    np.testing.assert_allclose(running.mean, np.mean([mean for mean, _ in batches], axis=0), rtol=1e-13)
    np.testing.assert_allclose(running.var, np.mean([m2 / 9 for _, m2 in batches], axis=0), rtol=1e-13)


@needs_native
def test_momentum_zero_keeps_the_buffers_and_momentum_one_forgets_them():
    rng = np.random.default_rng(1)
    running = Running(5, np.float32, rng)
    mean, m2 = moments(rng, 5, 9)
    before = running.bytes()
    running.update(mean, m2, 9, 0.0)
    assert running.bytes() == before | {"tracked": np.int64(1).tobytes()}
    running.update(mean, m2, 9, 1.0)
    np.testing.assert_array_equal(running.mean, mean.astype(np.float32))


@needs_native
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_one_non_finite_moment_changes_nothing_but_the_skip_count(poison, where, place):
    rng = np.random.default_rng(2)
    running = Running(7, np.float32, rng)
    pair = moments(rng, 7, 20)
    pair[where][place] = poison
    before = running.bytes()
    assert running.update(*pair, 20, 0.1) is False
    assert running.update(*pair, 20, CUMULATIVE) is False
    assert running.bytes() == before | {"skipped": np.int64(2).tobytes()}


@needs_native
@pytest.mark.parametrize(
    ("wrong", "message"),
    [({name: 0}, f"{name} is a null pointer") for name in ("mean", "var", "tracked", "skipped", "m_mean", "m_m2")]
    + [({"groups": -1}, "groups=-1")]
    + [({"rows": 0}, "rows=0"), ({"rows": 3}, "rows=3")]
    + [({"count": -1.0}, "count=-1"), ({"count": math.nan}, "count=")],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_null_pointer_or_an_impossible_size_is_an_error_and_changes_nothing(wrong, message, dtype):
    rng = np.random.default_rng(3)
    running = Running(4, dtype, rng)
    before = running.bytes()
    with pytest.raises(ValueError, match=message):
        running.update(*moments(rng, 4, 8), 8, 0.1, **wrong)
    assert running.bytes() == before


@needs_native
def test_neighbouring_memory_is_left_alone():
    rng = np.random.default_rng(4)
    for dtype, groups in itertools.product((np.float32, np.float64), (1, 3, 16)):
        running = Running(groups + 2, dtype, rng)
        before = running.mean.copy(), running.var.copy()
        inner = {"mean": running.mean[1:].ctypes.data, "var": running.var[1:].ctypes.data}
        running.update(*moments(rng, groups, 8), 8, 0.5, **inner)
        for was, now in zip(before, (running.mean, running.var), strict=True):
            assert (was != now).tolist() == [False, *[True] * groups, False]


@needs_native
@pytest.mark.parametrize(("mean", "m2"), [(1e39, 1.0), (0.0, 1e40)])
def test_a_finite_double_too_large_for_a_float32_buffer_is_skipped(mean, m2):
    running = Running(1, np.float32, np.random.default_rng(5))
    before = running.bytes()
    assert running.update(np.array([mean]), np.array([m2]), 8, 0.5) is False
    assert running.bytes() == before | {"skipped": np.int64(1).tobytes()}


@needs_native
def test_info_names_the_compiler_and_the_version():
    assert set(cpu.info()) == {"native", "instructions", "compiler", "version"}
    assert cpu.info()["native"] is True


@pytest.mark.parametrize("setting", ["0", "1"])
def test_the_environment_can_turn_the_native_part_off(setting):
    code = "from homeostat.kernels import cpu; print(cpu.native is None, cpu.info())"
    environment = os.environ | {"HOMEOSTAT_NATIVE": setting}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ("turned off by HOMEOSTAT_NATIVE=0" in told.stdout) == (setting == "0")
    assert told.stdout.startswith("True" if setting == "0" else str(cpu.native is None))


def test_without_the_native_part_info_says_who_serves(monkeypatch):
    monkeypatch.setattr(cpu, "native", None)
    assert cpu.info()["native"] is False
    assert str(cpu.info()["reason"]).endswith("reference path serves")


@needs_native
def test_a_group_nobody_was_measured_in_keeps_what_it_had():
    running = Running(3, np.float32, np.random.default_rng(0))
    before, counts = running.mean.copy(), np.array([0.0, 1.0, 5.0])
    old_var = running.var.copy()
    assert running.update(np.full(3, 7.0), np.full(3, 8.0), 0.0, 0.5, m_count=counts.ctypes.data)
    np.testing.assert_array_equal(running.mean, [before[0], *((before[1:] + 7) / 2).astype(np.float32)])
    np.testing.assert_array_equal(running.var, [*old_var[:2], np.float32((np.float64(old_var[2]) + 2) / 2)])


@needs_native
def test_rows_count_their_own_updates_and_one_that_nobody_was_measured_in_counts_none():
    rng = np.random.default_rng(0)
    running, alone = Running(6, np.float64, rng), [Running(2, np.float64, rng) for _ in range(3)]
    running.tracked = np.array([4, 0, 2], np.int64)
    for row, one in enumerate(alone):
        at = slice(2 * row, 2 * row + 2)
        one.mean, one.var, one.tracked = (
            running.mean[at].copy(),
            running.var[at].copy(),
            running.tracked[row : row + 1].copy(),
        )
    counts = np.array([3.0, 9.0, 0.0, 0.0, 0.0, 5.0])
    mean, m2 = moments(rng, 6, 5)
    assert running.update(mean, m2, 0.0, CUMULATIVE, m_count=counts.ctypes.data, rows=3)
    for row, one in enumerate(alone):
        at = slice(2 * row, 2 * row + 2)
        if counts[at].any():
            of = mean[at].copy(), m2[at].copy(), counts[at].copy()
            one.update(*of[:2], 0.0, CUMULATIVE, m_count=of[2].ctypes.data)
        np.testing.assert_array_equal(running.mean[at], one.mean)
        np.testing.assert_array_equal(running.var[at], one.var)
        assert running.tracked[row] == one.tracked[0]


@needs_native
def test_every_float16_survives_the_update_unchanged():
    bits = np.arange(1 << 16, dtype=np.uint16)
    every = bits.view(np.float16)
    every = np.ascontiguousarray(every[np.isfinite(every)])
    running = Running(len(every), np.float16, np.random.default_rng(0))
    running.mean[:] = every
    assert running.update(np.zeros(len(every)), np.zeros(len(every)), 2.0, 0.0)
    np.testing.assert_array_equal(running.mean.view(np.uint16) & 0x7FFF, every.view(np.uint16) & 0x7FFF)
