"""Bad calls: each is refused at the door, with what was given, what it means here, and what would work.

A row is a call, the class of its exception and what the message must say. Nothing may come out of a bad call: no
number, no crash, and no error from deep inside an array library.
"""

import tempfile
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import dask.array
import jax.numpy
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch.func import functional_call, grad

import homeostat as hs
from homeostat.frame import Frame, FrameError, ShapeError

NAN = float("nan")
X = np.random.default_rng(0).normal(size=(6, 4))
T = torch.tensor(X)
J = jax.numpy.asarray(X)
D = dask.array.from_array(X, chunks=3)
IMAGE = torch.tensor(np.random.default_rng(0).normal(size=(8, 6, 5, 5)))
BY_LAB = "cell gene -> lab[cell] gene"
HALF = ([0, 1] * 3, 2)
SCRATCH = tempfile.TemporaryDirectory()  # gone when Python is
CAPTURED = hs.nn.BatchNorm1d(4, dtype=T.dtype)


def reading(pattern="n c -> c", x=X, **given):
    return hs.normalize(x, pattern, return_reading=True, **given)[1]


def saved(**parts):
    """The path of a safetensors file that holds these arrays."""
    path = Path(SCRATCH.name) / "file"
    save_file(parts, path)
    return path


class Bad(NamedTuple):
    """A call that must fail."""

    name: str
    call: Any
    message: str
    error: type[Exception] = FrameError


def pattern(text, message):
    return Bad(f'"{text}"', lambda: Frame.parse(text), f'"{text}"{message}')


def normalize(name, message, error=FrameError, x=X, said="n c -> c", **given):
    return Bad(name, lambda: hs.normalize(x, said, **given), message, error)


def labelled(name, lab, message, error=FrameError, x=X, said=BY_LAB):
    return normalize(f"lab={name}", message, error, x, said, lab=lab)


NOT_A_NAME = 'is not a name; axes are separated by spaces and named by letters, digits and "_", as in "n c h w -> c".'
NO_ARROW = '"->": write the axes of x, one arrow, and what keeps a statistic of its own, as in "n c ... -> c".'
SAME_LIBRARY = "pass a mask or weights of the same library as x."
NEEDS_SIX = "lab[cell] needs one label per position, shape (6,), or (codes, n)."
ALONE = (
    "a single value per group, which minus its own mean is 0. Drop it, merge it into another label, or give (codes, n) "
    "to accept that."
)
TO_ZERO = "minus its own mean it is 0 everywhere. Keep fewer axes, or pass center=False."

PATTERNS = [
    pattern("n c", f" has no {NO_ARROW}"),
    pattern("n c => c", f" has no {NO_ARROW}"),
    pattern("", f" has no {NO_ARROW}"),
    pattern("n -> c -> d", f" has more than one {NO_ARROW}"),
    pattern("-> c", ' names no axes: left of "->" stand the axes of x, as in "n c ... -> c".'),
    pattern("n n -> n", " names n twice on the left; each name stands for an axis of its own."),
    pattern("n (c c) -> n", " names c twice on the left; each name stands for an axis of its own."),
    pattern("n ... ... -> n", " names ... twice on the left; each name stands for any number of axes of its own."),
    pattern("n c -> c c", " keeps c twice; once is enough."),
    pattern("n c -> (n c) n", " keeps n twice; once is enough."),
    pattern("n c -> k", " keeps k, which is not an axis of x; its axes are n, c."),
    pattern("n (g c) -> (g k)", " keeps k, which is not an axis of x; its axes are n, g, c."),
    pattern("n c -> ...", ' keeps "..." but has none on the left.'),
    pattern(
        "lab[n] c -> c", ': lab[...] groups by a label, so it stands right of "->"; left of it stand the plain axes'
    ),
    pattern("n c -> lab[]", ": lab[] spans no axis; write the axis it labels, as lab[n]."),
    pattern("n c -> lab[d]", ": lab[d] spans d, which is not an axis of x (n, c)."),
    pattern("n c -> lab[n n]", ": lab[n n] names n twice."),
    pattern("n c -> lab[c n]", ": lab[c n] must follow the order of the axes: lab[n c]."),
    pattern("n c -> c[n]", ": c is an axis and a label; give the label another name."),
    pattern("n c -> lab[n] lab[c]", " keeps lab twice; once is enough."),
    pattern("n c -> lab [n]", ": write lab[ without a space; a label and its axes are one word."),
    pattern("n c -> [n]", ': a "[" follows the name of a label, as in lab[n].'),
    pattern("n c -> (n c)[n]", ': a "[" follows the name of a label, as in lab[n].'),
    pattern("... c -> ...[c]", ': a "[" follows the name of a label, as in lab[n].'),
    pattern("n c -> lab[n", ' opens a "[" that is never closed by "]".'),
    pattern("n c -> (n c", ' opens a "(" that is never closed by ")".'),
    pattern("n c) -> c", ' closes a ")" that was never opened.'),
    pattern("n ((a b) c) -> n", " nests brackets: inside () stand plain names only."),
    pattern("n c -> lab[(n c)]", " nests brackets: inside [] stand plain names only."),
    pattern("n c -> (n lab[c])", " nests brackets: inside () stand plain names only."),
    pattern("n () -> n", ": the parentheses are empty; (g c) splits one axis into g and c."),
    pattern("n c -> ()", ": the parentheses are empty; (g c) splits one axis into g and c."),
    pattern("n (c) -> n", ": (c) splits nothing; write c, or two names as (g c)."),
    pattern("n (a ...) -> n", ': "..." cannot be split inside parentheses; name the axes.'),
    pattern("n ... -> (n ...)", ': "..." cannot be merged inside parentheses; name the axes.'),
    pattern("n c... -> c", ': "c..." is two things glued together; write "c ...", the axis and then any number of'),
    pattern("n class -> n", ': "class" is a Python keyword and could not be passed by name; rename it.'),
    pattern("n c -> None[n]", ': "None" is a Python keyword and could not be passed by name; rename it.'),
    pattern("n eps -> n", ': "eps" is reserved for a parameter of that name; rename the axis or label.'),
    pattern("n c -> where[n]", ': "where" is reserved for a parameter of that name; rename the axis or label.'),
    pattern("n 1c -> n", f': "1c" {NOT_A_NAME}'),
    pattern("n c,h -> n", f': "c,h" {NOT_A_NAME}'),
    pattern("n c -> lab[n,c]", f': "n,c" {NOT_A_NAME}'),
    pattern("n .. -> n", f': ".." {NOT_A_NAME}'),
    pattern("n * -> n", f': "*" {NOT_A_NAME}'),
    *(
        Bad(f"pattern={given!r}", lambda given=given: hs.normalize(X, given), f"not {kind}.")
        for given, kind in [
            (None, "NoneType"),
            (3, "int"),
            (b"n c -> c", "bytes"),
            (["n c -> c"], "list"),
            ({}, "dict"),
        ]
    ),
    Bad(
        "keep=3",
        lambda: Frame.parse("n c -> c").keep(3),
        'what "n c -> c" shall keep is text such as "n c", not int.',
    ),
]

