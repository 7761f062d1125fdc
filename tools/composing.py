"""Composing: which source goes around which, on which frame and beside which gain. Found by trying every pair."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

import homeostat as hs
from homeostat import nn

X = torch.linspace(-3, 9, 4 * 6 * 5 * 3).sin().reshape(4, 6, 5, 3) * 2 + 3
WORKS = "works"
Make = Callable[[], Any]


def spread(m: Any) -> tuple[Any, Any]:
    return 0 * m.mean, m.var()


SOURCES: dict[str, Make] = {
    "Batch": hs.Batch,
    "Running": hs.Running,
    "Cumulative": hs.Cumulative,
    'Running("auto")': lambda: hs.Running("auto"),
    "Renorm": hs.Renorm,
    "Renorm, scheduled": lambda: hs.Renorm(schedule=((0, 1.0, 0.0), (9, 3.0, 5.0))),
    "Frozen": hs.Frozen,
    "Ghost": lambda: hs.Ghost(2),
    "Domain": lambda: hs.Domain(3),
    "Shrunk": lambda: hs.Shrunk(4),
    "Virtual": hs.Virtual,
    "Mixed": hs.Mixed,
    "Blended": hs.Blended,
    "Synced": hs.Synced,
    "Partial": hs.Partial,
    "By": lambda: hs.By(spread),
}
AROUND: dict[str, Callable[[Any], Any]] = {
    "Frozen": hs.Frozen,
    "Ghost": lambda inner: hs.Ghost(2, inner),
    "Domain": lambda inner: hs.Domain(3, inner),
    "Shrunk": lambda inner: hs.Shrunk(4, inner),
    "Mixed": lambda inner: hs.Mixed(inner=inner),
    "Blended": lambda inner: hs.Blended(inner=inner),
    "Synced": hs.Synced,
}
FRAMES: dict[str, Callable[[Any], Any]] = {
    "BatchNorm2d": lambda source: nn.BatchNorm2d(6, source=source),
    "InstanceNorm2d": lambda source: nn.InstanceNorm2d(6, source=source),
    "GroupNorm": lambda source: nn.GroupNorm(2, 6, source=source),
    "LayerNorm": lambda source: nn.LayerNorm(3, source=source),
    "RMSNorm": lambda source: nn.RMSNorm(3, source=source),
    "`n c h w -> kind[n] c`": lambda source: hs.Norm("n c h w -> kind[n] c", source, hs.Learned("c"), c=6, kind=3),
    "`n (f k) h w -> f`": lambda source: hs.Norm("n (f k) h w -> f", source, hs.Learned("f"), f=3, k=2),
    "`n (g c) h w -> n g`": lambda source: hs.Norm("n (g c) h w -> n g", source, hs.Learned("(g c)"), g=2, c=3),
}
GAINS: dict[str, Make] = {
    "Learned": lambda: hs.Learned("c"),
    "Around": lambda: hs.Around("c"),
    "Balanced": lambda: hs.Balanced("c", blocks=(2, 4)),
    "Conditional": lambda: hs.Conditional("kind[n] c"),
    "FiLM": lambda: hs.FiLM("n c", width=5),
    "Spatial": lambda: hs.Spatial("n c h w", width=2, hidden=4),
    "Style": lambda: hs.Style("n c"),
    "Given": lambda: hs.Given("n c"),
}


def given(n: int) -> dict[str, Any]:
    """What any of them asks for, for the first n samples of X."""
    kind = torch.tensor([0, 1, 0, 1])[:n], 3
    own = {"cond": X[:n, :5, 0, 0], "map": X[:n, :2, :3], "style": X[:n, :, :3] ** 2, "w": X[:n, :, 0, 0]}
    return {"domain": kind, "kind": kind, **own, "b": X[:n, :, 1, 1]}


def composed() -> dict[tuple[str, str], Make]:
    return {
        (outer, inner): lambda around=around, make=make: nn.BatchNorm2d(6, source=around(make()))
        for inner, make in SOURCES.items()
        for outer, around in AROUND.items()
    }


def framed() -> dict[tuple[str, str], Make]:
    return {
        (frame, source): lambda of=of, make=make: of(make())
        for source, make in SOURCES.items()
        for frame, of in FRAMES.items()
    }


def gained() -> dict[tuple[str, str], Make]:
    sizes = {"Conditional": {"kind": 3}}
    return {
        (gain, source): partial(_gained, make, of, sizes.get(gain, {}))
        for source, make in SOURCES.items()
        for gain, of in GAINS.items()
    }


def _gained(source: Make, gain: Make, sizes: dict[str, int]) -> Any:
    return hs.Norm("n c h w -> c", source(), gain(), c=6, **sizes)


def trained(make: Make) -> Any:
    """A layer after one batch forward and backward, and its reference recorded if it has one."""
    torch.manual_seed(0)
    layer = make()
    with hs.given(**given(4)):
        if hasattr(layer, "reference_mean"):
            with hs.recording():
                layer(X + 1)
        layer(X.clone().requires_grad_()).sum().backward()
    return layer


def tried(make: Make) -> str:
    """What one batch in training and one in evaluation come to. What is no refusal is raised."""
    try:
        layer = trained(make).eval()
        with hs.given(**given(4)):
            y = layer(X)
    except (TypeError, ValueError) as refusal:
        return str(refusal)
    assert torch.isfinite(y).all()
    return WORKS


def table(pairs: Mapping[tuple[str, str], Make], corner: str) -> list[str]:
    """One row per source, and below it the refusals, numbered; ... is the source."""
    columns, rows = (list(dict.fromkeys(pair[i] for pair in pairs)) for i in (0, 1))
    said: dict[str, int] = {}
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        found = (_anonymous(tried(pairs[column, row]), row) for column in columns)
        cells = [WORKS if text == WORKS else f"no: {said.setdefault(text, len(said) + 1)}" for text in found]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return [*lines, "", *(f"{number}. {text}" for text, number in said.items())]


def _anonymous(text: str, name: str) -> str:
    """The message for any source: without the one it is about, and of a source around it the reason alone."""
    source = SOURCES[name]()
    text = text.replace(str(source), "...").replace(f"so {type(source).__name__} would", "so ... would")
    return text.partition(" does not go around ...: ")[2] or text


def page() -> str:
    lines = inspect.cleandoc(
        """
        # Composing

        Every pair was tried: a small layer made, one batch forward and backward in training, one forward in evaluation.
        `no` is a refusal, and its number what it says below, where `...` stands for the row's source. Made from the
        code by `make docs`; [test_composing](../tests/test_composing.py) has the laws that hold wherever it `works`.

        Every source and every gain, some of them together, also goes through torch.compile, torch.export, ONNX,
        autocast, vmap, torch.func, forward mode, double backward, checkpointing, deepcopy, pickle, `state_dict` and DDP
        ([test_everywhere](../tests/test_everywhere.py), [test_export](../tests/test_export.py),
        [test_ddp](../tests/test_ddp.py)).

        Two ways are closed. Memory that is captured rather than passed in cannot be written under `torch.func.grad` and
        `jvp` ("... is captured by torch.func.grad or jvp, which may not update it", with what to do), and a renorm's
        gradient is no derivative: r and d are constants to it.
        """
    ).splitlines()
    around = """
        ## A source around a source

        `Ghost(n, s)` is s on every part of a batch, all from one memory; `Domain(n, s)` a layer of s for each domain;
        `Shrunk(n, s)` shrinks towards the memory of s; in `Mixed(keeps, s)` the batch's part is as s has it;
        `Frozen(s)` is s in evaluation ([test_around](../tests/test_around.py) holds each against layers apart or a
        formula in float64). `Synced(s)` is s on what all processes measured. A refusal comes when the source is made.
        """
    lines += ["", *inspect.cleandoc(around).splitlines(), "", *table(composed(), "inner, below what goes around it")]
    lines += ["", "## A source on a frame", "", *table(framed(), "source")]
    lines += ["", "## A source beside a gain", "", *table(gained(), "source, in `n c h w -> c`")]
    return "\n".join(lines) + "\n"
