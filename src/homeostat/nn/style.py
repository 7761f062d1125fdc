"""Style: the mean and spread of every channel before every norm of a network, recorded here and replayed there.

    y_c = sigma(s_c) (x_c - mean(x_c)) / sigma(x_c) + mean(s_c)        x at a norm, s the reference at the same norm

A channel's moments are measured over its positions, one sample at a time. Which axis is the channel, the norm says:

    batch, instance, group norm, and a Norm of axes "n c ..." or "n (g c) ..."      n c ... -> n c      over pixels
    layer and RMS norm of the last axis, and a Norm that pools along it             n ... d -> n d      over tokens

A norm that is given one position per sample, [n, c] or [n, c, 1, 1], has no spread to record and stays as it is; so
does one that is reached by `norm.add(x, y)` and not by a call. Of several calls of one norm the last is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.errors import said
from homeostat.frame import ShapeError
from homeostat.gains import Style
from homeostat.moments import Moments
from homeostat.nn.states import check_module, trial
from homeostat.norm import Norm
from homeostat.reading import measure

PICTURES = Norm("n c ... -> n c", gain=Style("n c"), eps="auto")
TOKENS = Norm("n ... d -> n d", gain=Style("n d"), eps="auto")


def restyle(net: nn.Module, content: Tensor, reference: Tensor | dict[str, Moments]) -> Any:
    """What a network makes of `content` when, before each of its norms, every channel has the mean and spread it had on
    `reference`: an input, or what `styles(net, input)` recorded. The network is left as it was.

    Before norms of pictures the frame is "n c ... -> n c", before norms of tokens "n ... d -> n d"; so pictures may
    differ in size and sentences in length, and one reference may serve a whole batch.
    """
    check_module(net, "restyle")
    _check_tensor("content", content)
    moments = _recorded(reference) if isinstance(reference, dict) else styles(net, reference)

    used = set()

    def put_on(name: str, frame: Norm, x: Tensor) -> Tensor:
        if name not in moments:
            known = ", ".join(moments) or "none"
            raise ValueError(f"the reference has no style for the norm {name!r}; it has {known}.")
        rows, channels = moments[name].mean.shape
        seen = _channels(frame, x)
        if rows not in (1, len(x)) or channels != seen:
            given = f"{rows} samples of {channels} channels, and the content {len(x)} of {seen}"
            raise ShapeError(f"the reference has, at the norm {name!r}, {given}: give 1 sample, or one for each.")
        used.add(name)
        styled: Tensor = frame(x, style=moments[name])
        return styled

    with _at_norms(net, put_on), trial(net):
        y = net(content)
    _check_any(net, used)
    return y


def styles(net: nn.Module, reference: Tensor) -> dict[str, Moments]:
    """By norm, the Moments [sample, channel] of what came to it, over pixels or over tokens."""
    check_module(net, "styles")
    _check_tensor("reference", reference)
    found: dict[str, Moments] = {}

    def record(name: str, frame: Norm, x: Tensor) -> Tensor:
        found[name] = measure(x, frame.frame)
        return x

    with _at_norms(net, record), trial(net), torch.no_grad():
        net(reference)
    _check_any(net, found)
    return found


def _check_any(net: nn.Module, seen: Collection[str]) -> None:
    if not seen:
        raise ValueError(
            f"{type(net).__name__} has no norm that saw channels with positions, [n, c, ...] or [n, ..., d]: "
            f"there is no style to record, and none to put on."
        )


def _check_tensor(name: str, given: Any) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}={said(given)}: give a tensor, an input of the network.")


def _recorded(given: dict[str, Any]) -> dict[str, Moments]:
    for name, moments in given.items():
        if not isinstance(moments, Moments) or len(moments.mean.shape) != 2:
            raise TypeError(f"reference[{name!r}] is no Moments [sample, channel]: give what styles(net, x) returned.")
    return given


def _frame_of(module: nn.Module) -> Norm | None:
    """Where the channels are before a norm; None before anything else."""
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
        return PICTURES
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return TOKENS if len(module.normalized_shape) == 1 else None  # of more axes, none is the channel
    if not isinstance(module, Norm):
        return None
    axes, kept = module.frame.axes, module.frame.kept
    if len(axes) > 1 and (axes[1] == "c" or isinstance(axes[1], tuple)):
        return PICTURES
    last = axes[-1] if isinstance(axes[-1], tuple) else (axes[-1],)
    return TOKENS if any(name not in ("...", *kept) for name in last) else None


def _channels(frame: Norm, x: Tensor) -> int:
    return x.shape[1 if frame is PICTURES else -1]


@contextmanager
def _at_norms(net: nn.Module, f: Callable[[str, Norm, Tensor], Tensor]) -> Iterator[None]:
    """f(name, frame, x) in place of the input x of every norm, where a channel has positions."""
    hooks = []
    for name, module in net.named_modules():
        if (frame := _frame_of(module)) is not None:

            def before(_: Any, args: tuple[Any, ...], given: Any, name: str = name, frame: Norm = frame) -> Any:
                word = "" if args else next(iter(given))  # x comes first, or by its name
                x = given[word] if word else args[0]
                if x.dim() <= 2 or x[:1].numel() <= _channels(frame, x):
                    return None
                new = f(name, frame, x)
                return (args, given | {word: new}) if word else ((new, *args[1:]), given)

            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
