"""Symmetry: does a layer commute with a group?

    module(g x) = g module(x)        for every action g

>>> assert_equivariant(nn.InstanceNorm2d(3), lambda x: x.flip(-1), torch.randn(1, 3, 4, 4)) < 1e-5
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.errors import check_callable, number
from homeostat.frame import ShapeError
from homeostat.nn.states import trial

Action = Callable[[Tensor], Tensor]


def assert_equivariant(module: Action, actions: Action | Iterable[Action], x: Tensor, tolerance: float = 1e-5) -> float:
    """module(g x) = g module(x) for every action g of a group, or an AssertionError that says by how much it is not.

    `actions` is one function or several; at least one of them must move x, or nothing would be tested. Returns the
    largest error, relative to the size of the output. What layers remember stays as it was.
    """
    check_callable("module", module)
    group = _group(actions)
    number("tolerance", tolerance, least=0)
    if not isinstance(x, Tensor) or not x.numel() or not torch.isfinite(x).all():
        raise ValueError("assert_equivariant compares values: give x, a tensor with some, all of them finite.")
    with torch.no_grad():
        y, moved = _trial(module, x), [g(x) for g in group]
        if all(torch.equal(z, x) for z in moved):
            raise ValueError("no action moves x, so nothing would be tested: give an x that they move.")
        return max(_off(module, i, _trial(module, moved[i]), g(y), tolerance) for i, g in enumerate(group))


def _off(module: Any, i: int, got: Tensor, want: Tensor, tolerance: float) -> float:
    kind = type(module).__name__
    if got.shape != want.shape:
        shapes = f"{list(want.shape)} of its output, and of the input comes {list(got.shape)}"
        raise ShapeError(f"{kind}: action {i} makes {shapes}; give actions that act on both.")
    off = float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))
    if not off <= tolerance:
        raise AssertionError(
            f"{kind} does not commute with action {i}: it differs by {off:.3g} of its largest output, allowed is "
            f"{tolerance:g}."
        )
    return off


def _group(actions: Any) -> list[Action]:
    group = [actions] if callable(actions) or not hasattr(actions, "__iter__") else list(actions)
    if not group:
        raise ValueError("actions are empty, so nothing would be tested: give at least one function of x.")
    for i, g in enumerate(group):
        check_callable(f"actions[{i}]", g)
    return group


def _trial(module: Any, x: Tensor) -> Tensor:
    """module(x), its memory left as it was."""
    with trial(module) if isinstance(module, nn.Module) else nullcontext():
        y = module(x)
    if not isinstance(y, Tensor):
        given = type(y).__name__
        raise TypeError(f"assert_equivariant compares tensors, and the module gives a {given}: pick one by a lambda.")
    return y
