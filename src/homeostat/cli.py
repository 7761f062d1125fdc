"""The command line: `homeostat choose`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict

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
    chooser = verbs.add_parser("choose", help="from a task and its sizes to a norm, with the reasons")
    chooser.add_argument("task", help=f"one of: {', '.join(TASKS)}")
    for name, said in SIZES.items():
        chooser.add_argument(f"--{name}", type=int, help=said)
    chooser.add_argument("--blocks", type=int, nargs="+", help="widths of the modalities")
    chooser.add_argument("--json", action="store_true", help="print a JSON record")
    asked = parser.parse_args(argv)
    shape = {name: value for name in SIZES if (value := getattr(asked, name)) is not None}
    if asked.blocks:
        shape["blocks"] = tuple(asked.blocks)
    try:
        found = choose(asked.task, **shape)
    except (ValueError, TypeError) as error:
        print(f"homeostat choose: {error}", file=sys.stderr)
        return 2
    record = asdict(found) | {"noise": None if found.noise == math.inf else found.noise}  # JSON has no infinity
    print(json.dumps(record, indent=2) if asked.json else found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
