"""Recognising: the norms of a model and their frames, known by class or by behaviour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from homeostat.nn.states import check_module
from homeostat.recognising.behaviour import by_behaviour
from homeostat.recognising.candidates import candidates, few_parameters
from homeostat.recognising.candidates import refused as refused
from homeostat.recognising.found import Found as Found
from homeostat.recognising.found import Recognised as Recognised
from homeostat.recognising.known import by_class as by_class
from homeostat.recognising.subject import Unfit
from homeostat.recognising.watching import Forward, call, watch


def recognise(model: nn.Module, batches: Iterable[Any] = (), forward: Forward = call) -> Recognised:
    """Every module of the model that normalizes, and the frame it does it in.

    torch.nn's norms and ours are known by their class. Others, written by hand, are known by their behaviour on what
    the batches bring to them: is scale taken away, from whom, and what else? Parts that cannot be tried are listed
    with the reason. The model is run in evaluation mode and is afterwards as it was.
    """
    check_module(model, "recognise")
    if isinstance(batches, Tensor | dict):
        raise TypeError(f"batches is one {type(batches).__name__}; pass a list of batches, [x].")
    norms, tried, left = candidates(model)

    def look(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if name in norms:
            shape = next((tuple(t.shape) for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
            norms[name] = by_class(name, module, shape) or norms[name]
        elif few_parameters(module, args, kwargs) and not any(_inside(one, name) for one in norms):
            try:
                one = by_behaviour(name, module, args, kwargs)
            except Unfit as why:
                left[name] = str(why)
            else:
                norms.update({name: one} if one else {})

    modules = dict(model.named_modules())
    data, why = list(batches), "the batches do not reach it"
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        data, why = [], "it is tried on batches, and parts of the model have not seen an input yet: run it once"
    elif not data:
        why = "it is tried on batches, and there are none"
    ran = watch(model, data, {name: modules[name] for name in (*norms, *tried)}, look, forward)
    left.update({name: why for name in tried if name not in ran and _might_be(modules[name])})
    order = {name: i for i, name in enumerate(modules)}
    return Recognised(
        tuple(sorted(norms.values(), key=lambda one: order[one.name])),
        tuple(sorted(left.items(), key=lambda item: order[item[0]])),
    )


def _might_be(module: nn.Module) -> bool:
    """Is it worth a word that it did not run? An activation is not."""
    return "norm" in type(module).__name__.lower() or any(True for _ in module.parameters())


def _inside(name: str, outer: str) -> bool:
    return outer == "" or name.startswith(f"{outer}.")
