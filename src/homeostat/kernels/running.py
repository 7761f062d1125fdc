"""The guarded update of running statistics in one native call, where tensor operations would be a dozen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from homeostat.kernels import cpu, fused
from homeostat.moments import Moments

DTYPES = (torch.float32, torch.float64)


def update_running(
    mean: Tensor, var: Tensor, tracked: Tensor, skipped: Tensor, m: Moments, momentum: float | None
) -> bool:
    """Running.step and memory's guard at once; False where it does not apply, and nothing has changed."""
    buffers = (mean, var, tracked, skipped)
    if cpu.native is None or not isinstance(m.count, float):
        return False
    if not all(fused.is_plain(t) and t.is_contiguous() for t in buffers):
        return False
    if mean.dtype not in DTYPES or mean.dtype != var.dtype or tracked.dtype != torch.int64:
        return False
    if not (mean.shape == var.shape == m.mean.shape == m.m2.shape) or mean.numel() == 0:
        return False  # tensor operations will say what does not fit
    if m.mean.dtype != torch.float64 or not fused.is_plain(m.mean) or not fused.is_plain(m.m2):
        return False
    seen_mean, seen_m2 = m.mean.contiguous(), m.m2.contiguous()
    cpu.native.update_running(
        mean.data_ptr(),
        var.data_ptr(),
        tracked.data_ptr(),
        skipped.data_ptr(),
        seen_mean.data_ptr(),
        seen_m2.data_ptr(),
        m.count,
        mean.numel(),
        math.nan if momentum is None else momentum,
        mean.dtype == torch.float64,
    )
    written = tuple(t for t in buffers if not t.is_inference())  # those have no version
    torch._C._autograd._unsafe_set_version_counter(written, tuple(t._version + 1 for t in written))
    return True