SHAPES = [
    normalize(
        "too few axes",
        '"n c h w -> c" names 4 axes; this tensor has 3: (8, 64, 128). For any rank write "n c ... -> c".',
        ShapeError,
        np.ones((8, 64, 128)),
        "n c h w -> c",
    ),
    normalize("too many axes", '"n c -> c" names 2 axes; this tensor has 4: (8, 6, 5, 5).', ShapeError, IMAGE),
    normalize(
        "fewer axes than beside ...",
        '"n c ... -> c" names at least 2 axes; this tensor has 1: (4,).',
        ShapeError,
        X[0],
        "n c ... -> c",
    ),
    normalize(
        "an indivisible split",
        '"n (g c) h w -> n g": 6 does not split by g=4 into (g c); 4 must be one of 1, 2, 3, 6.',
        ShapeError,
        IMAGE,
        "n (g c) h w -> n g",
        g=4,
    ),
    normalize(
        "a split by the product of two sizes",
        "24 does not split by a=2, b=5 into (a b c); 10 must be one of 1, 2, 3, 4, 6, 8, 12, 24.",
        ShapeError,
        np.ones((2, 24)),
        "n (a b c) -> n",
        a=2,
        b=5,
    ),
    normalize(
        "no size for a split",
        "(g c) needs the size of all names but one; give g= (this tensor has 4 there).",
        said="n (g c) -> n g",
    ),
    normalize(
        "one size for a split in three",
        "(a b c) needs the size of all names but one; give a= (this tensor has 4 there).",
        said="n (a b c) -> n",
        c=2,
    ),
    normalize("a size of nothing", '"n c -> c" has no axis g; its axes are n, c.', g=3),
    normalize("axis=0", '"n c -> c" has no axis axis; its axes are n, c.', axis=0),
    normalize("another length", '"n c -> c": c was given as 3, but this tensor has 4 there: (6, 4).', ShapeError, c=3),
    normalize(
        "sizes that contradict the length",
        '"n (g c) -> n g": g=2 x c=3 makes 6, but this tensor has 4 there.',
        ShapeError,
        said="n (g c) -> n g",
        g=2,
        c=3,
    ),
    normalize("g=0", ": g=0 is not a size; sizes are positive.", said="n (g c) -> n g", g=0),
    normalize("g=-2", ": g=-2 is not a size; sizes are positive.", said="n (g c) -> n g", g=-2),
    *(
        normalize(
            f"g={given!r}", f": g is an axis, so g= takes an integer size; got {kind}.", said="n (g c) -> n g", g=given
        )
        for given, kind in [(2.0, "float"), ("2", "str"), (True, "bool"), (None, "NoneType"), ([2], "list")]
    ),
    normalize("labels for an axis", ": c is an axis, so c= takes an integer size; got list.", c=[0, 1, 0, 1]),
]

