"""Behaviour: is a module a norm, whatever its class?

It is if, per group of its input, all of these hold:

    f(k x) = f(x)                                      scale is taken away
    f(x + small) differs from f(x) by about as much    so it does not merely saturate, as softmax and tanh do
    f(x) at one half of a group stays as it is         when the other half is drawn anew with the same mean and
                                                       variance: nothing else of the group matters

It is centred if f(x + s) = f(x) besides. Everything is done to a copy in double, on inputs so large that eps is small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homeostat.recognising.found import BATCH, RUNNING, SAMPLE, Found
from homeostat.recognising.groups import KEPT, LABEL, POOLED, Axis, axes_of, codes_of, frame_of, moved, numbered
from homeostat.recognising.stored import stored_axes
from homeostat.recognising.subject import NoNorm, Subject, Unfit

SAME = 1e-4  # of the largest y: modules may compute in float32 whatever they are given
EPS = ("eps", "epsilon", "variance_epsilon", "layer_norm_eps")


@torch.no_grad()
def by_behaviour(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Found | None:
    """The norm that a module is; None if it is none. Unfit says why it could not be tried, or put in a frame."""
    try:
        subject = Subject(module, args, kwargs)
    except NoNorm:
        return None
    if not _awake(subject):
        return None
    if not _takes_scale_away(subject):
        return _by_memory(name, module, subject)
    x = subject.x
    bases = [z for draw in (x, subject.again(2)) for z in (draw, -draw)]
    axes = axes_of(subject, bases)
    codes = codes_of(axes)
    if int(codes.max()) + 1 == codes.numel():
        return None  # every element by itself
    if not _same(subject(x), subject(x * _per_group(codes).exp())):
        raise Unfit("it behaves like a norm, but not every group by itself")
    centers = _centers(subject, axes)
    inner = codes if centers is None else codes_of(centers)
    if not _only_moments_matter(subject, codes, inner):
        if _is_scaled(subject, codes, None if centers is None else inner):
            raise Unfit("it behaves like a norm, but divides by something else than a spread or a root mean square")
        return None  # it mixes what it normalized
    return _described(name, module, subject, bases, axes, centers)


def _described(
    name: str, module: nn.Module, subject: Subject, bases: list[Tensor], axes: list[Axis], centers: list[Axis] | None
) -> Found:
    gained = _gained(subject, bases)
    frame, gain, sizes = frame_of(axes, gained, centers is None or centers is axes)
    center = None if centers is None else frame if centers is axes else frame_of(centers, gained, False)[0]
    source = RUNNING if subject.training else SAMPLE if axes[0].kind in (KEPT, LABEL) else BATCH
    inner = None if centers is None else codes_of(centers)
    fused = bool(subject.beside) or not _is_affine(subject, codes_of(axes), inner)
    shape = tuple(subject.given.shape)
    return Found(
        name, type(module).__name__, frame, center, source, gain, _eps(module), fused, "behaviour", sizes, shape
    )


def _by_memory(name: str, module: nn.Module, subject: Subject) -> Found | None:
    subject.training, subject.fill, subject.output = False, None, 0
    axes = stored_axes(subject)
    if axes is None:
        return None
    frame, gain, _ = frame_of(axes, _gained(subject, [subject.x, -subject.x]), True)
    shape = tuple(subject.given.shape)
    return Found(name, type(module).__name__, frame, frame, RUNNING, gain, _eps(module), False, "behaviour", {}, shape)


def _eps(module: nn.Module) -> float | None:
    return next((value for word in EPS if isinstance(value := getattr(module, word, None), float)), None)


def _awake(subject: Subject) -> bool:
    """Something comes out that depends on x; gains that are all 0 are lifted to see it."""
    if _varies(subject):
        return True
    for p in subject.module.parameters():
        if not p.any():
            p.add_(1)
    return _varies(subject)


def _varies(subject: Subject) -> bool:
    y = subject(subject.x)
    return bool(torch.isfinite(y).all()) and bool(y.std() > 0)


def _takes_scale_away(subject: Subject) -> bool:
    """In evaluation, or else in training; whatever is added to x, or multiplied; in one of the outputs."""
    for training in (False, True):
        for fill in (0.0, 1.0, None) if subject.beside else (None,):
            subject.training, subject.fill = training, fill
            for output in range(subject.outputs):
                subject.output = output
                if _same(subject(subject.x), subject(subject.x * 8)) and _follows(subject):
                    return True
    return False


def _follows(subject: Subject) -> bool:
    """A change of x by a thousandth changes y by about as much."""
    x = subject.x
    y, z = subject(x), subject(x + subject.again(3) / 1000)
    step = float((z - y).norm() / y.norm().clamp_min(1e-300))
    return 1e-4 < step < 1e-1


def _same(y: Tensor, z: Tensor) -> bool:
    return bool((z - y).abs().max() <= SAME * y.abs().max())  # False where one is NaN


# ---------------------------------------------------------------- groups by number


def _per_group(codes: Tensor, seed: int = 4) -> Tensor:
    """A number for each group, spread over its elements."""
    drawn = torch.randn(int(codes.max()) + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(codes.device)[codes]


def _mean(x: Tensor, codes: Tensor) -> Tensor:
    """The mean of each group, spread over its elements."""
    flat, n = codes.flatten(), int(codes.max()) + 1
    total = torch.zeros(n, dtype=x.dtype, device=x.device).index_add_(0, flat, x.flatten())
    return (total / torch.bincount(flat, minlength=n))[codes]


def _centers(subject: Subject, axes: list[Axis]) -> list[Axis] | None:
    """The groups whose mean is taken away: those of the scale, or smaller ones; None if none is."""
    x, y = subject.x, subject(subject.x)
    size = x.square().mean().sqrt()

    def free(groups: list[Axis]) -> bool:
        return _same(y, subject(x + size * _per_group(codes_of(groups))))

    if not free(axes):
        return None
    best = axes
    for i, axis in enumerate(axes):
        if axis.kind == POOLED and len(axis.codes) > 1:
            finer = [*best[:i], Axis(KEPT, torch.arange(len(axis.codes), device=x.device)), *best[i + 1 :]]
            if any(other.kind != KEPT for other in finer) and free(finer):
                best = finer
    return best


def _only_moments_matter(subject: Subject, codes: Tensor, inner: Tensor) -> bool:
    """Does a third of each group stay, when the rest is drawn anew with the same mean and variance?"""
    x, fresh = subject.x, subject.again(5)
    order = torch.rand(x.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(x.device)
    stays = order < 1 / 3
    parts = numbered(inner * 2 + stays)
    mean, new = _mean(x, parts), _mean(fresh, parts)
    spread, its = ((z - m).square() for z, m in ((x, mean), (fresh, new)))
    ratio = (_mean(spread, parts) / _mean(its, parts).clamp_min(1e-300)).sqrt()
    z = torch.where(stays, x, mean + (fresh - new) * ratio)
    y, after = subject(x), subject(z)
    if not bool((after - y).abs().max() > 1e-2 * y.abs().max()):
        return False
    return bool((after - y)[stays].abs().max() <= SAME * y.abs().max()) if stays.any() else False


def _is_affine(subject: Subject, codes: Tensor, inner: Tensor | None) -> bool:
    """Is y = w z + b at every element, z normalized by the groups found?"""
    points = []
    for x in (subject.x, subject.again(2), subject.again(3)):
        d = x if inner is None else x - _mean(x, inner)
        points.append((d / _mean(d.square(), codes).sqrt(), subject(x)))
    (z1, y1), (z2, y2), (z3, y3) = points
    left, right = (y1 - y2) * (z1 - z3), (y1 - y3) * (z1 - z2)
    return bool((left - right).abs().max() <= 1e-3 * left.abs().max())


def _is_scaled(subject: Subject, codes: Tensor, inner: Tensor | None) -> bool:
    """Is y = w d / s at every element, d = x or x - mean, s any one number of the group?"""
    ratios = []
    for x in (subject.x, subject.again(2)):
        d = x if inner is None else x - _mean(x, inner)
        ratios.append(subject(x) / d)
    ratio = ratios[0] / ratios[1]
    return _same(ratio, _mean(ratio, codes))


def _gained(subject: Subject, bases: list[Tensor]) -> list[int] | None:
    """The axes along which what is learned differs; None where nothing learned matters."""
    own: set[int] = set()
    matters = False
    for p in subject.module.parameters():
        before, value = [subject(x) for x in bases], p.clone()
        p[tuple(n // 2 for n in p.shape)] += 1
        hit = moved(before, [subject(x) for x in bases])
        p.copy_(value)
        if hit.any():
            matters = True
            for axis, n in enumerate(hit.shape):
                others = [a for a in range(hit.dim()) if a != axis]
                if n > 1 and int((hit.sum(others) > 0).sum()) < n:
                    own.add(axis)
    return sorted(own) if matters else None
