"""Gradients: how large the loss's gradient is at what each norm is given. One pass each way, of one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.doctor.parts import Gradient
from homeostat.recognising.found import SAMPLE, Found
from homeostat.recognising.watching import Forward, eagerly, put_back
from homeostat.surgery.flow import given

Loss = Callable[..., Tensor]


def gradients(
    model: nn.Module,
    norms: dict[str, tuple[Found, nn.Module]],
    batch: Any,
    forward: Forward,
    loss: Loss,
    labels: Any,
) -> tuple[Gradient, ...]:
    """Asked of what the norms are given, not of parameters: their .grad, and their hooks, are not reached."""
    seen: list[tuple[str, Tensor]] = []
    squares: dict[int, Tensor] = {}
    hooks = []

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            x = given(args, kwargs)
            if isinstance(x, Tensor) and x.requires_grad:
                at = len(seen)
                seen.append((name, x))
                x.register_hook(  # type: ignore[no-untyped-call]
                    lambda g: squares.__setitem__(at, g.detach().double().square().mean())
                )

        return hook

    with put_back(model), eagerly(), torch.enable_grad():
        model.eval()
        for found, module in norms.values():
            module.train(found.source != SAMPLE)
        try:
            for name, (_, module) in norms.items():
                hooks.append(module.register_forward_pre_hook(look(name), with_kwargs=True))
            out = forward(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        said = labels_of(batch, labels)
        value = loss(out) if said is None else loss(out, said)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"loss gave {type(value).__name__}; it gives one number, loss(output, labels).")
        if not (seen and value.requires_grad):
            return ()
        torch.autograd.grad(value.reshape(()), [x for _, x in seen], allow_unused=True)
    return tuple(Gradient(seen[i][0], float(s) ** 0.5) for i, s in sorted(squares.items()))


def labels_of(batch: Any, labels: Any) -> Any:
    """Of the first batch: as given, or the second of a sequence, or what a dict holds under `labels`."""
    if callable(labels):
        return labels(batch)
    if labels is not None:
        return labels if isinstance(labels, Tensor) else next(iter(labels))
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
