"""Outputs: large outputs in memory that was used before. Off unless asked for.

A fresh output of 32 MiB costs its page faults: the kernel hands out zeroed pages one by one, which takes longer than
normalizing does. Memory whose tensors are all gone is there already.

    with homeostat.kernels.pool(1 << 30):     # keep up to 1 GiB of outputs
        train()
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGE = 32 << 20  # bytes; below, the allocator keeps memory itself


class Pool:
    """Outputs of 32 MiB and more come from here while it is entered; at most `size` bytes are kept."""

    def __init__(self, size: int) -> None:
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"size={size!r} is how many bytes to keep, a whole number.")
        self.size = size
        self._held: list[Any] = []  # storages, the last used last
        self._before: list[Pool | None] = []

    def __enter__(self) -> Pool:
        global _active
        self._before.append(_active)
        _active = self
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        _active = self._before.pop()

    @property
    def held(self) -> int:
        """Bytes kept now, those in use included."""
        return sum(s.nbytes() for s in self._held)

    def clear(self) -> None:
        """Let go of all memory; tensors in use keep theirs."""
        self._held.clear()

    def like(self, x: Tensor) -> Tensor:
        """An uninitialized tensor that lies in memory as x does."""
        n = x.numel() * x.element_size()
        for i, storage in enumerate(self._held):
            if storage.nbytes() == n and _is_free(storage):
                self._held.append(self._held.pop(i))
                return x.new_empty(0).set_(storage, 0, x.shape, x.stride())
        y = torch.empty_like(x)
        if y.untyped_storage().nbytes() == n and self._make_room(n):
            self._held.append(y.untyped_storage())
        return y

    def _make_room(self, n: int) -> bool:
        """Forget what is free, oldest first, until n more bytes fit."""
        for storage in list(self._held):
            if self.held + n <= self.size:
                break
            if _is_free(storage):
                self._held.remove(storage)
        return self.held + n <= self.size


_active: Pool | None = None


def _is_free(storage: Any) -> bool:
    """Does only the pool hold it?"""
    return int(torch._C._storage_Use_Count(storage._cdata)) <= 1


def output_like(x: Tensor) -> Tensor:
    if _active is None or x.numel() * x.element_size() < LARGE:
        return torch.empty_like(x)
    return _active.like(x)
