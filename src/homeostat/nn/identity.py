"""Identity: the gain with which a norm gives back what it is given, or what another layer makes of it."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from homeostat import ops
from homeostat.errors import check_callable, said
from homeostat.frame import ShapeError
from homeostat.gains import Learned
from homeostat.kernels.reference import Job
from homeostat.nn.inputs import check_awake
from homeostat.nn.states import trial
from homeostat.plan import plan_for
from homeostat.reading import measure
from homeostat.sources import Batch, Frozen, Ghost, Renorm, Running, Shrunk, Synced


def identity_on(norm: Any, batches: Iterable[Tensor], wanted: Callable[[Tensor], Tensor] | None = None) -> float:
    """Set the gain of a norm so that on these batches it gives back what it is given, as nearly as it can.

    Per group of its gain, y w + b is the least-squares line from what the norm makes of x to what is wanted: x itself,
    or wanted(x), such as the layer that this one replaces. A source's memory takes the batches in first, all alike, and
    the fit is for evaluation. Returns what is left: the root of |y - wanted|^2 / |wanted - its mean|^2.
    """
    _check_gain(norm)
    data = _batches(batches)
    target = _wanted(wanted)
    before = copy.deepcopy(norm.state_dict())
    training = norm.training
    try:
        with torch.no_grad():
            norm.weight.fill_(1.0)
            if norm.bias is not None:
                norm.bias.zero_()
            _take_in(norm, data)
            norm.eval()
            pairs = [(norm(x), target(x)) for x in data]
            w, b = _line([_sums(norm, y, t) for y, t in pairs], norm.bias is not None)
            if not (torch.isfinite(w).all() and torch.isfinite(b).all()):
                raise ValueError(
                    "identity_on: these batches, or what is wanted of them, have values that are not finite, or a "
                    "single value per statistic; the norm stays as it was."
                )
            norm.weight.copy_(w)
            if norm.bias is not None:
                norm.bias.copy_(b)
            left = [(norm(x).double() - t.double()).square().sum() for x, (_, t) in zip(data, pairs, strict=True)]
    except BaseException:
        norm.load_state_dict(before)
        raise
    finally:
        norm.train(training)
    whole = torch.cat([t.double().flatten() for _, t in pairs])
    size = float((whole - whole.mean()).square().sum())
    return math.sqrt(float(torch.stack(left).sum()) / size) if size > 0 else 0.0


def _batches(given: Any) -> list[Tensor]:
    """Held, for they are needed twice and a generator gives them once."""
    if isinstance(given, Tensor | dict | str) or not hasattr(given, "__iter__"):
        raise TypeError(f"batches is {said(given)}: give several tensors, [x] for one.")
    data = list(given)
    if not data:
        raise ValueError("identity_on needs at least one batch.")
    for i, x in enumerate(data):
        if not isinstance(x, Tensor) or not x.numel():
            raise TypeError(f"batches[{i}] is {said(x)}: each is a tensor with values, what the norm is to be given.")
    return [x.detach() for x in data]


def _wanted(given: Any) -> Callable[[Tensor], Tensor]:
    """x itself, or a function whose memory stays as it was."""
    if given is None:
        return lambda x: x
    check_callable("wanted", given)

    def target(x: Tensor) -> Tensor:
        with trial(given) if isinstance(given, nn.Module) else nullcontext():
            y = given(x)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = list(y.shape) if isinstance(y, Tensor) else said(y)
            raise ShapeError(f"wanted(x) is {got}: give a function that makes {list(x.shape)}, the shape of x, of x.")
        return y

    return target


def _check_gain(norm: Any) -> None:
    check_callable("norm", norm)
    check_awake("identity_on", norm)
    if getattr(norm, "weight", None) is None or getattr(norm, "gain_frame", None) is None:
        raise TypeError(
            f"{type(norm).__name__} has no gain to set: one of ours is wanted, with affine=True or gain=; "
            f"homeostat.adopt makes torch's ours."
        )
    gain = getattr(norm, "gain", None)
    if gain is not None and type(gain) is not Learned:
        raise TypeError(f"identity_on sets a gain that is learned as it stands; {gain} makes its own.")
    source = norm.source
    while isinstance(source, Frozen | Synced | Ghost | Shrunk):  # memory is the same without them
        source = source.inner
    if type(source) not in (Batch, Running, Renorm):
        raise TypeError(
            f"identity_on knows Batch, Running, Renorm and these frozen, synced, in parts or shrunk; {source} "
            f"remembers otherwise."
        )


def _take_in(norm: Any, data: list[Tensor]) -> None:
    """Memory becomes that of all these batches, measured together and counted."""
    if "running_mean" not in norm.source.names:
        return
    sizes: dict[str, Any] = _sizes(norm)
    m = reduce(operator.add, [measure(x, norm.state_frame, **sizes) for x in data])
    norm.running_mean.copy_(m.mean)
    norm.running_var.copy_(m.var(ddof=1))
    norm.num_batches_tracked.fill_(len(data))  # a cumulative mean would forget them at its next batch


def _sizes(norm: Any) -> dict[str, int]:
    if isinstance(norm, nn.GroupNorm):
        return {"g": norm.num_groups, "c": norm.num_channels // norm.num_groups}
    return dict(getattr(norm, "sizes", {}))


def _sums(norm: Any, y: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    """Per group of the gain: count, and means of y, t, y y, y t."""
    sizes = _sizes(norm)
    plan = plan_for(norm.gain_frame, tuple(y.shape), sizes)
    y, t = y.double(), t.double()
    parts = [ops.measure(z, Job(plan)).mean.reshape(norm.weight.shape) for z in (y, t, y * y, y * t)]
    return torch.full_like(parts[0], float(plan.pool)), *parts


def _line(sums: list[tuple[Tensor, ...]], bias: bool) -> tuple[Tensor, Tensor]:
    n = torch.stack([s[0] for s in sums])
    my, mt, yy, yt = ((n * torch.stack([s[i] for s in sums])).sum(0) / n.sum(0) for i in range(1, 5))
    if not bias:
        return yt / yy.clamp_min(1e-300), torch.zeros_like(my)
    spread = yy - my * my
    w = torch.where(spread > 0, (yt - my * mt) / spread.clamp_min(1e-300), torch.ones_like(my))
    return w, mt - w * my
