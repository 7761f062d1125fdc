"""`homeostat check`: a model and batches by their names; findings as text, JSON, SARIF, GitHub's lines or a page.

It ends with 0 where nothing was found that counts, 1 where something was, 2 where it could not look.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from homeostat import report as views
from homeostat import settings
from homeostat.cli import named


def add(parser: argparse.ArgumentParser) -> None:
    subject(parser)
    parser.add_argument("--output-format", choices=tuple(views.FORMATS), help="text, unless --out says otherwise")
    parser.add_argument("--out", type=Path, help="a file to write to; its ending says the format, unless told")
    parser.add_argument("--baseline", type=Path, help="a file of findings that are known and do not count")
    parser.add_argument("--write-baseline", type=Path, metavar="FILE", help="write what is found as known")
    parser.add_argument("--fail-on", choices=settings.FAIL_ON, help="the least severity that ends with 1; note")


def subject(parser: argparse.ArgumentParser) -> None:
    """What `check` and `fix` look at."""
    parser.add_argument("model", help="package.module:name of a model or of a function that makes one")
    parser.add_argument("--batch", required=True, help="package.module:name of batches, or of what gives some")
    parser.add_argument("--select", type=_words, help="rules by code, name or group, with commas between")
    parser.add_argument("--ignore", type=_words, help="of these, rules to leave out")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers that make model and batches")


def run(asked: argparse.Namespace) -> int:
    said = settings.read()
    if asked.out:
        views.form_of(asked.out, asked.output_format)  # before the work, not after it
    known = asked.baseline or said.get("baseline")
    marks = views.baseline.read(known) if known else set()
    _, report = checked(asked, said)
    record = views.baseline.apart(report.record(), marks)
    if asked.write_baseline:
        many = views.baseline.save(record, asked.write_baseline)
        print(f"wrote {asked.write_baseline}: {many} finding{'s' * (many != 1)} known", file=sys.stderr)
        return 0
    _put(record, asked)
    return int(_counts(record, asked.fail_on or said.get("fail-on", "note")))


def checked(asked: argparse.Namespace, said: dict[str, Any]) -> tuple[Any, Any]:
    """The model and its report, by the command line's words or else the settings'."""
    from homeostat import doctor
    from homeostat.doctor.location import is_ours
    from homeostat.doctor.rule import DEFAULT, asked_for

    select = asked.select or said.get("select", DEFAULT)
    ignore = asked.ignore or said.get("ignore", ())
    asked_for(select), asked_for(ignore)  # refused before the user's code is run
    model, batches = named.model(asked.model, asked.seed), named.batches(asked.batch, asked.seed)

    built = next(filter(is_ours, (asked.model, asked.batch)), asked.model)

    def look() -> Any:
        return doctor.check(model, batches, select=select, ignore=ignore, limits=said.get("limits"), built=built)

    return model, named.guarded(f"running {asked.model}", look)


def _put(record: views.Record, asked: argparse.Namespace) -> None:
    if asked.out:
        form = views.save(record, asked.out, asked.output_format)
        print(f"{views.counts(record)}; wrote {asked.out} ({form})", file=sys.stderr)
    elif asked.output_format in (None, "text"):
        views.show(record)
    else:
        sys.stdout.write(views.FORMATS[asked.output_format](record))


def _counts(record: views.Record, fail_on: str) -> bool:
    heavy = settings.FAIL_ON[: settings.FAIL_ON.index(fail_on) + 1] if fail_on != "never" else ()
    return any(finding["severity"] in heavy for finding in record["findings"])


def _words(given: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in given.split(",") if word.strip())
