"""Hooks that cannot stop the model they look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def harmless(look: Callable[..., None]) -> Callable[..., None]:
    """The same, but what it cannot take it leaves, and does not look again."""
    failed = False

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal failed
        if not failed:
            try:
                look(module, args, kwargs)
            except Exception:  # of whatever a user's module may be given
                failed = True

    return hook
