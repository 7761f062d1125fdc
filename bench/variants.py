"""Variants: what another source or gain costs, as times the plain norm; forward and backward, end to end.

python -m bench.variants [DIR]    prints tables: batch norm's variants beside batch norm, RMS norm's beside RMS norm;
                                  and layer norm of a tiny tensor, group norm of a small picture, beside an autograd
                                  node that does nothing. With DIR, as docs, they stand in DIR/performance.md too, and
                                  how many samples stand behind each in DIR/performance/variants.json
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import homeostat as hs
from bench import heap, report
from bench.clock import Clock
from bench.view import table

PICTURES, TOKENS, TINY, SMALL = (32, 64, 28, 28), (4, 512, 1024), (128, 64), (8, 256, 14, 14)
Called = tuple[Callable[..., Tensor], dict[str, Any]]  # a layer and what comes with each call
Found = dict[str, dict[str, float]]


def batch_norms() -> dict[str, Called]:
    n, c = PICTURES[:2]
    codes, batch, own = torch.arange(n) % 4, hs.nn.BatchNorm2d, hs.nn
    return {
        "BatchNorm2d": (batch(c), {}),
        "Renorm": (batch(c, source=hs.Renorm()), {}),
        "Ghost(8)": (batch(c, source=hs.Ghost(8)), {}),
        "Domain(4)": (batch(c, source=hs.Domain(4)), {"domain": (codes, 4)}),
        'Running("auto")': (batch(c, source=hs.Running("auto")), {}),
        "Conditional": (own.ConditionalBatchNorm(c, 4), {"kind": codes}),
        "Conditional, shares": (own.ConditionalBatchNorm(c, 4), {"kind": torch.rand(n, 4)}),
        "FiLM": (own.FiLMBatchNorm(c, 16), {"cond": torch.randn(n, 16)}),
        "AdaIN": (own.AdaIN(c), {"style": torch.randn(n, c, 8, 8)}),
        "Shrunk": (batch(c, source=hs.Shrunk()), {}),
        "Mixed": (batch(c, source=hs.Mixed()), {}),
    }


def rms_norms() -> dict[str, Called]:
    d = TOKENS[-1]
    balanced = hs.Balanced("d", bias=False, blocks=(d // 4, d - d // 4))
    by_head = {"center": False, "h": 8, "d": d // 8}
    layers = {
        "RMSNorm": hs.nn.RMSNorm(d),
        "GemmaRMSNorm": hs.nn.GemmaRMSNorm(d),
        "Balanced": hs.nn.RMSNorm(d, gain=balanced),
        "RMSNorm, a gain per head": hs.Norm("... (h d) -> ...", gain=hs.Learned("h", bias=False), **by_head),
        "per head, a gain for all": hs.Norm("... (h d) -> ... h", gain=hs.Learned("d", bias=False), **by_head),
        "RMSNorm of rows of 128": ByHead(d // 8),
        "HeadNorm": hs.nn.HeadNorm(8, d // 8),
        "RMSNorm of rows of 64": ByHead(64),
        "HeadNorm, 64 wide": hs.nn.HeadNorm(d // 64, 64),
    }
    return {name: (layer, {}) for name, layer in layers.items()}


class ByHead(nn.Module):
    """The plain RMS norm of rows as short as a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = hs.nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.unflatten(-1, (-1, *self.norm.normalized_shape))).flatten(-2)


class Nothing(torch.autograd.Function):
    """What any node written in Python costs: it saves and allocates as a norm must, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors)


def beside_nothing(theirs: nn.Module, ours: nn.Module) -> dict[str, Called]:
    weight, bias = (torch.ones_like(p, requires_grad=True) for p in ours.parameters())
    return {
        f"torch.nn.{type(theirs).__name__}": (theirs, {}),
        "homeostat": (ours, {}),
        "a node that does nothing": (lambda x: Nothing.apply(x, weight, bias), {}),
    }


def measured(layers: dict[str, Called], shape: tuple[int, ...], clock: Clock) -> Found:
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def step(f: Callable[..., Tensor], given: dict[str, Any]) -> Callable[[], object]:
        leaves = (x, *f.parameters()) if isinstance(f, nn.Module) else (x,)

        def call() -> None:
            for leaf in leaves:
                leaf.grad = None
            f(x, **given).backward(dy)

        return call

    return clock.medians({name: step(*called) for name, called in layers.items()}, torch.get_num_threads())


def shown(shape: tuple[int, ...], found: Found) -> str:
    plain = next(iter(found.values()))["ms"]
    return table([f"x {shape}", "ms", "x the first"], [[name, t["ms"], t["ms"] / plain] for name, t in found.items()])


def main() -> None:
    heap.keep()
    torch.manual_seed(0)
    clock = Clock(budget=30)
    tiny = beside_nothing(nn.LayerNorm(TINY[-1]), hs.nn.LayerNorm(TINY[-1]))
    small = beside_nothing(nn.GroupNorm(32, SMALL[1]), hs.nn.GroupNorm(32, SMALL[1]))
    parts = (PICTURES, batch_norms()), (TOKENS, rms_norms()), (TINY, tiny), (SMALL, small)
    found = [(shape, measured(layers, shape, clock)) for shape, layers in parts]
    text = "\n\n".join(shown(*one) for one in found)
    print(text)
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]), text, found)


def write(into: Path, text: str, found: list[tuple[tuple[int, ...], Found]]) -> None:
    page, threads = into / report.PAGE.name, torch.get_num_threads()
    saved = {
        "threads": threads,
        "measured": [{"x": "x".join(map(str, shape)), "times": times} for shape, times in found],
    }
    (into / "performance" / "variants.json").write_text(json.dumps(saved, indent=1) + "\n")
    page.write_text(report.filled(page.read_text(), "variants", f"On {threads} threads.\n\n{text}"))
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
