"""Sites: layers that remember a mean and a variance, and what each of them would remember of a tensor.

pooled      the Moments of all it is given              batch norm, whatever trusts or shares its memory
averaged    over samples, the mean and variance of each      instance norm
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from homeostat.forward import asked
from homeostat.frame import Frame, Label
from homeostat.moments import Moments
from homeostat.nn.preset import Preset
from homeostat.nn.states import OWN
from homeostat.norm import Norm
from homeostat.reading import measure
from homeostat.recognising.behaviour import by_behaviour
from homeostat.recognising.found import RUNNING
from homeostat.recognising.subject import Unfit
from homeostat.recognising.watching import Forward, watch
from homeostat.sources import BATCH, Domain, Frozen, Ghost, Running, Shrunk, Source, Synced
from homeostat.sources.base import Wrapped
from homeostat.surgery.calling import named
from homeostat.surgery.flow import given

CHANNELS, INSTANCES = Frame.parse("n c ... -> c"), Frame.parse("n c ... -> n c")
AROUND = Frozen | Synced | Ghost | Shrunk | Domain  # what is remembered is the same without them, or per domain


class Told(NamedTuple):
    """Mean and unbiased variance, and in which groups there is one."""

    some: Tensor
    mean: Tensor
    two: Tensor
    var: Tensor


class Average(NamedTuple):
    """Of groups that come and go: how many have a mean and the sum of these, the same of variances; two of them add."""

    some: Tensor
    means: Tensor
    two: Tensor
    variances: Tensor

    def __add__(self, other: Any) -> Average:
        return Average(*(a + b for a, b in zip(self, other, strict=True)))


Seen = Moments | Average


def told(m: Seen) -> Told:
    if isinstance(m, Average):
        mean, var = m.means / m.some.clamp_min(1e-300), m.variances / m.two.clamp_min(1e-300)
        return Told(m.some > 0, mean, m.two > 0, var)
    count = _count(m)
    return Told(count > 0, m.mean, count > 1, m.m2 / (count - 1).clamp_min(1))


def _averaged(m: Moments) -> Average:
    """Over the first axis."""
    each = told(m)
    return Average(
        *(part.double().sum(0) for part in (each.some, each.some * each.mean, each.two, each.two * each.var))
    )


def _count(m: Moments) -> Tensor:
    return torch.as_tensor(m.count, device=m.mean.device).expand_as(m.mean)


@dataclass(frozen=True)
class Site:
    """A layer, and the frame it is measured in; `averages`: over the first thing that frame keeps."""

    name: str
    layer: Any
    frame: Frame = CHANNELS
    averages: bool = False
    stays: bool = False  # it normalizes by its memory, whatever its mode

    def look(self, args: Any, kwargs: Any) -> Seen:
        """What it would remember of one call."""
        more: dict[str, Any] = {}
        if isinstance(self.layer, Norm):
            more = {**self.layer.sizes, "center": self.layer.center}
            more["where"] = kwargs.get("where", args[1] if len(args) > 1 else None)
        m = measure(self.input(args, kwargs).detach(), self.frame, **more, **self._labels(kwargs))
        return _averaged(m) if self.averages else m

    def input(self, args: Any, kwargs: Any) -> Tensor:
        x: Tensor = given(args, kwargs)
        alone = isinstance(self.layer, _InstanceNorm) and x.dim() == self.layer._get_no_batch_dim()  # type: ignore[no-untyped-call]
        return x.unsqueeze(0) if alone else x

    def stored(self, m: Seen, share: float) -> Seen:
        """What it remembers, as if so many times the samples of m had been measured; each label as all of them."""
        mean, var = self.layer.running_mean.double(), self.layer.running_var.double()
        if isinstance(m, Average):
            some, two = m.some * share, m.two * share
            return Average(some, some * mean, two, two * var)
        labels = tuple(i for i, item in enumerate(self.frame.kept) if isinstance(item, Label))
        count = _count(m).double()
        count = share * (count.sum(labels, keepdim=True).expand_as(count) if labels else count)
        return Moments(count, mean, count * var)

    def _labels(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        names = [label.name for label in self.frame.labels]
        counts = {**getattr(self.layer, "counts", {}), **self.layer.source.counts} if names else {}
        codes = asked(tuple(names), kwargs)
        if missing := [name for name in names if codes.get(name) is None]:
            raise ValueError(f"{self.name} remembers each {missing[0]} apart: give it, {missing[0]}=codes.")
        return {name: codes[name] if isinstance(codes[name], tuple) else (codes[name], counts[name]) for name in names}


def sites(
    model: nn.Module, layers: str | Iterable[str], batches: Iterable[Any], forward: Forward
) -> tuple[list[Site], list[tuple[str, str]]]:
    """Layers that are asked for; those that cannot be taken, and why. Unknown classes are tried on the batches."""
    found: dict[str, Site | str] = {}
    unknown: dict[str, nn.Module] = {}
    for name, module in named(model, layers):
        one = _site(name, module)
        if one is not None:
            found[name] = one
            if one is UNKNOWN:
                unknown[name] = module
    if unknown:
        watch(model, batches, unknown, partial(_by_behaviour, found), forward)
    left = [(name, one) for name, one in found.items() if isinstance(one, str)]
    taken = [one for one in found.values() if isinstance(one, Site)]
    if not taken:
        raise ValueError(
            f"layers={layers!r}: no layer of that name has running statistics to recalibrate"
            + "".join(f"; {name}: {why}" for name, why in left)
            + "."
        )
    return taken, left


UNKNOWN = "it was not seen to normalize by its running_mean and running_var, each per channel"


def _site(name: str, layer: Any) -> Site | str | None:
    """None where nothing is remembered."""
    if isinstance(layer, Norm | Preset):
        return _of_source(name, layer) if layer.source.names else None
    if isinstance(layer, OWN):
        return f"what a {type(layer).__name__} remembers runs along with its gradient: let it run"
    if getattr(layer, "running_mean", None) is None:
        return None
    if is_lazy(layer.running_mean):
        return "it has not seen an input yet"
    if isinstance(layer, torch.jit.ScriptModule):
        return "it is compiled by torch.jit.script"
    if isinstance(layer, _InstanceNorm):
        return Site(name, layer, INSTANCES, averages=True)
    if isinstance(layer, _BatchNorm):
        return Site(name, layer, stays=isinstance(layer, nn.SyncBatchNorm))  # off CUDA it does not train
    return UNKNOWN


def _of_source(name: str, layer: Any) -> Site | str:
    source: Source = layer.source
    if "running_mean" not in source.names:
        return f"{source} remembers a reference: record it anew, with hs.recording(): model(batch)"
    if is_lazy(layer.running_mean):
        return "it has not seen an input yet"
    while isinstance(source, AROUND):
        source = source.inner
    if not isinstance(source, Running):
        return f"{layer.source} remembers otherwise than a running average"
    frame = layer.source.remembers(layer.frame)
    if frame.kept == layer.source.remembers(layer.state_frame).kept:
        return Site(name, layer, frame)
    if frame.kept[1:] == layer.state_frame.kept:
        return Site(name, layer, frame, averages=True)
    return "it remembers an average over groups that come and go"


def _by_behaviour(found: dict[str, Any], name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
    try:
        one = by_behaviour(name, layer, args, kwargs)
    except Unfit:
        return
    if one is not None and one.source == RUNNING and one.frame == CHANNELS:
        found[name] = Site(name, layer, stays=True)


@contextmanager
def hooked(taken: list[Site], f: Callable[..., None]) -> Iterator[None]:
    """f(site, layer, args, kwargs) before every call."""
    hooks = [site.layer.register_forward_pre_hook(partial(f, site), with_kwargs=True) for site in taken]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def by_batch(taken: list[Site]) -> Iterator[None]:
    """These layers trust the batch at hand and nothing else, whatever their source; each domain by itself."""
    held = [(site.layer, site.layer.__dict__.get("_given"), site.layer.__dict__.get("source")) for site in taken]
    for layer, _given, source in held:
        layer.training = True
        if isinstance(layer, Preset):
            layer._given = _batch(layer.source)
        elif source is not None:
            layer.source = _batch(source)
    try:
        yield
    finally:
        for layer, given_, source in held:
            layer.training = False
            if isinstance(layer, Preset):
                layer._given = given_
            elif source is not None:
                layer.source = source


def _batch(source: Source) -> Source:
    while isinstance(source, Wrapped) and not isinstance(source, Domain):
        source = source.inner
    return replace(source, inner=BATCH) if isinstance(source, Domain) else BATCH
