"""Apart: a module that is one of torch's norms and then its own children, as a norm and these.

    BatchNormAct2d(8)(x) = act(drop(BatchNorm2d.forward(x)))

That it is so is seen in what it makes of a batch, not believed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.nn.adopt import OURS


class Apart(nn.Sequential):
    """Another norm, and behind it what stood behind the old one: the very same modules, by their names."""

    def __init__(self, norm: nn.Module, old: nn.Module) -> None:
        super().__init__(OrderedDict([("norm", norm), *old.named_children()]))


def name_of(new: nn.Module) -> str:
    """As certificates call it."""
    if not isinstance(new, Apart):
        return type(new).__name__
    return f"{type(new.norm).__name__}, then its {' and '.join(list(new._modules)[1:])}"


def norm_in(old: Any) -> type | None:
    """The norm of torch's that a module with children is a kind of."""
    return next((kind for kind in type(old).__mro__ if kind in OURS), None) if any(old.children()) else None


def normed(old: Any, x: Tensor) -> Tensor:
    """What its children are given."""
    y: Tensor = norm_in(old).forward(old, x)  # type: ignore[union-attr]
    return y


def is_apart(old: Any, x: Tensor, y: Tensor) -> bool:
    """Is y, which it made of x, what its children make of the normed x?"""
    try:
        return torch.allclose(nn.Sequential(*old.children())(normed(old, x)), y, rtol=1e-3, atol=1e-5)
    except Exception:
        return False
