"""Norms whose groups follow the structure of what is normalized: heads, modalities, experts, orbits, sectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.door import check_eps
from homeostat.errors import whole, widths
from homeostat.frame import ShapeError
from homeostat.gains import Around, Conditional, Gain, Learned
from homeostat.nn.inputs import check_input
from homeostat.nn.layer import RMSNorm
from homeostat.norm import Norm
from homeostat.reading import normalize
from homeostat.sources import Running, Source


class HeadNorm(Norm):
    """w_hd x / sqrt(mean over d of x_h^2 + eps): every head by itself, so that none drowns the others.

    x is [..., heads * d]; `center=True` subtracts each head's mean too. Shleifer et al. 2021, arXiv:2110.09456.
    """

    def __init__(self, heads: int, d: int, center: bool = False, eps: float = 1e-6, **kind: Any) -> None:
        gain = Learned("(h d)", bias=center)
        super().__init__("... (h d) -> ... h", gain=gain, eps=eps, center=center, h=heads, d=d, **kind)


class QKNorm(nn.Module):
    """w_d q / sqrt(mean q^2 + eps), and k by a gain of its own: RMS norm of queries and keys, q, k = norm(q, k).

    The logits are then bounded by the gains, whatever the projections do. Henry et al. 2020, arXiv:2010.04245.
    """

    def __init__(self, d: int, eps: float = 1e-6, **kind: Any) -> None:
        super().__init__()
        self.query, self.key = RMSNorm(d, eps, **kind), RMSNorm(d, eps, **kind)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query(q), self.key(k)


class HeadScale(nn.Module):
    """w_h x_h: one learned number per head, on [..., heads, length, d]. Shleifer et al. 2021, arXiv:2110.09456."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(whole("heads", heads)))

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.weight.shape[0], axis=-3)
        return (x * self.weight[:, None, None]).to(x.dtype)


class _Blocks(Norm):
    """The last axis in blocks of given widths, each with a statistic of its own."""

    block: Tensor

    def __init__(self, pattern: str, blocks: Sequence[int], gain: Gain | None, **kind: Any) -> None:
        blocks = widths("blocks", blocks)
        if min(blocks) < 2:
            raise ValueError(f"blocks={blocks}: one feature minus its own mean is 0; merge it, or leave it out.")
        super().__init__(pattern, gain=gain, d=sum(blocks), **kind)
        self.blocks = blocks
        codes = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor(self.blocks))
        self.register_buffer("block", codes.to(kind.get("device")), persistent=False)

    def forward(self, x: Tensor, where: Tensor | None = None, **given: Any) -> Tensor:
        return super().forward(x, where, block=(self.block, len(self.blocks)), **given)


class ModalityNorm(_Blocks):
    """w_d (x - mean_b) / sqrt(var_b + eps) + b_d: layer norm of each block of features, b the block of feature d.

    ModalityNorm((512, 64)) keeps a text of 512 features and a sensor of 64 from sharing a statistic. `shared=True`
    learns one w and b for all.
    """

    def __init__(self, blocks: Sequence[int], shared: bool = False, eps: float = 1e-5, **kind: Any) -> None:
        super().__init__("... d -> ... block[d]", blocks, Learned("" if shared else "d"), eps=eps, **kind)


class SectorNorm(nn.Module):
    """(x - mean_s) / sqrt(var_s + eps) and, as features of their own, the means: y, means = norm(x).

    The last axis falls into named sectors of any size: SectorNorm({"tech": 3, "oil": 2}). What all of a sector share is
    in `means`, [..., sectors]; what is left compares each with its peers.
    """

    codes: Tensor
    pattern = "... d -> ... sector[d]"

    def __init__(self, sectors: dict[str, int] | Sequence[int], eps: float = 1e-5, center_only: bool = False) -> None:
        super().__init__()
        sizes = widths("sectors", tuple(sectors.values()) if isinstance(sectors, dict) else sectors)
        self.names = tuple(sectors) if isinstance(sectors, dict) else tuple(map(str, range(len(sizes))))
        self.eps: Any = check_eps(eps)
        self.center_only = center_only
        codes = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, x: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input(self, x)
        features = x.shape[-1] if x.dim() else 0
        if features != len(self.codes):
            raise ShapeError(f"{len(self.names)} sectors take {len(self.codes)} features; x has {features}.")
        sector = (self.codes, len(self.names))
        y, reading = normalize(x, self.pattern, eps=self.eps, where=where, return_reading=True, sector=sector)
        if self.center_only:
            y = (x.double() - reading.mean.double()[..., self.codes]).to(x.dtype)
        return y, reading.mean.to(x.dtype)


class ExpertNorm(Norm):
    """w_e LN(x) + b_e: every token by itself, put back by the gain of its expert: norm(x, expert=(codes, n)).

    With `source=` the tokens of an expert share a statistic instead, which memory keeps per expert. x is [tokens, d].
    """

    def __init__(self, d: int, experts: int, source: Source | None = None, eps: float = 1e-5, **kind: Any) -> None:
        pattern = "t d -> t" if source is None else "t d -> expert[t] d"
        super().__init__(pattern, source, Conditional("expert[t] d"), eps=eps, d=d, expert=experts, **kind)


class GemmaRMSNorm(Norm):
    """(1 + w) x / sqrt(mean x^2 + eps), w learned around 0, the arithmetic in float32."""

    def __init__(self, d: int, eps: float = 1e-6, **kind: Any) -> None:
        super().__init__("... d -> ...", gain=Around("d", bias=False), eps=eps, center=False, d=d, **kind)


class OrbitNorm(Norm):
    """w_f (x - mean_f) / sqrt(var_f + eps) + b_f, f a field: the `size` channels that a symmetry permutes or mixes.

    They share one statistic and one gain. `vectors=True` for fields that the symmetry rotates: no mean is taken and no
    b is added, for there is no invariant vector but 0. x is [n, fields * size, ...].
    """

    def __init__(
        self,
        fields: int,
        size: int,
        vectors: bool = False,
        source: Source | None = None,
        eps: float = 1e-5,
        **kind: Any,
    ) -> None:
        gain = Learned("f", bias=not vectors)
        source = source or Running()
        super().__init__("n (f k) ... -> f", source, gain, eps, not vectors, f=fields, k=size, **kind)
