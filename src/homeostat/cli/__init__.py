"""The command line: `homeostat check`, `explain`, `fix`, `choose`, `style`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from homeostat.cli import check, choosing, explain, fix, style

VERBS = {
    "check": (check, "what normalization does wrong in a model, measured on a few batches"),
    "explain": (explain, "what a rule finds, why it matters, when it is wrong"),
    "fix": (fix, "the cure of a rule on a copy of the model, looked at again"),
    "choose": (choosing, "from a task and its sizes to a norm, with the reasons"),
    "style": (style, "a picture in the statistics of another"),
}


class Parser(argparse.ArgumentParser):
    """A refusal is one line; --help says the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """0: done, and nothing found; 1: findings; 2: it could not be done, and why is said."""
    parser = Parser(prog="homeostat", description="Choose, check and repair normalization.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (verb, said) in VERBS.items():
        verb.add(verbs.add_parser(name, help=said))
    asked = parser.parse_args(argv)
    try:
        return VERBS[asked.verb][0].run(asked) or 0
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError) as error:
        print(f"homeostat {asked.verb}: {error}", file=sys.stderr)
        return 2