LABELS = [
    labelled(
        "an integer",
        3,
        '"cell gene -> lab[cell] gene" groups by lab, so lab= takes one label per position, or (codes, n); '
        "got the integer 3.",
    ),
    labelled("a fraction", 0.5, f"lab=0.5 is one value; {NEEDS_SIX}"),
    labelled("a bool", True, f"lab=True is one value; {NEEDS_SIX}"),
    labelled("None", None, f"lab=None is nothing; {NEEDS_SIX}"),
    labelled("one text", "aabbaa", f"lab='aabbaa' is one text; {NEEDS_SIX}"),
    labelled("a set", set("abcdef"), "lab is a set; lab[cell] needs a sequence, one label per position."),
    labelled("a dict", {"a": 1}, "lab is a dict; lab[cell] needs a sequence, one label per position."),
    labelled("a generator", iter("aabbaa"), "needs a sequence, one label per position."),
    normalize(
        "no labels",
        '"cell gene -> lab[cell] gene" groups by lab[cell]: pass lab= with one label per position along cell, or '
        "(codes, n).",
        said=BY_LAB,
    ),
    normalize(
        "labels for a plain name",
        '"n c -> k c": k was given as labels; say along which axis, as k[n].',
        said="n c -> k c",
        k=list("aabbaa"),
    ),
    normalize("unknown labels", '"n c -> c" has no label k; write k[axis] to keep one.', k=list("aabbaa")),
    normalize(
        "other labels",
        '"cell gene -> lab[cell] gene" has no label k; it has lab[cell].',
        said=BY_LAB,
        lab=list("aabbaa"),
        k=list("aabbaa"),
    ),
    labelled("too short", ["a", "b", "a"], "lab has shape (3,); lab[cell] spans (6,) positions of x."),
    labelled("too deep", np.zeros((6, 1), int), "lab has shape (6, 1); lab[cell] spans (6,) positions of x."),
    labelled("codes too short", ([0, 1], 2), "lab has shape (2,); lab[cell] spans (6,) positions of x."),
    labelled("a ragged list", [[0], [1, 2], 0, 0, 1, 1], "its parts differ in length."),
    labelled("codes, n and more", (np.array([0, 1] * 3), 2, 3), "nor (codes, n) with an integer n"),
    labelled(
        "None among text",
        ["a", None, "a", "b", "b", "b"],
        "lab: 1 of 6 labels is missing (position 1); drop those positions or name them, for instance 'unknown'.",
    ),
    labelled("NaN among text", ["a", NAN, "a", "b", NAN, "b"], "lab: 2 of 6 labels are missing (position 1, 4);"),
    labelled("NaN among numbers", [1.0, NAN, 1, 2, 2, 2], "lab: 1 of 6 labels is missing (position 1);"),
    labelled("NaN in torch", torch.tensor([0.0, NAN] * 3), "lab: 3 of 6 labels are missing (position 1, 3, 5);"),
    labelled(
        "pandas NA", pd.array([1, 2, None, 1, 2, 2], dtype="Int64"), "lab: 1 of 6 labels is missing (position 2);"
    ),
    labelled(
        "a missing category", pd.Categorical(["a", None] * 3), "lab: 3 of 6 labels are missing (position 1, 3, 5);"
    ),
    labelled("NaT", pd.to_datetime(["2020-01-01", "NaT"] * 3), "lab: 3 of 6 labels are missing (position 1, 3, 5);"),
    labelled("everything missing", [None] * 6, "lab: 6 of 6 labels are missing (position 0, 1, 2, 3, 4 and 1 more);"),
    labelled(
        "text and numbers",
        [1, "a", 1, "a", 1, "a"],
        "lab mixes values that cannot be ordered; make them all text or all numbers.",
    ),
    *(
        labelled(
            f"code -1 ({type(codes).__module__})",
            (codes, 2),
            "lab: code -1 is not in 0..1. Labels may not be missing: leave those positions out, or give them a group "
            "of their own.",
            x=x,
        )
        for codes, x in [
            (pd.Categorical(["a", None, "b", "a", "b", "b"]).codes, X),
            (torch.tensor([0, -1, 1, 0, 1, 1]), T),
            (jax.numpy.array([0, -1, 1, 0, 1, 1]), J),
        ]
    ),
    labelled("a code too high", ([0, 1, 2, 3, 0, 0], 3), "lab: code 3 is not in 0..2; for 4 groups pass (codes, 4)."),
    labelled("a code too high in torch", (torch.tensor([0, 5] * 3), 2), "code 5 is not in 0..1; for 6 groups", x=T),
    labelled("fractions as codes", ([0.0, 1.0] * 3, 2), "lab=(codes, n): codes are integers 0..1; these are float64."),
    labelled("bool as codes", ([True, False] * 3, 2), "lab=(codes, n): codes are integers 0..1; these are bool."),
    labelled("no groups", ([0] * 6, 0), "lab=(codes, 0): there must be at least one group."),
    labelled("a fraction of groups", ([0] * 6, 2.0), "lab=(codes, 2.0): the number of groups is an integer"),
    labelled("True groups", ([0] * 6, True), "lab=(codes, True): the number of groups is an integer"),
    normalize(
        "a label that spans nothing",
        '"... n c -> lab[...] c": lab[...] spans no axis of this tensor, (6, 4), where "..." stands for none.',
        ShapeError,
        said="... n c -> lab[...] c",
        lab=(np.zeros((), int), 1),
    ),
]

