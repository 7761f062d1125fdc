"""Zoo: every rule of the doctor on its own sick and healthy models, and on the sick ones after its fix.

python -m bench.zoo [DIR] [--seeds 20] [--rules HS104,HS105]    prints a table; with DIR, as docs/doctor, the record
                                                                stands in DIR/zoo.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import homeostat as hs
from bench.view import table
from homeostat.doctor.rule import Rule, every_rule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("into", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rules", default="")
    told = parser.parse_args()
    torch.set_num_threads(1)
    codes = told.rules.split(",") if told.rules else list(every_rule())
    found = {code: _of(every_rule()[code], told.seeds) for code in codes}
    print(_view(found, told.seeds))
    if told.into:
        told.into.mkdir(parents=True, exist_ok=True)
        record = {"seeds": told.seeds, "rules": found}
        (told.into / "zoo.json").write_text(json.dumps(record, indent=1) + "\n")


def _of(rule: Rule, seeds: int) -> dict[str, Any]:
    """How many of its models it fires on, is silent on, and is silent on after its fix; None where there is none."""
    bad = [_check(rule, rule.bad(seed)) for seed in range(seeds)]
    good = [_check(rule, rule.good(seed)) for seed in range(seeds)]
    return {
        "name": rule.name,
        "fires on sick": sum(rule.code in report.codes for report in bad),
        "silent on healthy": sum(not report.codes and report.results[0].state == "passed" for report in good),
        "silent once fixed": sum(map(_heals, [rule] * seeds, bad)) if rule.cure else None,
        "least of sick": min((report.findings[0].effect for report in bad if report.findings), default=None),
        "most of healthy": max((m["value"] for report in good for m in report.results[0].measured), default=None),
        "limit": rule.limits.warn,
    }


def _check(rule: Rule, case: Any) -> Any:
    return hs.check(case.model, case.batches, select=rule.code, **case.told)


def _heals(rule: Rule, report: Any) -> bool:
    """Is nothing said any more of what was fixed?"""
    if rule.code not in report.codes:
        return False
    fixed = report.fix(rule.code)
    return not {finding.module for finding in fixed.after} & {finding.module for finding in report}


def _view(found: dict[str, dict[str, Any]], seeds: int) -> str:
    rows = [
        [
            f"{code} {one['name']}",
            *(_count(one[key], seeds) for key in ("fires on sick", "silent on healthy", "silent once fixed")),
        ]
        for code, one in found.items()
    ]
    return table(["rule", "fires on sick", "silent on healthy", "silent after its fix"], rows)


def _count(hits: int | None, of: int) -> str:
    return "by hand" if hits is None else f"{hits} / {of}"


if __name__ == "__main__":
    main()
