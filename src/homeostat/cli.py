"""The command line: `homeostat choose`, `homeostat style`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

from homeostat.choosing import TASKS, choose
from homeostat.shapes import LAYOUTS

SIZES = {
    "channels": "features or channels",
    "spatial": "positions of one sample, height times width",
    "batch": "samples per device",
    "ranks": "devices",
    "domains": "domains, or experts",
    "classes": "classes that steer a generator",
    "width": "numbers in a conditioning vector",
    "orbit": "channels that a symmetry mixes",
}
ROWS = {
    "blocks": "widths of the modalities",
    "shape": "of one sample, in place of channels and spatial: 256 14 14",
}


class Parser(argparse.ArgumentParser):
    """A refusal is one line; --help says the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="homeostat", description="Choose, check and repair normalization.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_choose(verbs.add_parser("choose", help="from a task and its sizes to a norm, with the reasons"))
    _add_style(verbs.add_parser("style", help="a picture in the statistics of another"))
    asked = parser.parse_args(argv)
    try:
        {"choose": _choose, "style": _style}[asked.verb](asked)
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError) as error:
        print(f"homeostat {asked.verb}: {error}", file=sys.stderr)
        return 2
    return 0


def _add_choose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", nargs="+", help=f"one of: {', '.join(TASKS)}")
    for name, said in SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=said)
    for name, said in ROWS.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", help=said)
    parser.add_argument("--layout", help=f"where the channels of a picture are: {' or '.join(LAYOUTS)}")
    parser.add_argument("--json", action="store_true", help="print a JSON record")


def _choose(asked: argparse.Namespace) -> None:
    told = {name: value for name in (*SIZES, *ROWS, "layout") if (value := getattr(asked, name)) is not None}
    found = choose(" ".join(asked.task), **told)
    record = asdict(found) | {"noise": None if found.noise == math.inf else found.noise}  # JSON has no infinity
    print(json.dumps(record, indent=2) if asked.json else found)


def _add_style(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("content", type=Path, help="the picture whose form is kept")
    parser.add_argument("style", type=Path, help="the picture whose colours and contrasts are put on")
    parser.add_argument("-o", "--out", type=Path, help="where to write; CONTENT-in-STYLE.png here, unless said")
    parser.add_argument(
        "--strength", type=float, default=1.0, help="0: the content as it is; 1: the style's statistics"
    )
    parser.add_argument("--scales", type=int, default=5, help="octaves, from single pixels upwards")
    parser.add_argument("--orientations", type=int, default=4, help="directions at every scale")


def _style(asked: argparse.Namespace) -> None:
    from homeostat import pixels, styling

    out = asked.out or Path(f"{asked.content.stem}-in-{asked.style.stem}.png")
    pixels.format_of(out)  # before the work, not after it
    content, style = pixels.read(asked.content), pixels.read(asked.style)
    basis = styling.Basis(asked.scales, asked.orientations).within(content.colours, style.colours)
    print(f"{asked.content}, {content.size}, in the statistics of {asked.style}, {style.size}: {basis}", flush=True)
    colours = styling.restyled(content.colours, style.colours, asked.strength, basis)
    cut = pixels.write(out, replace(content, colours=colours))
    print(f"wrote {out}; {cut:.1%} of its values were beyond black or white and cut")


if __name__ == "__main__":
    raise SystemExit(main())
