"""`homeostat fix`: cures on a copy, what they change, and the lines of source that would have to say so.

The model of the user's code stays as it is; --out writes the state of the copy.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from homeostat import settings
from homeostat.cli import check


def add(parser: argparse.ArgumentParser) -> None:
    check.subject(parser)
    parser.add_argument("--out", type=Path, help="a .safetensors file for the parameters and buffers of the cured copy")


def run(asked: argparse.Namespace) -> int:
    if asked.out and asked.out.suffix != ".safetensors":
        raise ValueError(f"{asked.out} is not called .safetensors, which is what is written.")
    from homeostat.doctor.editing import edits

    model, report = check.checked(asked, settings.read())
    print(report.head)
    fixed = None
    for code in report.codes:
        try:
            fixed = (fixed.after if fixed else report).fix(code)
        except ValueError as why:
            print(f"\n{why}")
            continue
        print(f"\n{fixed}")
        lines = [f"  {one.location} builds {one.module}" for one in report if one.code == code]
        print("\n".join([*lines, edits(model, fixed.model, asked.model)]).rstrip())
    if fixed is None:
        print("\nnothing to fix" if not report.codes else "\nnothing that surgery can fix")
    elif asked.out:
        _write(fixed.model, asked.out)
    return 0


def _write(model: Any, out: Path) -> None:
    from safetensors.torch import save

    from homeostat.files import write_whole

    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    write_whole(out, save(state))
    print(f"\nwrote {out}: {len(state)} tensors of the cured copy")
