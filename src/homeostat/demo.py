"""The tour: an image batch, a token batch and a table, normalized in one notation; and who shared what with whom.

python -m homeostat.demo
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

import homeostat as hs
from homeostat.arrays import backend_of
from homeostat.door import bind
from homeostat.kernels.groups import groups_of

# Light backgrounds, told apart also by their letter.
COLOURS = (153, 222, 157, 218, 183, 229, 152, 216)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def main() -> None:
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    images(rng)
    tokens(rng)
    table(rng)
    layers()
    print(f"\n{time.perf_counter() - start:.1f} seconds. Next: README.md, or help(homeostat.normalize).")


def images(rng: np.random.Generator) -> None:
    """Four samples of six channels, each channel with a level of its own, each sample with a brightness."""
    title("Images [n=4, c=6, h=8, w=8]. Each square is one channel of one sample; equal letters share a statistic.")
    x = rng.normal(size=(4, 6, 8, 8)) + 5 * np.arange(6).reshape(6, 1, 1) + 20 * np.arange(4).reshape(4, 1, 1, 1)
    rows = []
    frames: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("batch norm", "n c ... -> c", {}),
        ("layer norm", "n c ... -> n", {}),
        ("instance norm", "n c ... -> n c", {}),
        ("group norm", "n (g c) ... -> n g", {"g": 3}),
    )
    for name, pattern, sizes in frames:
        y = hs.normalize(x, pattern, **sizes)
        shown = f"channel levels {left(y, (0, 2, 3))}   brightness {left(y, (1, 2, 3))}"
        rows.append((f'{name:14}"{pattern}"', picture(x, pattern, (0, 1), sizes), shown))
    for heading, lines, shown in rows:
        print(f"\n  {heading}\n")
        for i, line in enumerate(lines):
            print(f"      sample {i}  {line}" + (f"     what is left:  {shown}" if i == 1 else ""))


def tokens(rng: np.random.Generator) -> None:
    """Two sentences of five tokens in six features, routed to two experts."""
    title("Tokens [b=2, t=5, d=6]. Each square is one feature of one token of the first sentence.")
    x = rng.normal(size=(2, 5, 6)) * np.array([1, 3, 1, 9, 1]).reshape(5, 1)
    expert = rng.integers(0, 2, (2, 5))
    for name, pattern, given in (
        ("layer norm", "b t d -> b t", {}),
        ("per head", "b t (h d) -> b t h", {"h": 2}),
        ("per expert", "b t d -> expert[b t]", {"expert": expert}),
    ):
        print(f'\n  {name:14}"{pattern}"\n')
        for i, line in enumerate(picture(x, pattern, (1, 2), given)):
            print(
                f"      token {i}  {line}"
                + (f"   went to expert {expert[0, i]}" if given is not None and "expert" in given else "")
            )


def table(rng: np.random.Generator) -> None:
    """A table from two labs that disagree about level and scale; the truth is a difference between two genes."""
    title("A table [cell=8, gene=4] measured in two labs. One label per row is all it takes.")
    lab = np.array(list("PPQPQQPQ"))
    truth = rng.normal(size=(8, 4))
    x = np.where((lab == "P")[:, None], truth, 4 * truth + 50)
    print('\n  per lab and gene  "cell gene -> lab[cell] gene"\n')
    y = hs.normalize(x, "cell gene -> lab[cell] gene", lab=lab)
    for i, line in enumerate(picture(x, "cell gene -> lab[cell] gene", (0, 1), {"lab": lab})):
        print(f"      lab {lab[i]}  {line}     {numbers(x[i])}   ->  {numbers(y[i])}")
    gap = [float(abs(v[lab == "P"].mean() - v[lab == "Q"].mean())) for v in (x, y)]
    print(f"\n  The labs differed by {gap[0]:.1f} on average; now by {gap[1]:.1f}.")
    m = hs.measure(x, "cell gene -> lab[cell] gene", lab=lab)
    print(f"  What was removed is kept: lab means {numbers(m.mean[0])} and {numbers(m.mean[1])}.")


def layers() -> None:
    """The same frames as layers, where torch is installed."""
    try:
        import torch
    except ImportError:
        print("\n  (torch is not installed: pip install 'homeostat[torch]' for the layers.)")
        return
    title("Layers. torch.nn's names and numbers, except where torch loses digits.")
    x = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0)) + 1e4
    x = x.contiguous(memory_format=torch.channels_last)
    wide = x.double().view(4, 4, 2, 16, 16)
    truth = (wide - wide.mean((2, 3, 4), keepdim=True)) / (
        wide.var((2, 3, 4), keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    print("\n  GroupNorm(4, 8) of float32 channels_last images with mean 10000 and spread 1; largest error:\n")
    for name, layer in (("torch.nn", torch.nn.GroupNorm(4, 8)), ("homeostat.nn", hs.nn.GroupNorm(4, 8))):
        error = (layer(x).double() - truth.view(x.shape)).abs().max().item()
        print(f"      {name:13} {error:.1e}")
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.BatchNorm2d(8))
    hs.adopt(model)
    model(x * float("nan"))
    skipped = int(model.get_buffer("1.num_batches_skipped"))
    print(
        f"\n  hs.adopt(model) makes a model's norms ours in place; a batch of NaN was skipped and counted: {skipped}."
    )


# ---------------------------------------------------------------- drawing


def picture(x: Any, pattern: str, axes: tuple[int, int], given: dict[str, Any]) -> list[str]:
    """Who shares with whom along two axes of x: one line per position on the first, one letter per group."""
    bound = bind(x, pattern, given)
    b = backend_of(x)
    g = groups_of(b, bound.plan, bound.codes)
    ids = np.arange(np.prod(bound.plan.groups)).reshape(bound.plan.groups)
    whose = np.broadcast_to(g.spread(g.inner(ids)), bound.plan.shape).reshape(x.shape)
    flat = np.moveaxis(whose, axes, (0, 1)).reshape(x.shape[axes[0]], x.shape[axes[1]], -1)[:, :, 0]
    order = {int(k): i for i, k in enumerate(dict.fromkeys(flat.ravel().tolist()))}
    return ["".join(square(order[int(k)]) for k in row) for row in flat]


def square(group: int) -> str:
    letter = LETTERS[group % len(LETTERS)]
    if not sys.stdout.isatty():
        return f" {letter}"
    return f"\033[30;48;5;{COLOURS[group % len(COLOURS)]}m {letter} \033[0m"


def title(text: str) -> None:
    print(f"\n{text}")


def numbers(values: Any) -> str:
    return " ".join(f"{v:6.1f}" for v in values)


def left(y: Any, axes: tuple[int, ...]) -> str:
    """How far apart the means along the remaining axis still are."""
    return f"{np.ptp(y.mean(axes)):.1f}"


if __name__ == "__main__":
    main()
