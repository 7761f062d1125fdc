"""Four ranks train a small U-Net on shards that differ; what does each source of statistics make of it?

    python examples/four_ranks.py

discrepancy   rms of (y - y*) / rms of y*, y* the layer's output by the statistics of all ranks; the worst layer
drift         how far the memory of the rank that is furthest off is from everybody's, in standard deviations
bytes, ms     what each rank sends for statistics in a step, and how long a step takes

A renorm follows memory; so it comes near the statistics of all ranks where memory is theirs, pooled now and then.
"""

import datetime
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import homeostat as hs
from homeostat.kernels.exchange import FIRST

RANKS, STEPS, SAMPLES = 4, 40, 4
EVERY = 10  # steps, where memory is pooled
WAYS = {
    "local": (hs.Running(), False),
    "local, pooled": (hs.Running(), True),
    "renorm": (hs.Renorm(), False),
    "renorm, pooled": (hs.Renorm(), True),
    "synced": (hs.Synced(), False),
    "synced renorm": (hs.Synced(hs.Renorm()), False),
}


class UNet(nn.Module):
    def __init__(self, source: hs.Source, c: int = 8) -> None:
        super().__init__()

        def stage(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), hs.nn.BatchNorm2d(b, source=source), nn.SiLU())

        self.down1, self.down2 = stage(1, c), stage(c, 2 * c)
        self.up1, self.out = stage(3 * c, c), nn.Conv2d(c, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(nn.functional.max_pool2d(a, 2))
        return self.out(self.up1(torch.cat([nn.functional.interpolate(b, scale_factor=2), a], 1)))


def shard(step: int, rank: int) -> Tensor:
    """Every rank has pictures of its own brightness and contrast."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(SAMPLES, 1, 16, 16, generator=generator) * (1 + rank / 4) + rank / 2


def discrepancy(model: nn.Module, x: Tensor) -> float:
    """How far each layer is from the statistics of all ranks, on the inputs that it has."""
    found: list[float] = []

    def look(layer: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
        every = args[0].new_empty(RANKS, *args[0].shape)
        dist.all_gather(list(every.unbind()), args[0].detach().contiguous())
        var, mean = torch.var_mean(every.double(), (0, 1, 3, 4), correction=0)
        shape = (1, -1, 1, 1)
        want = (args[0] - mean.view(shape)) * (var + layer.eps).rsqrt().view(shape)
        want = want * layer.weight.view(shape) + layer.bias.view(shape)
        off = torch.stack([(y - want).square().mean(), want.square().mean()])
        dist.all_reduce(off)
        found.append(float((off[0] / off[1]).sqrt()))

    layers = [layer for layer in model.modules() if isinstance(layer, hs.nn.BatchNorm2d)]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    with hs.trial(model), torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return max(found)


def train(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, timeout=datetime.timedelta(seconds=30))
    if rank == 0:
        print(f"{'source':14} {'discrepancy':>11} {'drift':>7} {'loss':>7} {'bytes':>8} {'ms':>6}")
    for name, (source, pools) in WAYS.items():
        torch.manual_seed(0)
        model = UNet(source)
        ddp = DistributedDataParallel(model, forward_sync_buffers=False)  # so that memory is each rank's own
        optimizer, taken = torch.optim.SGD(model.parameters(), 0.05), []
        for step in range(STEPS):
            x, start = shard(step, rank), time.perf_counter()
            optimizer.zero_grad()
            loss = (ddp(x) - x.sign()).square().mean()
            loss.backward()
            optimizer.step()
            if pools and step % EVERY == EVERY // 2:
                hs.pool(model)
            taken.append(time.perf_counter() - start)
        off = discrepancy(model, shard(STEPS, rank))
        drift = max(one.mean for one in hs.drift(model))
        blocks = 2 * 3 if isinstance(source, hs.Synced) else 1 / EVERY if pools else 0  # two ways, three layers
        sent = blocks * 8 * FIRST * (RANKS - 1)
        loss = loss.detach()
        dist.all_reduce(loss)
        if rank == 0:
            ms = statistics.median(taken) * 1e3
            print(f"{name:14} {off:11.4f} {drift:7.3f} {float(loss) / RANKS:7.4f} {sent:8.0f} {ms:6.1f}", flush=True)
    dist.barrier()
    os._exit(0)  # torch 2.13 takes a gloo group down with the GIL in hand, and may wait for a worker that waits for it


if __name__ == "__main__":
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train, (port,), nprocs=RANKS)
