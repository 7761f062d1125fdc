"""Calling: a model on batches, as surgery looks at it: in evaluation mode, without gradients, put back afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from homeostat.recognising.watching import Forward as Forward
from homeostat.recognising.watching import call as call
from homeostat.recognising.watching import eagerly, put_back
from homeostat.surgery.certificate import Drift, tensors_in

M = TypeVar("M")


def several(batches: Iterable[Any]) -> Iterable[Any]:
    if isinstance(batches, Tensor | dict | str) or not hasattr(batches, "__iter__"):
        raise TypeError(f"batches is one {type(batches).__name__}; pass a list of batches, [x].")
    return batches


def listed(batches: Iterable[Any]) -> list[Any]:
    """Held, so that a loader that shuffles shows every pass the same."""
    return list(several(batches))


def check_changeable(model: nn.Module, verb: str) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"{verb}: the model is compiled by torch.jit.script; take what it was made of.")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(f"{verb}: DistributedDataParallel knows its parameters: take .module, and wrap the result.")


def named(model: nn.Module, layers: str | Iterable[str]) -> list[tuple[str, nn.Module]]:
    """Every module once whose name, or another name it goes by, is asked for with * and ?."""
    wanted = (layers,) if isinstance(layers, str) else tuple(layers)
    found: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if any(fnmatchcase(name, one) for one in wanted):
            found.setdefault(module, name)
    return [(name, module) for module, name in found.items()]


def asked(model: nn.Module, layers: str | Iterable[str]) -> list[tuple[str, nn.Module]]:
    """The same, where it would be a mistake if there were none."""
    found = named(model, layers)
    if not found:
        raise ValueError(f"layers={layers!r}: the model has no layer of that name.")
    return found


def samples_in(data: Iterable[Any]) -> int:
    """Entries of the first axis of each batch's first tensor."""
    firsts = [[t for t in tree_leaves(batch) if isinstance(t, Tensor)][:1] for batch in data]
    return sum(len(t) if t.dim() else 1 for first in firsts for t in first)


def copied(parts: M) -> M:
    """A deep copy, of a model or a tuple of parts; process groups, which cannot be copied, stay the same ones."""
    models = [part for part in tree_leaves(parts) if isinstance(part, nn.Module)]
    groups = [getattr(module, "process_group", None) for model in models for module in model.modules()]
    return copy.deepcopy(parts, {id(group): group for group in groups if group is not None})


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """In evaluation mode, without gradients; every module's own mode is back on exit, after an error too."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with eagerly(), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def compared(
    before: nn.Module,
    after: nn.Module,
    data: Iterable[Any],
    forward: Forward = call,
    layers: Iterable[str] = (),
    awake: Iterable[str] = (),
) -> tuple[float, dict[str, float]]:
    """How far `after` is from `before`: its outputs, and those of these layers; `awake` ones of `after` train."""
    total, each = Drift(), {name: Drift() for name in layers}
    with put_back(before), put_back(after), evaluating(before, after):
        for name in awake:
            after.get_submodule(name).training = True
        for batch in data:
            old, old_layers = _outputs(before, each, batch, forward)
            new, new_layers = _outputs(after, each, batch, forward)
            total.take(old, new)
            for name, drift in each.items():
                drift.take(old_layers[name], new_layers[name])
    return total.worst, {name: drift.worst for name, drift in each.items()}


def _outputs(
    model: nn.Module, layers: Iterable[str], batch: Any, forward: Forward
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Of the model and of these layers; copies, because what comes next may work in place."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[..., None]:
        return lambda _layer, _args, y: seen[name].extend(t.clone() for t in tensors_in(y))

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in seen]
    try:
        return [t.clone() for t in tensors_in(forward(model, batch))], seen
    finally:
        for hook in hooks:
            hook.remove()
