"""Whole: a training step and an inference step of whole networks, as they are and adopted, eager and compiled.

A training step is forward, cross entropy, backward and one step of SGD.
"""

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import homeostat as hs
from bench.clock import Clock
from bench.models import Model, every_model
from bench.records import Record, Task

STEPS = ("inference", "training")
QUICK_DEPTH = 0.1


def tasks(clock: Clock, threads: int, quick: bool) -> Iterator[Task]:
    for model in every_model():
        for step in STEPS:
            key = {"kind": "model", "case": model.name, "dtype": "float32", "threads": threads, "what": step}
            yield Task(key, lambda m=model, s=step: _measure(clock.longer(5), threads, m, s, quick))


def _measure(clock: Clock, threads: int, model: Model, step: str, quick: bool) -> Record:
    torch.set_num_threads(threads)
    nets, (x, target) = _nets(model, quick)
    if step == "training":
        calls = {name: _training(net.train(), x, target) for name, net in nets.items()}
        return {"contenders": clock.medians(calls, threads)}
    calls = {name: _inference(net.eval(), x) for name, net in nets.items()}
    with torch.no_grad():
        return {"contenders": clock.medians(calls, threads)}


@lru_cache(maxsize=1)
def _nets(model: Model, quick: bool) -> tuple[dict[str, nn.Module], tuple[Tensor, Tensor]]:
    """The contenders and a batch; quickly, of a shallow model, and nothing compiled.

    They share their parameters, and both are copies: of two equal models one may be slower for where its weights came
    to lie, and a copy by some per cent slower than what it was copied from.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)
    theirs = model.make(QUICK_DEPTH if quick else 1.0)
    shared = {id(p): p for p in theirs.parameters()}
    nets = {"homeostat": hs.adopt(copy.deepcopy(theirs, dict(shared))), "torch": copy.deepcopy(theirs, dict(shared))}
    compiled = {} if quick else {f"{name} compiled": torch.compile(net) for name, net in nets.items()}
    return nets | compiled, model.batch()


def _inference(net: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: net(x)


def _training(net: nn.Module, x: Tensor, target: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), target).backward()
        optimizer.step()

    return step
