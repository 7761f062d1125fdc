"""`homeostat explain`: what a rule is about; without one, all of them in a line each."""

from __future__ import annotations

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", nargs="?", help="a rule by its code or name, such as HS101")


def run(asked: argparse.Namespace) -> None:
    from homeostat import doctor
    from homeostat.doctor.rule import every_rule

    if asked.code:
        print(doctor.explain(asked.code))
        return
    for rule in every_rule().values():
        print(f"{rule.code} {rule.name} ({rule.group}): {rule.what}")
