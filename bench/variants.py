"""Variants: what another source or gain costs, as times the plain norm; forward and backward, end to end.

python -m bench.variants        prints tables: batch norm's variants beside batch norm, RMS norm's beside RMS norm;
                                and layer norm of a tiny tensor, group norm of a small picture, beside an autograd
                                node that does nothing
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import homeostat as hs
from bench import heap
from bench.clock import Clock
from bench.view import table

PICTURES, TOKENS, TINY, SMALL = (32, 64, 28, 28), (4, 512, 1024), (128, 64), (8, 256, 14, 14)


def batch_norms() -> dict[str, Callable[[Tensor], Tensor]]:
    c, n = PICTURES[1], PICTURES[0]
    codes, cond, style = torch.arange(n) % 4, torch.randn(n, 16), torch.randn(n, c, 8, 8)

    def given(layer: nn.Module, **values: object) -> Callable[[Tensor], Tensor]:
        return lambda x: layer(x, **values)

    return {
        "BatchNorm2d": hs.nn.BatchNorm2d(c),
        "Renorm": hs.nn.BatchNorm2d(c, source=hs.Renorm()),
        "Ghost(8)": hs.nn.BatchNorm2d(c, source=hs.Ghost(8)),
        "Domain(4)": given(hs.nn.BatchNorm2d(c, source=hs.Domain(4)), domain=codes),
        'Running("auto")': hs.nn.BatchNorm2d(c, source=hs.Running("auto")),
        "Conditional": given(hs.nn.ConditionalBatchNorm(c, 4), kind=(codes, 4)),
        "FiLM": given(hs.nn.FiLMBatchNorm(c, 16), cond=cond),
        "AdaIN": given(hs.nn.AdaIN(c), style=style),
        "Shrunk": hs.nn.BatchNorm2d(c, source=hs.Shrunk()),
        "Mixed": hs.nn.BatchNorm2d(c, source=hs.Mixed()),
    }


def rms_norms() -> dict[str, Callable[[Tensor], Tensor]]:
    d = TOKENS[-1]
    balanced = hs.Balanced("d", bias=False, blocks=(d // 4, d - d // 4))
    return {
        "RMSNorm": hs.nn.RMSNorm(d),
        "GemmaRMSNorm": hs.nn.GemmaRMSNorm(d),
        "Balanced": hs.Norm("... d -> ...", gain=balanced, center=False, d=d),
        "HeadNorm": hs.nn.HeadNorm(8, d // 8),
        "HeadNorm, 64 wide": hs.nn.HeadNorm(d // 64, 64),
    }


class Nothing(torch.autograd.Function):
    """What any node written in Python costs: it saves and allocates as a norm must, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors)


def beside_nothing(theirs: nn.Module, ours: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    weight, bias = (torch.ones_like(p, requires_grad=True) for p in ours.parameters())
    return {
        f"torch.nn.{type(theirs).__name__}": theirs,
        "homeostat": ours,
        "a node that does nothing": lambda x: Nothing.apply(x, weight, bias),
    }


def measured(layers: dict[str, Callable[[Tensor], Tensor]], shape: tuple[int, ...], clock: Clock) -> list[list[object]]:
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def step(f: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        leaves = (x, *f.parameters()) if isinstance(f, nn.Module) else (x,)

        def call() -> None:
            for leaf in leaves:
                leaf.grad = None
            f(x).backward(dy)

        return call

    found = clock.medians({name: step(f) for name, f in layers.items()}, torch.get_num_threads())
    plain = next(iter(found.values()))["ms"]
    return [[name, t["ms"], t["ms"] / plain] for name, t in found.items()]


def main() -> None:
    heap.keep()
    torch.manual_seed(0)
    clock = Clock(budget=30)
    tiny = beside_nothing(nn.LayerNorm(TINY[-1]), hs.nn.LayerNorm(TINY[-1]))
    small = beside_nothing(nn.GroupNorm(32, SMALL[1]), hs.nn.GroupNorm(32, SMALL[1]))
    for layers, shape in ((batch_norms(), PICTURES), (rms_norms(), TOKENS), (tiny, TINY), (small, SMALL)):
        print(table([f"x {shape}", "ms", "x the first"], measured(layers, shape, clock)), "\n")


if __name__ == "__main__":
    main()
