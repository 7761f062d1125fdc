"""Labels: whatever says, position by position, which group it is.

The oracle sorts rows into groups with a dictionary and normalizes each group on its own.
"""

from datetime import date

import dask.array
import jax.numpy
import numpy as np
import pandas as pd
import pytest
import torch

import homeostat as hs
from homeostat import labels
from homeostat.frame import FrameError

EPS = 1e-3
PATTERN = "cell gene -> lab[cell] gene"
# Sums of a few values near 1: some roundings of the dtype that does the arithmetic. JAX computes in float32 here.
CLOSE = {"numpy": 1e-12, "torch": 1e-12, "dask": 1e-12, "jax": 1e-5}
INTO = {
    "numpy": np.asarray,
    "torch": torch.tensor,
    "dask": lambda x: dask.array.from_array(x, chunks=(4, 2)),
    "jax": jax.numpy.asarray,
}
every_library = pytest.mark.parametrize("library", INTO)
X = np.random.default_rng(0).normal(3.0, 2.0, (9, 4))
LETTERS = ["b", "a", "c", "a", "b", "b", "a", "c", "b"]
INTS = [20, 10, 30, 10, 20, 20, 10, 30, 20]
CODES = [1, 0, 2, 0, 1, 1, 0, 2, 1]  # the same groups, numbered in their order


def by_hand(x, names, order):
    """Mean and standard deviation of each group in this order, and the rows of x normalized by their own group."""
    rows = {name: [i for i, n in enumerate(names) if n == name] for name in order}
    y = np.empty_like(x)
    for members in rows.values():
        y[members] = (x[members] - x[members].mean(0)) / np.sqrt(x[members].var(0) + EPS)
    return np.array([x[m].mean(0) for m in rows.values()]), np.array([x[m].std(0) for m in rows.values()]), y


MEAN, STD, Y = by_hand(X, LETTERS, "abc")

# All of these say the same: rows in three groups, in this order.
SAYINGS = {
    "a list of text": LETTERS,
    "a tuple of text": tuple(LETTERS),
    "a numpy array of text": np.array(LETTERS),
    "a numpy array of objects": np.array(LETTERS, object),
    "bytes": [letter.encode() for letter in LETTERS],
    "a list of integers": INTS,
    "a range of integers": np.array(INTS, np.int16),
    "negative integers": [i - 30 for i in INTS],
    "fractions": [i / 8 for i in INTS],
    "a torch tensor of integers": torch.tensor(INTS),
    "a torch tensor of fractions": torch.tensor(INTS) / 8,
    "a jax array": jax.numpy.asarray(INTS),
    "a pandas series of text": pd.Series(LETTERS, index=range(9, 0, -1)),
    "a pandas series of integers": pd.Series(INTS, dtype="Int64"),
    "a pandas categorical": pd.Categorical(LETTERS),
    "a pandas series of categories": pd.Series(LETTERS, dtype="category"),
    "dates": [date(2020, 1, i) for i in INTS],
    "numpy dates": np.array([f"2020-01-{i}" for i in INTS], "datetime64[D]"),
    "pandas dates": pd.to_datetime([f"2020-01-{i}" for i in INTS]),
    "a column of a table": pd.DataFrame({"lab": LETTERS})["lab"],
    "codes in a list": (CODES, 3),
    "codes in a tuple": (tuple(CODES), 3),
    "codes of a categorical": (pd.Categorical(LETTERS).codes, 3),
    "codes in a series": (pd.Series(CODES), np.int64(3)),
    "codes in numpy": (np.array(CODES), 3),
    "unsigned codes": (np.array(CODES, np.uint64), 3),
    "short codes": (np.array(CODES, np.uint8), 3),
    "codes in torch": (torch.tensor(CODES), 3),
    "short codes in torch": (torch.tensor(CODES, dtype=torch.int32), 3),
    "codes in jax": (jax.numpy.asarray(CODES), 3),
    "codes in dask": (dask.array.from_array(np.array(CODES), chunks=4), 3),
}


