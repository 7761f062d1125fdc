"""Subject: a module as a function of one tensor, in double, at a size where eps no longer matters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_flatten, tree_unflatten

from homeostat.recognising.watching import undisturbed

FEW, MORE = 6, 3  # lengths that an axis is cut or stretched to
SIZE = 2.0**10


class Unfit(Exception):
    """Why a module cannot be tried."""


class NoNorm(Exception):
    """It can be none: it does not take a tensor to one of the same shape."""


class Subject:
    """y = f(x), for a copy of a module and what it was called with; `training` says in which mode."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.leaves, self.tree = tree_flatten((args, kwargs))
        floats = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if not floats or self.leaves[floats[0]].dim() < 2 or not self.leaves[floats[0]].numel():
            raise NoNorm
        self.slot, self.training = floats[0], False
        self.fill: float | None
        self.given = self.leaves[self.slot]
        try:
            with undisturbed():
                self.module = copy.deepcopy(module).double()
        except Exception as error:
            raise Unfit(f"it cannot be copied: {_first_line(error)}") from error
        for part in self.module.modules():
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
        self.drops = [part for part in self.module.modules() if isinstance(part, _DropoutNd)]
        self.beside = [i for i in floats[1:] if self.leaves[i].shape == self.given.shape]
        self.leaves = [leaf.double() if i in floats else leaf for i, leaf in enumerate(self.leaves)]
        self.held = [(b, b.clone()) for b in self.module.buffers()]
        self.output, self.fill = 0, None  # what other tensors of x's shape hold: 0 for a residual, 1 for a gate
        self.x = self._drawn(self._fitted())

    def __call__(self, x: Tensor) -> Tensor:
        """The same y for the same x, every time; always a new tensor."""
        return self._outputs(x)[self.output]

    def again(self, seed: int) -> Tensor:
        """Another x like it."""
        noise = torch.randn(self.x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return noise.to(self.x.device) * SIZE + self.x / 2

    @property
    def outputs(self) -> int:
        """How many tensors of x's shape come out."""
        return len(self._outputs(self.x))

    def _outputs(self, x: Tensor) -> list[Tensor]:
        leaves = list(self.leaves)
        leaves[self.slot] = x.clone()
        for i in self.beside:
            leaves[i] = _resized(leaves[i], x.shape) if self.fill is None else torch.full_like(x, self.fill)
        args, kwargs = tree_unflatten(leaves, self.tree)
        with undisturbed():
            self.module.train(self.training)
            for drop in self.drops:
                drop.eval()
            for buffer, value in self.held:
                buffer.copy_(value)
            out = self.module(*args, **kwargs)
        flat = tree_flatten(out)[0]
        return [t.double().clone() for t in flat if isinstance(t, Tensor) and t.shape == x.shape and _fractions(t)]

    def _fitted(self) -> tuple[int, ...]:
        """A shape it takes: long axes cut, those of length 1 stretched, where it lets them be."""
        shape = list(self.given.shape)
        x = self.given.double()
        try:
            if not self._outputs(x):
                raise NoNorm
        except NoNorm:
            raise
        except Exception as error:
            raise Unfit(f"it cannot be tried in float64: {_first_line(error)}") from error
        for axis, n in enumerate(shape):
            wanted = MORE if n == 1 else min(n, FEW)
            if wanted != n and self._takes([*shape[:axis], wanted, *shape[axis + 1 :]]):
                shape[axis] = wanted
        return tuple(shape)

    def _takes(self, shape: list[int]) -> bool:
        try:
            return bool(self._outputs(_resized(self.given.double(), shape)))
        except Exception:
            return False

    def _drawn(self, shape: tuple[int, ...]) -> Tensor:
        """What it was given, with as much noise: real inputs may be constant, or zero."""
        x = torch.nan_to_num(_resized(self.given.double(), shape), 0, 0, 0)
        x = x / x.square().mean().sqrt().clamp_min(1e-300)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return (x + noise.to(x.device)) * SIZE


def _resized(x: Tensor, shape: Any) -> Tensor:
    for axis, n in enumerate(shape):
        if x.shape[axis] != n:
            x = x.index_select(axis, torch.arange(n, device=x.device) % x.shape[axis])
    return x


def _fractions(t: Tensor) -> bool:
    return t.is_floating_point()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