ARRAYS = [
    normalize("x a list", "x is a list; homeostat takes NumPy, torch, JAX and Dask arrays.", TypeError, X.tolist()),
    normalize("x a table", "For a table pass its values: df.to_numpy().", TypeError, pd.DataFrame(X)),
    normalize("x None", "x is a NoneType; homeostat takes NumPy, torch, JAX and Dask arrays.", TypeError, None),
    normalize("x a text", "x is a str; homeostat takes NumPy, torch, JAX and Dask arrays.", TypeError, "x"),
    normalize("x a number", "x is a float; homeostat takes NumPy, torch, JAX and Dask arrays.", TypeError, 3.0),
    normalize("x of integers", "x is int64: normalized values are fractions", TypeError, X.astype(int)),
    normalize("x of bool", "so x must be floating; pass x.astype(float).", TypeError, X > 0),
    normalize("x of objects", "x is object: normalized values are fractions", TypeError, X.astype(object)),
    normalize("x of integers in torch", "so x must be floating; pass x.float().", TypeError, T.int()),
    normalize("x of integers in jax", "so x must be floating; pass x.astype(jnp.float32).", TypeError, J.astype(int)),
    *(
        normalize(
            f"x complex ({library})",
            "real and imaginary parts are normalized apart; pass x.real and x.imag.",
            TypeError,
            x + 1j,
        )
        for library, x in {"numpy": X, "torch": T, "jax": J}.items()
    ),
    normalize("x masked", "pass x.data and where=~x.mask.", TypeError, np.ma.masked_greater(X, 0)),
    normalize("x a matrix", "cannot change its shape; pass numpy.asarray(x).", TypeError, X.view(np.matrix)),
    normalize(
        "x sparse", "x is a sparse tensor; all its axes must be whole: pass x.to_dense().", TypeError, T.to_sparse()
    ),
    normalize(
        "x in chunks of unknown length",
        "x has unknown chunk sizes, (nan, 4); call x.compute_chunk_sizes() first.",
        ShapeError,
        D[D[:, 0] > 0],
    ),
]

PARAMETERS = [
    *(
        normalize(f"eps={eps!r}", f'eps={eps!r} is neither a number >= 0 nor "auto".', ValueError, eps=eps)
        for eps in (-1, -1e-12, NAN, float("inf"), None, "Auto", "1e-5", True, [1e-5], np.ones(2), 1j)
    ),
    normalize("center='no'", "center='no' is neither True (subtract the mean) nor False", TypeError, center="no"),
    normalize("center=None", "center=None is neither True (subtract the mean) nor False", TypeError, center=None),
    normalize(
        "epsilon=1e-3",
        "epsilon=0.001 is no parameter of this call, and neither the size of an axis nor labels; the axes of "
        '"n c -> c" are n, c.',
        epsilon=1e-3,
    ),
    Bad("measure(center=2)", lambda: hs.measure(X, "n c -> c", center=2), "center=2 is neither True", TypeError),
    normalize(
        "where too short", "where has shape (3, 4), which does not broadcast to x, (6, 4).", ShapeError, where=X[:3]
    ),
    normalize(
        "where of the leading axis",
        "which does not broadcast to x, (6, 4). It has the leading axes of x: write where[..., None].",
        ShapeError,
        where=np.ones(6),
    ),
    normalize("where of more axes", "where has shape (1, 6, 4), which does not", ShapeError, where=np.ones((1, 6, 4))),
    normalize("where a list", "where is a list (builtins) and x an array of numpy;", TypeError, where=[[1] * 4] * 6),
    normalize("where a table", f"(pandas) and x an array of numpy; {SAME_LIBRARY}", TypeError, where=pd.DataFrame(X)),
    normalize(
        "where True", f"where is a bool (builtins) and x an array of numpy; {SAME_LIBRARY}", TypeError, where=True
    ),
    normalize(
        "where of numpy for torch", "where is a ndarray (numpy) and x an array of torch;", TypeError, T, where=X > 0
    ),
    normalize("where of torch for numpy", "where is a Tensor (torch) and x an array of numpy;", TypeError, where=T > 0),
    normalize("where of torch for jax", "where is a Tensor (torch) and x an array of jax;", TypeError, J, where=T > 0),
    normalize(
        "where of torch for dask", "where is a Tensor (torch) and x an array of dask;", TypeError, D, where=T > 0
    ),
    normalize("where of text", "pass a mask (bool) or weights >= 0 (integers or", TypeError, where=X.astype(str)),
    normalize("where complex", "where is complex128; pass a mask (bool) or weights >= 0", TypeError, where=X + 0j),
    normalize(
        "where sparse", "where is a sparse tensor; pass where.to_dense().", TypeError, T, where=(T * T).to_sparse()
    ),
    normalize(
        "where elsewhere",
        'where is on meta and x on cpu; pass where.to("cpu").',
        ValueError,
        T,
        where=torch.ones(6, 4, device="meta"),
    ),
    normalize(
        "where learned",
        "where= weights are taken as constants and would get no gradient; pass where.detach().",
        ValueError,
        T,
        where=torch.ones(6, 4, requires_grad=True),
    ),
    *(
        normalize(
            f"where negative ({library})",
            "where goes from -1 to -1; weights are finite and >= 0, and 0 leaves out.",
            ValueError,
            x,
            where=-abs(x / x),
        )
        for library, x in {"numpy": X, "torch": T, "jax": J}.items()
    ),
    normalize("where NaN", "where goes from nan to nan; weights are finite and >= 0", ValueError, where=X * NAN),
    normalize(
        "where infinite", "where goes from 0 to inf; weights are finite", ValueError, where=np.diag([np.inf] * 4)[:1]
    ),
]

