"""The same act on a weight: a norm as a parametrization, so that every use of the weight sees it normalized.

    standardize_weight(conv)      W_o <- (W_o - mean_o) / sqrt(var_o + eps)        o an output
    normalize_weight(linear)      W_o <- g_o W_o / |W_o|                           weight norm, g learned
    spectral_weight(linear)       W <- W / largest singular value                  torch's power iteration

The last is no frame: its scale is a matrix norm, found by iteration, and torch's parametrization serves.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from homeostat.gains import Learned
from homeostat.norm import Norm

M = TypeVar("M", bound=nn.Module)


class WeightStandardization(Norm):
    """(W_o - mean_o) / sqrt(var_o + eps) for every output o. Qiao et al. 2019, arXiv:1903.10520."""

    def __init__(self, eps: float = 1e-5, **kind: Any) -> None:
        super().__init__("o ... -> o", eps=eps, **kind)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Any weight may be standardized."""
        return weight


class WeightNorm(Norm):
    """g_o W_o / |W_o|; the gain starts at |W_o| / sqrt(n), so that the weight is what it was.

    n weights of a row have |W_o| = sqrt(n) times their root mean square, which is what is measured.
    Salimans & Kingma 2016, arXiv:1602.07868.
    """

    def __init__(self, outputs: int, eps: float = 1e-24, **kind: Any) -> None:
        super().__init__("o ... -> o", gain=Learned("o", bias=False), eps=eps, center=False, o=outputs, **kind)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The gain takes the length of what the weight is set to."""
        assert self.weight is not None
        with torch.no_grad():
            self.weight.copy_(weight.flatten(1).square().mean(1).sqrt())
        return weight


def standardize_weight(module: M, name: str = "weight", eps: float = 1e-5) -> M:
    """Standardize this weight wherever it is used."""
    parametrize.register_parametrization(module, name, WeightStandardization(eps), unsafe=True)
    return module


def normalize_weight(module: M, name: str = "weight") -> M:
    """Part this weight into direction and learned length; the function stays as it was."""
    weight = getattr(module, name)
    norm = WeightNorm(weight.shape[0], device=weight.device, dtype=weight.dtype)
    parametrize.register_parametrization(module, name, norm, unsafe=True)
    return module


def spectral_weight(module: M, name: str = "weight", **kwargs: Any) -> M:
    """Divide this weight by its largest singular value (torch.nn.utils.parametrizations.spectral_norm)."""
    parametrizations.spectral_norm(module, name, **kwargs)
    return module
