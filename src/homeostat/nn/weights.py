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
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations, parametrize

from homeostat.errors import said
from homeostat.gains import Learned
from homeostat.norm import Norm
from homeostat.reading import measure

M = TypeVar("M", bound=nn.Module)
PLAIN = "o ... -> o"


class WeightStandardization(Norm):
    """(W_o - mean_o) / sqrt(var_o + eps) for every output o. Qiao et al. 2019, arXiv:1903.10520."""

    def __init__(self, eps: float = 1e-5, pattern: str = PLAIN, **kind: Any) -> None:
        super().__init__(pattern, eps=eps, **kind)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Any weight may be standardized."""
        return weight


class WeightNorm(Norm):
    """g_o W_o / |W_o|; the gain starts at |W_o| / sqrt(n), so that the weight is what it was.

    n weights of a row have |W_o| = sqrt(n) times their root mean square, which is what is measured.
    Salimans & Kingma 2016, arXiv:1602.07868.
    """

    def __init__(self, outputs: int, eps: float = 1e-24, pattern: str = PLAIN, **kind: Any) -> None:
        gain = Learned(pattern.split("->")[1], bias=False)
        super().__init__(pattern, gain=gain, eps=eps, center=False, o=outputs, **kind)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The gain takes the length of what the weight is set to."""
        assert self.weight is not None
        with torch.no_grad():
            self.weight.copy_(measure(weight, self.frame, center=False, **self.sizes).std())
        return weight


def standardize_weight(module: M, name: str = "weight", eps: float = 1e-5) -> M:
    """Standardize this weight wherever it is used."""
    _weight(module, name)
    pattern, sizes = _outputs_of(module)
    parametrize.register_parametrization(module, name, WeightStandardization(eps, pattern, **sizes), unsafe=True)
    return module


def normalize_weight(module: M, name: str = "weight") -> M:
    """Part this weight into direction and learned length; the function stays as it was."""
    weight = _weight(module, name)
    pattern, sizes = _outputs_of(module)
    kind: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    norm = WeightNorm(weight.shape[1 if sizes else 0], pattern=pattern, **kind, **sizes)
    parametrize.register_parametrization(module, name, norm, unsafe=True)
    return module


def spectral_weight(module: M, name: str = "weight", **kwargs: Any) -> M:
    """W / its largest singular value, wherever it is used (torch.nn.utils.parametrizations.spectral_norm)."""
    _weight(module, name)
    parametrizations.spectral_norm(module, name, **kwargs)
    return module


def _outputs_of(module: nn.Module) -> tuple[str, dict[str, int]]:
    """Where the outputs of a weight are: first; second in a transposed convolution, beside its groups."""
    if not isinstance(module, nn.modules.conv._ConvTransposeNd):
        return PLAIN, {}
    return "(g i) o ... -> g o", {"g": module.groups}


def _weight(module: Any, name: str) -> Tensor:
    """A weight [outputs, inputs, ...] that is there."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{said(module)} is no layer: give a torch.nn.Module that has a {name}, such as Linear(5, 4).")
    kind, weight = type(module).__name__, getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"{kind} has no {name}: give the name of one of its weights.")
    if is_lazy(weight) or weight.dim() < 2:
        why = "has no size yet: call the layer once first" if is_lazy(weight) else "is not [outputs, inputs, ...]"
        raise ValueError(f"{name} of {kind} {why}.")
    return weight
