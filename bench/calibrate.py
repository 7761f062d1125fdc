"""Calibrate: how often each rule of the doctor speaks where nothing is wrong.

python -m bench.calibrate [DIR] [--draws 500]    prints a table; with DIR, as docs/doctor, the record stands in
                                                 DIR/calibration.json

Every rule is asked about `draws` healthy networks of random shape on random data (bench/healthy.py), and about as many
of its own healthy models, from seeds that no test uses. Counted are those where it had something to measure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import homeostat as hs
from bench.healthy import drawn
from bench.view import table
from homeostat.doctor.evidence import share
from homeostat.doctor.rule import Case, every_rule

FIRST = 10_000  # the first seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("into", nargs="?", type=Path)
    parser.add_argument("--draws", type=int, default=500)
    told = parser.parse_args()
    torch.set_num_threads(1)
    found = {"drawn": _drawn(told.draws), "own": _own(told.draws)}
    print(_view(found))
    if told.into:
        told.into.mkdir(parents=True, exist_ok=True)
        (told.into / "calibration.json").write_text(json.dumps({"draws": told.draws, **found}, indent=1) + "\n")


def _drawn(draws: int) -> dict[str, dict[str, Any]]:
    """All rules at once."""
    seen = [_states(drawn(seed), "all") for seed in range(FIRST, FIRST + draws)]
    return {code: _counted(code, seen) for code in every_rule()}


def _own(draws: int) -> dict[str, dict[str, Any]]:
    """Each of its own."""
    found = {}
    for code, rule in every_rule().items():
        found[code] = _counted(code, [_states(rule.good(seed), code) for seed in range(FIRST, FIRST + draws)])
        print(code, found[code]["spoke"], file=sys.stderr)
    return found


def _states(case: Case, select: str) -> dict[str, str]:
    """What became of each rule."""
    report = hs.check(case.model, case.batches, select=select, **case.told)
    return {result.code: result.state for result in report.results}


def _counted(code: str, seen: list[dict[str, str]]) -> dict[str, Any]:
    states = Counter(one[code] for one in seen)
    spoke, asked = states["found"], states["found"] + states["passed"]
    value, low, high = share(spoke, asked) if asked else (0.0, 0.0, 1.0)
    seeds = [FIRST + i for i, one in enumerate(seen) if one[code] == "found"]
    return {"asked": asked, "spoke": spoke, "share": value, "low": low, "high": high, "seeds": seeds[:20]}


def _view(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    rules = every_rule()
    rows = [
        [f"{code} {rules[code].name}", *(_said(found[where].get(code)) for where in ("drawn", "own"))] for code in rules
    ]
    return table(["rule", "speaks, of healthy networks drawn", "of its own healthy models"], rows)


def _said(one: dict[str, Any] | None) -> str:
    if not one or not one["asked"]:
        return "not measured"
    return f"{one['spoke']} / {one['asked']}, {one['low']:.1%} to {one['high']:.1%}"


if __name__ == "__main__":
    main()
