"""Frames and plans: what a pattern says, what it becomes for a shape, and what is measured by it.

The oracle is a loop over groups. A case says by hand, for each axis of the result, which of its entries every element
of x belongs to; the members of a group are then picked by comparing, and measured one group after another.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import homeostat as hs
from homeostat.frame import Frame, FrameError, Label, ShapeError
from homeostat.plan import plan_for

EPS = 1e-3
CLOSE = {"rtol": 1e-12, "atol": 1e-12}  # float64 on both sides: a few roundings of values near 1
SHAPES_ONLY = settings(derandomize=True, deadline=None, max_examples=200)
MEASURED = settings(derandomize=True, deadline=None, max_examples=100)


# ---- the text ----

# What is written, and how it is written back.
WRITTEN = {
    "n c h w -> c": "n c h w -> c",
    "  n   c ...->n   c ": "n c ... -> n c",
    "n (g c) ... -> n g": "n (g c) ... -> n g",
    "n ( g  c ) ... -> n g": "n (g c) ... -> n g",
    "n (g c)(k h) -> (g k)": "n (g c) (k h) -> (g k)",
    "n c ->": "n c ->",
    "n\tc\n-> c": "n c -> c",
    "... d -> ...": "... d -> ...",
    "a ... z -> z ... a": "a ... z -> z ... a",
    "cell gene -> lab[cell] gene": "cell gene -> lab[cell] gene",
    "row col -> date[row]sector[row] col": "row col -> date[row] sector[row] col",
    "b t d -> expert[ b t ]": "b t d -> expert[b t]",
    "n c ... -> region[n ...] c": "n c ... -> region[n ...] c",
    "b (h d) -> kind[h]": "b (h d) -> kind[h]",
    "n t c -> n seg[n t] c": "n t c -> n seg[n t] c",
    "größe _1 -> _1": "größe _1 -> _1",
    "n c -> (n) c": "n c -> (n) c",
}


@pytest.mark.parametrize(("pattern", "written"), WRITTEN.items())
def test_a_frame_is_written_back_in_one_spelling_and_reads_as_itself(pattern, written):
    frame = Frame.parse(pattern)
    assert str(frame) == written
    assert Frame.parse(written) == frame


def test_a_frame_holds_axes_splits_merges_and_labels_as_values():
    frame = Frame.parse("n (g c) ... -> (g c) lab[n ...]")
    assert frame.axes == ("n", ("g", "c"), "...")
    assert frame.kept == (("g", "c"), Label("lab", ("n", "...")))
    assert frame.names == ("n", "g", "c", "...")
    assert frame.labels == (Label("lab", ("n", "...")),)
    assert str(frame.labels[0]) == "lab[n ...]"


def test_frames_are_equal_by_value_hashable_and_frozen():
    frame = Frame.parse("n c -> c")
    assert frame == Frame(("n", "c"), ("c",)) == Frame.parse(" n  c->c")
    assert hash(frame) == hash(Frame(("n", "c"), ("c",)))
    assert {frame: 1}[Frame.parse("n c->c")] == 1
    assert frame != Frame.parse("n c -> n")
    assert frame != Frame.parse("m c -> c")
    assert Frame.parse("n c -> n c") != Frame.parse("n c -> c n")  # the result has another order
    with pytest.raises(dataclasses.FrozenInstanceError):
        frame.kept = ()


def test_names_given_as_labels_change_no_frame():
    assert Frame.parse("n c -> lab[n] c", frozenset({"lab"})) == Frame.parse("n c -> lab[n] c")


@st.composite
def frames(draw):
    """Any frame that can be written: up to five axes, some split, anything kept in any order, up to two labels."""
    words = iter("abcdefghijklmnopqrs")
    axes = [
        tuple(next(words) for _ in range(k)) if k > 1 else next(words)
        for k in draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    ]
    if draw(st.booleans()):
        axes.insert(draw(st.integers(0, len(axes))), "...")
    frame = Frame(tuple(axes), ())
    plain = draw(st.permutations([name for name in frame.names if name != "..."]))
    kept: list[Any] = list(plain[: draw(st.integers(0, len(plain)))])
    if len(kept) > 2 and draw(st.booleans()):
        kept[:2] = [tuple(kept[:2])]
    if "..." in axes and draw(st.booleans()):
        kept.append("...")
    for name in ("lab", "kind")[: draw(st.integers(0, 2))]:
        span = draw(st.lists(st.sampled_from(frame.names), min_size=1, unique=True))
        kept.insert(draw(st.integers(0, len(kept))), Label(name, tuple(sorted(span, key=frame.names.index))))
    return Frame(tuple(axes), tuple(kept))


@SHAPES_ONLY
@given(frames())
def test_whatever_can_be_said_survives_being_written_and_read(frame):
    assert Frame.parse(str(frame)) == frame


# ---- changing a frame ----


def said(frame):
    return str(frame)


def test_keep_puts_other_groups_on_the_same_axes():
    frame = Frame.parse("n (g c) ... -> n g")
    assert said(frame.keep("(g c)")) == "n (g c) ... -> (g c)"
    assert said(frame.keep("")) == "n (g c) ... ->"
    assert frame.keep(("n", ("g", "c"))) == frame.keep("n (g c)")
    assert frame.keep("n g") == frame


def test_over_pools_kept_axes_names_inside_a_merge_and_labels():
    frame = Frame.parse("n (g c) ... -> n (g c) lab[n] ...")
    assert said(frame.over("n")) == "n (g c) ... -> (g c) lab[n] ..."
    assert said(frame.over("g")) == "n (g c) ... -> n (c) lab[n] ..."
    assert said(frame.over("g", "c", "...")) == "n (g c) ... -> n lab[n]"
    assert said(frame.over("lab")) == "n (g c) ... -> n (g c) ..."
    assert frame.over() == frame


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("h", "does not keep h, so it is pooled already"),
        ("n", "groups n by lab[n]; to pool it, pool over lab"),
        ("k", "has no axis or label k; its axes are n, c, h"),
    ],
)
def test_over_says_why_there_is_nothing_to_pool(name, why):
    with pytest.raises(FrameError, match=why.replace("[", r"\[")):
        Frame.parse("n c h -> lab[n] c").over(name)


def test_split_reads_one_axis_as_several():
    assert said(Frame.parse("n c h -> n").split("c", "g", "k")) == "n (g k) h -> n"
    assert said(Frame.parse("n c -> c").split("c", "g", "c")) == "n (g c) -> c"
    assert said(Frame.parse("n c -> c").split("n", "a", "b").keep("a")) == "(a b) c -> a"


@pytest.mark.parametrize(
    ("name", "into", "why"),
    [
        ("k", ("a", "b"), "has no axis k to split; it has n (g c) ..."),
        ("c", ("a", "b"), "has no axis c to split; it has n (g c) ..."),
        ("...", ("a", "b"), "has no axis ... to split"),
        ("n", ("a",), "(a) splits nothing"),
        ("n", (), "the parentheses are empty"),
        ("n", ("a", "c"), "names c twice on the left"),
        ("n", ("a", "if"), '"if" is a Python keyword'),
        ("n", ("a", "b d"), '"b d" is not a name'),
        ("n", ("a", "b"), "keeps n, which is not an axis of x"),
    ],
)
def test_a_split_that_no_pattern_could_say_is_refused(name, into, why):
    with pytest.raises(FrameError) as caught:
        Frame.parse("n (g c) ... -> n").split(name, *into)
    assert why in str(caught.value)


def test_label_groups_by_it_instead_of_keeping_or_pooling():
    frame = Frame.parse("n (g c) ... -> n (g c)")
    assert said(frame.label("lab", "n")) == "n (g c) ... -> lab[n] (g c)"
    assert said(frame.label("kind", "g")) == "n (g c) ... -> kind[g] n (c)"
    assert said(frame.label("region", "n", "...")) == "n (g c) ... -> region[n ...] (g c)"
    assert said(frame.label("a", "n").label("b", "n")) == "n (g c) ... -> b[n] a[n] (g c)"


@pytest.mark.parametrize(
    ("name", "axes", "why"),
    [
        ("lab", (), "lab[] spans no axis; write the axis it labels, as lab[n]"),
        ("lab", ("k",), "spans k, which is not an axis of x (n, c)"),
        ("lab", ("c", "n"), "must follow the order of the axes: lab[n c]"),
        ("c", ("n",), "c is an axis and a label"),
        ("where", ("n",), '"where" is reserved'),
        ("a b", ("n",), '"a b" is not a name'),
    ],
)
def test_a_label_that_no_pattern_could_say_is_refused(name, axes, why):
    with pytest.raises(FrameError) as caught:
        Frame.parse("n c -> c").label(name, *axes)
    assert why in str(caught.value)


# ---- a plan ----


def plan(pattern, shape, sizes=None, **counts):
    return plan_for(Frame.parse(pattern), shape, sizes, counts)


@pytest.mark.parametrize(
    ("pattern", "shape", "sizes", "split", "groups"),
    [
        ("n c h w -> c", (8, 6, 5, 4), {}, (8, 6, 5, 4), (6,)),
        ("n c h w -> c n", (8, 6, 5, 4), {}, (8, 6, 5, 4), (6, 8)),
        ("n c h w ->", (8, 6, 5, 4), {}, (8, 6, 5, 4), ()),
        ("n c ... -> c", (8, 6), {}, (8, 6), (6,)),
        ("n c ... -> n ...", (8, 6, 5, 4, 3), {}, (8, 6, 5, 4, 3), (8, 5, 4, 3)),
        ("... -> ...", (), {}, (), ()),
        ("n (g c) ... -> n g", (8, 6, 5), {"g": 2}, (8, 2, 3, 5), (8, 2)),
        ("n (g c) ... -> n g", (8, 6, 5), {"c": 2}, (8, 3, 2, 5), (8, 3)),
        ("n (g c) ... -> n g", (8, 6, 5), {"g": 2, "c": 3, "n": 8}, (8, 2, 3, 5), (8, 2)),
        ("n (a b c) -> b", (2, 24), {"a": 2, "c": 4}, (2, 2, 3, 4), (3,)),
        ("n c (p h) (q w) -> n p q", (2, 3, 8, 6), {"p": 4, "w": 3}, (2, 3, 4, 2, 2, 3), (2, 4, 2)),
        ("n (g c) (k h) -> (g k)", (2, 6, 4), {"g": 3, "k": 2}, (2, 3, 2, 2, 2), (6,)),
        ("n c h -> (h n) c", (2, 3, 4), {}, (2, 3, 4), (8, 3)),
        ("(a b) ... (c d) -> d a", (4, 5, 6), {"b": 2, "c": 2}, (2, 2, 5, 2, 3), (3, 2)),
        ("n (g c) -> n g", (0, 6), {"g": 2}, (0, 2, 3), (0, 2)),
    ],
)
def test_a_plan_knows_the_split_shape_and_the_shape_of_the_result(pattern, shape, sizes, split, groups):
    found = plan(pattern, shape, sizes)
    assert found.shape == split
    assert found.groups == groups


def test_a_plan_speaks_of_positions_in_the_split_shape():
    found = plan("n (h d) t c -> kind[h] (c t) lab[n t]", (2, 6, 4, 5), {"h": 3}, kind=7, lab=9)
    assert found.names == ("n", "h", "d", "t", "c")
    assert found.shape == (2, 3, 2, 4, 5)
    assert found.groups == (7, 20, 9)
    assert found.atoms == (("label", 0), ("axis", 4), ("axis", 3), ("label", 1))
    assert found.merges == (1, 2, 1)
    assert found.spans == ((1,), (0, 3))
    assert found.counts == (7, 9)
    assert found.keyed == (0, 1, 3)
    assert found.kept == (4, 3)
    assert found.pooled == (2,)
    assert found.pool == 2


def test_the_ellipsis_counts_as_the_axes_it_stands_for():
    found = plan("n ... c -> region[n ...]", (2, 3, 4, 5), region=6)
    assert found.names == ("n", "...0", "...1", "c")
    assert found.spans == ((0, 1, 2),)
    assert found.pooled == (3,)
    assert plan("n ... c -> region[n ...]", (2, 5), region=6).spans == ((0,),)


def test_a_plan_keeps_other_groups_of_the_same_tensor():
    measured = plan("n (g c) ... -> n g", (8, 6, 5), {"g": 2})
    gain = measured.keep(measured.frame.keep("(g c)"))
    assert (gain.shape, gain.groups) == (measured.shape, (6,))
    assert measured.keep(measured.frame.keep("lab[n] c"), {"lab": 3}).groups == (3, 3)


def test_a_plan_is_made_once_for_a_shape():
    frame = Frame.parse("n (g c) -> n g")
    assert plan_for(frame, (8, 6), {"g": 2}) is plan_for(Frame.parse("n (g c)->n g"), (8, 6), {"g": 2})
    assert plan_for(frame, (8, 6), {"g": 2}) != plan_for(frame, (8, 6), {"g": 3})


def test_the_hint_for_any_rank_is_itself_a_pattern_and_keeps_what_was_kept():
    for pattern, shorter in {
        "n c h w -> c": "n c ... -> c",
        "n c h -> lab[n c]": "n c ... -> lab[n c]",
        "n (g c) h w -> n g": "n (g c) ... -> n g",
        "n a b h -> (a b)": "n a b ... -> (a b)",
    }.items():
        with pytest.raises(ShapeError) as caught:
            plan(pattern, (2,), lab=2)
        assert str(caught.value).endswith(f'For any rank write "{shorter}".')
        assert Frame.parse(shorter).kept == Frame.parse(pattern).kept
    for pattern in ("n c h -> h", "h -> ", "n a b -> (a b)", "n (a b) -> n"):
        with pytest.raises(ShapeError) as caught:
            plan(pattern, (2, 3, 4, 5))
        assert "any rank" not in str(caught.value)


# ---- the numbers ----


class Case(NamedTuple):
    """A pattern for x of `shape`; for each axis of the result, `keys` names its entry for every element of x."""

    pattern: str
    shape: tuple[int, ...]
    keys: list[Any]  # positions whose joint index is the entry, or (codes, positions that they label)
    given: dict[str, Any] = {}  # noqa: RUF012
    split: tuple[int, ...] | None = None  # the shape that positions count in, where it is not x's own


def entries(split, key, taken):
    """For one axis of the result: which of its entries every element belongs to, and how many there are."""
    codes, axes = key if isinstance(key[0], np.ndarray) else (None, key)
    at, n = np.zeros(split, int), 1
    for i in axes:
        at = at * split[i] + np.arange(split[i]).reshape([-1 if j == i else 1 for j in range(len(split))])
        n *= split[i]
    return (at, n) if codes is None else (codes.ravel()[at], next(taken))


def brute_force(case, x, weights=None):
    """Count, mean and M2 of each group, and y, by looping over the groups."""
    split = case.split or case.shape
    x, w = (np.broadcast_to(a, case.shape).reshape(split) for a in (x, 1.0 if weights is None else weights))
    taken = (case.given[label.name][1] for label in Frame.parse(case.pattern).labels)
    keys = [entries(split, key, taken) for key in case.keys]
    count, mean, m2 = (np.zeros([n for _, n in keys]) for _ in range(3))
    y = np.empty(split)
    for group in np.ndindex(count.shape):
        member = np.all([np.ones(split, bool)] + [at == g for (at, _), g in zip(keys, group, strict=True)], axis=0)
        v, u = x[member], w[member]
        some = u.sum() > 0
        count[group] = u.sum()
        mean[group] = (u * v).sum() / u.sum() if some and case.given.get("center", True) else 0.0
        m2[group] = (u * (v - mean[group]) ** 2).sum()
        y[member] = (v - mean[group]) / np.sqrt(m2[group] / u.sum() + EPS) if some else v
    return count, mean, m2, y.reshape(case.shape)


def codes_of(n, *shape):
    """Codes that take each of 0..n-1 at least twice where there is room, in no order."""
    size = int(np.prod(shape))
    return np.random.default_rng(size + n).permutation(np.arange(size) % n).reshape(shape)


LAB, DATE, SECTOR = codes_of(3, 8), codes_of(2, 8), codes_of(2, 8)[::-1].copy()
CHANNEL, EXPERT, KIND = codes_of(2, 6), codes_of(3, 4, 6), codes_of(2, 4)
REGION = codes_of(5, 3, 5, 4)
CASES = [
    Case("n c h w -> c", (3, 4, 2, 5), [(1,)]),
    Case("n c ... -> c", (9, 4), [(1,)]),
    Case("n c ... -> n c", (3, 4, 2, 5, 2), [(0,), (1,)]),
    Case("n c ... -> c n", (3, 4, 7), [(1,), (0,)]),
    Case("... d -> ...", (2, 3, 4, 5), [(0,), (1,), (2,)]),
    Case("... d -> d ...", (2, 3, 4, 5), [(3,), (0,), (1,), (2,)], {"center": False}),
    Case("a ... z -> z a", (2, 3, 4, 5), [(3,), (0,)]),
    Case("n c h w ->", (3, 4, 2, 5), []),
    Case("n (g c) h w -> n g", (3, 6, 2, 2), [(0,), (1,)], {"g": 2}, (3, 2, 3, 2, 2)),
    Case("n (g c) ... -> g", (3, 6, 5), [(1,)], {"c": 2}, (3, 3, 2, 5)),
    Case("n (g c) ... -> n c", (3, 6, 5), [(0,), (2,)], {"c": 2}, (3, 3, 2, 5)),
    Case("n (g c) ... -> (g c)", (3, 6, 5), [(1, 2)], {"g": 2}, (3, 2, 3, 5)),
    Case("n (g c) ... -> (c g) n", (3, 6, 5), [(2, 1), (0,)], {"g": 2}, (3, 2, 3, 5)),
    Case("b t (h d) -> b t h", (2, 3, 8), [(0,), (1,), (2,)], {"h": 2, "d": 4}, (2, 3, 2, 4)),
    Case("(a b c) d -> b", (24, 3), [(1,)], {"a": 2, "c": 4}, (2, 3, 4, 3)),
    Case("n c (p h) (q w) -> n p q", (2, 3, 4, 6), [(0,), (2,), (4,)], {"p": 2, "q": 3}, (2, 3, 2, 2, 3, 2)),
    Case("n (g c) (k h) -> (g k)", (3, 6, 4), [(1, 3)], {"g": 3, "k": 2}, (3, 3, 2, 2, 2)),
    Case("n (g c) (k h) -> (k n) g", (3, 6, 4), [(3, 0), (1,)], {"g": 3, "k": 2}, (3, 3, 2, 2, 2)),
    # one label on one axis, first, last, alone, and with groups that nobody is in
    Case("cell gene -> lab[cell] gene", (8, 3), [(LAB, (0,)), (1,)], {"lab": (LAB, 3)}),
    Case("cell gene -> gene lab[cell]", (8, 3), [(1,), (LAB, (0,))], {"lab": (LAB, 3)}),
    Case("cell gene -> lab[cell]", (8, 3), [(LAB, (0,))], {"lab": (LAB, 3)}),
    Case("cell gene -> lab[cell] gene", (8, 3), [(LAB, (0,)), (1,)], {"lab": (LAB, 6)}),
    Case("n c ... -> n lab[c]", (3, 6, 4), [(0,), (CHANNEL, (1,))], {"lab": (CHANNEL, 2)}),
    # labels that cross, on one axis and on two
    Case(
        "row col -> date[row] sector[row]",
        (8, 3),
        [(DATE, (0,)), (SECTOR, (0,))],
        {"date": (DATE, 2), "sector": (SECTOR, 2)},
    ),
    Case(
        "row col t -> date[row] col sector[row]",
        (8, 3, 2),
        [(DATE, (0,)), (1,), (SECTOR, (0,))],
        {"date": (DATE, 2), "sector": (SECTOR, 2)},
    ),
    Case(
        "row col t -> lab[row] kind[col]",
        (8, 6, 2),
        [(LAB, (0,)), (CHANNEL, (1,))],
        {"lab": (LAB, 3), "kind": (CHANNEL, 2)},
    ),
    # a label that spans several axes, neighbours or not
    Case("b t d -> expert[b t]", (4, 6, 3), [(EXPERT, (0, 1))], {"expert": (EXPERT, 3)}),
    Case("b t d -> d expert[b t]", (4, 6, 3), [(2,), (EXPERT, (0, 1))], {"expert": (EXPERT, 3)}),
    Case("b d t -> expert[b t] d", (4, 3, 6), [(EXPERT, (0, 2)), (1,)], {"expert": (EXPERT, 3)}),
    Case("n c ... -> region[n ...]", (3, 2, 5, 4), [(REGION, (0, 2, 3))], {"region": (REGION, 5)}),
    Case("n c ... -> c region[n ...]", (3, 2, 5, 4), [(1,), (REGION, (0, 2, 3))], {"region": (REGION, 5)}),
    Case("... c -> region[...] c", (3, 5, 4, 2), [(REGION, (0, 1, 2)), (3,)], {"region": (REGION, 5)}),
    # on part of a split
    Case("b (h d) -> kind[h]", (3, 8), [(KIND, (1,))], {"kind": (KIND, 2), "h": 4}, (3, 4, 2)),
    Case("b (h d) -> kind[h] b", (3, 8), [(KIND, (1,)), (0,)], {"kind": (KIND, 2), "d": 2}, (3, 4, 2)),
    Case("b (h d) -> h kind[d]", (3, 8), [(1,), (KIND, (2,))], {"kind": (KIND, 2), "h": 2}, (3, 2, 4)),
    Case(
        "b t (h d) -> kind[t h]",
        (3, 2, 4),
        [(KIND, (1, 2))],
        {"kind": (KIND.reshape(2, 2), 2), "h": 2},
        (3, 2, 2, 2),
    ),
    # beside a kept axis that they span
    Case("n t c -> n seg[n t] c", (4, 6, 3), [(0,), (EXPERT, (0, 1)), (2,)], {"seg": (EXPERT, 3)}),
    Case("n t c -> seg[n t] n", (4, 6, 3), [(EXPERT, (0, 1)), (0,)], {"seg": (EXPERT, 3)}),
    Case("n t c -> t seg[n t]", (4, 6, 3), [(1,), (EXPERT, (0, 1))], {"seg": (EXPERT, 3)}),
    Case("n t c -> (c n) seg[n t]", (4, 6, 3), [(2, 0), (EXPERT, (0, 1))], {"seg": (EXPERT, 3)}),
    Case(
        "n t c -> seg[n t] lab[t] c",
        (4, 6, 3),
        [(EXPERT, (0, 1)), (CHANNEL, (1,)), (2,)],
        {"seg": (EXPERT, 3), "lab": (CHANNEL, 2)},
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.pattern)
LIBRARIES = {"numpy": (np.asarray, np.asarray), "torch": (torch.tensor, lambda t: t.numpy())}
every_library = pytest.mark.parametrize("library", LIBRARIES)


def sample(case):
    return np.random.default_rng(0).normal(3.0, 2.0, case.shape)


@every_library
@every_case
def test_measuring_is_looping_over_groups(case, library):
    there, back = LIBRARIES[library]
    x = sample(case)
    count, mean, m2, _ = brute_force(case, x)
    found = hs.measure(there(x), case.pattern, **case.given)
    assert back(found.mean).shape == mean.shape
    np.testing.assert_allclose(back(found.mean), mean, **CLOSE)
    np.testing.assert_allclose(back(found.m2), m2, **CLOSE)
    np.testing.assert_array_equal(np.broadcast_to(found.count, mean.shape), count)


@every_library
@every_case
def test_normalizing_is_looping_over_groups(case, library):
    there, back = LIBRARIES[library]
    x = sample(case)
    want = brute_force(case, x)[-1]
    y, reading = hs.normalize(there(x), case.pattern, eps=EPS, return_reading=True, **case.given)
    np.testing.assert_allclose(back(y), want, **CLOSE)
    np.testing.assert_allclose(back(hs.normalize(there(x), case.pattern, eps=EPS, **case.given)), want, **CLOSE)
    np.testing.assert_allclose(back(reading(there(x))), want, **CLOSE)
    np.testing.assert_allclose(back(reading.inverse(y)), x, **CLOSE)


@every_library
@every_case
def test_weights_say_who_is_measured_and_everyone_is_normalized(case, library):
    there, back = LIBRARIES[library]
    x = sample(case)
    weights = np.random.default_rng(1).choice([0.0, 0.5, 1.0, 2.0], case.shape)
    weights[weights.shape[0] // 2] = 0.0
    count, mean, m2, y = brute_force(case, x, weights)
    found = hs.measure(there(x), case.pattern, where=there(weights), **case.given)
    np.testing.assert_allclose(back(found.mean), mean, **CLOSE)
    np.testing.assert_allclose(back(found.m2), m2, **CLOSE)
    np.testing.assert_allclose(np.broadcast_to(found.count, mean.shape), count, **CLOSE)
    found = hs.normalize(there(x), case.pattern, eps=EPS, where=there(weights), **case.given)
    np.testing.assert_allclose(back(found), y, **CLOSE)


@st.composite
def cases(draw):
    """Any frame, on axes of length 1 to 3, as a case."""
    frame = draw(frames())
    alone = any(label.axes == ("...",) for label in frame.labels)  # a label must span something
    rest = draw(st.integers(1 if alone else 0, 2))
    shape, split, given, at = [], [], {}, {}
    for axis in frame.axes:
        lengths = []
        for name in axis if isinstance(axis, tuple) else (axis,):
            found = [draw(st.integers(1, 3)) for _ in range(rest if name == "..." else 1)]
            at[name] = tuple(range(len(split) + len(lengths), len(split) + len(lengths) + len(found)))
            lengths += found
        if isinstance(axis, tuple):
            given |= dict(zip(axis[1:], lengths[1:], strict=True))
        shape += [int(np.prod(lengths))] if isinstance(axis, tuple) else lengths
        split += lengths
    keys = []
    for item in frame.kept:
        if isinstance(item, Label):
            span, n = [i for name in item.axes for i in at[name]], draw(st.integers(1, 3))
            codes = np.random.default_rng(draw(st.integers(0, 9))).integers(0, n, [split[i] for i in span])
            given[item.name] = (codes, n)
            keys.append((codes, span))
        elif isinstance(item, tuple):
            keys.append([i for name in item for i in at[name]])
        else:
            keys += [(i,) for i in at[item]]
    return Case(str(frame), tuple(shape), keys, given, tuple(split))


@MEASURED
@given(cases())
def test_any_frame_is_measured_as_a_loop_over_its_groups_would(case):
    x = sample(case)
    count, mean, m2, _ = brute_force(case, x)
    for there, back in LIBRARIES.values():
        found = hs.measure(there(x), case.pattern, **case.given)
        np.testing.assert_allclose(back(found.mean), mean, **CLOSE)
        np.testing.assert_allclose(back(found.m2), m2, **CLOSE)
        np.testing.assert_array_equal(np.broadcast_to(found.count, mean.shape), count)


def test_sizes_may_be_numpy_integers():
    x = np.random.default_rng(0).normal(size=(3, 6, 4))
    np.testing.assert_array_equal(
        hs.normalize(x, "n (g c) t -> n g", g=np.int64(2)), hs.normalize(x, "n (g c) t -> n g", g=2)
    )


def test_a_frame_may_stand_for_its_pattern():
    x = np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_array_equal(hs.normalize(x, Frame.parse("n c -> c")), hs.normalize(x, "n c -> c"))
    np.testing.assert_array_equal(hs.measure(x, Frame.parse("n c -> n")).mean, hs.measure(x, "n c -> n").mean)


# ---- no copy ----


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


LAYOUTS = {
    "contiguous": noise(4, 6, 8, 4),
    "channels_last": noise(4, 6, 8, 4).to(memory_format=torch.channels_last),
    "channels_last_3d": noise(4, 6, 2, 8, 4).to(memory_format=torch.channels_last_3d),
    "sliced": noise(9, 12, 10, 5)[1:9:2, ::2, 1:9, :4],
    "transposed": noise(6, 4, 4, 8).transpose(0, 1).transpose(2, 3),
    "expanded": noise(4, 6, 1, 4).expand(4, 6, 8, 4),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
SPLITS = {
    "n (g c) ... -> n g": {"g": 2},
    "(m n) c ... -> m": {"m": 2},
    "(m n) (g c) ... (p h) (q w) -> m g p q": {"m": 2, "g": 3, "p": 4, "w": 2},
    "n (a b c) ... -> (b a)": {"a": 1, "b": 3},
}


@every_layout
@pytest.mark.parametrize("pattern", SPLITS)
def test_a_split_is_a_view_whatever_the_strides(layout, pattern):
    x = LAYOUTS[layout]
    found = plan_for(Frame.parse(pattern), tuple(x.shape), SPLITS[pattern])
    z = x.reshape(found.shape)
    assert z.data_ptr() == x.data_ptr()
    assert z.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert z._base is not None
    assert np.shares_memory(x.numpy().reshape(found.shape), x.numpy())


FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
LAID_OUT = {
    "n c ... -> c": {},
    "n c ... -> n c": {},
    "n c ... -> n ...": {},
    "n c ... ->": {},
    "n (g c) ... -> n g": {"g": 2},
    "n (g c) ... -> (g c)": {"g": 2},
    "n c ... -> lab[n] c": {"lab": (torch.tensor([0, 1, 0, 1]), 2)},
    "n c ... -> n lab[c]": {"lab": (torch.tensor([0, 1, 0, 1, 0, 1]), 2)},
    "n (g c) ... -> kind[g]": {"g": 2, "kind": (torch.tensor([0, 1]), 2)},
    "(m n) c ... -> m": {"m": 2},
}


@pytest.mark.parametrize("pattern", LAID_OUT)
@pytest.mark.parametrize("layout", ["channels_last", "channels_last_3d"])
def test_channels_last_stays_as_it_lies_in_the_result_and_its_gradient(layout, pattern):
    x = LAYOUTS[layout].clone().requires_grad_()
    y = hs.normalize(x, pattern, **LAID_OUT[pattern])
    y.backward(noise(*y.shape))
    for tensor in (y, x.grad):
        assert tensor.is_contiguous(memory_format=FORMATS[x.ndim])
        assert not tensor.is_contiguous()


def test_a_label_per_pixel_leaves_channels_last_as_it_lies():
    x = LAYOUTS["channels_last"]
    region = torch.arange(x[:, 0].numel()).reshape(x[:, 0].shape) % 3
    y = hs.normalize(x, "n c ... -> region[n ...]", region=(region, 3))
    assert y.is_contiguous(memory_format=torch.channels_last)


@every_layout
@pytest.mark.parametrize("pattern", LAID_OUT)
def test_the_layout_of_memory_changes_no_number(layout, pattern):
    x = LAYOUTS[layout].double()
    plain = x.contiguous()
    np.testing.assert_allclose(
        hs.normalize(x, pattern, **LAID_OUT[pattern]), hs.normalize(plain, pattern, **LAID_OUT[pattern]), **CLOSE
    )


def test_the_input_is_not_written_to():
    x = np.random.default_rng(0).normal(size=(4, 6))
    before = x.copy()
    hs.normalize(x, "n (g c) -> n g", g=2, where=np.ones((4, 6)))
    x.flags.writeable = False
    hs.normalize(x, "n c -> c")
    np.testing.assert_array_equal(x, before)
