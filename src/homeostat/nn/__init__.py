"""torch.nn's norms with the same signatures, defaults, state_dict keys and errors, a `source=` and a `gain=`.

Each is a sentence over frame, source and gain:

    BatchNorm      n c ... -> c          Running or Batch      gain c
    InstanceNorm   n c ... -> n c        Batch or Running      gain c
    GroupNorm      n (g c) ... -> n g    Batch                 gain (g c)
    LayerNorm      ... d -> ...          Batch                 gain d
    RMSNorm        the same, not centred
"""

from __future__ import annotations

from homeostat.nn.adaptive import SPADE as SPADE
from homeostat.nn.adaptive import AdaGroupNorm as AdaGroupNorm
from homeostat.nn.adaptive import AdaIN as AdaIN
from homeostat.nn.adaptive import AdaLayerNorm as AdaLayerNorm
from homeostat.nn.adaptive import AdaRMSNorm as AdaRMSNorm
from homeostat.nn.adaptive import ConditionalBatchNorm as ConditionalBatchNorm
from homeostat.nn.adaptive import FiLMBatchNorm as FiLMBatchNorm
from homeostat.nn.batch import BatchNorm1d as BatchNorm1d
from homeostat.nn.batch import BatchNorm2d as BatchNorm2d
from homeostat.nn.batch import BatchNorm3d as BatchNorm3d
from homeostat.nn.batch import LazyBatchNorm1d as LazyBatchNorm1d
from homeostat.nn.batch import LazyBatchNorm2d as LazyBatchNorm2d
from homeostat.nn.batch import LazyBatchNorm3d as LazyBatchNorm3d
from homeostat.nn.graph import DiffGroupNorm as DiffGroupNorm
from homeostat.nn.graph import GraphInstanceNorm as GraphInstanceNorm
from homeostat.nn.graph import GraphLayerNorm as GraphLayerNorm
from homeostat.nn.graph import GraphNorm as GraphNorm
from homeostat.nn.graph import GraphSizeNorm as GraphSizeNorm
from homeostat.nn.graph import HeteroNorm as HeteroNorm
from homeostat.nn.graph import MeanSubtraction as MeanSubtraction
from homeostat.nn.graph import MessageNorm as MessageNorm
from homeostat.nn.graph import NodeNorm as NodeNorm
from homeostat.nn.graph import PairNorm as PairNorm
from homeostat.nn.instance import InstanceNorm1d as InstanceNorm1d
from homeostat.nn.instance import InstanceNorm2d as InstanceNorm2d
from homeostat.nn.instance import InstanceNorm3d as InstanceNorm3d
from homeostat.nn.instance import LazyInstanceNorm1d as LazyInstanceNorm1d
from homeostat.nn.instance import LazyInstanceNorm2d as LazyInstanceNorm2d
from homeostat.nn.instance import LazyInstanceNorm3d as LazyInstanceNorm3d
from homeostat.nn.layer import GroupNorm as GroupNorm
from homeostat.nn.layer import LayerNorm as LayerNorm
from homeostat.nn.layer import RMSNorm as RMSNorm
from homeostat.nn.online import OnlineNorm as OnlineNorm
from homeostat.nn.pictures import FRN as FRN
from homeostat.nn.pictures import GRN as GRN
from homeostat.nn.pictures import IBN as IBN
from homeostat.nn.pictures import LRN as LRN
from homeostat.nn.pictures import PONO as PONO
from homeostat.nn.pictures import TLU as TLU
from homeostat.nn.pictures import EvoNormB0 as EvoNormB0
from homeostat.nn.pictures import EvoNormS0 as EvoNormS0
from homeostat.nn.pictures import L2Norm as L2Norm
from homeostat.nn.pictures import PartialRMSNorm as PartialRMSNorm
from homeostat.nn.pictures import ScaleNorm as ScaleNorm
from homeostat.nn.plain import Derf as Derf
from homeostat.nn.plain import DyT as DyT
from homeostat.nn.plain import LayerScale as LayerScale
from homeostat.nn.plain import ReZero as ReZero
from homeostat.nn.power import PowerNorm as PowerNorm
from homeostat.nn.residual import Residual as Residual
from homeostat.nn.residual import initial_gain as initial_gain
from homeostat.nn.series import DAIN as DAIN
from homeostat.nn.series import Reversible as Reversible
from homeostat.nn.structured import ExpertNorm as ExpertNorm
from homeostat.nn.structured import GemmaRMSNorm as GemmaRMSNorm
from homeostat.nn.structured import HeadNorm as HeadNorm
from homeostat.nn.structured import HeadScale as HeadScale
from homeostat.nn.structured import ModalityNorm as ModalityNorm
from homeostat.nn.structured import OrbitNorm as OrbitNorm
from homeostat.nn.structured import QKNorm as QKNorm
from homeostat.nn.structured import SectorNorm as SectorNorm
from homeostat.nn.weights import WeightNorm as WeightNorm
from homeostat.nn.weights import WeightStandardization as WeightStandardization
from homeostat.nn.weights import normalize_weight as normalize_weight
from homeostat.nn.weights import spectral_weight as spectral_weight
from homeostat.nn.weights import standardize_weight as standardize_weight
from homeostat.norm import Norm as Norm

__all__ = [
    "AdaGroupNorm",
    "AdaIN",
    "AdaLayerNorm",
    "AdaRMSNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConditionalBatchNorm",
    "DAIN",
    "Derf",
    "DiffGroupNorm",
    "DyT",
    "EvoNormB0",
    "EvoNormS0",
    "ExpertNorm",
    "FRN",
    "FiLMBatchNorm",
    "GRN",
    "GemmaRMSNorm",
    "GraphInstanceNorm",
    "GraphLayerNorm",
    "GraphNorm",
    "GraphSizeNorm",
    "GroupNorm",
    "HeadNorm",
    "HeadScale",
    "HeteroNorm",
    "IBN",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "L2Norm",
    "LRN",
    "LayerNorm",
    "LayerScale",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "MeanSubtraction",
    "MessageNorm",
    "ModalityNorm",
    "NodeNorm",
    "Norm",
    "OnlineNorm",
    "OrbitNorm",
    "PONO",
    "PairNorm",
    "PartialRMSNorm",
    "PowerNorm",
    "QKNorm",
    "RMSNorm",
    "ReZero",
    "Residual",
    "Reversible",
    "SPADE",
    "ScaleNorm",
    "SectorNorm",
    "TLU",
    "WeightNorm",
    "WeightStandardization",
    "initial_gain",
    "normalize_weight",
    "spectral_weight",
    "standardize_weight",
]
