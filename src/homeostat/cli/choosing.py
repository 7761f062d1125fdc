"""`homeostat choose`: from a task and its sizes to a norm."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict

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


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", nargs="+", help=f"one of: {', '.join(TASKS)}")
    for name, said in SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=said)
    for name, said in ROWS.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", help=said)
    parser.add_argument("--layout", help=f"where the channels of a picture are: {' or '.join(LAYOUTS)}")
    parser.add_argument("--json", action="store_true", help="print a JSON record")


def run(asked: argparse.Namespace) -> None:
    told = {name: value for name in (*SIZES, *ROWS, "layout") if (value := getattr(asked, name)) is not None}
    found = choose(" ".join(asked.task), **told)
    record = asdict(found) | {"noise": None if found.noise == math.inf else found.noise}  # JSON has no infinity
    print(json.dumps(record, indent=2) if asked.json else found)
