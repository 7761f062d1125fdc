"""What test_synced.py asks of one layer on every rank."""

import copy

import pytest
import torch
import torch.distributed as dist
from on_ranks import SAMPLES, SHARDS, near, shard
from torch.utils.checkpoint import checkpoint

import homeostat as hs
from homeostat.kernels import exchange

LAYERS = {
    "Running": lambda s: hs.nn.BatchNorm2d(6, source=s(hs.Running(0.3))),
    "channels last": lambda s: hs.nn.BatchNorm2d(6, source=s(hs.Renorm())),
    "Cumulative": lambda s: hs.nn.BatchNorm2d(6, source=s(hs.Cumulative())),
    "auto": lambda s: hs.nn.BatchNorm2d(6, source=s(hs.Running("auto"))),
    "Batch": lambda s: hs.nn.BatchNorm2d(6, source=s(hs.Batch())),
    "Renorm": lambda s: hs.nn.BatchNorm2d(6, source=s(hs.Renorm(0.3, r_max=1.1, d_max=0.2))),
    "Shrunk": lambda s: hs.nn.BatchNorm2d(6, source=s(hs.Shrunk(3))),
    "Partial": lambda s: hs.Norm("n c h w -> c", s(hs.Partial()), hs.Learned("c"), c=6),
    "By": lambda s: hs.Norm("n c h w -> c", s(hs.By(lambda m: (m.mean / 2, 3 * m.var()))), hs.Learned("c"), c=6),
    "about zero": lambda s: hs.Norm("n c h w -> c", s(hs.Running()), hs.Learned("c"), center=False, c=6),
    "eps=auto": lambda s: hs.Norm("n c h w -> c", s(hs.Running()), hs.Learned("c"), eps="auto", c=6),
    "a gain per value": lambda s: hs.Norm("n (f k) h w -> f", s(hs.Running()), hs.Learned("(f k)"), f=3, k=2),
    "more than one message": lambda s: hs.Norm("n c h w -> c h w", s(hs.Running()), c=6, h=9, w=11),
    "EvoNormB0": lambda s: evonorm(s(hs.Running(0.3))),
    "frozen": lambda s: hs.nn.BatchNorm2d(6, source=hs.Frozen(s(hs.Running()))),
}


def evonorm(source):
    layer = hs.nn.EvoNormB0(6)
    layer.source = source
    return layer


def everything(layer, x, dy, second):
    """y, gradients (of the gradient too) and buffers after two batches."""
    found = {}
    for step in range(2):
        x = (x.detach() * (1 + step)).requires_grad_()
        layer.zero_grad()
        y = layer(x)
        (dx,) = torch.autograd.grad((y * dy).sum(), x, create_graph=second)
        if second:
            ((dx * dy.flip(1)) ** 2).sum().backward()
            found |= {} if x.grad is None else {f"ddx {step}": x.grad}
        else:
            (layer(x) * dy).sum().backward()
        found |= {f"y {step}": y.detach(), f"dx {step}": dx.detach()}
        found |= {f"grad of {k} {step}": p.grad for k, p in layer.named_parameters() if p.grad is not None}
    return found | {k: b.clone() for k, b in layer.named_buffers()}


def one_layer(rank, groups, name, dtype, second):
    sizes = SHARDS[4]["uneven" if second and name != "Running" else "empty"]
    generator = torch.Generator().manual_seed(1)
    shape = (SAMPLES, 6, 9, 11) if name.startswith("more") else (SAMPLES, 6, 5, 3)
    x, dy = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x = (x * 2 + 3).to(dtype)
    dy = dy.to(dtype)

    torch.manual_seed(2)
    layer = LAYERS[name](lambda s: hs.Synced(s, groups[4])).to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn(p.shape) / 4)
    want = everything(hs.unsync(copy.deepcopy(layer)).double(), x.double(), dy.double(), second)
    part = shard(sizes, rank)
    mine = x[part].contiguous(memory_format=torch.channels_last if name == "channels last" else torch.contiguous_format)
    got = everything(layer, mine, dy[part], second)
    assert got.keys() == want.keys()
    for key, value in want.items():
        if key.startswith("grad of"):
            mine = got[key].double()
            dist.all_reduce(mine)
            near(mine, value, key, dtype)
        else:
            near(got[key], value[part] if key.split()[0] in ("y", "dx", "ddx") else value, key, dtype)


