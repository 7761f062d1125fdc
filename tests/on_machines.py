"""What test_machines.py asks of every rank: whole models under what else torch has for many machines."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from on_ranks import near
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import homeostat as hs


def net(norm=nn.BatchNorm1d):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 6), norm(6), nn.Tanh(), nn.Sequential(nn.Linear(6, 6), norm(6)), nn.Linear(6, 2)
    ).double()


def data(step, samples=8):
    return torch.randn(samples, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64) * 2 + 1


def trained(model, optimizer, steps, part=slice(None), scale=1.0, ddp=None, reduced=lambda model: None):
    for step in steps:
        optimizer.zero_grad()
        (scale * (ddp or model)(data(step)[part]).square().sum()).backward()
        reduced(model)
        optimizer.step()
    return {k: v.clone() for k, v in model.state_dict().items()}


def mine(rank, samples=8):
    n = dist.get_world_size()
    return slice(rank * samples // n, (rank + 1) * samples // n)


def whole(steps=3):
    """A single process, with torch's own layers."""
    model = net()
    return trained(model, torch.optim.SGD(model.parameters(), 0.01), range(steps))


def torch_layers(rank, groups):
    """torch's BatchNorm and SyncBatchNorm, converted, train under DDP as one process does."""
    for norm in (nn.BatchNorm1d, nn.SyncBatchNorm):
        model = hs.sync(net(norm))
        ddp = nn.parallel.DistributedDataParallel(model)
        got = trained(model, torch.optim.SGD(model.parameters(), 0.01), range(3), mine(rank), 4, ddp)
        for key, value in whole().items():
            near(got[key], value, key)


def sharded(rank, groups):
    """Under FSDP2 too."""
    model = hs.sync(net())
    for part in (model[0], model[3], model):
        fully_shard(part, mesh=dist.init_device_mesh("cpu", (4,)))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    got = trained(model, optimizer, range(3), mine(rank), 4)  # FSDP2 averages, as DDP does
    for key, value in whole().items():
        value_here = got[key].full_tensor() if hasattr(got[key], "full_tensor") else got[key]
        near(value_here, value, key)


def compiled(rank, groups):
    """One graph, without a break, gives what eager gives: y, gradients and memory; checkpointed too."""
    if rank > 1:
        return
    eager = hs.sync(nn.Sequential(hs.nn.BatchNorm1d(5, source=hs.Renorm(0.3)), nn.Tanh()), groups[2]).double()
    graph = copy.deepcopy(eager)
    other = copy.deepcopy(eager)
    fast = torch.compile(graph, fullgraph=True, backend="aot_eager")
    again = torch.compile(lambda x: checkpoint(other, x, use_reentrant=False), fullgraph=True, backend="aot_eager")
    for step in range(2):
        found = []
        for model in (eager, fast, again):
            x = data(step)[mine(rank)].requires_grad_()
            y = model(x)
            (y * data(9)[mine(rank)]).sum().backward()
            found.append((y.detach(), x.grad))
        for want, *rest in zip(*found, strict=True):
            for got in rest:
                near(got, want)
    for key, value in eager.state_dict().items():
        near(graph.state_dict()[key], value, key)
        near(other.state_dict()[key], value, key)


def pooled(rank, groups):
    """Ranks that kept their own memory pool it, as the formula says, and drift apart no more."""
    for source, share in ((hs.Running(0.5), [1 / 3, 1 / 3, 0, 1 / 3]), (hs.Cumulative(), [1 / 7, 2 / 7, 0, 4 / 7])):
        layer = hs.nn.BatchNorm1d(5, source=source).double()
        for step in range((1, 2, 0, 4)[rank]):  # rank 2 has seen nothing
            layer(data(10 * rank + step) * (rank + 1))
        every = []
        for buffer in (layer.running_mean, layer.running_var):
            rows = torch.empty(4 * 5, dtype=torch.float64)
            dist.all_gather_single(rows, buffer)
            every.append(rows.view(4, 5))
        w = torch.tensor(share, dtype=torch.float64)[:, None]
        mean = (w * every[0]).sum(0)
        var = (w * (every[1] + (every[0] - mean) ** 2)).sum(0)
        (before,) = hs.drift(layer)
        want = ((every[0] - mean).abs() / (var + layer.eps).sqrt()).max()
        near(torch.tensor(before.mean, dtype=torch.float64), want, "drift")
        with hs.trial(layer):
            hs.pool(layer)
            near(layer.running_mean, mean, "mean")
            near(layer.running_var, var, "var")
            assert int(layer.num_batches_tracked) == (4 if source == hs.Running(0.5) else 7)
            (after,) = hs.drift(layer)
            assert (after.mean, after.var) == (0.0, 1.0)
        assert hs.drift(layer)[0] == before  # outside everybody has their own again


def pooled_of_some(rank, groups):
    """Memory that is not finite has no share, and ranks whose models differ raise."""
    layer = nn.BatchNorm1d(5, momentum=1.0).double()
    layer(data(rank) * (torch.nan if rank == 2 else 1.0))
    hs.pool(layer)
    fine = torch.stack([data(r) for r in (0, 1, 3)])
    near(layer.running_mean, fine.mean((0, 1)), "mean")
    near(layer.running_var, fine.var(1).mean(0) + fine.mean(1).var(0, correction=0), "var")
    with pytest.raises(hs.RankError, match='rank 1: statistics of layers "b" to "b"'):
        hs.pool(nn.ModuleDict({"ab"[rank == 1]: nn.BatchNorm1d(5)}))


def in_order(model):
    """Gradients of all ranks, added in their order: DDP adds them in another one after its first step."""
    for p in model.parameters():
        n = dist.get_world_size()
        every = p.grad.new_empty(n * p.numel())
        dist.all_gather_single(every, p.grad.reshape(-1))
        p.grad.copy_(every.view(n, *p.shape).sum(0))


def saved(rank, path):
    """Four steps, and what was saved after two."""
    model, optimizer = start()
    trained(model, optimizer, range(2), mine(rank), reduced=in_order)
    dcp.save(state(model, optimizer), checkpoint_id=path)
    return trained(model, optimizer, range(2, 4), mine(rank), reduced=in_order)


def resumed(rank, path):
    """The last two steps, by other processes, more or fewer, from the checkpoint."""
    model, optimizer = start()
    found = state(model, optimizer)
    dcp.load(found, checkpoint_id=path)
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    return trained(model, optimizer, range(2, 4), mine(rank), reduced=in_order)


def start():
    model = hs.sync(net(lambda c: hs.nn.BatchNorm1d(c, source=hs.Renorm(0.3))))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for p in model.parameters():  # so that the state is there to be loaded into
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return model, optimizer


def state(model, optimizer):
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
