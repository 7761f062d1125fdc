"""Contenders: for one case in one dtype, what each side calls for a forward pass, and for a forward and a backward one.

forward            f(x) without a graph
forward_grad       f(x) with a graph, which is dropped
forward_backward   f(x) and the gradients of x and of the parameters
kernel_forward     homeostat's kernel on tensors that are there already; kernel_backward as well
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from bench import inside, jaxed
from bench.cases import LARGE, Case

WHATS = ("forward", "forward_grad", "forward_backward")
KERNELS = ("kernel_forward", "kernel_backward")
POOL = 1 << 30  # bytes

Call = Callable[[], object]
Calls = dict[str, Call]


@lru_cache(maxsize=1)
def contenders(case: Case, dtype_name: str) -> dict[str, Calls]:
    """By what is measured and by contender. One set is kept, so that cells of one case share its compiled code."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    dtype = getattr(torch, dtype_name)
    sides = case.build(case.shape, case.last)
    ours, theirs = sides.ours.to(dtype), sides.theirs.to(dtype)
    xs, dys = (tuple(_random(case, dtype) for _ in range(case.inputs)) for _ in range(2))
    modules = {"homeostat": ours, "torch": theirs, "compile": torch.compile(theirs, dynamic=False)}
    found = {what: {name: _WAYS[what](f, xs, dys) for name, f in modules.items()} for what in WHATS}
    if xs[0].nbytes >= LARGE and (pool := inside.pool(POOL)) is not None:
        for calls in found.values():
            calls["pooled"] = _within(pool, calls["homeostat"])
    if sides.recipe is not None and jaxed.available:
        for what, call in jaxed.calls(sides.recipe, xs[0], dys[0]).items():
            found[what]["jax"] = call
    alone = inside.kernel_alone(ours, xs[0], dys[0]) if case.inputs == 1 else None
    return found | {what: {"homeostat": call} for what, call in zip(KERNELS, alone or (), strict=False)}


def _random(case: Case, dtype: torch.dtype) -> Tensor:
    x = torch.randn(case.shape).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if case.last else x


def _forward(f: nn.Module, xs: tuple[Tensor, ...], dys: tuple[Tensor, ...]) -> Call:
    def call() -> None:
        f(*xs)

    return call


def _forward_grad(f: nn.Module, xs: tuple[Tensor, ...], dys: tuple[Tensor, ...]) -> Call:
    return _forward(f, _wanting(xs), dys)


def _forward_backward(f: nn.Module, xs: tuple[Tensor, ...], dys: tuple[Tensor, ...]) -> Call:
    xs = _wanting(xs)
    leaves = (*xs, *f.parameters())

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        ys = f(*xs)
        torch.autograd.backward(ys, dys if isinstance(ys, tuple) else dys[0])

    return call


def _wanting(xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.detach().requires_grad_() for x in xs)


def _within(pool: object, call: Call) -> Call:
    def inside_pool() -> None:
        with pool:
            call()

    return inside_pool


_WAYS = {"forward": _forward, "forward_grad": _forward_grad, "forward_backward": _forward_backward}
