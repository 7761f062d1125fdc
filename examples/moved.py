"""A trained network in a place where its inputs differ: what its statistics become, by which way of taking them.

    python examples/moved.py

average     the mean of the batches' means and of their unbiased variances
momentum    a running average of the batches, share 0.1, as in training
pooled      hs.recalibrate: the moments of all batches, added

stored      the statistics from before; own: those of the samples alone; prior=4: both, the stored ones as 4 samples
"""

import torch
from torch import Tensor, nn

import homeostat as hs

CHANNELS, SAMPLES = 16, 32


def place(level: float, spread: float, n: int, g: torch.Generator) -> Tensor:
    """Samples of several values each, from a place with a level and a spread of its own."""
    return level + spread * torch.randn(n, CHANNELS, 8, generator=g, dtype=torch.float64)


def ratio(found: Tensor, true: Tensor) -> float:
    return float((found / true).mean())


def ways() -> None:
    """Batches that differ, each from another machine; the variance found, as a share of that of all together."""
    g = torch.Generator().manual_seed(0)
    batches = [place(level, 1.0, SAMPLES, g) for level in torch.linspace(-2, 2, 10).tolist()]
    whole = torch.cat(batches).transpose(0, 1).flatten(1).var(1)
    average = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in batches]).mean(0)
    norm = nn.BatchNorm1d(CHANNELS, momentum=0.1, dtype=torch.float64)
    for _ in range(10):
        for x in batches:
            norm(x)
    pooled, _ = hs.recalibrate(norm, batches)
    print("variance found / variance of all samples")
    for name, found in (("average", average), ("momentum", norm.running_var), ("pooled", pooled.running_var)):
        print(f"  {name:10}{ratio(found, whole):8.4f}")


def few() -> None:
    """From a handful of samples of a new place: how far outputs are from those by its true statistics."""
    print("rms of the output's error, at a new level and spread, after n samples\n  n    stored     own  prior=4")
    g = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm1d(CHANNELS, dtype=torch.float64).eval()
    test = place(0.3, 1.2, 512, g)
    true = (test - 0.3) / (1.2**2 + norm.eps) ** 0.5
    for n in (1, 2, 4, 8, 16, 32, 64):
        errors = torch.zeros(3)
        for _ in range(50):
            x = [place(0.3, 1.2, n, g)]
            models = (norm, hs.recalibrate(norm, x)[0], hs.recalibrate(norm, x, prior=4)[0])
            errors += torch.tensor([float((m(test) - true).square().mean().sqrt()) for m in models])
        print(f"  {n:<4}" + "".join(f"{float(e) / 50:9.3f}" for e in errors))


if __name__ == "__main__":
    with torch.no_grad():
        ways()
        few()