TOO_FEW = [
    normalize("one row", f'"n c -> c" leaves one value in each group of (1, 4) (over n): {TO_ZERO}', ShapeError, X[:1]),
    normalize("everything kept", f"one value in each group of (6, 4): {TO_ZERO}", ShapeError, said="n c -> n c"),
    normalize("everything kept and merged", f"of (6, 4): {TO_ZERO}", ShapeError, T, "n c -> (n c)"),
    normalize("labels beside the axis they label", TO_ZERO, ShapeError, said="n c -> n lab[n] c", lab=HALF),
    normalize("no rows", '"n c -> c" measures nobody: n has length 0 in (0, 4).', ShapeError, T[:0]),
    normalize("no rows and where", "measures nobody: n has length 0 in (0, 4).", ShapeError, T[:0], where=T[:0]),
    normalize("no columns", '"n c -> n" measures nobody: c has length 0 in (6, 0).', ShapeError, X[:, :0], "n c -> n"),
    normalize("an empty split", "measures nobody: c has length 0", ShapeError, X[:, :0], "n (g c) -> n g", g=2),
    labelled("a label that occurs once", list("aabbbz"), f": 'z' holds {ALONE}", ShapeError),
    labelled("labels that occur once", list("aayxbb"), f": 'x', 'y' hold {ALONE}", ShapeError, T),
    labelled("six labels", list("abcdef"), f": 'a', 'b', 'c', 'd', 'e' and 1 more hold {ALONE}", ShapeError),
    normalize(
        "crossed labels that occur once together",
        f": 'a' x 'v' holds {ALONE}",
        ShapeError,
        said="n c -> date[n] sector[n] c",
        date=list("aaabbb"),
        sector=list("uuvuuu"),
    ),
    normalize(
        "a label that occurs once at a kept position",
        f": n=2 x 'q' holds {ALONE}",
        ShapeError,
        np.ones((3, 4, 2)),
        "n t c -> n seg[n t] c",
        seg=[list("pppp"), list("qqqq"), list("pppq")],
    ),
]

READINGS = [
    Bad(
        "reading of other channels",
        lambda: reading()(X[:, :3]),
        '"n c -> c" was measured with groups (4,); this tensor has (3,).',
        ShapeError,
    ),
    Bad("reading of another rank", lambda: reading()(X[0]), '"n c -> c" names 2 axes; this tensor', ShapeError),
    Bad("reading of integers", lambda: reading()(X.astype(int)), "so x must be floating", TypeError),
    Bad("reading of a list", lambda: reading(BY_LAB, lab=HALF)(X.tolist()), "x is a list;", TypeError),
    Bad("reading of integers by label", lambda: reading(BY_LAB, lab=HALF)(X.astype(int)), "be floating", TypeError),
    Bad("inverse of other channels", lambda: reading().inverse(X[:, :3]), "with groups (4,); this", ShapeError),
    Bad("reading with labels it lacks", lambda: reading()(X, lab=[0] * 6), '"n c -> c" has no label lab;'),
    Bad(
        "reading of other rows",
        lambda: reading(BY_LAB, lab=HALF)(X[:3]),
        "was measured on (6, 4); for this tensor, (3, 4), pass lab= again.",
        ShapeError,
    ),
    Bad(
        "reading with an unseen label",
        lambda: reading(BY_LAB, lab=list("ababab"))(X[:2], lab=["b", "z"]),
        "lab has z, not among the labels that were measured (a, b).",
    ),
    Bad(
        "reading with a missing label",
        lambda: reading(BY_LAB, lab=list("ababab"))(X[:2], lab=["b", None]),
        "lab: 1 of 2 labels is missing (position 1);",
    ),
    Bad(
        "reading with other codes",
        lambda: reading(BY_LAB, lab=HALF)(X, lab=([0] * 6, 3)),
        "lab was measured with 2 groups; these labels speak of 3.",
    ),
    Bad(
        "reading of codes by names",
        lambda: reading(BY_LAB, lab=HALF)(X, lab=list("ababab")),
        "lab was measured with (codes, 2); pass (codes, 2) here too.",
    ),
    Bad(
        "inverse of a zero scale",
        lambda: hs.Affine(s=np.array([1.0, 0.0])).inverse(),
        "this affine has a scale of 0 or NaN or infinity somewhere: what it maps to one point cannot be told apart.",
        ValueError,
    ),
    Bad(
        "inverse of zero",
        lambda: hs.Affine(s=0.0).inverse(),
        "has a scale of 0 or NaN or infinity somewhere",
        ValueError,
    ),
    Bad(
        "moments of another file",
        lambda: hs.Moments.load(saved(w=X, b=X)),
        "holds b, w; saved Moments hold count, mean and m2.",
        ValueError,
    ),
    Bad("moments and a number", lambda: hs.measure(X, "n c -> c") + 3, "'Moments' and 'int'", TypeError),
]