def same_bits(rank, groups):
    """Statistics are equal on every rank to the last bit, in float32 and at a large mean too."""
    layer = hs.nn.BatchNorm2d(6, source=hs.Synced())
    for step in range(5):
        x = torch.randn(SHARDS[4]["uneven"][rank] + step, 6, 5, 3, generator=torch.Generator().manual_seed(rank)) + 1e4
        layer(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        mine = getattr(layer, name).double()
        every = mine.new_empty(4 * mine.numel())
        dist.all_gather_single(every, mine.reshape(-1))
        assert (every.view(4, -1) == every.view(4, -1)[0]).all(), name


def alone_is_inner(rank, groups):
    """A group of one gives the bits of its inner source."""
    if rank:
        return
    torch.manual_seed(0)
    x = torch.randn(5, 6, 4, 4) + 3
    one, other = hs.nn.BatchNorm2d(6), hs.nn.BatchNorm2d(6, source=hs.Synced(hs.Running(0.1), groups[1]))
    for layer in (one, other):
        layer(x.requires_grad_())
    for a, b in zip((*one.state_dict().values(), one(x)), (*other.state_dict().values(), other(x)), strict=True):
        assert torch.equal(a, b)
    assert one.state_dict().keys() == other.state_dict().keys()


def subgroups_apart(rank, groups):
    """Two pairs measure at the same time, each its own."""
    mine, _ = dist.new_subgroups(2)
    layer = hs.nn.BatchNorm1d(3, affine=False, source=hs.Synced(hs.Running(1.0), mine))
    x = torch.arange(24.0).view(8, 3)
    pair = rank // 2
    layer(x[2 * rank : 2 * rank + 2])
    near(layer.running_mean, x[4 * pair : 4 * pair + 4].mean(0))
    near(layer.running_var, x[4 * pair : 4 * pair + 4].var(0), "var", torch.float32)


def not_finite(rank, groups):
    """What one rank has that is not finite counts 0 there, in both directions, and nothing else is touched."""
    x, dy = torch.randn(2, 4, 3, 6, 2, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[2, 0, 1], x[2, 1, 2] = torch.nan, torch.inf  # rank 2, channels 1 and 2
    layer = hs.nn.BatchNorm2d(6, affine=False, source=hs.Synced(hs.Running(1.0))).double()
    mine = x[rank].clone().requires_grad_()
    y = layer(mine)
    (y * dy[rank]).sum().backward()
    for c in range(6):
        pooled = x[[0, 1, 3] if c in (1, 2) else slice(None), :, c]
        near(layer.running_mean[c], pooled.mean(), f"mean {c}")
        near(layer.running_var[c], pooled.var(), f"var {c}")
    fine = [0, 3, 4, 5] if rank == 2 else slice(None)
    assert torch.isfinite(y[:, fine]).all()
    near(mine.grad[:, fine], without(x, dy, layer.eps)[rank][:, fine], "dx")
    before = layer.running_mean.clone()
    layer(torch.full((2, 6, 2, 1), torch.nan, dtype=torch.float64))  # everywhere: nobody remembers it
    assert torch.equal(before, layer.running_mean)
    assert (int(layer.num_batches_skipped), int(layer.num_batches_tracked)) == (1, 1)


def without(x, dy, eps):
    """dx of what is normalized by the ranks that are finite, channel by channel, where the others do not count."""
    x = x.clone().requires_grad_()
    loss = 0.0
    for c in range(6):
        pooled = x[[r for r in range(4) if torch.isfinite(x[r, :, c]).all()], :, c]
        xhat = (pooled - pooled.mean()) / (pooled.var(correction=0) + eps).sqrt()
        loss = loss + (xhat * dy[[r for r in range(4) if torch.isfinite(x[r, :, c]).all()], :, c]).sum()
    return torch.autograd.grad(loss, x)[0]


def nobody_measured(rank, groups):
    """Where a mask leaves nobody on any rank, memory does what it does on one; rank 1 has no samples at all."""
    for inner in (hs.Running(), hs.Domain(2)):
        layer = hs.Norm("n c h w -> c", hs.Synced(inner), c=3)
        other, n = hs.unsync(copy.deepcopy(layer)), 0 if rank == 1 else 2
        for one, k in ((layer, n), (other, 2)):
            domain = {"domain": torch.arange(2)[:k]} if isinstance(inner, hs.Domain) else {}
            one(torch.randn(k, 3, 4, 4), where=torch.zeros(k, 1, 4, 4), **domain)
        for key, value in other.state_dict().items():
            assert torch.equal(layer.state_dict()[key], value), (inner, key)


def messages(rank, groups):
    """One exchange forward and one backward, of one message each up to 512 groups."""
    sent, gathered = [], exchange._gathered
    exchange._gathered = lambda mine, *rest: sent.append(len(mine)) or gathered(mine, *rest)
    try:
        for c, want in ((3, [exchange.FIRST]), (512, [exchange.FIRST]), (513, [exchange.FIRST, 2])):
            y = hs.nn.BatchNorm1d(c, source=hs.Synced())(torch.randn(2, c, requires_grad=True))
            assert sent == want
            sent.clear()
            y.sum().backward()
            assert sent == want[:1]
            sent.clear()
    finally:
        exchange._gathered = gathered


def checkpointed(rank, groups):
    """What is computed again in the backward pass exchanges again, and is remembered once."""
    for reentrant in (True, False):
        layers = [hs.nn.BatchNorm1d(3, source=hs.Synced(hs.Renorm(0.5))).double() for _ in range(2)]
        grads = []
        for layer, again in zip(layers, (False, True), strict=True):
            x = torch.arange(6.0).view(2, 3).double().add(rank).square().requires_grad_()
            y = checkpoint(layer, x, use_reentrant=reentrant) if again else layer(x)
            y.square().sum().backward()
            grads.append(x.grad)
        assert torch.equal(*grads)
        for a, b in zip(*(layer.state_dict().values() for layer in layers), strict=True):
            assert torch.equal(a, b)


def torch_func_refused(rank, groups):
    """An exchange is no function that torch.func could look through, and says so before anybody waits."""
    layer = hs.nn.BatchNorm1d(3, source=hs.Synced(hs.Batch()))
    with pytest.raises(RuntimeError, match="do not pass through an exchange"):
        torch.func.grad(lambda x: layer(x).sum())(torch.randn(4, 3))
    with pytest.raises(RuntimeError, match="do not pass through an exchange"):
        torch.func.jvp(layer, (torch.randn(4, 3),), (torch.randn(4, 3),))
    with pytest.raises(ValueError, match='no process group here is named "gone"'):
        hs.nn.BatchNorm1d(3, source=hs.Synced(group="gone"))(torch.randn(4, 3))


def a_single_value(rank, groups):
    """One value among all ranks says nothing, and all of them say so."""
    layer = hs.nn.BatchNorm1d(3, source=hs.Synced())
    text = ""
    try:
        layer(torch.ones(int(rank == 2), 3))
    except ValueError as error:
        text = str(error)
    assert "all ranks together have a single value" in text
    assert int(layer.num_batches_tracked) == 0
    assert layer(torch.arange(3.0).view(1, 3) + rank).shape == (1, 3)  # one each is enough


def evaluation_is_alone(rank, groups):
    """In evaluation ranks may call as often as they like, or not at all."""
    layer = hs.nn.BatchNorm2d(3, source=hs.Synced()).eval()
    for _ in range(rank):
        layer(torch.randn(2, 3, 4, 4))
    free = hs.nn.BatchNorm2d(3, source=hs.Synced(hs.Batch())).eval()
    for _ in range(3 - rank):
        free(torch.randn(2, 3, 4, 4))


def nobody_anywhere(rank, groups):
    """A batch that is empty on every rank is neither remembered nor counted."""
    layer = hs.nn.BatchNorm2d(3, source=hs.Synced())
    assert layer(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    assert int(layer.num_batches_tracked) == 0
    assert torch.equal(layer.running_var, torch.ones(3))
