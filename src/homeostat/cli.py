"""The command line: `homeostat choose`, `homeostat style`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from homeostat.choosing import TASKS, choose

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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="homeostat", description="Choose, check and repair normalization.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_choose(verbs.add_parser("choose", help="from a task and its sizes to a norm, with the reasons"))
    _add_style(verbs.add_parser("style", help="a picture in the statistics of another"))
    asked = parser.parse_args(argv)
    try:
        {"choose": _choose, "style": _style}[asked.verb](asked)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"homeostat {asked.verb}: {error}", file=sys.stderr)
        return 2
    return 0


def _add_choose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help=f"one of: {', '.join(TASKS)}")
    for name, said in SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=said)
    parser.add_argument("--blocks", type=int, nargs="+", help="widths of the modalities")
    parser.add_argument("--json", action="store_true", help="print a JSON record")


def _choose(asked: argparse.Namespace) -> None:
    shape = {name: value for name in SIZES if (value := getattr(asked, name)) is not None}
    if asked.blocks:
        shape["blocks"] = tuple(asked.blocks)
    found = choose(asked.task, **shape)
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
