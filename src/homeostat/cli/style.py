"""`homeostat style`: a picture in the statistics of another."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("content", type=Path, help="the picture whose form is kept")
    parser.add_argument("style", type=Path, help="the picture whose colours and contrasts are put on")
    parser.add_argument("-o", "--out", type=Path, help="where to write; CONTENT-in-STYLE.png here, unless said")
    parser.add_argument(
        "--strength", type=float, default=1.0, help="0: the content as it is; 1: the style's statistics"
    )
    parser.add_argument("--scales", type=int, default=5, help="octaves, from single pixels upwards")
    parser.add_argument("--orientations", type=int, default=4, help="directions at every scale")


def run(asked: argparse.Namespace) -> None:
    from homeostat import pixels, styling

    out = asked.out or Path(f"{asked.content.stem}-in-{asked.style.stem}.png")
    pixels.format_of(out)  # before the work, not after it
    content, style = pixels.read(asked.content), pixels.read(asked.style)
    basis = styling.Basis(asked.scales, asked.orientations).within(content.colours, style.colours)
    print(f"{asked.content}, {content.size}, in the statistics of {asked.style}, {style.size}: {basis}", flush=True)
    colours = styling.restyled(content.colours, style.colours, asked.strength, basis)
    cut = pixels.write(out, replace(content, colours=colours))
    print(f"wrote {out}; {cut:.1%} of its values were beyond black or white and cut")
