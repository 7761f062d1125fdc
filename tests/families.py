"""One pattern of every kind, and what each means in NumPy: the number of the group that every element belongs to.

Groups are numbered in the order of the result. Nothing here reads a pattern: that is left to the library under test.
"""

from typing import Any, NamedTuple

import numpy as np

SHAPE = (6, 8, 4, 5)
N, C, H, W = np.indices(SHAPE)

LAB = np.array([0, 1, 0, 2, 1, 0])
DATE = np.array([1, 0, 0, 1, 1, 0])
REGION = np.random.default_rng(1).integers(0, 3, (6, 4, 5))
KIND = np.array([0, 1, 1, 0])

# The smallest eps that eps="auto" may choose.
FLOOR = {"float64": 1e-200, "float32": 1e-24, "bfloat16": 1e-24, "float16": 2.0**-24}
# The distance from 1 to the next number.
SPACING = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


class Family(NamedTuple):
    """A pattern, the sizes and labels it needs, and the group of every element of a tensor of shape SHAPE."""

    pattern: str
    given: dict[str, Any]
    group: np.ndarray
    groups: tuple[int, ...]  # the shape of the result


FAMILIES = {
    "batch": Family("n c h w -> c", {}, C, (8,)),
    "layer": Family("n ... -> n", {}, N, (6,)),
    "group": Family("n (g c) ... -> n g", {"g": 4}, N * 4 + C // 2, (6, 4)),
    "instance": Family("n c ... -> n c", {}, N * 8 + C, (6, 8)),
    "everything": Family("n c h w ->", {}, 0 * N, ()),
    "transposed": Family("n c h w -> w c", {}, W * 8 + C, (5, 8)),
    "merged": Family("n c h w -> h (c n)", {}, H * 48 + C * 6 + N, (4, 48)),
    "labelled": Family("n c ... -> lab[n] c", {"lab": list("xyxzyx")}, LAB[N] * 8 + C, (3, 8)),
    "label last": Family("n c h w -> c lab[n]", {"lab": (LAB, 4)}, C * 4 + LAB[N], (8, 4)),
    "label of its own": Family("n c h w -> lab[n] n", {"lab": (LAB, 3)}, LAB[N] * 6 + N, (3, 6)),
    "crossed labels": Family(
        "n c h w -> lab[n] date[n] c",
        {"lab": (LAB, 3), "date": (DATE, 2)},
        (LAB[N] * 2 + DATE[N]) * 8 + C,
        (3, 2, 8),
    ),
    "spanning label": Family("n c h w -> c region[n h w]", {"region": (REGION, 3)}, C * 3 + REGION[N, H, W], (8, 3)),
    "label of a split": Family("n (k c) ... -> kind[k] n", {"kind": (KIND, 2), "k": 4}, KIND[C // 2] * 6 + N, (2, 6)),
}


def closed_form(x, group, where=None, center=True, eps=1e-5, dtype="float64"):
    """What normalizing means, group by group in float64."""
    x, weight = np.asarray(x, np.float64), weights(x, where)
    y = x.copy()
    for number in np.unique(group):
        ours = group == number
        if not weight[ours].any():
            continue  # nobody was measured: the identity
        mean, var = mean_and_var(x[ours], weight[ours], center)
        more = max(SPACING[dtype] ** 2 / 12 * (mean**2 + var), FLOOR[dtype]) if eps == "auto" else eps
        y[ours] = (x[ours] - mean) / np.sqrt(var + more)
    return y


def gradient(dy, x, group, where=None, center=True, eps=1e-5):
    """dx = r (g - m / n (sum g + xhat sum g xhat)), m the weight of each element; eps a constant."""
    x, dy, weight = np.asarray(x, np.float64), np.asarray(dy, np.float64), weights(x, where)
    dx = dy.copy()
    for number in np.unique(group):
        ours = group == number
        n = weight[ours].sum()
        if n:
            mean, var = mean_and_var(x[ours], weight[ours], center)
            r, g = 1 / np.sqrt(var + eps), dy[ours]
            xhat = (x[ours] - mean) * r
            pull = center * g.sum() + xhat * (g * xhat).sum()
            dx[ours] = r * (g - weight[ours] / n * pull)
    return dx


def moments(x, family, where=None, center=True):
    """Count, mean and M2 of every group, in the shape of the result."""
    x, weight = np.asarray(x, np.float64), weights(x, where)
    count, mean, m2 = (np.zeros(family.groups) for _ in range(3))
    for number in np.unique(family.group):
        ours = family.group == number
        n = weight[ours].sum()
        if n:
            at = np.unravel_index(number, family.groups)
            mean[at], var = mean_and_var(x[ours], weight[ours], center)
            count[at], m2[at] = n, var * n
    return count, mean, m2


def mean_and_var(x, weight, center=True):
    x, weight = x[weight > 0], weight[weight > 0]
    mean = np.average(x, weights=weight) if center else 0.0
    return mean, np.average((x - mean) ** 2, weights=weight)


def weights(x, where):
    return np.ones(np.shape(x)) if where is None else np.broadcast_to(where, np.shape(x)).astype(np.float64)
