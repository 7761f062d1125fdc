"""What test_synced.py asks of every rank. Each rank has the whole batch, and so the answer of a single process."""

import traceback
from functools import cache

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import homeostat as hs

SAMPLES = 12
SHARDS = {
    2: {"even": (6, 6), "uneven": (8, 4), "empty": (12, 0)},
    3: {"even": (4, 4, 4), "uneven": (7, 3, 2), "empty": (0, 9, 3)},
    4: {"even": (3, 3, 3, 3), "uneven": (5, 1, 4, 2), "empty": (0, 7, 0, 5)},
}
TIGHT = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-6}


def shard(sizes, rank):
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def near(got, want, of="", dtype=torch.float64):
    size = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(
        got.double(), want.double(), rtol=0, atol=TIGHT[dtype] * size, msg=lambda s: f"{of}: {s}"
    )


def answers(rank, checks):
    """What was wrong with each check here, or nothing; the first wrong one ends the rank, and so the others' wait."""
    groups = {n: dist.new_group(list(range(n))) for n in (1, 2, 3, 4)}
    found = {}
    for name, check, *args in checks:
        try:
            check(rank, groups, *args)
            found[name] = ""
        except Exception:
            found[name] = f"rank {rank}: {traceback.format_exc()}"
            break
    return found


MEMORIES = {
    "batch norm": lambda: hs.Running(0.3),
    "masked batch norm": lambda: hs.Running(0.3),
    "batch norm per domain": lambda: hs.Domain(3, hs.Running(0.3)),
    "renorm": lambda: hs.Renorm(0.3, r_max=1.5, d_max=0.5),
}


class UNet(nn.Module):
    """Group norm first, batch norm below."""

    def __init__(self, source, masked, c=3):
        super().__init__()
        self.masked = masked

        def stage(a, b):
            norm = hs.Norm("n c ... -> c", source, hs.Learned("c"), c=b)
            return nn.ModuleList([nn.Conv2d(a, b, 3, padding=1, bias=False), norm])

        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.down, self.up = stage(4, 2 * c), stage(4 + 2 * c, c)
        self.last = nn.Conv2d(c, 1, 1)

    def run(self, stage, x, mask):
        conv, norm = stage
        return nn.functional.silu(norm(conv(x), where=mask if self.masked else None))

    def forward(self, x, mask):
        small = nn.functional.max_pool2d(mask, 2)
        a = self.first(x)
        b = self.run(self.down, nn.functional.max_pool2d(a, 2), small)
        b = nn.functional.interpolate(b, scale_factor=2)
        return self.last(self.run(self.up, torch.cat([a, b], 1), mask))


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(SAMPLES, 1, 6, 6, generator=generator, dtype=torch.float64) + torch.arange(SAMPLES).view(
        -1, 1, 1, 1
    )
    mask = (torch.rand(SAMPLES, 1, 6, 6, generator=generator) > 0.3).double()
    return x, mask, torch.randint(0, 2, (SAMPLES,), generator=generator)  # the third domain is never seen


def trained(model, part, scale, ddp=None, steps=10):
    """Output, gradients and buffers of every step; the loss is a mean over the whole batch."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(steps):
        x, mask, domain = (t[part] for t in batch(step))
        optimizer.zero_grad()
        with hs.given(domain=(domain, 3)):
            y = (ddp or model)(x, mask)
        (scale * ((y - x / 9) ** 2).sum() / (SAMPLES * 36)).backward()
        optimizer.step()
        yield (
            y.detach(),
            {k: p.grad.clone() for k, p in model.named_parameters()},
            {k: b.clone() for k, b in model.named_buffers()},
        )


def unet(kind, around=lambda source: source):
    torch.manual_seed(0)
    return UNet(around(MEMORIES[kind]()), kind.startswith("masked")).double()


@cache
def alone(kind):
    return list(trained(unet(kind), slice(None), 1.0))


def trains_as_one(rank, groups, kind, n, shape):
    if rank >= n:
        return
    model = unet(kind, lambda source: hs.Synced(source, groups[n]))
    part = shard(SHARDS[n][shape], rank)
    ddp = DistributedDataParallel(model, process_group=groups[n])
    for step, (got, want) in enumerate(zip(trained(model, part, n, ddp), alone(kind), strict=True)):
        near(got[0], want[0][part], f"output of step {step}")
        for i in (1, 2):
            for name, value in want[i].items():
                near(got[i][name], value, f"{name}, step {step}")
