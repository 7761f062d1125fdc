"""Report: results.json -> the measured blocks of performance.md, and its figures. What stands around a block stays.

python -m bench.report [DIR]        DIR/performance/results.json -> DIR/performance.md; docs by default
"""

import re
import sys
from pathlib import Path

from bench import blocks, limits, plot, view

PAGE = Path("docs/performance.md")
BLOCKS = {
    "machine": blocks.machine,
    "summary": blocks.summary,
    "worst": blocks.worst,
    "cells": blocks.cells,
    "kernels": blocks.kernels,
    "limits": limits.block,
    "large": blocks.large,
    "keyed": blocks.keyed,
    "models": blocks.models,
    "growth": blocks.line,
    "method": blocks.method,
}


def write(results: Path, into: Path) -> None:
    data = view.read(results)
    text = PAGE.read_text()
    for name, block in BLOCKS.items():
        text = filled(text, name, block(data))
    (into / PAGE.name).write_text(text)
    plot.roofline(data, results.parent / "roofline.png")
    plot.growth(data, results.parent / "growth.png")
    print(f"wrote {into / PAGE.name} and {results.parent}")


def filled(text: str, name: str, block: str) -> str:
    """The page with what is between the markers of `name` replaced."""
    begin, end = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{PAGE} has no block {begin} ... {end}; add both markers where it should stand.")
    return pattern.sub(lambda _: f"{begin}\n{block}\n{end}", text)


if __name__ == "__main__":
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    write(directory / "performance" / "results.json", directory)
