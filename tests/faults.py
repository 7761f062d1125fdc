"""What goes wrong on ranks: each function is run by all of them, and returns what the test should look at."""

import os
import signal
import time

import torch
from torch import nn

import homeostat as hs


def model():
    torch.manual_seed(0)
    norms = (hs.nn.BatchNorm1d(8), hs.nn.BatchNorm1d(8, source=hs.Renorm()))
    net = nn.Sequential()
    for i, norm in enumerate(norms):
        net.add_module(f"block{i}", nn.Sequential(nn.Linear(8, 8), norm))
    return hs.sync(net)


def data(rank, step, n=4):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(10 * step + rank))


def said(f):
    """The RankError of a call, and whether memory stayed."""
    try:
        f()
    except hs.RankError as error:
        return str(error)
    return "nothing was raised"


def places(rank):
    """Ranks that are at different places raise at once, all of them, and can go on."""
    net, found = model(), {}
    first, second = net.block0[1], net.block1[1]
    before = {k: b.clone() for k, b in net.named_buffers()}
    x = data(rank, 0)
    found["other layer"] = said(lambda: (first if rank == 1 else second)(x))
    found["other width"] = said(
        lambda: first(x) if rank == 1 else hs.Norm("n c -> c", hs.Synced(), c=700)(torch.randn(3, 700))
    )
    found["no gradient"] = said(lambda: first(x.requires_grad_(rank != 2)))
    y = None if rank == 3 else first(x.detach().requires_grad_())  # rank 3 comes too late, with its forward
    if rank == 3:
        first(x.detach().requires_grad_())
    found["backward"] = said(y.sum().backward if rank != 3 else lambda: first(x.detach().requires_grad_()))
    found["memory"] = all(torch.equal(b, before[k]) for k, b in net.named_buffers() if k.startswith("block1"))
    net(data(rank, 1)).sum().backward()  # nothing is broken
    return found


def fewer(rank):
    """Rank 1 calls the model twice, the others three times."""
    net, start = model(), time.monotonic()
    for step in range(2):
        net(data(rank, step))
    kept = {k: b.clone() for k, b in net.named_buffers()}
    if rank == 1:
        time.sleep(4)
    start = time.monotonic()
    text = said(lambda: net(data(rank, 2)))
    same = all(torch.equal(b, kept[k]) for k, b in net.named_buffers())
    return text, time.monotonic() - start, same, said(lambda: net(data(rank, 3)))


def killed(rank, way):
    """Rank 2 is gone between the layers of its third step, in the forward or in the backward."""
    net = model()
    for step in range(2):
        net(data(rank, step)).sum().backward()
    kept = {k: b.clone() for k, b in net.named_buffers()}
    if rank == 2:
        dies = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        if way == "forward":
            net.block1.register_forward_pre_hook(dies)
        else:
            net.block0[1].register_full_backward_pre_hook(dies)

    def step():
        y = net(data(rank, 2))
        kept.update({k: b.clone() for k, b in net.named_buffers()})
        y.square().sum().backward()

    text = said(step)
    finite = all(torch.isfinite(b).all() for b in net.buffers())
    whole = all(torch.equal(b, kept[k]) for k, b in net.named_buffers() if k.startswith("block1"))
    return text, finite and whole, [int(b) for k, b in net.named_buffers() if "tracked" in k]