@every_library
@pytest.mark.parametrize("saying", SAYINGS)
def test_every_way_of_saying_the_same_labels_gives_the_same_groups(saying, library):
    x, close = INTO[library](X), {"rtol": CLOSE[library], "atol": CLOSE[library]}
    moments = hs.measure(x, PATTERN, lab=SAYINGS[saying])
    np.testing.assert_allclose(np.asarray(moments.mean), MEAN, **close)
    np.testing.assert_allclose(np.asarray(moments.std()), STD, **close)
    y = hs.normalize(x, PATTERN, lab=SAYINGS[saying], eps=EPS)
    assert type(y) is type(x)
    np.testing.assert_allclose(np.asarray(y), Y, **close)


@every_library
def test_a_group_nobody_is_in_is_the_identity(library):
    x = INTO[library](X)
    codes = np.array(CODES) * 2 + 1  # 1, 3, 5 of seven
    y, reading = hs.normalize(x, PATTERN, lab=(codes, 7), eps=EPS, return_reading=True)
    close = {"rtol": CLOSE[library], "atol": CLOSE[library]}
    np.testing.assert_allclose(np.asarray(y), Y, **close)
    np.testing.assert_allclose(np.asarray(reading.mean)[1::2], MEAN, **close)
    empty = hs.measure(x, PATTERN, lab=(codes, 7))
    counts = np.broadcast_to(np.asarray(empty.count), (7, 4))
    np.testing.assert_array_equal(counts[:, 0], [0, 3, 0, 4, 0, 2, 0])
    assert not np.asarray(empty.mean)[::2].any()
    assert not np.asarray(empty.m2)[::2].any()
    np.testing.assert_array_equal(np.asarray(reading(x, lab=(np.zeros(9, int), 7))), np.asarray(x))


def test_no_rows_and_codes_are_no_error():
    for x in (torch.zeros(0, 4), torch.zeros(0, 4, 5)):
        y = hs.normalize(x, "n c ... -> lab[n] c", lab=([], 3))
        assert y.shape == x.shape
    assert hs.measure(torch.zeros(0, 4), PATTERN, lab=([], 3)).mean.tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize(
    ("given", "levels"),
    [
        (LETTERS, ("a", "b", "c")),
        (INTS, (10, 20, 30)),
        ([True, False, True], (False, True)),
        (["10", "9", "10"], ("10", "9")),  # text is ordered as text
        (pd.Categorical(["low", "high", "low"], categories=["low", "mid", "high"], ordered=True), ("high", "low")),
        (torch.tensor([3, 1, 3]), (1, 3)),
        (["x", "x"], ("x",)),
        ([2.5, -1.0], (-1.0, 2.5)),
        (([4, 0, 4], 5), 5),
    ],
)
def test_levels_are_the_sorted_distinct_labels_and_codes_count_them(given, levels):
    extent = (len(given[0]) if isinstance(given, tuple) else len(given),)
    codes, found = labels.resolve("lab", given, extent, "lab[n]")
    assert found == levels
    if isinstance(levels, tuple):
        assert [levels[code] for code in codes] == list(np.asarray(given))


def test_groups_stand_in_the_order_of_the_sorted_labels():
    x = np.array([[1.0], [2.0], [30.0], [40.0], [500.0], [600.0]])
    names = ["zebra", "zebra", "ant", "ant", "mole", "mole"]
    assert hs.measure(x, PATTERN, lab=names).mean.ravel().tolist() == [35.0, 550.0, 1.5]


@every_library
def test_bool_labels_are_two_groups_and_false_comes_first(library):
    flags = np.array(LETTERS) == "b"
    for given in (flags, flags.tolist(), torch.tensor(flags)):
        mean = np.asarray(hs.measure(INTO[library](X), PATTERN, lab=given).mean)
        close = CLOSE[library]
        np.testing.assert_allclose(mean, [X[~flags].mean(0), X[flags].mean(0)], rtol=close, atol=close)


@pytest.mark.parametrize("given", [["only"] * 9, [0] * 9, ([0] * 9, 1), np.zeros(9, bool)], ids=str)
def test_one_label_only_is_no_label(given):
    np.testing.assert_allclose(
        hs.normalize(X, PATTERN, lab=given), hs.normalize(X, "cell gene -> gene"), rtol=1e-12, atol=1e-12
    )


