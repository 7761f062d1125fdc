"""Models: four whole networks in plain torch, with random weights, and a batch for each.

ResNet-18     batch norm        ViT-S, GPT-2    layer norm        U-Net    group norm
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Model:
    """`depth` scales what `make` makes; 1 is the real size. A batch is an input and a target of cross entropy."""

    name: str
    make: Callable[[float], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]


def every_model() -> list[Model]:
    return [
        Model("ResNet-18", lambda depth: ResNet(max(1, int(2 * depth))), lambda: (_images(8, 112), _classes(8))),
        Model("ViT-S/16", lambda depth: ViT(384, max(1, int(12 * depth)), 6), lambda: (_images(2, 224), _classes(2))),
        Model("GPT-2 small", lambda depth: GPT(768, max(1, int(12 * depth)), 12), lambda: _text(1, 128)),
        Model("GroupNorm U-Net", lambda depth: UNet((32, 64, 128, 256)), lambda: (_images(2, 96), _map(2, 96))),
    ]


def _images(n: int, side: int) -> Tensor:
    return torch.randn(n, 3, side, side)


def _classes(n: int) -> Tensor:
    return torch.randint(0, 1000, (n,))


def _text(n: int, t: int) -> tuple[Tensor, Tensor]:
    words = torch.randint(0, GPT.WORDS, (n, t + 1))
    return words[:, :-1].contiguous(), words[:, 1:].flatten()


def _map(n: int, side: int) -> Tensor:
    return torch.randint(0, UNet.KINDS, (n, side, side))


class ResBlock(nn.Module):
    def __init__(self, c: int, d: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(c, d, 3, stride, 1, bias=False), nn.BatchNorm2d(d)
        self.second, self.norm2 = nn.Conv2d(d, d, 3, 1, 1, bias=False), nn.BatchNorm2d(d)
        same = c == d and stride == 1
        self.skip = nn.Identity() if same else nn.Sequential(nn.Conv2d(c, d, 1, stride, bias=False), nn.BatchNorm2d(d))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.first(x)))
        return F.relu(self.norm2(self.second(y)) + self.skip(x))


class ResNet(nn.Sequential):
    """ResNet-18 where each of its four stages has `blocks` = 2."""

    def __init__(self, blocks: int) -> None:
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        stages, c = [], 64
        for d in (64, 128, 256, 512):
            for i in range(blocks):
                stages.append(ResBlock(c, d, 2 if i == 0 and d > 64 else 1))
                c = d
        super().__init__(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, d: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm2, self.mlp = nn.LayerNorm(d), nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, d))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, d: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches, self.place = nn.Conv2d(3, d, 16, 16), nn.Parameter(0.02 * torch.randn(1, 196, d))
        self.blocks = nn.Sequential(*(Block(d, heads, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 1000)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class GPT(nn.Module):
    WORDS = 50257

    def __init__(self, d: int, depth: int, heads: int) -> None:
        super().__init__()
        self.words, self.place = nn.Embedding(self.WORDS, d), nn.Parameter(0.02 * torch.randn(1024, d))
        nn.init.normal_(self.words.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(d, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(d)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.place[: words.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.words.weight).flatten(0, 1)


class Twice(nn.Sequential):
    """Two convolutions, each with its group norm."""

    def __init__(self, c: int, d: int) -> None:
        parts = []
        for width in (c, d):
            parts += [nn.Conv2d(width, d, 3, padding=1), nn.GroupNorm(8, d), nn.SiLU()]
        super().__init__(*parts)


class UNet(nn.Module):
    KINDS = 21

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.down = nn.ModuleList(Twice(c, d) for c, d in zip((3, *widths), widths, strict=False))
        ups = tuple(zip(widths[1:], widths, strict=False))[::-1]
        self.grow = nn.ModuleList(nn.ConvTranspose2d(c, d, 2, 2) for c, d in ups)
        self.up = nn.ModuleList(Twice(2 * d, d) for _c, d in ups)
        self.head = nn.Conv2d(widths[0], self.KINDS, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for i, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for grow, stage, skip in zip(self.grow, self.up, skips[-2::-1], strict=True):
            x = stage(torch.cat([skip, grow(x)], 1))
        return self.head(x)
