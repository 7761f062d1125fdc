"""Watching: a model on batches, with everything put back: modes, buffers, attributes, hooks, random states."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

Forward = Callable[[nn.Module, Any], Any]
Seen = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None]


def call(model: nn.Module, batch: Any) -> Any:
    """A tensor is the input, of a sequence the first is, a dict is keywords."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def watch(
    model: nn.Module, batches: Iterable[Any], modules: dict[str, nn.Module], seen: Seen, forward: Forward = call
) -> set[str]:
    """seen(name, module, args, kwargs) once for each of these modules, after its first call; which of them ran.

    A module inside another is seen before it. Arguments are as they were before the call. Batches are taken until all
    have run.
    """
    ran: set[str] = set()
    waiting: dict[str, list[Any]] = {}

    def before(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
            if name not in ran:
                waiting.setdefault(name, []).append(tree_map_only(Tensor, torch.clone, (args, kwargs)))

        return keep

    def after(name: str) -> Callable[..., None]:
        def tell(module: nn.Module, _args: Any, _kwargs: Any, _y: Any) -> None:
            if name not in ran and waiting.get(name):
                ran.add(name)
                args, kwargs = waiting.pop(name)[0]
                seen(name, module, args, kwargs)

        return tell

    hooks: list[Any] = []
    with put_back(model), eagerly(), torch.no_grad():
        model.eval()
        try:
            for name, module in modules.items():
                hooks.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
                hooks.append(module.register_forward_hook(after(name), with_kwargs=True))
            for batch in batches:
                forward(model, batch)
                if len(ran) == len(modules):
                    break
        finally:
            for hook in hooks:
                hook.remove()
    return ran


@contextmanager
def eagerly() -> Iterator[None]:
    """Compiled parts run as they were written, torch's encoder layers too: hooks are called, modes count."""
    dynamo = "torch._dynamo" in sys.modules  # not to import it where nothing was compiled
    mha: Any = torch.backends.mha
    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager") if dynamo else nullcontext():
            yield
    finally:
        mha.set_fastpath_enabled(fast)


@contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside, the modules hold what they held before, to the bit; the random states too."""
    modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    held = [(m, dict(vars(m)), dict(m._buffers)) for m in modules]
    values = [(b, b.clone()) for b in model.buffers() if not (is_lazy(b) or b.is_meta)]
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for module, attributes, buffers in held:
                module._buffers.clear()
                module._buffers.update(buffers)
                for name in vars(module).keys() - attributes.keys():
                    del module.__dict__[name]
                module.__dict__.update(attributes)
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def undisturbed() -> Iterator[None]:
    """In full precision, the same random numbers every time, no warnings, whatever goes on around it."""
    with torch.random.fork_rng(), torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)  # torch.manual_seed prints a stack for devices that are not there
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(0)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
