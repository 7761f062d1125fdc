"""Smoke: an installed homeostat works, compiled, without a compiler. wheels.py runs it in a fresh environment."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np

import homeostat as hs


def main() -> None:
    assert Path(hs.__file__).is_relative_to(sys.prefix), f"this is {hs.__file__}, not the installed one"
    assert not any(map(shutil.which, ("cc", "c++", "gcc", "g++", "clang", "cmake"))), "there is a compiler here"
    told, lost = hs.kernels.info(), "--without-libgomp" in sys.argv
    assert told["native"] or (lost and "libgomp" in str(told["reason"])), told
    a_table()
    torch = not lost and importlib.util.find_spec("torch") is not None
    if torch:
        layers_of_torch()
    print(sys.version.split()[0], "with torch:" if torch else "NumPy alone:", told)


def a_table() -> None:
    x = np.random.default_rng(0).normal(3, 2, size=(100, 20))
    y = hs.normalize(x, "row column -> column")
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), rtol=1e-12, atol=1e-12)


def layers_of_torch() -> None:
    import torch

    torch.manual_seed(0)
    for name, size, shape in (("LayerNorm", 512, (256, 512)), ("BatchNorm2d", 16, (8, 16, 28, 28))):
        x, dy = torch.randn(2, *shape)
        ours, theirs = (through(getattr(nn, name)(size), x, dy) for nn in (hs.nn, torch.nn))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    pools = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libgomp" in line}
    assert len(pools) == 1, f"two pools of threads: {pools}"


def through(layer, x, dy):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    return y, x.grad, *(p.grad for p in layer.parameters())


main()
