"""Heads: how much each head of an attention says, seen where the output projection adds them up.

    c_h = W_h (a_h - its mean)        energy_h = |c_h|^2, averaged over the tokens of a sample

What is the same for every token is no saying but a bias, so it is taken off: attention sinks do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from homeostat.doctor.hooks import harmless
from homeostat.doctor.parts import Array, Heads
from homeostat.surgery.flow import given

COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
PROJECTIONS = ("out_proj", "o_proj", "to_out", "c_proj", "proj", "wo", "o", "dense", "out_lin", "linear_out")
SAMPLES = 64


@dataclass
class Attention:
    """Heads, and the projection that adds them up; `called` is the module whose calls show what they say."""

    name: str
    heads: int
    called: nn.Module
    weight: Tensor  # [outputs, heads * d]
    rows: list[Array] = field(default_factory=list)
    gram: Tensor | None = None
    busy: bool = False

    def said(self, args: Any, kwargs: Any) -> Tensor | None:
        """[samples, tokens, heads, d] off its mean: what the heads give to the projection."""
        a = self._inside(args, kwargs) if isinstance(self.called, nn.MultiheadAttention) else given(args, kwargs)
        if not isinstance(a, Tensor) or not a.is_floating_point() or a.dim() < 2 or a.shape[-1] != self.weight.shape[1]:
            return None
        if not a.numel():
            return None
        a = a.detach().reshape(len(a), -1, self.heads, a.shape[-1] // self.heads).float()
        return a - a.mean((0, 1))

    def _inside(self, args: Any, kwargs: Any) -> Tensor | None:
        """torch's calls its projection as a function: with the identity in its place, what goes in comes out."""
        mha: Any = self.called
        eye = torch.eye(mha.embed_dim, dtype=self.weight.dtype, device=self.weight.device)
        own = {"out_proj.weight": eye, "out_proj.bias": torch.zeros_like(eye[0])}
        self.busy = True
        try:
            a: Tensor = functional_call(
                mha, own if mha.out_proj.bias is not None else {"out_proj.weight": eye}, args, kwargs
            )[0]
        finally:
            self.busy = False
        return a if a.dim() < 3 or mha.batch_first else a.transpose(0, 1)

    def take(self, args: Any, kwargs: Any) -> None:
        if self.busy or sum(map(len, self.rows)) >= SAMPLES:
            return
        a = self.said(args, kwargs)
        if a is None:
            return
        a = a[:SAMPLES]
        if self.gram is None:
            w = self.weight.detach().float().reshape(len(self.weight), self.heads, -1)
            self.gram = torch.einsum("ohd,ohe->hde", w, w)
        energy = (torch.einsum("bthd,hde->bthe", a, self.gram) * a).sum(-1).mean(1)
        self.rows.append(energy.double().cpu().numpy())

    @property
    def loudest(self) -> int:
        return int(np.concatenate(self.rows).mean(0).argmax())

    @property
    def share(self) -> float:
        """Of the loudest head."""
        total = np.concatenate(self.rows).mean(0)
        return float(total.max() / total.sum()) if total.sum() > 0 else 0.0

    def seen(self, *tried: float) -> Heads:
        return Heads(self.name, np.concatenate(self.rows), *tried)

    @contextmanager
    def without(self, head: int) -> Iterator[None]:
        """Its projection gives what it would if that head said the same to every token."""
        w = self.weight.detach().float().reshape(len(self.weight), self.heads, -1)[:, head]

        def less(_module: nn.Module, args: Any, kwargs: Any, y: Any) -> Any:
            if self.busy or (a := self.said(args, kwargs)) is None:
                return y
            part = a[:, :, head] @ w.T
            first = y[0] if isinstance(y, tuple) else y
            swapped = (
                isinstance(self.called, nn.MultiheadAttention) and first.dim() == 3 and not self.called.batch_first
            )
            part = part.transpose(0, 1) if swapped else part
            out = first - part.reshape(first.shape).to(first.dtype)
            return (out, *y[1:]) if isinstance(y, tuple) else out

        hook = self.called.register_forward_hook(less, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def attentions(model: nn.Module) -> list[Attention]:
    """Modules that say how many heads they have, with the projection that follows them."""
    modules, found = dict(model.named_modules()), dict[int, Attention]()
    for name, module in modules.items():
        count = _count(module)
        if count is None or count < 2:
            continue
        if isinstance(module, nn.MultiheadAttention):
            found[id(module)] = Attention(name, count, module, module.out_proj.weight)
            continue
        outer = modules.get(name.rpartition(".")[0])
        for place in (module, getattr(outer, "output", None)):
            if (layer := _projection(place)) is None or (weight := _weight(layer)) is None:
                continue
            if weight.shape[1] % count == 0:
                found[id(layer)] = Attention(name, count, layer, weight)  # the innermost of those that share it
                break
    return list(found.values())


@contextmanager
def hearing(model: nn.Module) -> Iterator[list[Attention]]:
    """Hooks on the projections of a model."""
    some, hooks = attentions(model), list[Any]()

    def look(one: Attention) -> Callable[..., None]:
        return harmless(lambda _module, args, kwargs: one.take(args, kwargs))

    try:
        hooks += [one.called.register_forward_pre_hook(look(one), with_kwargs=True) for one in some]
        yield some
    finally:
        for hook in hooks:
            hook.remove()


def _count(module: nn.Module) -> int | None:
    said = next((n for word in COUNTS if isinstance(n := getattr(module, word, None), int)), None)
    if said is None and "attention" in type(module).__name__.lower():
        said = getattr(getattr(module, "config", None), "num_attention_heads", None)
    return said if isinstance(said, int) and not isinstance(said, bool) else None


def _projection(module: Any) -> nn.Module | None:
    for word in PROJECTIONS:
        layer = getattr(module, word, None)
        if isinstance(layer, nn.Sequential | nn.ModuleList) and len(layer):
            layer = layer[0]
        if isinstance(layer, nn.Module) and _weight(layer) is not None:
            return layer
    return None


def _weight(layer: nn.Module) -> Tensor | None:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or is_lazy(weight) or weight.dim() != 2 or isinstance(layer, nn.Embedding):
        return None
    return weight if isinstance(layer, nn.Linear) else weight.T if hasattr(layer, "nf") else None  # GPT-2 stores it so
