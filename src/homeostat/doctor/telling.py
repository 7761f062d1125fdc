"""Telling: what is seen of a model only because the user has told something: a symmetry, or which samples are real."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from homeostat.doctor.company import gathered
from homeostat.doctor.facts import Seen
from homeostat.doctor.parts import Array, Critic, Moved
from homeostat.doctor.rule import NotMeasured
from homeostat.recognising.watching import Forward, eagerly, put_back
from homeostat.surgery.certificate import tensors_in
from homeostat.surgery.flow import given

GROUPINGS = 5
Run = Callable[[list[Any], Array, bool], Seen | None]  # batches, which sample stands where, by the batch's statistics


def critic(batches: list[Any], sizes: tuple[int, ...], told: Any, run: Run, trained: Seen, evaluated: Seen) -> Critic:
    """Real samples among fakes, and among themselves in batches as large; the last of those is filled up again."""
    if not callable(told) and len(told) != len(batches):
        raise ValueError(f"roles['real_fake'] has {len(told)} masks for {len(batches)} batches: one is told of each.")
    real = np.concatenate([_mask(batch, n, told, i) for i, (batch, n) in enumerate(zip(batches, sizes, strict=True))])
    which, n = np.flatnonzero(real), min(sizes)
    ends = np.cumsum(sizes)
    mixed = any(0 < part.sum() < len(part) for part in np.split(real, ends[:-1]))
    if len(which) < 2 * n or len(which) == len(real):
        raise NotMeasured(f"of {len(real)} samples {len(which)} are real: two batches of them, and fakes, are needed")
    alone = []
    for seed in range(GROUPINGS):
        order = np.random.default_rng(seed).permutation(len(which))
        filled = np.concatenate([order, order[: -len(order) % n]])
        seen = run(gathered(batches, which[filled], [n] * (len(filled) // n)), filled, True)
        if seen is None:
            raise NotMeasured("the model gives no tensor with a row per sample")
        alone.append(Seen(order, seen.rows[: len(order)], seen.classes).of(np.arange(len(which))))
    among = (trained if mixed else evaluated).of(which)
    return Critic(mixed, n / len(which), among, tuple(alone))


def _mask(batch: Any, n: int, told: Any, i: int) -> Array:
    said = told(batch) if callable(told) else told[i]
    mask = np.asarray(said.cpu() if isinstance(said, Tensor) else said).astype(bool).reshape(-1)
    if len(mask) != n:
        raise ValueError(
            f"roles['real_fake'] has {len(mask)} entries for batch {i} of {n} samples: one is told of each."
        )
    return mask


def symmetry(
    model: nn.Module, batches: list[Any], forward: Forward, told: Mapping[str, Callable[[Any], Any]]
) -> tuple[Moved, ...]:
    """f(g x) beside rho f(x), of the model and of norms that are named."""
    if "batch" not in told:
        raise ValueError("roles['group_action'] has no 'batch': a function of a batch that gives the moved batch.")
    rho = told.get("output", lambda y: y)
    modules = dict(model.named_modules())
    named = {name: act for name, act in told.items() if name not in ("batch", "output")}
    for name in named:
        if name not in modules:
            raise ValueError(f"roles['group_action'] names {name!r}; the model has no such module.")
    rows: dict[str, list[tuple[Array, Array]]] = {}
    dtypes: dict[str, str] = {}

    def take(name: str, y: Tensor, z: Tensor) -> None:
        dtypes[name] = str(z.dtype).removeprefix("torch.")
        y, z = (t.detach().double().reshape(len(t), -1) for t in (y, z))
        rows.setdefault(name, []).append(tuple(s.sum(1).cpu().numpy() for s in ((y - z).square(), y.square())))  # type: ignore[arg-type]

    def look(name: str, act: Callable[[Any], Any]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, y: Any) -> None:
            x = given(args, kwargs)
            if moving or not (isinstance(x, Tensor) and isinstance(y, Tensor)):
                return
            take(name, act(y), module.forward(act(x.clone()), *args[1:]))

        return hook

    moving, hooks = False, []
    with put_back(model), eagerly(), torch.no_grad():
        model.eval()
        try:
            hooks = [
                modules[name].register_forward_hook(look(name, act), with_kwargs=True) for name, act in named.items()
            ]
            for batch in batches:
                moving = False
                here = _first(forward(model, batch))
                moving = True
                take("", rho(here), _first(forward(model, told["batch"](batch))))
        finally:
            for hook in hooks:
                hook.remove()
    return tuple(
        Moved(name, np.concatenate([off for off, _ in some]), np.concatenate([size for _, size in some]), dtypes[name])
        for name, some in rows.items()
    )


def _first(out: Any) -> Tensor:
    found = next((t for t in tensors_in(out) if t.dim()), None)
    if found is None:
        raise NotMeasured("the model gives no tensor with a row per sample")
    return found.clone()
