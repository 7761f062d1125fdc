"""Recalibrate: running statistics measured anew, all batches pooled as if they had been one.

    m = sum of the batches' Moments       mean', var' = those of m + Moments(N, mean, N var)       N = prior, in samples

A batch's own mean differs from the next one's; averaging per-batch variances loses that part, adding Moments does not.
Variances are unbiased, as torch remembers them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import tee
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from homeostat.nn.states import check_module
from homeostat.recognising.watching import put_back
from homeostat.surgery.calling import Forward, call, compared, copied, evaluating, listed, several
from homeostat.surgery.certificate import Certificate, Shifted
from homeostat.surgery.sites import Seen, Site, by_batch, hooked, sites, told

M = TypeVar("M", bound=nn.Module)
MEMORY = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Recalibrated(Shifted):
    """`drift` is the largest move of its output, in root mean squares of it before."""

    drift: float

    def __str__(self) -> str:
        return f"{super().__str__()}; moves {self.drift:.3g} rms"


@dataclass(frozen=True)
class Recalibration(Certificate):
    """`before` is what was remembered, by layer."""

    before: tuple[tuple[str, dict[str, Tensor]], ...] = field(repr=False, compare=False)

    def undo(self, model: M, inplace: bool = False) -> M:
        """The model with the statistics it had before, to the bit; the rest as it is now."""
        model = model if inplace else copied(model)
        modules = dict(model.named_modules(remove_duplicate=False))
        for name, memory in self.before:
            for word, value in memory.items():
                now = getattr(modules.get(name), word, None)
                if now is None or now.shape != value.shape:
                    raise ValueError(f"undo: no such {word} is at {name}; this certificate is of another model.")
        with torch.no_grad():
            for name, memory in self.before:
                for word, value in memory.items():
                    getattr(modules[name], word).copy_(value)
        return model


def recalibrate(
    model: M,
    batches: Iterable[Any],
    *,
    prior: float | None = None,
    layers: str | Iterable[str] = "*",
    one_by_one: bool = True,
    forward: Forward = call,
    inplace: bool = False,
) -> tuple[M, Recalibration]:
    """A copy of the model whose running statistics are those of these batches, and what that changed.

    `prior` counts the stored statistics as so many samples beside the new ones; without it they are replaced. Layers
    are taken in the order they run, a pass each, because every one changes what the next is given; `one_by_one=False`
    takes one pass, in which each layer normalizes by the batch at hand. `layers` are names, with * and ?. `forward`
    calls the model on a batch; without it a tensor is the input, of a sequence the first is, a dict is keywords. The
    batches are held in memory, so that a loader that shuffles shows every pass the same. A sample is an entry of the
    first axis of what a layer is given. Masks, weights and domains that come with the call count. Each process takes
    its own batches. `certificate.undo(new)` puts the old statistics back; after an error the model is as it was.
    """
    check_module(model, "recalibrate")
    if prior is not None and not (isinstance(prior, int | float) and 0 <= prior < float("inf")):
        raise ValueError(f"prior={prior!r} is how many samples the stored statistics count as, a number from 0 on.")
    data = listed(batches)
    old, new = (copied(model), model) if inplace else (model, copied(model))
    found, left = sites(new, layers, data, forward)
    if not one_by_one:
        left += [
            (site.name, "it cannot normalize by the batch at hand: one_by_one=True") for site in found if site.stays
        ]
        found = [site for site in found if not site.stays]
    with evaluating(new), _undone_on_error(found) as before:
        order, samples = _order(new, found, data, forward)
        if not any(samples.values()):
            why = "".join(f"; {name}: {reason}" for name, reason in left)
            raise ValueError(f"recalibrate: these batches give no layer with running statistics a single sample{why}.")
        moves = []
        for some in [[site] for site in order] if one_by_one else [order]:
            seen = _observe(new, some, data, forward, at_hand=not one_by_one)
            moves += [_settle(site, seen[site.name], samples[site.name], len(data), prior) for site in some]
        drift, each = compared(old, new, data, forward, [site.name for site in order])
    changed = tuple(Recalibrated(m.layer, m.kind, m.mean, m.var, each[m.layer]) for m in moves)
    left += [(site.name, "these batches do not reach it") for site in found if site.name not in each]
    kept = tuple((site.name, memory) for site, memory in before if site.name in each)
    return new, Recalibration("recalibrated", changed, tuple(left), drift, max(samples.values()), kept)


def shift(
    model: nn.Module, batches: Iterable[Any], *, layers: str | Iterable[str] = "*", forward: Forward = call
) -> tuple[Shifted, ...]:
    """How far the statistics of these batches are from the stored ones, layer by layer; the model stays as it is."""
    check_module(model, "shift")
    first, data = tee(several(batches))  # a stream stays one: the first of it may be looked at before
    found, _left = sites(model, layers, first, forward)
    with evaluating(model):
        seen = _observe(model, found, data, forward)
    seen = {name: m for name, m in seen.items() if told(m).some.any()}
    if not seen:
        raise ValueError("shift: these batches reach no layer with running statistics.")
    return tuple(_compared(site, *_statistics(site, seen[site.name])) for site in found if site.name in seen)


@contextmanager
def _undone_on_error(found: list[Site]) -> Iterator[list[tuple[Site, dict[str, Tensor]]]]:
    """What is remembered, and again if anything fails."""
    held = [
        (site, {word: b.clone() for word in MEMORY if (b := getattr(site.layer, word, None)) is not None})
        for site in found
    ]
    try:
        yield held
    except BaseException:
        for site, memory in held:
            for word, value in memory.items():
                getattr(site.layer, word).copy_(value)
        raise


def _order(
    model: nn.Module, found: list[Site], data: Iterable[Any], forward: Forward
) -> tuple[list[Site], dict[str, int]]:
    """Sites as they first run, and how many samples each is given; one that runs twice has the samples of once."""
    ran: dict[str, Site] = {}
    samples: dict[str, int] = {}
    now: set[str] = set()

    def note(site: Site, layer: Any, args: Any, kwargs: Any) -> None:
        ran.setdefault(site.name, site)
        if site.name not in now:
            samples[site.name] = samples.get(site.name, 0) + len(site.input(args, kwargs))
            now.add(site.name)

    with hooked(found, note), put_back(model):
        for batch in data:
            now.clear()
            forward(model, batch)
    return list(ran.values()), samples


def _observe(
    model: nn.Module, some: list[Site], data: Iterable[Any], forward: Forward, at_hand: bool = False
) -> dict[str, Any]:
    """What each layer is given, pooled; `at_hand`: while each normalizes by its own batch."""
    seen: dict[str, Any] = {}

    def add(site: Site, layer: Any, args: Any, kwargs: Any) -> None:
        m = site.look(args, kwargs)
        seen[site.name] = seen[site.name] + m if site.name in seen else m

    with hooked(some, add), put_back(model), by_batch(some) if at_hand else nullcontext():
        for batch in data:
            forward(model, batch)
    return seen


def _settle(site: Site, m: Seen, samples: int, batches: int, prior: float | None) -> Shifted:
    """Write the layer's statistics; a group that nobody was measured in keeps what it has."""
    layer = site.layer
    some = told(m).some
    mean, var = _statistics(site, m, prior / max(samples, 1) if prior else 0)
    change = _compared(site, mean, var)
    if not all(torch.isfinite(part.to(layer.running_mean.dtype)).all() for part in (mean, var)):
        raise ValueError(
            f"{site.name}: these batches give it statistics that are not finite in {layer.running_mean.dtype}; "
            f"nothing was changed."
        )
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)
    tracked = getattr(layer, "num_batches_tracked", None)
    if tracked is not None:  # or a cumulative mean would forget them, and a domain count as unseen
        rows = some.flatten(1).any(1) if tracked.dim() else some.any()
        tracked.copy_(torch.where(rows, tracked.clamp_min(batches), tracked))
    return change


def _statistics(site: Site, m: Seen, share: float = 0) -> tuple[Tensor, Tensor]:
    """Mean and variance with `share` times as many samples stored; where there is none, what is stored alone."""
    some, both = told(m).some, told(m + site.stored(m, share)) if share else told(m)  # type: ignore[operator]
    mean = torch.where(some, both.mean, site.layer.running_mean.double())
    return mean, torch.where(some & both.two, both.var, site.layer.running_var.double())


def _compared(site: Site, mean: Tensor, var: Tensor) -> Shifted:
    old_mean, old_var = site.layer.running_mean.double(), site.layer.running_var.double()
    eps = site.layer.eps if isinstance(getattr(site.layer, "eps", None), float) else 0.0
    steps = (mean - old_mean).abs() / (old_var + eps).sqrt().clamp_min(1e-300)
    ratio = (var + eps) / (old_var + eps).clamp_min(1e-300)
    furthest = ratio.flatten()[ratio.log().abs().flatten().argmax()]
    return Shifted(site.name, type(site.layer).__name__, float(steps.max()), float(furthest))