def test_text_and_numbers_that_look_alike_stay_apart():
    assert labels.resolve("lab", ["1", "1.0", "01"], (3,), "lab[n]")[1] == ("01", "1", "1.0")
    with pytest.raises(FrameError, match="mixes values that cannot be ordered"):
        labels.resolve("lab", ["1", 1, "1"], (3,), "lab[n]")
    assert labels.resolve("lab", ["nan", "a"], (2,), "lab[n]")[1] == ("a", "nan")  # that is a name
    with pytest.raises(FrameError, match="1 of 2 labels is missing"):
        labels.resolve("lab", [float("nan"), "a"], (2,), "lab[n]")


def test_labels_of_several_axes_have_their_shape():
    x = np.random.default_rng(1).normal(size=(2, 3, 5))
    table = [["a", "b", "a"], ["b", "a", "b"]]
    found = hs.measure(x, "n t c -> seg[n t]", seg=table).mean
    np.testing.assert_allclose(found, [x[np.array(table) == name].mean() for name in "ab"], rtol=1e-12)
    np.testing.assert_allclose(found, hs.measure(x, "n t c -> seg[n t]", seg=pd.DataFrame(table)).mean, rtol=0)


@pytest.mark.parametrize("pair", [("a", "b"), (1, 2), (1.5, 2), (np.int64(1), 2)])
def test_a_tuple_of_two_labels_is_not_codes_and_their_number(pair):
    x = np.random.default_rng(1).normal(size=(2, 5))
    np.testing.assert_allclose(hs.measure(x, "n c -> lab[n]", lab=pair).mean, x.mean(1), rtol=1e-12)


# ---- a reading, used again ----


@every_library
def test_a_reading_applies_to_new_rows_by_their_labels_names(library):
    x, close = INTO[library](X), {"rtol": CLOSE[library], "atol": CLOSE[library]}
    _, reading = hs.normalize(x, PATTERN, lab=LETTERS, eps=EPS, return_reading=True)
    new = np.random.default_rng(2).normal(size=(3, 4))
    expected = [(row - MEAN[k]) / np.sqrt(STD[k] ** 2 + EPS) for row, k in zip(new, (2, 0, 0), strict=True)]
    for given in (["c", "a", "a"], np.array(["c", "a", "a"]), pd.Categorical(["c", "a", "a"]), ([2, 0, 0], 3)):
        y = reading(INTO[library](new), lab=given)
        np.testing.assert_allclose(np.asarray(y), expected, **close)
        np.testing.assert_allclose(np.asarray(reading.inverse(y, lab=given)), new, **close)


@pytest.mark.parametrize("measured", INTO)
@pytest.mark.parametrize("applied", INTO)
def test_a_reading_of_one_library_applies_to_arrays_of_another(measured, applied):
    _, reading = hs.normalize(INTO[measured](X), PATTERN, lab=LETTERS, eps=EPS, return_reading=True)
    close = {"rtol": max(CLOSE[measured], CLOSE[applied]), "atol": max(CLOSE[measured], CLOSE[applied])}
    x = INTO[applied](X)
    y = reading(x)
    assert type(y) is type(x)
    np.testing.assert_allclose(np.asarray(y), Y, **close)
    np.testing.assert_allclose(np.asarray(reading(x, lab=LETTERS)), Y, **close)
    np.testing.assert_allclose(np.asarray(reading.inverse(y)), X, **close)


def test_a_reading_recalls_labels_and_sizes_for_a_tensor_of_the_same_shape():
    x = np.random.default_rng(3).normal(size=(9, 8))
    y, reading = hs.normalize(x, "n (g c) -> lab[n] g", lab=LETTERS, g=2, return_reading=True)
    np.testing.assert_allclose(reading(x), y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(reading(x, lab=LETTERS), y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(reading(x[::-1], lab=LETTERS[::-1]), y[::-1], rtol=1e-12, atol=1e-12)


def test_a_reading_of_numbers_knows_them_in_any_numeric_type():
    _, reading = hs.normalize(X, PATTERN, lab=INTS, eps=EPS, return_reading=True)
    for given in (np.array(INTS, float), torch.tensor(INTS), pd.Series(INTS, dtype="Int64")):
        np.testing.assert_array_equal(reading(X, lab=given), reading(X))
