"""Memory: the one place where a statistic is read for a forward that will write it, and the only place it is written.

`recall` and `remember` are registered operators: a compiled graph that read a buffer directly would read it again,
after the update, when its backward recomputes the forward. `remember` does three things no caller has to think of:

    recomputed   a forward that runs inside a backward (activation checkpointing) was remembered already: not twice;
                 and where y depends on memory it sees what the first forward saw, as it was before the last update
    guarded      a batch with a non-finite statistic changes nothing and is counted in num_batches_skipped
    merged       under vmap the lanes' moments add up before they reach memory that is shared between lanes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from homeostat.kernels.running import update_running
from homeostat.moments import Moments
from homeostat.sources import Running, Source

# What buffers held before their last update, of sources that read them in training. A recomputation reads these.
_BEFORE = WeakTensorKeyDictionary()


def recall(state: Mapping[str, Tensor], will_write: bool, reads: bool = False) -> dict[str, Tensor]:
    """The memory as it is now, safe from this forward's own update; in a recomputation, as it was then."""
    if not will_write or torch.compiler.is_exporting():
        return dict(state)
    if torch.compiler.is_compiling():
        return {name: torch.ops.homeostat.recall(buffer) for name, buffer in state.items()}
    if not reads or torch._C._are_functorch_transforms_active():
        return dict(state)
    if _is_recomputation():
        return {name: _before(buffer) for name, buffer in state.items()}
    for buffer in state.values():
        _BEFORE[buffer] = buffer.clone()
    return dict(state)


def _before(buffer: Tensor) -> Tensor:
    found: Tensor = _BEFORE.get(buffer, buffer)  # type: ignore[no-untyped-call]
    return found


