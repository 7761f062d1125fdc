"""Under DistributedDataParallel on gloo, two processes train as torch's own layers would."""

import copy
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from presets import NAMES, assert_same, everything, make
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import homeostat as hs


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 8),
        nn.LayerNorm(8), nn.RMSNorm(8),
    )  # fmt: skip


def train(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    out = {}
    for kind in ("torch", "homeostat"):
        model = build() if kind == "torch" else hs.adopt(build())
        ddp = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(ddp.parameters(), 0.05)
        for step in range(4):
            generator = torch.Generator().manual_seed(10 * step + rank)
            x = torch.randn(4, 3, 8, 8, generator=generator) + rank
            optimizer.zero_grad()
            loss = ddp(x).pow(2).mean()
            if kind == "homeostat":  # two forwards before a backward, which torch's buffers do not survive
                loss = loss + 0 * ddp(x).sum()
            loss.backward()
            optimizer.step()
        out[kind] = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(out, f"{folder}/{rank}.pt")
    for name in NAMES:
        if any(p.requires_grad for p in make(name)[0].parameters()):  # torch refuses what has none
            step_twice(name, rank)
    dist.barrier()
    os._exit(0)  # torch 2.13 takes a gloo group down with the GIL in hand, and may wait for a worker that waits for it


def step_twice(name, rank):
    """Gradients are the mean of both processes', and each forward begins with the memory of the first."""
    layer, x = make(name)
    both, ddp = [copy.deepcopy(layer) for _ in range(2)], DistributedDataParallel(layer)
    for step in range(2):
        for module in (layer, *both):
            module.zero_grad()
        both[1].load_state_dict(both[0].state_dict())
        alone = [everything(one, x + 5 * r + step) for r, one in enumerate(both)]
        want = {
            key: (alone[0][key] + alone[1][key]) / 2 if key.startswith("grad of") else value
            for key, value in alone[rank].items()
        }
        assert_same(everything(layer, x + 5 * rank + step, ddp), want)


def test_two_processes_train_as_with_torchs_layers(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(train, (port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for key, value in ranks[0]["torch"].items():
        if "running" in key or "tracked" in key:
            continue  # the extra forward above counts here and not there
        torch.testing.assert_close(ranks[0]["homeostat"][key], value, rtol=1e-4, atol=1e-5, msg=key)
        torch.testing.assert_close(ranks[1]["homeostat"][key], ranks[0]["homeostat"][key], rtol=0, atol=0, msg=key)
