"""Named: what the user names as package.module:name. That module is imported; nothing else is ever run."""

from __future__ import annotations

import random
import re
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

NAME = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)")

HERE = Path(__file__).parents[1]


class UserError(ValueError):
    """What went wrong in the user's own code, and on which line."""


def load(given: str) -> Any:
    """The object of that name; modules are found from here too, as `python -m` finds them."""
    match = NAME.fullmatch(given)
    if not match:
        raise ValueError(f"{given!r} names nothing; write package.module:name, such as train.model:build.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module, name = match["module"], match["name"]
    found: Any = guarded(f"importing {module}", lambda: import_module(module))
    for part in name.split("."):
        if not hasattr(found, part):
            names = [word for word in vars(found) if not word.startswith("_")] if hasattr(found, "__dict__") else []
            raise ValueError(f"{module} has no {part!r} in it; it has {', '.join(names[:12]) or 'no public names'}.")
        found = getattr(found, part)
    return found


def model(given: str, seed: int) -> Any:
    """What a function or class of that name makes, or the model itself."""
    from torch import nn

    made = load(given)
    _sow(seed)
    if not isinstance(made, nn.Module):
        made = guarded(f"calling {given}", made) if callable(made) else made
    if not isinstance(made, nn.Module):
        raise ValueError(f"{given} is or gives a {type(made).__name__}; name a model, or a function that makes one.")
    return made


def batches(given: str, seed: int) -> Any:
    """What a function of that name gives, or the batches themselves: a tensor is one batch."""
    from torch import Tensor

    made = load(given)
    _sow(seed)
    made = guarded(f"calling {given}", made) if callable(made) else made
    if isinstance(made, Tensor | dict):
        return [made]
    if not hasattr(made, "__iter__"):
        raise ValueError(f"{given} is or gives a {type(made).__name__}; name batches, or a function that gives some.")
    return made


def guarded(doing: str, call: Callable[[], Any]) -> Any:
    """What the user's code raises, in one line that says where; what this library says, as it stands."""
    try:
        return call()
    except Exception as error:
        lines = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and Path(lines[-1].filename).is_relative_to(HERE):
            raise
        theirs = [one for one in lines if not (HERE in Path(one.filename).parents or "-packages" in one.filename)]
        last = (theirs or lines)[-1]
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(f"{doing} failed in {last.filename}, line {last.lineno}: {what}") from error


def _sow(seed: int) -> None:
    """The same weights and batches every time."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
