"""As one: the exact gradient of one batch from its parts, with the memory of one part. A pass per layer, each way.

s_l are the statistics of layer l over the whole batch. They are found layer by layer, and so are their adjoints, from
the last layer back, because each depends on what later ones make of it:

    a_l = d/d s_l sum over parts of (loss + sum over k > l of <a_k, s_k>)        s_k as a function of the part's moments
    d w = d/d w   sum over parts of (loss + sum over all k of <a_k, s_k>)

With L layers that is about 3 L / 2 + 2 forwards and L / 2 + 1 backwards of the batch, where one of each would do if its
activations had room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.kernels.groups import Groups
from homeostat.kernels.ranks import joined
from homeostat.kernels.reference import Seen
from homeostat.machines.accumulate import Held, held, measures_parts, not_ours, settle
from homeostat.machines.convert import is_shared
from homeostat.moments import Moments
from homeostat.nn.pictures import EvoNormB0
from homeostat.nn.preset import Preset
from homeostat.nn.states import check_module
from homeostat.norm import Norm
from homeostat.sources import Ghost, Mixed, Source, Virtual

Loss = Callable[[nn.Module, Any], Tensor]


class _Enough(Exception):
    """What was looked for was measured."""


@dataclass(eq=False)
class _Book:
    """What is known of the layers, in the order they are called, and what a part shows of them."""

    known: list[tuple[Moments, Any]] = field(default_factory=list)  # of the whole batch, and its samples
    shown: list[tuple[Moments, Any]] = field(default_factory=list)  # of this part

    def join(self, seen: Seen, g: Groups, samples: int, dtype: torch.dtype) -> Seen:
        """In place of what a part shows, what the whole batch did."""
        return joined(self, seen, g, samples, dtype)

    def added(self, m: Moments, samples: int) -> tuple[Moments, Any]:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "as_one does not take a model that checkpoints: what is computed again in the backward pass counts "
                "as one call more. It holds the activations of one part; make the parts smaller instead."
            )
        at = len(self.shown)
        m = Moments(torch.as_tensor(m.count, dtype=m.m2.dtype, device=m.m2.device).expand_as(m.m2), m.mean, m.m2)
        self.shown.append((m, samples))
        if at == len(self.known):
            raise _Enough
        return self.known[at]

    def largest(self, e: Tensor) -> Tensor:
        raise NotImplementedError('as_one takes a number for eps, not "auto".')


@dataclass(frozen=True, eq=False)
class _Whole(Held):
    """`inner`, on the statistics of the whole batch."""

    book: _Book = field(default_factory=_Book)

    def ranks(self, layer: Any) -> Any:
        if self.inner.ranks(layer) is not None:
            raise TypeError("as_one is for one process; Synced layers share their statistics: hs.unsync(model).")
        return self.book


def as_one(model: nn.Module, microbatches: Iterable[Any], loss: Loss) -> Tensor:
    """The loss of all parts; gradients are added to `.grad`, and statistics remembered, as if they were one batch.

    `loss(model, part)` is a part's share of the loss, so that the shares add up to that of the whole batch. The model
    must call the same layers for every part, checkpoint nothing, and measure by norms of ours. Chances, as in dropout,
    are the same in every pass.
    """
    check_module(model, "as_one")
    refused = [*not_ours(model), *_unknown(model)]
    if refused:
        raise TypeError("as_one does not know what these share between samples: " + "; ".join(refused) + ".")
    parts, book, chances = list(microbatches), _Book(), _Chances()
    if not parts:
        raise ValueError("as_one: there are no parts; give the batch in one part or more.")

    def show(i: int) -> Tensor | None:
        book.shown = []
        with chances.of(i):
            try:
                return loss(model, parts[i])
            except _Enough:
                return None

    with held(model, lambda layer, source: _around(layer, source, book)) as layers:
        with torch.no_grad():
            _find(book, show, len(parts))
        adjoints: list[tuple[Tensor, Tensor]] = []
        for at in reversed(range(len(book.known))):
            adjoints.insert(0, _adjoint(book, show, len(parts), at, adjoints))
        for _layer, _source, one in layers:
            one.seen.clear()  # of the many passes the last one counts
        total = []
        for i in range(len(parts)):
            value = show(i)
            assert value is not None
            total.append(value.detach())
            _with_adjoints(value, book, adjoints, 0).backward()  # type: ignore[no-untyped-call]
            for _layer, _source, one in layers:
                one.turn()
    for layer, source, one in layers:
        for call in zip_longest(*one.parts):
            settle(layer, source, list(call[:1] if isinstance(one, _Whole) else call))  # every part saw the whole
    return torch.stack(total).sum()


def _around(layer: Any, source: Source, book: _Book) -> Held:
    """Samples that are measured by themselves need no others."""
    alone = not is_shared(layer) or measures_parts(source, (Virtual,))
    return Held(source) if alone else _Whole(source, book=book)


def _unknown(model: nn.Module) -> list[str]:
    kinds = Ghost, Mixed, EvoNormB0
    return [
        f"{name or 'the model itself'} ({type(layer).__name__}): it measures parts of a batch, or single samples, too"
        for name, layer in model.named_modules()
        if isinstance(layer, Norm | Preset) and (measures_parts(layer.source, kinds) or isinstance(layer, kinds))
    ]


def _find(book: _Book, show: Callable[[int], Tensor | None], parts: int) -> None:
    """The statistics of each layer, given those of the layers before."""
    while True:
        seen = []
        for i in range(parts):
            if show(i) is None:
                seen.append(book.shown[-1])
        if not seen:
            return
        if len(seen) != parts:
            raise ValueError("as_one: some parts call more layers than others; each must call the same.")
        m = sum((m for m, _ in seen[1:]), seen[0][0])
        book.known.append((m, sum(n for _, n in seen)))


def _adjoint(
    book: _Book, show: Callable[[int], Tensor | None], parts: int, at: int, later: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """d of everything by mean and M2 of the layer called at this place."""
    m, samples = book.known[at]
    leaf = m.mean.clone().requires_grad_(), m.m2.clone().requires_grad_()
    book.known[at] = Moments(m.count, *leaf), samples
    found = [torch.zeros_like(m.mean), torch.zeros_like(m.m2)]
    for i in range(parts):
        value = show(i)
        assert value is not None
        value = _with_adjoints(value, book, later, at + 1)
        for total, d in zip(found, torch.autograd.grad(value, leaf, allow_unused=True), strict=True):
            total += 0.0 if d is None else d
    book.known[at] = m, samples
    return found[0], found[1]


def _with_adjoints(value: Tensor, book: _Book, adjoints: list[tuple[Tensor, Tensor]], start: int) -> Tensor:
    """loss + sum of <a_k, s_k>, linear in the part's moments:  d mean = n_i / n,  d M2 = 2 n_i (mean_i - mean) and 1"""
    for (d_mean, d_m2), (whole, _), (m, _) in zip(adjoints, book.known[start:], book.shown[start:], strict=True):
        n = whole.count + (whole.count == 0)
        slope = m.count / n * d_mean + 2 * m.count * (m.mean.detach() - whole.mean) * d_m2
        value = value + ((slope * m.mean).sum() + (d_m2 * m.m2).sum()).to(value.dtype)
        value = value - ((slope * m.mean).sum() + (d_m2 * m.m2).sum()).to(value.dtype).detach()
    return value


class _Chances:
    """The random numbers of each part, the same in every pass."""

    def __init__(self) -> None:
        self.states: dict[int, Any] = {}

    @contextmanager
    def of(self, i: int) -> Iterator[None]:
        devices = torch.cuda.is_available()
        if i not in self.states:
            self.states[i] = torch.get_rng_state(), torch.cuda.get_rng_state_all() if devices else None
        else:
            torch.set_rng_state(self.states[i][0])
            if devices:
                torch.cuda.set_rng_state_all(self.states[i][1])
        yield