PRESETS = [
    Bad("BatchNorm2d of rank 3", lambda: hs.nn.BatchNorm2d(6)(IMAGE[0]), "expected 4D input (got 3D", ValueError),
    Bad("BatchNorm1d of rank 4", lambda: hs.nn.BatchNorm1d(6)(IMAGE), "expected 2D or 3D input (got 4D", ValueError),
    Bad(
        "BatchNorm2d of other channels",
        lambda: hs.nn.BatchNorm2d(5)(IMAGE),
        "c was given as 5, but this tensor has 6 there: (8, 6, 5, 5).",
        ShapeError,
    ),
    Bad(
        "BatchNorm1d of one row",
        lambda: hs.nn.BatchNorm1d(4)(T[:1]),
        "Expected more than 1 value per channel when training, got input size (1, 4). With one value, x minus its mean "
        "is 0; use a larger batch, LayerNorm or GroupNorm, or model.eval().",
        ValueError,
    ),
    Bad("BatchNorm2d of integers", lambda: hs.nn.BatchNorm2d(6)(IMAGE.int()), "pass x.float().", TypeError),
    Bad(
        "LayerNorm of another width",
        lambda: hs.nn.LayerNorm(6)(T),
        "LayerNorm was made for normalized_shape=[6], the last axes of x; this tensor is [6, 4].",
        ShapeError,
    ),
    Bad(
        "RMSNorm of fewer axes",
        lambda: hs.nn.RMSNorm((6, 4))(T[0]),
        "RMSNorm was made for normalized_shape=[6, 4], the last axes of x; this tensor is [4].",
        ShapeError,
    ),
    Bad(
        "GroupNorm of other channels",
        lambda: hs.nn.GroupNorm(2, 6)(T),
        "g=2 x c=3 makes 6, but this tensor has 4 there.",
        ShapeError,
    ),
    Bad(
        "GroupNorm without groups of channels",
        lambda: hs.nn.GroupNorm(2, 4, affine=False)(IMAGE[:, :5]),
        "5 does not split by g=2 into (g c); 2 must be one of 1, 5.",
        ShapeError,
    ),
    Bad(
        "GroupNorm of one axis", lambda: hs.nn.GroupNorm(2, 4)(T[0]), "at least 2 axes; this tensor has 1.", ShapeError
    ),
    Bad(
        "GroupNorm of one value per group",
        lambda: hs.nn.GroupNorm(4, 4)(T[:1]),
        "got input size (1, 4). With one value per group, x minus its mean is 0; use fewer groups.",
        ValueError,
    ),
    Bad(
        "InstanceNorm2d of one pixel",
        lambda: hs.nn.InstanceNorm2d(6)(IMAGE[:, :, :1, :1]),
        "With one value per channel and sample, x minus its mean is 0; use GroupNorm or LayerNorm here.",
        ValueError,
    ),
    Bad(
        "InstanceNorm2d of other channels",
        lambda: hs.nn.InstanceNorm2d(5, affine=True)(IMAGE),
        "expected input's size at channel dimension to match num_features (5), but got: 6.",
        ValueError,
    ),
    Bad(
        "source and momentum",
        lambda: hs.nn.BatchNorm2d(6, momentum=0.2, source=hs.Running(0.1)),
        "BatchNorm2d: source=Running(momentum=0.1) decides momentum= itself; give one or the other.",
        TypeError,
    ),
    Bad(
        "source and momentum by position",
        lambda: hs.nn.BatchNorm2d(6, 1e-5, 0.2, source=hs.Batch()),
        "source=Batch() decides momentum= itself; give one or the other.",
        TypeError,
    ),
    Bad(
        "source and track_running_stats",
        lambda: hs.nn.InstanceNorm2d(6, track_running_stats=True, source=hs.Batch()),
        "InstanceNorm2d: source=Batch() decides track_running_stats= itself; give one or the other.",
        TypeError,
    ),
    Bad(
        "source='running'",
        lambda: hs.nn.BatchNorm2d(6, source="running"),
        "source='running' is not a source; pass for instance Running(0.1), Batch() or Frozen().",
        TypeError,
    ),
    Bad("a source's class", lambda: hs.nn.BatchNorm2d(6, source=hs.Running), "is not a source; pass", TypeError),
    *(
        Bad(
            f"memory for {kind.__name__}",
            lambda kind=kind, args=args: kind(*args, source=hs.Running()),
            f"{kind.__name__} has new groups in every call, so Running would have nothing to remember; its source is "
            "Batch().",
            TypeError,
        )
        for kind, args in [(hs.nn.LayerNorm, (6,)), (hs.nn.RMSNorm, (6,)), (hs.nn.GroupNorm, (2, 6))]
    ),
    Bad(
        "freezing layers that are not there",
        lambda: hs.freeze(torch.nn.Sequential(torch.nn.BatchNorm1d(4)), layers="head.*"),
        "layers='head.*': the model has no layer of that name.",
        ValueError,
    ),
    Bad(
        "buffers captured by func.grad",
        lambda: grad(lambda x: CAPTURED(x).square().sum())(T),
        "BatchNorm1d.running_mean is captured by torch.func.grad or jvp, which may not update it. Make the "
        "buffers an argument of the differentiated function and pass them on by functional_call(model, "
        "(params, buffers), (x,)); or call model.eval(), or homeostat.freeze(model).",
        RuntimeError,
    ),
]


