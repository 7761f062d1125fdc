"""Without: what becomes of a model's outputs when the loudest head of an attention says nothing.

Taken away it leaves twice: its words, and its part in what the norm after it divides by. So that is tried both ways:

    moved    the norm measures what is left, and turns the others up, `louder` times
    held     the norm goes on dividing by what it measured with the head
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.doctor.heads import Attention
from homeostat.doctor.parts import Heads
from homeostat.recognising.watching import Forward, eagerly, put_back
from homeostat.surgery.certificate import tensors_in
from homeostat.surgery.flow import given

LOUD, TRIED, RUNS = 0.5, 2, 3  # from this share on; in so many attentions at most; passes of the first batch for each


def tried(
    heard: list[Attention], model: nn.Module, norms: list[nn.Module], batch: Any, forward: Forward
) -> tuple[tuple[Heads, ...], int]:
    """What every attention says, the loudest tried without; and how many passes that took."""
    some = [one for one in heard if one.rows]
    loud = sorted((one for one in some if one.heads > 3 and one.share > LOUD), key=lambda one: -one.share)[:TRIED]
    found = {one.name: _tried(one, model, norms, batch, forward) for one in loud}
    return tuple(found.get(one.name, one.seen()) for one in some), RUNS * len(loud)


def _tried(one: Attention, model: nn.Module, norms: list[nn.Module], batch: Any, forward: Forward) -> Heads:
    def outputs(*around: AbstractContextManager[Any]) -> Tensor:
        with put_back(model), eagerly(), torch.no_grad(), ExitStack() as stack:
            model.eval()
            for context in around:
                stack.enter_context(context)
            first = next((t for t in tensors_in(forward(model, batch)) if t.dim()), None)
        return torch.zeros(1, 1) if first is None else first.double().reshape(len(first), -1)

    old, new = list[Tensor](), list[Tensor]()
    whole = outputs(_after(one, norms, old))
    rest = outputs(one.without(one.loudest), _after(one, norms, new))
    held = outputs(one.without(one.loudest), _after(one, norms, [], old))
    spread = float((whole - whole.mean(0)).square().mean().sqrt())

    def moved(y: Tensor) -> float:
        return float((y - whole).square().mean().sqrt()) / spread if spread > 0 else 0.0

    louder = float((old[0] / new[0].clamp_min(1e-300)).median()) if old and new else 1.0
    return one.seen(moved(rest), moved(held), louder)


@contextmanager
def _after(
    one: Attention, norms: list[nn.Module], seen: list[Tensor], held: list[Tensor] | None = None
) -> Iterator[None]:
    """The spread of every token of what the first norm after an attention is given; `held`: what it divides by."""
    ready, own = [False], list[Tensor]()

    def start(*_: Any) -> None:
        ready[0] = True

    def look(module: nn.Module, args: Any, kwargs: Any, y: Any) -> Any:
        x = given(args, kwargs)
        if not ready[0] or own or not isinstance(x, Tensor) or not isinstance(y, Tensor):
            return None
        x = x.detach().double()
        own.append((x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True).sqrt())
        seen.append(own[0])
        if not held:
            return None
        bias = getattr(module, "bias", None)
        shift = bias if isinstance(bias, Tensor) else torch.zeros((), dtype=y.dtype, device=y.device)
        return (shift + (y - shift) * (own[0] / held[0].clamp_min(1e-300))).to(y.dtype)

    hooks: list[Any] = [one.called.register_forward_hook(start)]
    hooks += [norm.register_forward_hook(look, with_kwargs=True) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