def remember(source: Source, state: Mapping[str, Tensor], skipped: Tensor, m: Moments, layer: str) -> None:
    """Let `source` take in what was measured."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        m = _detached(m)
        if source.averages and isinstance(m.count, float):
            torch.ops.homeostat.average(*state.values(), skipped, m.mean, m.m2, int(m.count), source.momentum)  # type: ignore[attr-defined]
            return
        new = source.step(recall(state, True), m)
        torch.ops.homeostat.remember(list(state.values()), skipped, [new[name] for name in state], [m.mean, m.m2])
        return
    if _is_recomputation():
        return
    if torch._C._are_functorch_transforms_active():
        _refuse_captured(state, layer)
        m = merge_lanes(next(iter(state.values())), m)
    elif source.averages and not torch.compiler.is_exporting():
        mean, var, tracked = state.values()
        if update_running(mean, var, tracked, skipped, m, source.momentum):  # type: ignore[attr-defined]
            return
    m = _detached(m)
    new = source.step(state, m)
    _write(list(state.values()), skipped, [new[name] for name in state], [m.mean, m.m2])


def move(
    state: Mapping[str, Tensor], new: list[Tensor], skipped: Tensor, seen: list[Tensor], again: bool = False
) -> None:
    """Memory of a layer that has no source: new values, guarded; not in a recomputation, unless this is a backward."""
    if again or not _is_recomputation():
        _write(list(state.values()), skipped, new, seen)


def _write(buffers: list[Tensor], skipped: Tensor, new: list[Tensor], seen: list[Tensor]) -> None:
    """Guarded and without a look at any value, so that no device has to stop."""
    new = [value.to(buffer.dtype) for value, buffer in zip(new, buffers, strict=True)]  # may round to infinity
    finite = torch.stack([torch.isfinite(s).all() for s in (*seen, *new)]).all()
    for buffer, value in zip(buffers, new, strict=True):
        buffer.copy_(torch.where(finite, value, buffer))
    skipped.add_((~finite).to(skipped.dtype))


def _is_recomputation() -> bool:
    """Does this forward run inside a backward pass?"""
    return torch._C._current_graph_task_id() != -1


def _detached(m: Moments) -> Moments:
    count = m.count.detach() if isinstance(m.count, Tensor) else m.count
    return Moments(count, m.mean.detach(), m.m2.detach())


@torch.library.custom_op("homeostat::recall", mutates_args=())
def _recall_op(buffer: Tensor) -> Tensor:
    if _is_recomputation():
        return _before(buffer).clone()
    now = buffer.clone()
    _BEFORE[buffer] = now
    return now.clone()


@_recall_op.register_fake
def _(buffer: Tensor) -> Tensor:
    return torch.empty_like(buffer)


@torch.library.custom_op("homeostat::remember", mutates_args=("buffers", "skipped"))
def _remember_op(buffers: list[Tensor], skipped: Tensor, new: list[Tensor], seen: list[Tensor]) -> None:
    if not _is_recomputation():
        _write(buffers, skipped, new, seen)


@_remember_op.register_fake
def _(buffers: list[Tensor], skipped: Tensor, new: list[Tensor], seen: list[Tensor]) -> None:
    return None


# A running average, in one native call where `remember` needs a dozen operators.
_LIBRARY = torch.library.Library("homeostat", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "average(Tensor(a!) mean, Tensor(b!) var, Tensor(c!) tracked, Tensor(d!) skipped, "
    "Tensor seen_mean, Tensor seen_m2, SymInt count, float? momentum) -> ()"
)


def _average_op(
    mean: Tensor,
    var: Tensor,
    tracked: Tensor,
    skipped: Tensor,
    seen_mean: Tensor,
    seen_m2: Tensor,
    count: int,
    momentum: float | None,
) -> None:
    if _is_recomputation():
        return
    m = Moments(float(count), seen_mean, seen_m2)
    if not update_running(mean, var, tracked, skipped, m, momentum):
        source = Running(momentum)
        state = dict(zip(source.names, (mean, var, tracked), strict=True))
        new = source.step(state, m)
        _write(list(state.values()), skipped, [new[name] for name in state], [m.mean, m.m2])


_LIBRARY.impl("average", _average_op, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


@torch.library.register_fake("homeostat::average", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(*_args: Any) -> None:
    return None


# ---------------------------------------------------------------- functorch


class _MergeLanes(torch.autograd.Function):
    """Identity, except under vmap: there the lanes' moments become one, unless memory has lanes of its own."""

    @staticmethod
    def forward(buffer: Tensor, count: Tensor, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return count.clone(), mean.clone(), m2.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, ...]:
        return (None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: Any, buffer: Tensor, *parts: Tensor) -> tuple[tuple[Tensor, ...], Any]:
        lanes = [
            part.movedim(dim, 0) if dim is not None else part.expand(info.batch_size, *part.shape)
            for part, dim in zip(parts, in_dims[1:], strict=True)
        ]
        if in_dims[0] is not None:
            return _merged(buffer.select(in_dims[0], 0), *lanes), (0, 0, 0)
        count, mean, m2 = lanes
        n = count.sum(0)
        pooled = (count * mean).sum(0) / n.clamp_min(1)
        spread = m2.sum(0) + (count * (mean - pooled) ** 2).sum(0)
        return _merged(buffer, n, pooled, spread), (None, None, None)


def merge_lanes(buffer: Tensor, m: Moments) -> Moments:
    count = torch.as_tensor(m.count, dtype=m.mean.dtype, device=m.mean.device).expand_as(m.mean)
    return Moments(*_merged(buffer, count, m.mean, m.m2))


def _merged(buffer: Tensor, count: Tensor, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _MergeLanes.apply(buffer, count, mean, m2)  # type: ignore[no-untyped-call, no-any-return]


def _refuse_captured(state: Mapping[str, Tensor], layer: str) -> None:
    """func.grad and jvp may not write to what they only captured: the write would vanish or mix levels."""
    f = torch._C._functorch
    kinds = {level.key().name for level in f.get_interpreter_stack() or ()}
    if not kinds & {"Grad", "Jvp"}:
        return
    for name, buffer in state.items():
        inner = buffer
        while f.is_batchedtensor(inner):
            inner = f.get_unwrapped(inner)
        if not f.is_gradtrackingtensor(inner):
            raise RuntimeError(
                f"{layer}.{name} is captured by torch.func.grad or jvp, which may not update it. Make the "
                f"buffers an argument of the differentiated function and pass them on by functional_call(model, "
                f"(params, buffers), (x,)); or call model.eval(), or homeostat.freeze(model)."
            )
