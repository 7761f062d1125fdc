"""Candidates: which modules of a model are worth trying, and which can never be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from homeostat.nn.adopt import plain_class
from homeostat.recognising.found import Found
from homeostat.recognising.known import by_class

QUANTIZED = ("torch.ao.nn", "torch.nn.quantized", "torch.nn.intrinsic", "torch.nn.qat", "torchao.")


def refused(module: nn.Module) -> str:
    """Why surgery and recognition keep away from a module and all that is in it; empty where they need not."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by torch.jit.script"
    if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
        return "it is compiled by torch.compile; take the module it was made of, and compile the result"
    if type(module).__module__.startswith(QUANTIZED):
        return "it is quantized"
    if any(is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values()) if t is not None):
        return "it has not seen an input yet"
    return ""


def candidates(model: nn.Module) -> tuple[dict[str, Found], list[str], dict[str, str]]:
    """The norms that are known, the names of what is to be tried by its behaviour, and of what cannot be, and why."""
    known: dict[str, Found] = {}
    tried: list[str] = []
    left: dict[str, str] = {}
    weights: list[str] = []
    for name, module in model.named_modules():
        if any(_inside(name, outer) for outer in (*left, *weights)):
            continue
        if isinstance(module, nn.utils.parametrize.ParametrizationList):
            weights.append(name)  # what makes a weight normalizes no activation
        elif why := refused(module):
            left[name] = why
        elif one := by_class(name, module):
            known[name] = one
        elif not _is_torchs(module) and _like_a_leaf(module):
            tried.append(name)
    return known, tried, left


def few_parameters(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """No more than two gains and two biases for every value of a sample."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point() and t.dim()]
    room = max((t.numel() // max(len(t), 1) for t in given), default=0)
    return sum(p.numel() for p in module.parameters()) <= 4 * room


def _is_torchs(module: nn.Module) -> bool:
    """A class of torch.nn that is no norm: a convolution, a relu, a container."""
    return plain_class(module).__module__.startswith("torch.nn.")


def _like_a_leaf(module: nn.Module) -> bool:
    """With no layer inside that learns, other than a norm, and none that is refused."""
    inner = list(module.modules())[1:]
    return not any(refused(part) or (_is_torchs(part) and any(True for _ in part.parameters(False))) for part in inner)


def _inside(name: str, outer: str) -> bool:
    return outer == "" or name == outer or name.startswith(f"{outer}.")
