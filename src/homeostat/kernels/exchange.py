"""Exchange: everyone's numbers to everyone, in a message that begins with where its sender is.

Ranks that are at different places raise, all of them, and say where each is; a rank that is gone raises on the others.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, _resolve_process_group
from torch.distributed.distributed_c10d import _get_default_store

TEXT = 96  # bytes of a message that say where its sender is
HEAD = 1 + TEXT // 8  # doubles: a hash, and the text it is of
# Every first message has this length, whatever the layer: gloo ends a process that is sent more than it waits for, and
# NCCL waits. 512 groups fit; of more, the rest follows in a second message, once the first has shown who is there.
FIRST = HEAD + 2 + 2 * 512


class RankError(RuntimeError):
    """Ranks lost each other: one is gone, or they called different layers."""


def exchange(parts: Tensor, group: str, size: int, said: str) -> Tensor:
    """[ranks, parts] of a group by name, of this size; `said` is where this rank is."""
    first, rest = parts[: FIRST - HEAD], parts[FIRST - HEAD :]
    mine = parts.new_zeros(FIRST)
    mine[:HEAD] = _header(said, parts.numel())
    mine[HEAD : HEAD + len(first)] = first
    found = _gathered(mine, group, size, said)
    found = checked(found[:, :HEAD], found[:, HEAD : HEAD + len(first)])
    return torch.cat([found, _gathered(rest, group, size, said)], 1) if len(rest) else found


def _gathered(mine: Tensor, group: str, size: int, said: str) -> Tensor:
    every = mine.new_empty(size * len(mine))
    with lost(said):
        channel(group, mine.device)._allgather_base(every, mine.contiguous()).wait()
    return every.view(size, -1)


@contextmanager
def lost(said: str) -> Iterator[None]:
    """An error of the process group, with the layer's name."""
    try:
        yield
    except RankError:
        raise
    except Exception as error:
        who = f"rank {dist.get_rank()}" if dist.is_initialized() else "this rank"
        raise RankError(
            f"{who} lost the others in the {said}: one of them is gone, or called this layer fewer times. Nothing was "
            f"remembered. Start again from a checkpoint. ({str(error).strip().splitlines()[0][:200]})"
        ) from error


@lru_cache(maxsize=4096)
def _header(said: str, parts: int) -> Tensor:
    text = f"{said}, {parts} numbers"
    short = text.encode("ascii", "replace")[:TEXT].ljust(TEXT)
    number = int.from_bytes(blake2b(text.encode(), digest_size=6).digest(), "big")
    return torch.cat([torch.tensor([float(number)]).double(), torch.frombuffer(bytearray(short), dtype=torch.float64)])


def checked(heads: Tensor, parts: Tensor) -> Tensor:
    """Everyone's parts, if everyone is at the same place. An accelerator is not waited for: parts become NaN, which no
    memory takes in, and the next call raises.
    """
    if heads.device.type == "cpu":
        _compare(heads)
        return parts
    while _LATER and _LATER[0][1].query():
        _compare(_LATER.pop(0)[0])
    copy = torch.empty(heads.shape, dtype=heads.dtype, pin_memory=True).copy_(heads, non_blocking=True)
    event = torch.Event(heads.device)
    event.record()
    _LATER.append((copy, event))
    return torch.where((heads == heads[:1]).all(), parts, torch.nan)


_LATER: list[tuple[Tensor, Any]] = []  # headers on their way from an accelerator


def _compare(heads: Tensor) -> None:
    if (heads == heads[:1]).all():
        return
    texts = [bytes(head.contiguous().view(torch.uint8).tolist()).decode().strip() for head in heads[:, 1:]]
    places = "; ".join(f"rank {r}: {text}" for r, text in enumerate(texts))
    raise RankError(
        f"ranks are at different places ({places}). Each must call the same layers equally often, on tensors that all "
        f"need a gradient or all do not, with a mask on all ranks or on none."
    )


# ---------------------------------------------------------------- whom it is sent to

_CHANNELS: dict[tuple[str, str], tuple[Any, Any]] = {}


def channel(group: str, device: torch.device) -> Any:
    """Connections of our own between the ranks of a group: norms never meet anyone else's messages."""
    base = found(group)
    known = _CHANNELS.get((group, device.type))
    if known is None or known[0]() is not base:
        known = _CHANNELS[group, device.type] = weakref.ref(base), _opened(base, device)
        # for good: torch 2.13 takes a gloo group down with the GIL in hand, and waits for a worker that waits for it
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(known[1]))
    return known[1]


def _opened(base: Any, device: torch.device) -> Any:
    like = base._get_backend(device)
    kind = next((k for k in ("ProcessGroupGloo", "ProcessGroupNCCL") if type(like).__name__ == k), None)
    if kind is None:
        return base  # no backend that is known: among everyone else's messages
    own = getattr(dist, kind)
    options = own._Options() if kind == "ProcessGroupGloo" else own.Options()
    options._timeout = like.options._timeout
    if kind == "ProcessGroupGloo":
        options._devices = like.options._devices
    store = PrefixStore(f"homeostat/{base.group_name}/{device.type}", _get_default_store())
    return own(store, base.rank(), base.size(), options)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def size_of(group: str) -> int:
    return dist.get_world_size(found(group))


def found(group: str) -> Any:
    """The group of this name; without a name everybody."""
    try:
        return _resolve_process_group(group) if group else dist.group.WORLD  # type: ignore[arg-type]
    except RuntimeError:
        raise ValueError(f'no process group here is named "{group}"; give Synced(group=...) one of this run.') from None


@torch.library.custom_op("homeostat::exchange", mutates_args=())
def _exchange_op(parts: Tensor, group: str, size: int, said: str) -> Tensor:
    return exchange(parts, group, size, said).clone()


@_exchange_op.register_fake
def _(parts: Tensor, group: str, size: int, said: str) -> Tensor:
    return parts.new_empty((size, parts.shape[0]))


# A graph keeps it: an empty rank looks at nothing that arrives, and the others wait for what it sends.
torch.fx.node.has_side_effect(torch.ops.homeostat.exchange.default)
