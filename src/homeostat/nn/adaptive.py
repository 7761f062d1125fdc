"""Norms whose gain comes with the call: by class, by a vector, by a picture, by another tensor's style."""

from __future__ import annotations

from typing import Any

from homeostat.errors import whole
from homeostat.gains import Conditional, FiLM, Spatial, Style
from homeostat.norm import Norm
from homeostat.sources import Running, Source


class ConditionalBatchNorm(Norm):
    """w_k (x - mean_c) / sqrt(var_c + eps) + b_k, k the class of each sample: norm(x, kind=codes).

    Shares of the classes [n, classes] mix their w and b: norm(x, kind=shares). de Vries et al. 2017, arXiv:1707.00683.
    """

    def __init__(self, channels: int, classes: int, source: Source | None = None, **kind: Any) -> None:
        gain = Conditional("kind[n] c")
        super().__init__("n c ... -> c", source or Running(), gain, c=channels, kind=classes, **kind)


class FiLMBatchNorm(Norm):
    """(1 + s) (x - mean_c) / sqrt(var_c + eps) + t, (s, t) = W cond + v: norm(x, cond=z).

    Perez et al. 2018, arXiv:1709.07871.
    """

    def __init__(self, channels: int, width: int, source: Source | None = None, **kind: Any) -> None:
        super().__init__("n c ... -> c", source or Running(), FiLM("n c", width=width), c=channels, **kind)


class AdaLayerNorm(Norm):
    """(1 + s) LN(x) + t, (s, t) = W silu(cond) + v: norm(x, cond=z). `zero=True` begins at LN (AdaLN-Zero).

    x is [n, ..., d]; Peebles & Xie 2023, arXiv:2212.09748.
    """

    def __init__(self, d: int, width: int, zero: bool = False, eps: float = 1e-6, **kind: Any) -> None:
        gain = FiLM("n d", width=width, zero=zero, before="silu")
        super().__init__("n ... d -> n ...", gain=gain, eps=eps, d=d, **kind)


class AdaRMSNorm(Norm):
    """(1 + s) x / sqrt(mean x^2 + eps), s = W silu(cond) + v: norm(x, cond=z)."""

    def __init__(self, d: int, width: int, zero: bool = True, eps: float = 1e-6, **kind: Any) -> None:
        gain = FiLM("n d", bias=False, width=width, zero=zero, before="silu")
        super().__init__("n ... d -> n ...", gain=gain, eps=eps, center=False, d=d, **kind)


class AdaGroupNorm(Norm):
    """(1 + s) GN(x) + t, (s, t) = W cond + v: norm(x, cond=z).

    Dhariwal & Nichol 2021, arXiv:2105.05233.
    """

    def __init__(self, groups: int, channels: int, width: int, eps: float = 1e-5, **kind: Any) -> None:
        groups, channels = whole("groups", groups), whole("channels", channels)
        if channels % groups:
            raise ValueError(
                f"channels={channels} do not part into {groups} equal groups; choose groups that divide it."
            )
        gain, per_group = FiLM("n (g c)", width=width), channels // groups
        super().__init__("n (g c) ... -> n g", gain=gain, eps=eps, g=groups, c=per_group, **kind)


class AdaIN(Norm):
    """sigma(s) (x - mean_nc) / sqrt(var_nc + eps) + mean(s): the style of s on the content of x: norm(x, style=s).

    A reference is the s of calls that bring none. Huang & Belongie 2017, arXiv:1703.06868.
    """

    def __init__(self, channels: int, eps: float = 1e-5, reference: Any = None) -> None:
        super().__init__("n c ... -> n c", gain=Style("n c", reference=reference), eps=eps, c=channels)


class SPADE(Norm):
    """(1 + s) (x - mean_c) / sqrt(var_c + eps) + t, s and t at every pixel from a segmentation: norm(x, map=m).

    Park et al. 2019, arXiv:1903.07291.
    """

    def __init__(self, channels: int, width: int, hidden: int = 128, source: Source | None = None, **kind: Any) -> None:
        gain = Spatial("n c h w", width=width, hidden=hidden)
        super().__init__("n c h w -> c", source or Running(), gain, c=channels, **kind)
