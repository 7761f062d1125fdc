"""Blocks: the parts of docs/performance.md that are made of measurements, each a function of the results."""

from typing import Any

from bench import clock, copying, growth, heap, view
from bench.cases import LARGE
from bench.view import PEERS, WHATS, digits, table, times

Data = dict[str, Any]
WORST = 10
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def machine(data: Data) -> str:
    m = data["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in m["versions"].items())
    caches = ", ".join(f"{level} {size}" for level, size in m["caches"].items())
    lines = [
        f"- {m['cpu']}, {m['cores']} cores, instruction set {m['instructions']}; caches as a core sees them: {caches}",
        f"- {versions}; {m['system']}",
    ]
    for c in data["copy"]:
        native = f", past the caches {digits(c['native'])}" if "native" in c else ""
        lines.append(f"- copy limit on {_threads(c)}: {digits(c['limit'])} GB/s (torch {digits(c['torch'])}{native})")
    return "\n".join(lines)


SIZES = (
    ("x of at most 2^14 elements", 0, 1 << 14),
    ("x of at most 2^20", 1 << 14, 1 << 20),
    ("larger x", 1 << 20, 1 << 40),
)


def summary(data: Data) -> str:
    """Geometric means by threads and by what, and how many cells fall short."""
    cells, rows = view.regular(data), []
    for threads, group in view.by(cells, "threads").items():
        for what, title in WHATS.items():
            rows.append([threads, title, *_standing([c for c in group if c["what"] == what])])
    rows.append(["**all**", "**all**", *_standing(cells)])
    own = [c for c in cells if c["own"]]
    rows.append(["all", "only layers that torch.nn has", *_standing(own)])
    for title, least, most in SIZES:
        rows.append(["all", title, *_standing([c for c in cells if least < c["elements"] <= most])])
    head = ["threads", "what", "cells", *(f"x {p}" for p in PEERS.values()), "short of torch", "short of torch.compile"]
    return table(head, rows) + "\n\n" + families(data)


def _standing(cells: list[view.Cell]) -> list[Any]:
    means = [view.mean(view.ratios(cells, peer)) for peer in PEERS]
    return [len(cells), *means, *(len(view.short(cells, peer)) for peer in ("torch", "compile"))]


def families(data: Data) -> str:
    rows = []
    for family, group in view.by(view.regular(data), "family").items():
        parts = [[c for c in group if c["dtype"] == dtype] for dtype in DTYPES]
        rows.append([family, *(view.mean(view.ratios(part, peer)) for peer in PEERS for part in parts)])
    return table(["layer", *(f"x {p}, {d}" for p in PEERS.values() for d in DTYPES.values())], rows)


def worst(data: Data) -> str:
    cells, parts = view.regular(data), []
    for peer in ("torch", "compile"):
        rows = [[c["case"], DTYPES[c["dtype"]], c["threads"], WHATS[c["what"]], _ms(c), _ms(c, peer), times(c, peer)]
                for c in view.worst(cells, peer, WORST)]  # fmt: skip
        parts.append(table(["case", "dtype", "threads", "what", "ms", f"{PEERS[peer]}, ms", "x"], rows))
    return "\n\n".join(parts)


def cells(data: Data) -> str:
    """A table per threads and what: the case, and per dtype the time, its rate and how it compares."""
    parts = []
    for _, group in sorted(view.by(view.regular(data), "threads").items(), reverse=True):
        for what, title in WHATS.items():
            found = table(_head([f"x {p}" for p in PEERS.values()]), _rows(group, what))
            parts.append(_folded(f"{title}, {_threads(group[0])}", found))
    return "\n\n".join(parts)


def _head(compared: list[str]) -> list[str]:
    columns = ["ms", "GB/s", "of copy", *compared]
    return ["case", *(f"{d} {column}" for d in DTYPES.values() for column in columns)]


def _rows(group: list[view.Cell], what: str) -> list[list[Any]]:
    rows = []
    for case in view.by(group, "case"):
        found = [view.one(group, case=case, dtype=dtype, what=what) for dtype in DTYPES]
        rows.append([case, *(part for c in found for part in (*_rate(c), *(c and times(c, p) for p in PEERS)))])
    return rows


def _rate(cell: view.Cell | None, name: str = "homeostat") -> list[Any]:
    t = cell["contenders"].get(name) if cell else None
    return [None] * 3 if t is None else [t["ms"], t["gb_s"], f"{t['share']:.0%}"]


def kernels(data: Data) -> str:
    parts = []
    alone = [c for c in data["cell"] if c["what"].startswith("kernel_")]
    for _, group in sorted(view.by(alone, "threads").items(), reverse=True):
        rows = []
        for case in view.by(group, "case"):
            each = [
                view.one(group, case=case, dtype=d, what=f"kernel_{w}") for d in DTYPES for w in ("forward", "backward")
            ]
            if any(each):
                rows.append([case, *(part for c in each for part in _rate(c))])
        columns = [f"{d} {w} {u}" for d in DTYPES.values() for w in ("fwd", "bwd") for u in ("ms", "GB/s", "of copy")]
        parts.append(_folded(f"kernels alone, {_threads(group[0])}", table(["case", *columns], rows)))
    return "\n\n".join(parts)


def large(data: Data) -> str:
    rows = []
    for c in view.large(data):
        pooled = [_ms(c, "pooled"), times(c, "torch", "pooled"), times(c, "compile", "pooled")]
        ours = [_ms(c), times(c, "torch"), times(c, "compile")]
        rows.append([c["case"], DTYPES[c["dtype"]], c["threads"], WHATS[c["what"]], *ours, *pooled])
    head = ["case", "dtype", "threads", "what", "ms", "x torch", "x torch.compile"]
    return table([*head, "pooled: ms", "x torch", "x torch.compile"], rows)


def keyed(data: Data) -> str:
    rows = []
    for c in data["cell"]:
        if c["what"] == "measure":
            ms, rate, share = _rate(c)
            rows.append([c["case"], c["threads"], ms, rate, share, times(c, "numpy"), times(c, "pandas")])
    return table(["case", "threads", "ms", "GB/s", "of copy", "x NumPy", "x pandas"], rows)


def models(data: Data) -> str:
    rows = []
    for c in data["model"]:
        pairs = (("torch", "homeostat"), ("torch compiled", "homeostat compiled"))
        timed = [part for theirs, ours in pairs for part in (_ms(c, theirs), _ms(c, ours), times(c, theirs, ours))]
        rows.append([c["case"], c["what"], c["threads"], *timed])
    head = [
        "model",
        "step",
        "threads",
        "torch, ms",
        "homeostat, ms",
        "x",
        "torch compiled, ms",
        "homeostat compiled, ms",
    ]
    return table([*head, "x"], rows)


def line(data: Data) -> str:
    """Growth: slope and R^2 of each series."""
    rows = []
    for found in data["growth"]:
        for name, s in found["series"].items():
            fits = ["-" if s[k] is None else f"{s[k][0]:.3f}, {s[k][1]:.4f}" for k in ("all", "below", "large")]
            rows.append([f"{found['case']}, {name}", found["threads"], f"2^{s['past'].bit_length() - 1}", *fits])
    large = f"{LARGE >> 20} MiB"
    head = ["series", "threads", "past overhead from", "slope, R^2", f"outputs below {large}", f"from {large}"]
    return table(head, rows)


def method(data: Data) -> str:
    standard = clock.Clock()
    timings = [t for c in [*data["cell"], *data["model"]] for t in c["contenders"].values()]
    few, dropped = sum(t["clean"] < standard.samples for t in timings), sum(t["dropped"] for t in timings)
    return f"""\
- One process; the contenders of a cell take turns. The median of {standard.samples} clean samples is reported: the
  machine was idle before it, none of our threads was taken off its core during it, and nobody else wanted a core after
  it. Of {len(timings)} medians, {few} had fewer such samples; {dropped} samples were dropped. A call quicker than
  {1e3 * clock.SHORTEST:g} ms is repeated within its sample, and made as often right before it: after a pause, code and
  data come from farther away.
- The C library is told to keep freed memory below {heap.LARGEST >> 20} MiB, for all contenders: whether it hands some
  back, to be paid for page by page in the next call, is luck of the heap's layout (bench/heap.py).
- Through the public modules: allocation of outputs and the autograd graph are included; gradients of x and of the
  parameters are computed. bf16 layers have bf16 parameters. Layers are in training mode.
- torch.compile compiles torch's layer, or the eager code where torch has none, for each number of threads. JAX jits the
  same formula over the same memory order; it takes all cores, so it is absent on fewer threads.
- Bytes are those that must move at least: x and y forward; x, dy and dx backward; with a residual four tensors each
  way. GB/s is bytes over time. The copy limit is the fastest copy of {copying.BYTES >> 20} MiB, bytes read and written
  counted; what lies in a cache can exceed it. A large kernel alone is a share of a copy of as many bytes, past the
  caches, that takes turns with it: memory is not equally quick from one minute to the next.
- Growth is fitted to log time against log elements, from the size on where a call takes {growth.PAST:g} times as long
  as the smallest.
- Short of a peer: less than {view.FLOOR} times as fast, or {view.TINY_FLOOR} where x has at most {view.TINY} elements.
{_skipped(data)}"""


def _skipped(data: Data) -> str:
    return "\n".join(f"- Not measured: {s['case']} ({s['reason']})." for s in data["skipped"])


def _ms(cell: view.Cell, name: str = "homeostat") -> float | None:
    return cell["contenders"].get(name, {}).get("ms")


def _threads(found: dict[str, Any]) -> str:
    n = found["threads"]
    return f"{n} thread{'' if n == 1 else 's'}"


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
