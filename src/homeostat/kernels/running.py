"""The guarded update of running statistics in one native call: 28 us of tensor operations become 3."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from homeostat.kernels import cpu
from homeostat.moments import Moments


def update_running(
    mean: Tensor, var: Tensor, tracked: Tensor, skipped: Tensor, m: Moments, momentum: float | None
) -> bool:
    """Running.step and memory's guard at once; False where it does not apply, and nothing has changed."""
    if cpu.native is None or not isinstance(m.count, float) or not _plain(mean, var, tracked, skipped, m.mean, m.m2):
        return False
    if mean.dtype not in (torch.float32, torch.float64) or mean.dtype != var.dtype or m.mean.dtype != torch.float64:
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
    for buffer in (mean, var, tracked, skipped):
        torch._C._autograd._unsafe_set_version_counter((buffer,), (buffer._version + 1,))
    return True


def _plain(*tensors: Any) -> bool:
    """Real memory on the CPU, contiguous but for the moments, which are made so."""
    return all(type(t) is Tensor and t.device.type == "cpu" for t in tensors) and all(
        t.is_contiguous() for t in tensors[:4]
    )
