"""Company: the same samples in other batches of the same sizes.

Who stands beside a sample must not matter in evaluation, and matters in training exactly as far as statistics are
shared. A batch is any nest of tensors whose first axes are its samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


class NotSamples(Exception):
    """Why batches cannot be put together anew."""


def size(batch: Any) -> int:
    """Samples of a batch."""
    lengths = {len(t) for t in _tensors(batch) if t.dim()}
    if lengths == {0}:
        raise NotSamples("a batch is empty")
    if len(lengths) != 1:
        what = "no tensor" if not lengths else f"first axes of {', '.join(map(str, sorted(lengths)))}"
        raise NotSamples(f"a batch holds {what}, so that its samples cannot be told apart")
    return lengths.pop()


def regrouped(batches: list[Any], seed: int) -> tuple[list[Any], np.ndarray]:
    """Every sample once, at random, in batches as large as before; and which sample stands where."""
    sizes = [size(batch) for batch in batches]
    order = np.random.default_rng(seed).permutation(sum(sizes))
    return gathered(batches, order, sizes), order


def gathered(batches: list[Any], order: np.ndarray, sizes: list[int]) -> list[Any]:
    """These samples, by their numbers, in batches of these sizes."""
    if len({str(tree_flatten(batch)[1]) for batch in batches}) != 1:
        raise NotSamples("batches are not all of one structure")
    columns = list(zip(*(tree_flatten(batch)[0] for batch in batches), strict=True))
    index = torch.as_tensor(order)
    new: list[list[Any]] = [[] for _ in sizes]
    for column in columns:
        if not (isinstance(column[0], Tensor) and column[0].dim()):
            shared = [column[i % len(column)] for i in range(len(sizes))]
        elif len({t.shape[1:] for t in column}) > 1:
            raise NotSamples("samples of different batches differ in shape")
        else:
            shared = list(torch.split(torch.cat(column)[index.to(column[0].device)], sizes))
        for leaves, leaf in zip(new, shared, strict=True):
            leaves.append(leaf)
    tree = tree_flatten(batches[0])[1]
    return [tree_unflatten(leaves, tree) for leaves in new]


def _tensors(batch: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
