"""Limits: which kernels could reach the copy limit, by the bytes that must move, and how near they come.

A group is read twice forward (measured, then applied) and x and dy are read twice backward. What lies between the two
readings is everything read meanwhile: the group itself where it is contiguous, all of a sample or of the batch where
channels are interleaved. If the caches keep it, memory sees two and three transfers; if not, three and five.
"""

from math import prod
from typing import Any

from bench.cases import BACKWARD, FORWARD, Case, every_case
from bench.view import one, table

LEAST = 1 << 20  # elements
ITEM = 4  # bytes of a float
FASTER = 1.25  # than the copy limit: then it came from a cache


def kept(data: dict[str, Any], threads: int) -> int:
    """The most bytes, read and written, of a copy that the caches hold."""
    found = next(c for c in data["copy"] if c["threads"] == threads)
    return max((size for size, rate in found["curve"] if rate > FASTER * found["limit"]), default=0)


def between(case: Case) -> int:
    """Bytes of x that are read before the first of them is read again."""
    if case.family.endswith(("BatchNorm", "BatchRenorm")):
        return prod(case.shape) * ITEM // (1 if case.last else case.shape[1])
    if case.family in ("GroupNorm", "InstanceNorm"):
        groups = {"GroupNorm": 32, "InstanceNorm": case.shape[1]}[case.family]
        return prod(case.shape[1:]) * ITEM // (1 if case.last else groups)
    return 64 * ITEM if case.family.endswith("per head") else case.shape[-1] * ITEM


def transfers(case: Case, backward: bool, fits: int) -> int:
    """How many tensors of x's size memory must move."""
    if not backward:
        return FORWARD if between(case) <= fits else FORWARD + 1
    return BACKWARD if 2 * between(case) <= fits else BACKWARD + 2


def block(data: dict[str, Any]) -> str:
    """Large fp32 kernels alone: at best, and measured, as shares of the copy limit."""
    rows = []
    for case in every_case():
        if case.elements <= LEAST or case.inputs > 1:
            continue
        row: list[Any] = [case.name]
        for threads in sorted({c["threads"] for c in data["copy"]}):
            fits = kept(data, threads) // threads
            for what, least in (("forward", FORWARD), ("backward", BACKWARD)):
                key = {"case": case.name, "dtype": "float32", "threads": threads, "what": f"kernel_{what}"}
                cell = one((c for c in data["cell"] if c["what"] == key["what"]), **key)
                moved = transfers(case, what == "backward", fits)
                row += [None, None] if cell is None else [f"{least / moved:.0%}", _share(cell)]
        rows.append(row)
    told = [f"{kept(data, c['threads']) >> 20} MiB on {c['threads']}" for c in data["copy"]]
    head = ["case"]
    for c in data["copy"]:
        head += [f"{what}{side}, {c['threads']} thr." for what in ("fwd", "bwd") for side in (" at best", "")]
    return f"A copy is quicker than memory up to {' and '.join(told)} threads.\n\n{table(head, rows)}"


def _share(cell: dict[str, Any]) -> str:
    return f"{cell['contenders']['homeostat']['share']:.0%}"
