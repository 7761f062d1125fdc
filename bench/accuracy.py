"""Largest errors against float64 at mean 1e4 and spread 1 in float32: torch.nn beside homeostat.nn.

make accuracy
"""

import copy

import torch
from torch import nn

import homeostat as hs

CASES = (
    ("BatchNorm2d", lambda m: m.BatchNorm2d(64), (8, 64, 56, 56), (0, 2, 3)),
    ("GroupNorm(32)", lambda m: m.GroupNorm(32, 64), (8, 64, 56, 56), None),
    ("InstanceNorm2d", lambda m: m.InstanceNorm2d(64, affine=True), (8, 64, 56, 56), (2, 3)),
    ("LayerNorm", lambda m: m.LayerNorm(1024), (4096, 1024), (1,)),
    ("RMSNorm", lambda m: m.RMSNorm(1024), (4096, 1024), (1,)),
)


def closed_form(name, x, dy, axes):
    """y and dx in float64, two-pass, with a gain of 1."""
    shape = x.shape
    if axes is None:
        x, dy, axes = x.reshape(8, 32, 2, 56, 56), dy.reshape(8, 32, 2, 56, 56), (2, 3, 4)
    rms = name == "RMSNorm"
    d = x if rms else x - x.mean(axes, keepdim=True)
    eps = torch.finfo(torch.float32).eps if rms else 1e-5
    r = ((d * d).mean(axes, keepdim=True) + eps) ** -0.5
    y = d * r
    pull = y * (dy * y).mean(axes, keepdim=True)
    dx = r * (dy - pull - (0 if rms else dy.mean(axes, keepdim=True)))
    return y.reshape(shape), dx.reshape(shape)


def error(layer, x, dy, want):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.backward(dy)
    return [(got.double() - w).abs().max().item() for got, w in zip((y.detach(), x.grad), want, strict=True)]


def main():
    print("| layer | layout | torch.nn: y | dx | homeostat: y | dx |\n|---|---|---|---|---|---|")
    for name, make, shape, axes in CASES:
        torch.manual_seed(0)
        x, dy = torch.randn(shape) + 1e4, torch.randn(shape)
        want = closed_form(name, x.double(), dy.double(), axes)
        for layout in ("contiguous", "channels_last")[: 2 if len(shape) == 4 else 1]:
            if layout == "channels_last":
                x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
            cells = [error(copy.deepcopy(make(module)), x, dy, want) for module in (nn, hs.nn)]
            print(f"| {name} | {layout} | " + " | ".join(f"{e:.0e}" for pair in cells for e in pair) + " |")


if __name__ == "__main__":
    main()