def _with_eps(eps):
    layer = hs.nn.BatchNorm1d(3)
    layer.eps = eps
    return layer


NORMS = [
    Bad(
        "a source by its name", lambda: hs.Norm("n c -> c", source="batch"), "source='batch' is not a source", TypeError
    ),
    Bad("a gain by its axes", lambda: hs.Norm("n c -> c", gain="c", c=3), "gain='c' is not a gain", TypeError),
    Bad(
        "a gain per label",
        lambda: hs.Norm("n c -> c", gain=hs.Learned("lab[n] c"), c=3),
        "keeps one per lab, which Learned does not: a gain is per axis",
    ),
    Bad(
        "a memory per label of unknown number",
        lambda: hs.Norm("n c -> lab[n] c", source=hs.Running(), c=3),
        "is remembered per lab: give how many values it takes, lab=...",
    ),
    Bad(
        "named labels for a memory",
        lambda: hs.Norm("n c -> lab[n] c", source=hs.Running(), c=3, lab=2)(torch.randn(4, 3), lab=list("aabb")),
        "must know which is which in every batch; pass lab=(codes, 2)",
    ),
    Bad("a momentum of 2", lambda: hs.Running(2.0), "momentum=2.0 is the share of the new batch", ValueError),
    Bad("a momentum in words", lambda: hs.Running("a"), "momentum='a' is the share of the new batch", ValueError),
    Bad("a negative eps set later", lambda: _with_eps(-1.0)(torch.randn(4, 3)), "eps=-1.0 is neither", ValueError),
    Bad("eps None where it means nothing", lambda: _with_eps(None)(torch.randn(4, 3)), "eps=None", Exception),
    Bad("adopting a class", lambda: hs.adopt(torch.nn.BatchNorm1d), "takes a torch.nn.Module; this is type", TypeError),
    Bad("freezing nothing", lambda: hs.freeze(None), "takes a torch.nn.Module; this is NoneType", TypeError),
    Bad(
        "a gain without its size",
        lambda: hs.Norm("n c ... -> c", gain=hs.Learned("c")),
        '"n c ... -> c" is learned or remembered per c: give its size, c=...',
    ),
    Bad(
        "a merged gain without one of its sizes",
        lambda: hs.Norm("n (g c) -> n g", gain=hs.Learned("(g c)"), g=2),
        '"n (g c) -> (g c)" is learned or remembered per c: give its size, c=...',
    ),
    Bad(
        "a memory without a size",
        lambda: hs.Norm("n c ... -> c", source=hs.Running()),
        "so there is nothing to remember between calls: use source=Batch(), or give the size of an axis it keeps.",
    ),
    Bad(
        "a size of nothing in a layer",
        lambda: hs.Norm("n c -> c", num_features=4),
        '"n c -> c" has no axis or label num_features; its axes are n, c.',
    ),
    Bad("c=0", lambda: hs.Norm("n c -> c", c=0), ": c=0 is not a size; sizes are positive integers."),
    Bad("c=2.0", lambda: hs.Norm("n c -> c", c=2.0), ": c=2.0 is not a size; sizes are positive integers."),
    Bad("momentum=0.1", lambda: hs.Norm("n c -> c", momentum=0.1), ": momentum=0.1 is not a size;"),
    Bad("a layer with eps=None", lambda: hs.Norm("n c -> c", eps=None), "eps=None is neither a number", ValueError),
    Bad("a layer without a pattern", lambda: hs.Norm(None), 'a pattern is text such as "n c ... -> c", not NoneType.'),
    Bad(
        "a gain on no axis",
        lambda: hs.Norm("n c -> c", gain=hs.Learned("k"), k=4),
        '"n c -> k" keeps k, which is not an axis of x; its axes are n, c.',
    ),
    Bad("a gain on no axis of x", lambda: hs.Norm("n c -> c", gain=hs.Learned("k")), "keeps k, which is not an axis"),
    Bad("other channels", lambda: hs.Norm("n c -> c", c=5)(T), "c was given as 5, but this tensor has 4", ShapeError),
    Bad("another rank", lambda: hs.Norm("n c h w -> c")(T), 'For any rank write "n c ... -> c".', ShapeError),
    Bad("a batch of one", lambda: hs.Norm("n c -> c")(T[:1]), TO_ZERO, ShapeError),
    Bad("integers", lambda: hs.Norm("n c -> c")(T.int()), "so x must be floating; pass x.float().", TypeError),
    Bad("where of another shape", lambda: hs.Norm("n c -> c")(T, where=T[:3]), "does not broadcast to x", ShapeError),
    Bad("labels that are missing", lambda: hs.Norm(BY_LAB, lab=2)(T), "groups by lab[cell]: pass lab= with one label"),
    Bad("labels of nothing", lambda: hs.Norm("n c -> c")(T, lab=[0] * 6), '"n c -> c" has no label lab;'),
    Bad(
        "another number of labels",
        lambda: hs.Norm(BY_LAB, lab=2)(T, lab=([0, 1, 2] * 2, 3)),
        "lab takes 2 values here; these labels take 3.",
    ),
]

