"""homeostat: choose, check and repair normalization.

Normalizing is choosing a frame of reference: who shares a statistic, where the statistic comes from, what is put back.

>>> import numpy as np, homeostat as hs
>>> hs.normalize(np.array([[1.0, 2.0], [3.0, 6.0]]), "row col -> col", eps=0.0)
array([[-1., -1.],
       [ 1.,  1.]])

Arrays may be NumPy, torch, JAX or Dask; none but NumPy is imported before you use it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from homeostat import kernels as kernels
from homeostat.affine import Affine as Affine
from homeostat.choosing import Choice as Choice
from homeostat.choosing import choose as choose
from homeostat.frame import Frame as Frame
from homeostat.frame import FrameError as FrameError
from homeostat.frame import ShapeError as ShapeError
from homeostat.gains import Around as Around
from homeostat.gains import Balanced as Balanced
from homeostat.gains import Conditional as Conditional
from homeostat.gains import FiLM as FiLM
from homeostat.gains import Gain as Gain
from homeostat.gains import Given as Given
from homeostat.gains import Learned as Learned
from homeostat.gains import Spatial as Spatial
from homeostat.gains import Style as Style
from homeostat.moments import Moments as Moments
from homeostat.noise import Noise as Noise
from homeostat.noise import expected_noise as expected_noise
from homeostat.noise import groups_for as groups_for
from homeostat.noise import sharing_tax as sharing_tax
from homeostat.reading import Reading as Reading
from homeostat.reading import measure as measure
from homeostat.reading import normalize as normalize
from homeostat.sources import Batch as Batch
from homeostat.sources import Blended as Blended
from homeostat.sources import By as By
from homeostat.sources import Cumulative as Cumulative
from homeostat.sources import Domain as Domain
from homeostat.sources import Frozen as Frozen
from homeostat.sources import Ghost as Ghost
from homeostat.sources import Mixed as Mixed
from homeostat.sources import Partial as Partial
from homeostat.sources import Renorm as Renorm
from homeostat.sources import Running as Running
from homeostat.sources import Shrunk as Shrunk
from homeostat.sources import Source as Source
from homeostat.sources import Synced as Synced
from homeostat.sources import Virtual as Virtual
from homeostat.sources import optimal_momentum as optimal_momentum
from homeostat.sources import recording as recording

if TYPE_CHECKING:
    from homeostat import nn as nn
    from homeostat.doctor import check as check
    from homeostat.doctor import explain as explain
    from homeostat.doctor.report import Report as Report
    from homeostat.forward import given as given
    from homeostat.machines import Drift as Drift
    from homeostat.machines import RankError as RankError
    from homeostat.machines import as_one as as_one
    from homeostat.machines import drift as drift
    from homeostat.machines import sync as sync
    from homeostat.machines import unsync as unsync
    from homeostat.machines.accumulate import accumulate as accumulate
    from homeostat.machines.pool import pool as pool
    from homeostat.nn.adopt import adopt as adopt
    from homeostat.nn.adopt import release as release
    from homeostat.nn.coupling import Coupling as Coupling
    from homeostat.nn.coupling import coupling as coupling
    from homeostat.nn.identity import identity_on as identity_on
    from homeostat.nn.states import trial as trial
    from homeostat.nn.style import restyle as restyle
    from homeostat.nn.style import styles as styles
    from homeostat.nn.symmetry import assert_equivariant as assert_equivariant
    from homeostat.norm import Norm as Norm
    from homeostat.recognising import recognise as recognise
    from homeostat.surgery import Certificate as Certificate
    from homeostat.surgery import recalibrate as recalibrate
    from homeostat.surgery import shift as shift
    from homeostat.surgery.fold import fold as fold
    from homeostat.surgery.freeze import freeze as freeze
    from homeostat.surgery.freeze import unfreeze as unfreeze
    from homeostat.surgery.insert import insert as insert
    from homeostat.surgery.replace import replace as replace

__version__ = "0.1.0"

# What needs torch is imported on first use.
_LAZY = {
    "nn": "homeostat.nn",
    "check": "homeostat.doctor",
    "explain": "homeostat.doctor",
    "Report": "homeostat.doctor",
    "Norm": "homeostat.norm",
    "adopt": "homeostat.nn.adopt",
    "release": "homeostat.nn.adopt",
    "trial": "homeostat.nn.states",
    "given": "homeostat.forward",
    "Drift": "homeostat.machines",
    "RankError": "homeostat.machines",
    "accumulate": "homeostat.machines",
    "as_one": "homeostat.machines",
    "drift": "homeostat.machines",
    "pool": "homeostat.machines",
    "sync": "homeostat.machines",
    "unsync": "homeostat.machines",
    "Coupling": "homeostat.nn.coupling",
    "coupling": "homeostat.nn.coupling",
    "identity_on": "homeostat.nn.identity",
    "restyle": "homeostat.nn.style",
    "styles": "homeostat.nn.style",
    "assert_equivariant": "homeostat.nn.symmetry",
    "recognise": "homeostat.recognising",
    "Certificate": "homeostat.surgery",
    "fold": "homeostat.surgery",
    "freeze": "homeostat.surgery",
    "recalibrate": "homeostat.surgery",
    "insert": "homeostat.surgery",
    "replace": "homeostat.surgery",
    "shift": "homeostat.surgery",
    "unfreeze": "homeostat.surgery",
}

__all__ = [
    "Affine",
    "Around",
    "Balanced",
    "Batch",
    "Blended",
    "By",
    "Certificate",
    "Choice",
    "Conditional",
    "Coupling",
    "Cumulative",
    "Domain",
    "Drift",
    "FiLM",
    "Frame",
    "FrameError",
    "Frozen",
    "Gain",
    "Ghost",
    "Given",
    "Learned",
    "Mixed",
    "Moments",
    "Noise",
    "Norm",
    "Partial",
    "RankError",
    "Reading",
    "Renorm",
    "Report",
    "Running",
    "ShapeError",
    "Shrunk",
    "Source",
    "Spatial",
    "Style",
    "Synced",
    "Virtual",
    "accumulate",
    "adopt",
    "as_one",
    "assert_equivariant",
    "check",
    "choose",
    "coupling",
    "drift",
    "expected_noise",
    "explain",
    "fold",
    "freeze",
    "given",
    "groups_for",
    "identity_on",
    "insert",
    "kernels",
    "measure",
    "nn",
    "normalize",
    "optimal_momentum",
    "pool",
    "recalibrate",
    "recognise",
    "recording",
    "release",
    "replace",
    "restyle",
    "sharing_tax",
    "shift",
    "styles",
    "sync",
    "trial",
    "unfreeze",
    "unsync",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'homeostat' has no attribute {name!r}")
    try:
        module = import_module(_LAZY[name])
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"homeostat.{name} needs torch: pip install 'homeostat[torch]'") from error
    value = module if name == "nn" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
