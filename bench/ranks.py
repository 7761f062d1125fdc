"""Ranks: what sharing statistics costs, by width and by number of processes, on gloo over loopback.

    python -m bench.ranks             measured on 2 to 4 ranks, and on paper for up to 1000
    python -m bench.ranks accumulate  one batch, its parts accumulated, and its parts as one

A step is a forward and a backward of a batch norm of [8, width, 8, 8] in float32 on each rank. Medians.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from tests.ranks import together, values
from torch import nn

import homeostat as hs
from homeostat.kernels.exchange import FIRST, HEAD

RANKS, WIDTHS, PAPER = (2, 3, 4), (16, 64, 256, 512, 1024, 2048), (8, 64, 256, 1000)
LATENCY, BANDWIDTH = 10e-6, 12.5e9  # of the paper machine: seconds a message, bytes a second (100 Gb/s)
LAYERS = 53  # of a ResNet-50, of 64 to 2048 channels; here all of 512


def sent(ranks: int, width: int) -> int:
    """Bytes that each rank sends in one exchange: a ring passes every block on but its own last."""
    rest = max(0, 2 + 2 * width - (FIRST - HEAD))
    return 8 * (ranks - 1) * (FIRST + rest)


def on_paper(ranks: int, width: int) -> float:
    """Seconds of one exchange."""
    return rounds(ranks, width) * LATENCY + sent(ranks, width) / BANDWIDTH


def rounds(ranks: int, width: int) -> int:
    """Messages that wait for one another: ranks - 1, or twice as many where the layer is wide."""
    return (ranks - 1) * (1 + (2 + 2 * width > FIRST - HEAD))


def timed(f: Callable[[], object], seconds: float = 0.6) -> float:
    """The median; every rank makes as many calls as rank 0 has time for."""
    for _ in range(3):
        f()
    begun, taken, again = time.perf_counter(), [], torch.ones(1)
    while again:
        for _ in range(5):
            start = time.perf_counter()
            f()
            taken.append(time.perf_counter() - start)
        again.fill_(float(time.perf_counter() - begun < seconds))
        if dist.is_initialized():
            dist.broadcast(again, 0)
    return statistics.median(taken)


def steps(rank: int) -> dict[int, tuple[float, float]]:
    """Width -> seconds of a step alone and together."""
    found = {}
    for width in WIDTHS:
        x = torch.randn(8, width, 8, 8, requires_grad=True)
        pair = (hs.nn.BatchNorm2d(width), hs.nn.BatchNorm2d(width, source=hs.Synced()))
        found[width] = tuple(timed(lambda layer=layer, x=x: layer(x).backward(x.detach())) for layer in pair)
    return found


def table(head: str, rows: list[str]) -> None:
    print(f"| {head} |", "|---" * (head.count("|") + 1) + "|", *(f"| {row} |" for row in rows), "", sep="\n")


def measured() -> None:
    rows = []
    for ranks in RANKS:
        found = values(together(ranks, steps, seconds=300))[0]
        for width, (alone, shared) in found.items():
            more = (shared - alone) * 1e6
            times = " | ".join(f"{t:.0f}" for t in (alone * 1e6, shared * 1e6, more, more / (2 * rounds(ranks, width))))
            rows.append(f"{ranks} | {width} | {2 * sent(ranks, width)} | {times}")
    table("ranks | width | bytes sent a step | alone, µs | synced, µs | more, µs | a message, µs", rows)
    rows = []
    for ranks in PAPER:
        for width in (64, 512, 2048):
            cost = 2 * on_paper(ranks, width)
            rows.append(
                f"{ranks} | {width} | {2 * sent(ranks, width) / 1e6:.2f} | {cost * 1e3:.2f} | {LAYERS * cost * 1e3:.0f}"
            )
    print(
        f"On paper: {LATENCY * 1e6:.0f} µs a message, {BANDWIDTH / 1e9:.1f} GB/s, a ring; {LAYERS} layers one by one.\n"
    )
    table("ranks | width | MB sent a layer and step | ms a layer and step | ms for all layers", rows)


def accumulated() -> None:
    """A U-Net's worth of layers: seconds of one step each way, and how far the gradient is from one batch's."""
    torch.manual_seed(0)
    rows = []
    for depth in (1, 2, 4, 8):
        body = [[nn.Conv2d(16 if i else 3, 16, 3, padding=1), hs.nn.BatchNorm2d(16), nn.SiLU()] for i in range(depth)]
        net = nn.Sequential(*(layer for block in body for layer in block))
        x = torch.randn(16, 3, 24, 24)
        y = torch.randn(16, 16, 24, 24)

        def loss(net: nn.Module, part: torch.Tensor, x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            return ((net(x[part]) - y[part]) ** 2).mean() * len(part) / 16

        def once(net: nn.Module, loss: Callable[..., torch.Tensor] = loss) -> None:
            loss(net, torch.arange(16)).backward()

        def accumulate(net: nn.Module, loss: Callable[..., torch.Tensor] = loss) -> None:
            for part in hs.accumulate(net, torch.arange(16).split(4)):
                loss(net, part).backward()

        def exact(net: nn.Module, loss: Callable[..., torch.Tensor] = loss) -> None:
            hs.as_one(net, torch.arange(16).split(4), loss)

        gradients, cost = [], []
        for way in (once, accumulate, exact):
            net.zero_grad()
            way(net)
            gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
            cost.append(timed(lambda way=way, net=net: way(net), 1.0))
        off = [float((g - gradients[0]).norm() / gradients[0].norm()) for g in gradients]
        times = " | ".join(f"{c * 1e3:.0f}" for c in cost)
        rows.append(f"{depth} | {times} | {off[1]:.1%} | {off[2]:.0e} | {cost[2] / cost[1]:.1f}")
    table(
        "layers | one batch, ms | accumulate, ms | as_one, ms | off: accumulate | off: as_one | as_one / accumulate",
        rows,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    accumulated() if sys.argv[1:] == ["accumulate"] else measured()
