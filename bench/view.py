"""View: the questions a report asks of the cells. How many times as fast, how many fall short, which is the worst."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.cases import LARGE, TINY

Cell = dict[str, Any]
PEERS = {"torch": "torch", "compile": "torch.compile", "jax": "JAX"}
WHATS = {
    "forward": "forward",
    "forward_grad": "forward with a graph",
    "forward_backward": "forward + backward",
}
FLOOR, TINY_FLOOR = 0.95, 0.90  # what noise explains


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def times(cell: Cell, peer: str, ours: str = "homeostat") -> float | None:
    """How many times as fast as the peer, if both were measured."""
    found = cell["contenders"]
    return found[peer]["ms"] / found[ours]["ms"] if peer in found and ours in found else None


def regular(data: dict[str, Any]) -> list[Cell]:
    """Layers end to end whose outputs are below LARGE."""
    return [c for c in data["cell"] if c["what"] in WHATS and c["output_bytes"] < LARGE]


def large(data: dict[str, Any]) -> list[Cell]:
    return [c for c in data["cell"] if c["what"] in WHATS and c["output_bytes"] >= LARGE]


def ratios(cells: Iterable[Cell], peer: str) -> list[float]:
    return [t for c in cells if (t := times(c, peer)) is not None]


def mean(values: list[float]) -> float | None:
    return statistics.geometric_mean(values) if values else None


def short(cells: Iterable[Cell], peer: str) -> list[Cell]:
    """Those that are slower than the peer by more than noise explains."""
    return [c for c in cells if (t := times(c, peer)) is not None and t < _floor(c)]


def _floor(cell: Cell) -> float:
    return TINY_FLOOR if cell["elements"] <= TINY else FLOOR


def worst(cells: Iterable[Cell], peer: str, count: int) -> list[Cell]:
    measured = [c for c in cells if times(c, peer) is not None]
    return sorted(measured, key=lambda c: times(c, peer))[:count]


def by(cells: Iterable[Cell], field: str) -> dict[Any, list[Cell]]:
    """The cells per value of a field, in order of first appearance."""
    found: dict[Any, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell[field], []).append(cell)
    return found


def one(cells: Iterable[Cell], **wanted: Any) -> Cell | None:
    return next((c for c in cells if all(c[k] == v for k, v in wanted.items()) and c["contenders"]), None)


def table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    """Markdown; None is shown as a dash."""
    lines = [head, ["---"] * len(head), *([_text(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return digits(value) if isinstance(value, float) else str(value)


def digits(value: float, count: int = 3) -> str:
    """So many significant digits, and no exponent."""
    rounded = float(f"{value:.{count}g}")
    whole = len(str(int(abs(rounded)))) if abs(rounded) >= 1 else 0
    decimals = max(0, count - whole) if whole else max(0, count - 1 - _exponent(rounded))
    return f"{rounded:.{decimals}f}"


def _exponent(value: float) -> int:
    return int(f"{value:e}".split("e")[1]) if value else 0
