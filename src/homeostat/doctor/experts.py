"""Experts: modules of one shape that are given the same tokens, and what a norm that sums them up is given.

They are found by what they are called on: rows of what the module around them is called on. Then each is asked for the
same few tokens. A norm sums them up if what it is given is, token by token, made of nothing but their answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from homeostat.doctor.features import feature_axis, pools_of
from homeostat.doctor.hooks import harmless
from homeostat.doctor.parts import Array, Experts
from homeostat.frame import FrameError
from homeostat.plan import plan_for
from homeostat.recognising.found import SAMPLE, Found
from homeostat.surgery.flow import given

TOKENS, MOST, REST = 64, 16, 1e-3  # tokens and experts asked; what may be left of a norm's input, in its own size


@dataclass
class Bank:
    """A list of modules that may be experts, and tokens that came to the module around them."""

    name: str
    around: nn.Module
    members: list[nn.Module]
    x: Tensor | None = None
    rows: Tensor | None = None
    fed: set[int] = field(default_factory=set)
    strange: bool = False  # given something else: a stack, not a bank


@dataclass
class Shown:
    """What a norm is given, token by token, in the first batch."""

    found: Found
    z: Tensor | None = None


@contextmanager
def asking(model: nn.Module, norms: dict[str, tuple[Found, nn.Module]]) -> Iterator[tuple[list[Bank], list[Shown]]]:
    """Hooks on banks and on norms of single tokens; none where there is no bank."""
    banks, hooks = _banks(model), list[Any]()
    shown = [Shown(found) for found, _ in norms.values()] if banks else []
    try:
        for bank in banks:
            hooks.append(bank.around.register_forward_pre_hook(_around(bank), with_kwargs=True))
            hooks += [
                m.register_forward_pre_hook(_member(bank, i), with_kwargs=True) for i, m in enumerate(bank.members)
            ]
        for one in shown:
            hooks.append(norms[one.found.name][1].register_forward_pre_hook(_norm(one), with_kwargs=True))
        yield banks, shown
    finally:
        for hook in hooks:
            hook.remove()


def answers(banks: list[Bank], shown: list[Shown]) -> tuple[Experts, ...]:
    """Every bank whose sum a norm is given. The members are called: to be run inside put_back, without gradients."""
    found = []
    for bank in banks:
        if bank.rows is None or bank.strange or len(bank.fed) < 2:
            continue
        with torch.no_grad():
            given = [m.forward(bank.rows.clone()) for m in bank.members[:MOST]]
        if any(not isinstance(g, Tensor) or g.shape[:-1] != bank.rows.shape[:-1] for g in given):
            continue
        e = torch.stack([g.double() for g in given])
        for one in shown:
            if one.z is not None and one.z.shape == e.shape[1:] and _made_of(one.z.double(), e):
                centered = one.found.center is not None
                found.append(Experts(bank.name, one.found.name, centered, e.cpu().numpy()))
                break
    return tuple(found)


def _banks(model: nn.Module) -> list[Bank]:
    modules, found = dict(model.named_modules()), []
    for name, module in modules.items():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        members = list(module)
        if any(is_lazy(p) for p in module.parameters()):
            continue
        if len({(type(m), tuple(p.shape for p in m.parameters())) for m in members}) == 1 and any(
            True for _ in members[0].parameters()
        ):
            around = modules[name.rpartition(".")[0]]
            found.append(Bank(name, around, members))
    return found


def _around(bank: Bank) -> Callable[..., None]:
    def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
        x = given(args, kwargs)
        if bank.x is None and isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1:
            bank.x = x.detach().reshape(-1, x.shape[-1]).clone()
            bank.rows = bank.x[_some(len(bank.x))]

    return harmless(keep)


def _member(bank: Bank, i: int) -> Callable[..., None]:
    def look(_module: nn.Module, args: Any, kwargs: Any) -> None:
        x = given(args, kwargs)
        if i in bank.fed or bank.x is None or bank.strange or not isinstance(x, Tensor) or not x.numel():
            return
        if x.shape[-1] != bank.x.shape[-1]:
            bank.strange = True
            return
        row = x.detach().reshape(-1, x.shape[-1])[0]
        bank.strange = not bool((bank.x == row).all(1).any())
        bank.fed.add(i)

    return harmless(look)


def _norm(one: Shown) -> Callable[..., None]:
    def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
        x = given(args, kwargs)
        if one.z is not None or not isinstance(x, Tensor) or x.dim() < 2 or not _of_tokens(one.found, x):
            return
        flat = x.detach().reshape(-1, x.shape[-1])
        one.z = flat[_some(len(flat))].clone()

    return harmless(keep)


def _of_tokens(found: Found, x: Tensor) -> bool:
    """Does it measure all features of one token together, and nothing else?"""
    if found.source != SAMPLE or found.frame.labels or feature_axis(found, x) != x.dim() - 1:
        return False
    try:
        plan = plan_for(found.frame, tuple(x.shape), dict(found.sizes))
    except (FrameError, TypeError):
        return False
    return plan.pool == x.shape[-1] and len(np.unique(pools_of(plan, x.dim() - 1))) == 1


def _some(n: int) -> Array:
    found: Array = np.linspace(0, n - 1, min(n, TOKENS)).astype(int)
    return found


def _made_of(z: Tensor, e: Tensor) -> bool:
    """Is every token of z a sum of multiples of the experts' answers, [experts, tokens, features]?"""
    if e.shape[0] >= e.shape[2]:
        return False  # anything would be
    basis = e.permute(1, 2, 0)
    rest = z[..., None] - basis @ torch.linalg.lstsq(basis, z[..., None], driver="gelsd").solution
    return bool(rest.norm() <= REST * z.norm()) and bool(z.norm() > 0)
