"""Norms of graphs: nodes [n, d] whose graph comes with the call, norm(x, batch), batch[i] the graph of node i.

Edges are no different: messages or attention scores [e, d] with the receiving node of each edge as `batch` are
normalized among those that arrive together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.arrays import Array
from homeostat.errors import number, real, said, whole
from homeostat.forward import asked
from homeostat.frame import ShapeError
from homeostat.gains import Conditional, Learned
from homeostat.moments import Moments
from homeostat.nn.inputs import check_input
from homeostat.norm import Norm
from homeostat.reading import measure
from homeostat.sources import By, Partial, Running, Source


class _Graphs(Norm):
    """One statistic per graph. Without `batch` all nodes are one graph; `batch_size` says how many graphs there are."""

    def forward(  # type: ignore[override]
        self, x: Tensor, batch: Tensor | None = None, batch_size: int | None = None, where: Tensor | None = None
    ) -> Tensor:
        return super().forward(x, where, graph=_graphs(x, batch, batch_size))


def _graphs(x: Tensor, batch: Any, batch_size: Any = None) -> tuple[Tensor, int]:
    """The graph of every node, and how many graphs there are."""
    batch = asked(("batch",), {}).get("batch") if batch is None else batch
    if batch is None:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device), 1
    try:
        codes = torch.as_tensor(batch, device=x.device)
    except (TypeError, ValueError, RuntimeError):
        codes = x.new_zeros(())
    if codes.shape != x.shape[:1]:
        shape = list(codes.shape) if codes.dim() else said(batch)
        raise ShapeError(f"batch is the graph of every node, {len(x)} integers; this is {shape}.")
    return codes, batch_size if batch_size is not None else int(codes.max()) + 1 if len(codes) else 1


class GraphNorm(_Graphs):
    """w (x - a mean_gd) / sqrt(E (x - a mean_gd)^2 + eps) + b, a learned per feature.

    Cai et al. 2021, arXiv:2009.03294.
    """

    def __init__(self, d: int, eps: float = 1e-5, **kind: Any) -> None:
        super().__init__("n d -> graph[n] d", Partial(), Learned("d"), eps=eps, d=d, **kind)


class GraphInstanceNorm(_Graphs):
    """(x - mean_gd) / sqrt(var_gd + eps): every feature of every graph by itself."""

    def __init__(self, d: int, affine: bool = False, eps: float = 1e-5, **kind: Any) -> None:
        super().__init__("n d -> graph[n] d", gain=Learned("d") if affine else None, eps=eps, d=d, **kind)


class GraphLayerNorm(_Graphs):
    """w (x - mean_g) / sqrt(var_g + eps) + b: all features of all nodes of a graph together."""

    def __init__(self, d: int, eps: float = 1e-5, **kind: Any) -> None:
        super().__init__("n d -> graph[n]", gain=Learned("d"), eps=eps, d=d, **kind)


class MeanSubtraction(_Graphs):
    """x - mean_gd. Yang et al. 2020, arXiv:2003.13663."""

    def __init__(self, d: int) -> None:
        super().__init__("n d -> graph[n] d", By(_center), eps=0.0, d=d)


class PairNorm(_Graphs):
    """s (x - mean_gd) / sqrt(mean over nodes of |x - mean|^2 + eps): distances between nodes keep their total.

    Centre per feature, scale per graph. Zhao & Akoglu 2020, arXiv:1909.12223.
    """

    def __init__(self, d: int, scale: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__("n d -> graph[n] d", By(_summed), eps=eps, d=d)
        self.scale = number("scale", scale)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = super().forward(x, *args, **kwargs)
        return y * self.scale


class NodeNorm(Norm):
    """x / sigma_n^(1/p): every node by its own spread, not centred. Zhou et al. 2021, arXiv:2006.07107."""

    def __init__(self, p: float = 2.0, eps: float = 1e-12) -> None:
        if not 0 < real(p) < math.inf:
            raise ValueError(f"p={said(p)} is which root of the spread divides: give a finite number above 0.")
        super().__init__("n d -> n", By(_Root(p)), eps=eps)


class HeteroNorm(Norm):
    """Batch norm per type of node, gain and all: norm(x, kind=(codes, types))."""

    def __init__(self, d: int, types: int, source: Source | None = None, **kind: Any) -> None:
        gain = Conditional("kind[n] d")
        super().__init__("n d -> kind[n] d", source or Running(), gain, d=d, kind=types, **kind)


class GraphSizeNorm(nn.Module):
    """x / sqrt(nodes of its graph); no statistic of x. Dwivedi et al. 2020, arXiv:2003.00982."""

    def forward(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        check_input(self, x)
        if x.dim() != 2:
            raise ShapeError(f"GraphSizeNorm takes nodes [n, d]; this tensor is {list(x.shape)}.")
        codes, count = _graphs(x, batch)
        size: Tensor = measure(x.detach()[:, :1], "n d -> graph[n]", graph=(codes, count)).count
        return x * size[codes].rsqrt().to(x.dtype)[:, None]


class MessageNorm(nn.Module):
    """s |x| m / |m|: messages m take the length of the node x they reach. Li et al. 2020, arXiv:2006.07739."""

    def __init__(self, learn_scale: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1), requires_grad=learn_scale)

    def forward(self, x: Tensor, message: Tensor) -> Tensor:
        check_input(self, x)
        check_input(self, message)
        if x.shape[:-1] != message.shape[:-1]:
            raise ShapeError(
                f"MessageNorm takes a message per node; x is {list(x.shape)}, message {list(message.shape)}."
            )
        length: Tensor = x.norm(dim=-1, keepdim=True)
        return (nn.functional.normalize(message, dim=-1) * length * self.scale).to(message.dtype)


class DiffGroupNorm(nn.Module):
    """x + l sum_k BN(s_k x), s = softmax(x W): batch norm within soft clusters. Zhou et al. 2020, arXiv:2006.06972."""

    def __init__(self, d: int, groups: int, strength: float = 0.01, **kind: Any) -> None:
        super().__init__()
        self.strength = number("strength", strength)
        self.assign = nn.Linear(whole("d", d), whole("groups", groups), bias=False, **kind)
        self.norm = Norm("n k d -> k d", Running(), Learned("k d"), k=groups, d=d, **kind)

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.assign.in_features)
        if x.dim() != 2:
            raise ShapeError(f"DiffGroupNorm takes nodes [n, d]; this tensor is {list(x.shape)}.")
        s = self.assign(x).softmax(-1)
        found: Tensor = self.norm(s[:, :, None] * x[:, None, :])
        return x + self.strength * found.sum(1)


def _center(m: Moments) -> tuple[Array, Array]:
    return m.mean, 0 * m.m2 + 1


def _summed(m: Moments) -> tuple[Array, Array]:
    return m.mean, m.var().sum(-1, keepdim=True).expand_as(m.mean)


@dataclass(frozen=True)
class _Root:
    p: float

    def __call__(self, m: Moments) -> tuple[Array, Array]:
        var = m.var()
        some = var > 0
        return 0 * m.mean, (var * some + ~some) ** (1 / self.p) * some  # a constant node has no gradient, not NaN
