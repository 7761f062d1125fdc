"""Healthy: networks with nothing wrong, drawn at random, with batches as they were trained on."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from homeostat.doctor.rule import Case

WARM = 80  # batches seen in training: of what a running average began with, 0.02 % is left


def drawn(seed: int) -> Case:
    """One of four families; widths, depth, batch size, level and scale of the data are drawn."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, shape = FAMILIES[seed % len(FAMILIES)](rng)
        level, scale, size = rng.normal(), float(np.exp(rng.normal() / 2)), int(rng.choice([64, 96, 128]))

        def batch() -> Tensor:
            return level + scale * torch.randn(size, *shape)

        if any(True for _ in model.buffers()):
            with torch.no_grad():
                for _ in range(WARM):
                    model(batch())
        return Case(model.train(bool(rng.integers(2))), [batch() for _ in range(4)])


class Tokens(nn.Module):
    """A transformer that answers by the mean of its tokens."""

    def __init__(self, width: int, heads: int, depth: int, first: bool) -> None:
        super().__init__()
        one = nn.TransformerEncoderLayer(width, heads, 2 * width, batch_first=True, norm_first=first)
        self.layers = nn.Sequential(*(deepcopy(one) for _ in range(depth)))
        for p in self.layers.parameters():  # or they begin alike
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.layers(x)).mean(1))


def tables(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    widths = [int(rng.choice([8, 16]))] + [int(rng.choice([16, 32, 64])) for _ in range(rng.integers(1, 4))]
    parts: list[nn.Module] = []
    for one, other in pairwise(widths):
        parts += [nn.Linear(one, other), nn.BatchNorm1d(other), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(widths[-1], 5)), (widths[0],)


def pictures(rng: np.random.Generator, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> Any:
    widths = [3] + [int(rng.choice([8, 16])) for _ in range(rng.integers(1, 3))]
    parts: list[nn.Module] = []
    for one, other in pairwise(widths):
        parts += [nn.Conv2d(one, other, 3, padding=1), norm(other), nn.ReLU()]
    return nn.Sequential(*parts, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * widths[-1], 5)), (3, 8, 8)


def samples(rng: np.random.Generator) -> Any:
    norms: list[Callable[[int], nn.Module]] = [
        lambda c: nn.GroupNorm(4, c),
        lambda c: nn.InstanceNorm2d(c, affine=True),
    ]
    return pictures(rng, norms[int(rng.integers(2))])


def tokens(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    heads, width = int(rng.choice([2, 4])), int(rng.choice([32, 64]))
    return Tokens(width, heads, int(rng.integers(1, 3)), bool(rng.integers(2))), (int(rng.choice([6, 10])), width)


FAMILIES = (tables, pictures, samples, tokens)
