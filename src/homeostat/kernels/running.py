"""The guarded update of running statistics in one native call, where tensor operations would be a dozen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from homeostat.kernels import cpu, fused, task
from homeostat.moments import Moments

DTYPES = fused.DTYPES | {torch.float64: task.DOUBLE}


def update_running(
    mean: Tensor, var: Tensor, tracked: Tensor, skipped: Tensor, m: Moments, momentum: float | None
) -> bool:
    """Running.step and memory's guard at once; False where it does not apply, and nothing has changed.

    `tracked` counts the updates of all groups, or of each row of them.
    """
    dtype = DTYPES.get(mean.dtype)
    if cpu.native is None or dtype is None or mean.dtype is not var.dtype or tracked.dtype is not torch.int64:
        return False
    buffers = (mean, var, tracked, skipped)
    for t in buffers:
        if type(t) is not Tensor or not t.is_cpu or t.is_neg() or not t.is_contiguous():
            return False
    found = _seen(m, mean) if mean.shape == var.shape else None
    if found is None:
        return False
    at, count, held = found
    cpu.native.update_running(
        mean.data_ptr(),
        var.data_ptr(),
        tracked.data_ptr(),
        skipped.data_ptr(),
        *at,
        count,
        mean.numel(),
        math.nan if momentum is None else momentum,
        dtype,
        tracked.numel(),
    )
    del held
    torch._C._increment_version(buffers)  # autograd sees a write
    return True


def _seen(m: Moments, mean: Tensor) -> tuple[tuple[int, int, int], float, object] | None:
    """Addresses of mean, M2 and count (0 if it is one number), that number, and what must live as long as they."""
    if isinstance(m, fused.Measured):
        if m.groups != tuple(mean.shape):
            return None
        at = m.addresses
        return (at, 0.0, m) if m.pool is None else ((at[0], at[1], 0), m.pool, m)
    count = m.count
    if not (mean.shape == m.mean.shape == m.m2.shape) or mean.numel() == 0:
        return None  # tensor operations will say what does not fit
    if m.mean.dtype is not torch.float64 or not fused.is_plain(m.mean) or not fused.is_plain(m.m2):
        return None
    seen = m.mean.contiguous(), m.m2.contiguous()
    if isinstance(count, float):
        return (seen[0].data_ptr(), seen[1].data_ptr(), 0), count, seen
    if not fused.is_plain(count) or count.dtype is not torch.float64:
        return None
    count = count.expand(mean.shape).contiguous()
    return (seen[0].data_ptr(), seen[1].data_ptr(), count.data_ptr()), 0.0, (seen, count)
