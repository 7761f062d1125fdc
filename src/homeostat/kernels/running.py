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
    """Running.step and memory's guard at once; False where it does not apply, and nothing has changed."""
    buffers = (mean, var, tracked, skipped)
    dtype = DTYPES.get(mean.dtype)
    if cpu.native is None or dtype is None or mean.dtype is not var.dtype or tracked.dtype is not torch.int64:
        return False
    for t in buffers:
        if not (fused.is_plain(t) and t.is_contiguous()):
            return False
    if not (mean.shape == var.shape == m.mean.shape == m.m2.shape) or mean.numel() == 0:
        return False  # tensor operations will say what does not fit
    if m.mean.dtype is not torch.float64 or not fused.is_plain(m.mean) or not fused.is_plain(m.m2):
        return False
    count = m.count
    if not isinstance(count, float):
        if not fused.is_plain(count) or count.dtype is not torch.float64:
            return False
        count = count.expand(mean.shape).contiguous()
    seen_mean, seen_m2 = m.mean.contiguous(), m.m2.contiguous()
    cpu.native.update_running(
        mean.data_ptr(),
        var.data_ptr(),
        tracked.data_ptr(),
        skipped.data_ptr(),
        seen_mean.data_ptr(),
        seen_m2.data_ptr(),
        0 if isinstance(count, float) else count.data_ptr(),
        count if isinstance(count, float) else 0.0,
        mean.numel(),
        math.nan if momentum is None else momentum,
        dtype,
    )
    written = tuple(t for t in buffers if not t.is_inference())  # those have no version
    torch._C._autograd._unsafe_set_version_counter(written, tuple([t._version + 1 for t in written]))
    return True