# Where a refusal may be raised: in our files, in the check of a torch.nn layer, by `+` itself. Not inside an operator.
DOORS = (Path(hs.__file__).parent, Path(torch.nn.modules.__file__).parent, Path(__file__))
TABLE = [*PATTERNS, *SHAPES, *LABELS, *ARRAYS, *PARAMETERS, *TOO_FEW, *READINGS, *PRESETS, *NORMS]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_a_bad_call_is_refused_with_what_was_given_and_what_would_work(bad):
    with pytest.raises(bad.error) as caught:
        bad.call()
    assert bad.message in str(caught.value)
    raised_in = Path(traceback.extract_tb(caught.value.__traceback__)[-1].filename)
    assert any(raised_in.is_relative_to(place) for place in DOORS), raised_in


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.text("nc12gk_.()[]-> \t", max_size=24))
def test_any_text_is_a_frame_or_refused_as_one(text):
    frame, refusal = None, ""
    try:
        frame = Frame.parse(text)
    except FrameError as error:
        refusal = str(error)
    assert refusal.startswith(f'"{text}"') if frame is None else Frame.parse(str(frame)) == frame


def test_no_two_rows_of_the_table_are_the_same_call():
    names = [bad.name for bad in TABLE]
    assert sorted(set(names)) == sorted(names)


def test_frame_errors_are_value_errors_and_wrong_shapes_are_what_torch_raises_too():
    assert issubclass(FrameError, ValueError)
    assert issubclass(ShapeError, FrameError)
    assert issubclass(ShapeError, RuntimeError)


def test_what_the_errors_recommend_works():
    assert hs.normalize(np.ones((8, 64, 128)), "n c ... -> c").shape == (8, 64, 128)
    assert hs.normalize(X, "n c -> n c", center=False).shape == X.shape
    assert hs.normalize(X, "n c -> c", where=np.arange(6)[..., None]).shape == X.shape
    assert not hs.normalize(X, BY_LAB, lab=([0, 1, 2, 3, 4, 5], 6)).any()  # codes are taken as they come
    for x in (J, D):  # a mask in NumPy serves the libraries that speak it
        np.testing.assert_allclose(
            np.asarray(hs.normalize(x, "n c -> c", where=X > 0)),
            hs.normalize(X, "n c -> c", where=X > 0),
            rtol=1e-4,
        )
    assert hs.normalize(D[D[:, 1] < 9].compute_chunk_sizes(), "n c -> c").compute().shape == X.shape
    bn = hs.nn.BatchNorm1d(4, dtype=T.dtype)
    for free in (bn.eval(), hs.freeze(bn.train(), inplace=True)[0]):
        assert grad(lambda x, free=free: free(x).sum())(T).shape == T.shape
    hs.unfreeze(bn, inplace=True)
    parts = dict(bn.named_parameters()), {name: buffer.clone() for name, buffer in bn.named_buffers()}
    assert grad(lambda x, parts: functional_call(bn, parts, x).sum())(T, parts).shape == T.shape
