"""Stored: a norm by remembered statistics alone, in training too, known by what its memory does.

f(k x; 0, k^2 v) = f(x; 0, v)        f(x + s; s, v) = f(x; 0, v)
"""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.recognising.groups import KEPT, POOLED, Axis, moved
from homeostat.recognising.subject import SIZE, Subject

SAME = 1e-4


def stored_axes(subject: Subject) -> list[Axis] | None:
    """What each axis is to the memory of a module; None if it does not normalize by one."""
    memory = [getattr(subject.module, name, None) for name in ("running_mean", "running_var")]
    if not all(isinstance(b, Tensor) and b.is_floating_point() for b in memory):
        return None
    mean, var = (next(value for b, value in subject.held if b is one) for one in memory)
    x = subject.x
    mean.zero_(), var.fill_(SIZE**2)
    y = subject(x)
    var.mul_(64)
    scaled = subject(x * 8)
    var.div_(64)
    mean.fill_(SIZE)
    shifted = subject(x + SIZE)
    mean.view(-1)[len(mean) // 2] += SIZE
    hit = moved([shifted], [subject(x + SIZE)])
    if (
        not y.std() > 0
        or not hit.any()
        or max((scaled - y).abs().max(), (shifted - y).abs().max()) > SAME * y.abs().max()
    ):
        return None
    return [_axis(hit, axis) for axis in range(x.dim())]


def _axis(hit: Tensor, axis: int) -> Axis:
    n = hit.shape[axis]
    others = [a for a in range(hit.dim()) if a != axis]
    kept = n > 1 and int((hit.sum(others) > 0).sum()) < n
    return Axis(KEPT if kept else POOLED, torch.arange(n, device=hit.device) * kept)
