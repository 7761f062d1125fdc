"""torch.nn's norms with the same signatures, defaults, state_dict keys and errors, and a `source=`.

Each is a sentence over frame, source and gain:

    BatchNorm      n c ... -> c          Running or Batch      gain c
    InstanceNorm   n c ... -> n c        Batch or Running      gain c
    GroupNorm      n (g c) ... -> n g    Batch                 gain (g c)
    LayerNorm      ... d -> ...          Batch                 gain d
    RMSNorm        the same, not centred
"""

from __future__ import annotations

from homeostat.nn.batch import BatchNorm1d as BatchNorm1d
from homeostat.nn.batch import BatchNorm2d as BatchNorm2d
from homeostat.nn.batch import BatchNorm3d as BatchNorm3d
from homeostat.nn.batch import LazyBatchNorm1d as LazyBatchNorm1d
from homeostat.nn.batch import LazyBatchNorm2d as LazyBatchNorm2d
from homeostat.nn.batch import LazyBatchNorm3d as LazyBatchNorm3d
from homeostat.nn.instance import InstanceNorm1d as InstanceNorm1d
from homeostat.nn.instance import InstanceNorm2d as InstanceNorm2d
from homeostat.nn.instance import InstanceNorm3d as InstanceNorm3d
from homeostat.nn.instance import LazyInstanceNorm1d as LazyInstanceNorm1d
from homeostat.nn.instance import LazyInstanceNorm2d as LazyInstanceNorm2d
from homeostat.nn.instance import LazyInstanceNorm3d as LazyInstanceNorm3d
from homeostat.nn.layer import GroupNorm as GroupNorm
from homeostat.nn.layer import LayerNorm as LayerNorm
from homeostat.nn.layer import RMSNorm as RMSNorm
from homeostat.nn.power import PowerNorm as PowerNorm
from homeostat.norm import Norm as Norm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "Norm",
    "PowerNorm",
    "RMSNorm",
]
