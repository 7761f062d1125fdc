"""Soak: four ranks train, one is killed at a random step; does every other raise, and does the checkpoint load?

    python -m bench.soak [--runs 20] [--steps 300] [--seed 0]

Shards have 0 to 5 samples, other ones on each rank and in each step, and each rank's activations are float32, float64
or bfloat16. The rank is killed where it stands in some layer, forward or backward.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from tests.ranks import Ended, together
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import homeostat as hs

RANKS = 4
TIMEOUT = 20.0  # seconds of the process group; nothing here comes near
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
EVERY = 5  # steps between checkpoints


class Model(nn.Module):
    """Four norms, whose inputs have the dtype at hand."""

    def __init__(self) -> None:
        super().__init__()
        sources = (hs.Running(), hs.Renorm(), hs.Domain(3), hs.Running("auto"))
        self.norms = nn.ModuleList(hs.nn.BatchNorm2d(6, source=source) for source in sources)
        self.convs = nn.ModuleList(nn.Conv2d(1 if i == 0 else 6, 6, 3, padding=1) for i in range(4))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nn.functional.silu(norm(conv(x).to(dtype)).float())
        return x.mean((2, 3))


def start() -> Model:
    torch.manual_seed(0)
    return hs.sync(Model())


def train(rank: int, seed: int, steps: int, path: str) -> dict[str, object]:
    """Until somebody is gone: what was raised, at which step, and whether memory is whole."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    victim, last = chance.randrange(RANKS), chance.randrange(2, steps)
    layer, forward = chance.randrange(4), chance.random() < 0.5
    model = start()
    ddp, optimizer = DistributedDataParallel(model), torch.optim.SGD(model.parameters(), 0.05)
    for step in range(steps):
        sizes = [chance.choice((0, 0, 1, 2, 3, 5)) for _ in range(RANKS)]
        dtypes = [chance.choice(DTYPES) for _ in range(RANKS)]
        data = torch.Generator().manual_seed(seed * 100_000 + step * 10 + rank)
        x = torch.randn(sizes[rank], 1, 8, 8, generator=data) + rank
        domain = torch.randint(0, 3, (sizes[rank],), generator=data)
        if rank == victim and step == last:
            _dies(model.norms[layer], forward)
        try:
            optimizer.zero_grad()
            with hs.given(domain=(domain, 3)):
                y = ddp(x, dtypes[rank])
            (RANKS * y.square().sum() / max(sum(sizes), 1)).backward()
        except RuntimeError as error:
            told = "homeostat" if isinstance(error, hs.RankError) else "torch"
            return {
                "who": told,
                "said": str(error)[:90],
                "step": step,
                "last": last,
                "whole": whole(model),
                "at": time.time(),
            }
        optimizer.step()
        if rank == 0 and step % EVERY == 0:
            torch.save({"model": model.state_dict(), "step": step}, f"{path}.part")
            Path(f"{path}.part").replace(path)
    return {"who": "nobody", "said": "", "step": steps, "last": last, "whole": whole(model), "at": time.time()}


def _dies(layer: nn.Module, forward: bool) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if forward:
        layer.register_forward_pre_hook(die)
    else:
        layer.register_full_backward_hook(die)


def whole(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(b).all()) for b in model.buffers()) and all(
        bool((b > 0).all()) for name, b in model.named_buffers() if name.endswith("running_var")
    )


def loads(path: str) -> bool:
    """Does a new model take the checkpoint in, whole?"""
    if not Path(path).exists():
        return False
    model = start()
    model.load_state_dict(torch.load(path)["model"])
    with torch.no_grad():
        y = model.eval()(torch.randn(2, 1, 8, 8), torch.float32)
    return whole(model) and bool(torch.isfinite(y).all())


def run(seed: int, steps: int) -> tuple[bool, str]:
    """One run: was it clean, and what happened."""
    with tempfile.TemporaryDirectory() as folder:
        path, begun = f"{folder}/checkpoint.pt", time.monotonic()
        results = together(RANKS, train, seed, steps, path, timeout=TIMEOUT, seconds=600)
        seconds, loaded = time.monotonic() - begun, loads(path)
    gone = [r for r, result in enumerate(results) if isinstance(result, Ended) and "-9" in str(result)]
    told = [result for result in results if isinstance(result, dict)]
    clean = len(gone) == 1 and len(told) == RANKS - 1 and loaded
    clean = clean and all(t["who"] != "nobody" and t["whole"] and t["step"] == t["last"] for t in told)
    who = ", ".join(f"{t['who']} at step {t['step']}" for t in told)
    odd = [str(result)[:300] for r, result in enumerate(results) if not isinstance(result, dict) and r not in gone]
    line = f"rank {gone} killed; raised: {who}; checkpoint {'loads' if loaded else 'does NOT load'}; {seconds:.1f} s"
    return clean, line + "".join(f"; {text}" for text in odd)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("runs", 20), ("steps", 300), ("seed", 0)):
        options.add_argument(f"--{name}", type=int, default=value)
    said = options.parse_args()
    clean = 0
    for i in range(said.runs):
        good, line = run(said.seed + i, said.steps)
        clean += good
        print(f"run {i}: {'clean' if good else 'NOT CLEAN'}: {line}", flush=True)
    print(f"{clean} of {said.runs} runs ended with an error on every rank that was left, and a checkpoint that loads")
    sys.exit(clean != said.runs)


if __name__ == "__main__":
    main()
