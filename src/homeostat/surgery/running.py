"""Recalibrate: running statistics measured anew, all batches pooled as if they had been one.

    m = sum of the batches' Moments       mean' + var' = m + Moments(N, mean, N var)       N = prior, in samples

A batch's own mean differs from the next one's; averaging per-batch variances loses that part, adding Moments does not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from homeostat.frame import Frame
from homeostat.moments import Moments
from homeostat.nn.preset import Preset
from homeostat.nn.states import check_module, trial
from homeostat.norm import Norm
from homeostat.reading import measure
from homeostat.sources import BATCH, Frozen, Running
from homeostat.surgery.calling import Forward, call, evaluating, listed, named
from homeostat.surgery.certificate import Certificate, Shifted, drift_of, tensors_in

M = TypeVar("M", bound=nn.Module)
CHANNELS = Frame.parse("n c ... -> c")


class Site(NamedTuple):
    """A layer with running statistics, and the frame they are of."""

    name: str
    layer: Any
    frame: Frame
    sizes: dict[str, int]


def recalibrate(
    model: M,
    batches: Iterable[Any],
    *,
    prior: float | None = None,
    layers: str | Iterable[str] = "*",
    one_by_one: bool = True,
    forward: Forward = call,
    inplace: bool = False,
) -> tuple[M, Certificate]:
    """A copy of the model whose running statistics are those of these batches, and what that changed.

    `prior` counts the stored statistics as so many samples beside the new ones; without it they are replaced. Layers
    are taken in the order they run, a pass each, because every one changes what the next is given; `one_by_one=False`
    takes one pass, in which each layer normalizes by the batch at hand. `layers` are names, with * and ?. `forward`
    calls the model on a batch; without it a tensor is the input, of a sequence the first is, a dict is keywords. The
    batches are held in memory, so that a loader that shuffles shows every pass the same. A sample is an entry of the
    first axis of what a layer is given. After an error the model is as it was.
    """
    check_module(model, "recalibrate")
    if prior is not None and not (isinstance(prior, int | float) and 0 <= prior < float("inf")):
        raise ValueError(f"prior={prior!r} is how many samples the stored statistics count as, a number from 0 on.")
    data = listed(batches)
    new = model if inplace else copy.deepcopy(model)
    found, left = _sites(new, layers)
    with evaluating(new), _undone_on_error(found):
        before = [t for batch in data for t in tensors_in(forward(new, batch))]
        order, samples = _order(new, found, data, forward)
        if not any(samples.values()):
            raise ValueError("recalibrate: these batches give no layer with running statistics a single sample.")
        changed = []
        with torch.no_grad():
            for some in [[site] for site in order] if one_by_one else [order]:
                seen = _observe(new, some, data, forward, by_batch=not one_by_one)
                changed += [_settle(site, seen[site.name], samples[site.name], prior) for site in some]
        after = [t for batch in data for t in tensors_in(forward(new, batch))]
    ran = {site.name for site in order}
    left += [(site.name, "these batches do not reach it") for site in found if site.name not in ran]
    return new, Certificate("recalibrated", tuple(changed), tuple(left), drift_of(before, after), max(samples.values()))


def shift(
    model: nn.Module, batches: Iterable[Any], *, layers: str | Iterable[str] = "*", forward: Forward = call
) -> tuple[Shifted, ...]:
    """How far the statistics of these batches are from the stored ones, layer by layer; the model stays as it is."""
    check_module(model, "shift")
    found, _left = _sites(model, layers)
    with evaluating(model):
        seen = _observe(model, found, batches, forward)
    seen = {name: m for name, m in seen.items() if (torch.as_tensor(m.count) > 0).any()}
    if not seen:
        raise ValueError("shift: these batches reach no layer with running statistics.")
    return tuple(_change(site, seen[site.name]) for site in found if site.name in seen)


def _sites(model: nn.Module, layers: str | Iterable[str]) -> tuple[list[Site], list[tuple[str, str]]]:
    """Layers with running statistics that are asked for; those that cannot be taken, and why."""
    found: list[Site] = []
    left: list[tuple[str, str]] = []
    for name, module in named(model, layers):
        layer: Any = module
        if getattr(layer, "running_mean", None) is None:
            continue
        why = _cannot(layer)
        if why:
            left.append((name, why))
        else:
            frame = layer.state_frame if isinstance(layer, Norm) else CHANNELS
            found.append(Site(name, layer, frame, dict(getattr(layer, "sizes", {}))))
    if not found:
        raise ValueError(
            f"layers={layers!r}: no layer of that name has running statistics to recalibrate"
            + "".join(f"; {name}: {why}" for name, why in left)
            + "."
        )
    return found, left


def _cannot(layer: Any) -> str:
    if is_lazy(layer.running_mean):
        return "it has not seen an input yet"
    if isinstance(layer, Norm | Preset):
        source = layer.source.inner if isinstance(layer.source, Frozen) else layer.source
        if not isinstance(source, Running) or source.counts:
            return f"{source} remembers otherwise than a running average"
        own: Any = layer
        return "" if own.frame == own.state_frame else "it remembers an average over groups that come and go"
    return "" if isinstance(layer, _BatchNorm) else f"{type(layer).__name__} is no batch norm that is known"


@contextmanager
def _undone_on_error(sites: list[Site]) -> Iterator[None]:
    held = [(site.layer, site.layer.running_mean.clone(), site.layer.running_var.clone()) for site in sites]
    try:
        yield
    except BaseException:
        for layer, mean, var in held:
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(var)
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
            samples[site.name] = samples.get(site.name, 0) + len(_input(args, kwargs))
            now.add(site.name)

    with _hooked(found, note):
        for batch in data:
            now.clear()
            forward(model, batch)
    return list(ran.values()), samples


def _observe(
    model: nn.Module, sites: list[Site], data: Iterable[Any], forward: Forward, by_batch: bool = False
) -> dict[str, Moments]:
    """The pooled moments of what each layer is given; `by_batch`: while each normalizes by its own batch."""
    seen: dict[str, Moments] = {}

    def add(site: Site, layer: Any, args: Any, kwargs: Any) -> None:
        where = kwargs.get("where", args[1] if len(args) > 1 else None) if isinstance(layer, Norm) else None
        sizes: dict[str, Any] = site.sizes
        m = measure(_input(args, kwargs).detach(), site.frame, where=where, **sizes)
        seen[site.name] = m + seen[site.name] if site.name in seen else m

    with _hooked(sites, add), trial(model), _by_batch(sites) if by_batch else nullcontext():
        for batch in data:
            forward(model, batch)
    return seen


@contextmanager
def _by_batch(sites: list[Site]) -> Iterator[None]:
    """These layers trust the batch at hand and nothing else, whatever their source."""
    held = [(site.layer, site.layer.__dict__.get("_given"), site.layer.__dict__.get("source")) for site in sites]
    for layer, _given, source in held:
        layer.training = True
        if isinstance(layer, Preset):
            layer._given = BATCH
        elif source is not None:
            layer.source = BATCH
    try:
        yield
    finally:
        for layer, given, source in held:
            layer.training = False
            if isinstance(layer, Preset):
                layer._given = given
            elif source is not None:
                layer.source = source


@contextmanager
def _hooked(sites: list[Site], f: Callable[..., None]) -> Iterator[None]:
    hooks = [site.layer.register_forward_pre_hook(partial(f, site), with_kwargs=True) for site in sites]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _input(args: Any, kwargs: Any) -> Tensor:
    x: Tensor = args[0] if args else kwargs.get("input", kwargs.get("x"))
    return x


def _settle(site: Site, m: Moments, samples: int, prior: float | None) -> Shifted:
    """Write the layer's statistics."""
    layer = site.layer
    mean, var = _statistics(site, m)
    if prior:
        count = m.count * (prior / max(samples, 1))
        both = m + Moments(count, layer.running_mean.double(), layer.running_var.double() * count)
        mean, var = both.mean, both.var()
    change = _compared(site, mean, var)
    if not all(torch.isfinite(part.to(layer.running_mean.dtype)).all() for part in (mean, var)):
        raise ValueError(
            f"{site.name}: these batches give it statistics that are not finite in {layer.running_mean.dtype}; "
            f"nothing was changed."
        )
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)
    return change


def _change(site: Site, m: Moments) -> Shifted:
    return _compared(site, *_statistics(site, m))


def _statistics(site: Site, m: Moments) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance; of a group that nobody was measured in, or one value alone, what is stored."""
    count, layer = torch.as_tensor(m.count).expand_as(m.mean), site.layer
    mean = torch.where(count > 0, m.mean, layer.running_mean.double())
    return mean, torch.where(count > 1, m.m2 / (count - 1).clamp_min(1), layer.running_var.double())


def _compared(site: Site, mean: Tensor, var: Tensor) -> Shifted:
    old_mean, old_var = site.layer.running_mean.double(), site.layer.running_var.double()
    eps = site.layer.eps if isinstance(site.layer.eps, float) else 0.0
    steps = (mean - old_mean).abs() / (old_var + eps).sqrt().clamp_min(1e-300)
    ratio = (var + eps) / (old_var + eps).clamp_min(1e-300)
    furthest = ratio.flatten()[ratio.log().abs().flatten().argmax()]
    return Shifted(site.name, type(site.layer).__name__, float(steps.max()), float(furthest))
