"""Pages: docs/catalogue.md, docs/composing.md and tables of docs/choosing.md and docs/doctor.md, made from the code.

python tools/pages.py          write them
python tools/pages.py --check  fail if they are not what the code says
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import composing

import homeostat as hs
from homeostat import nn
from homeostat.choosing import TASKS, choose
from homeostat.doctor.rule import every_rule

DOCS = Path(__file__).parent.parent / "docs"
FORMULA = "formula in float64"
TORCH = "torch.nn in float64"


@dataclass(frozen=True)
class Entry:
    """A named method: how it is made, and what it was checked against. `own` says why it has code of its own."""

    name: str
    make: Callable[[], Any]
    oracle: str = FORMULA
    own: str = ""


def batch(source: Any) -> Callable[[], Any]:
    return lambda: nn.BatchNorm2d(64, source=source)


def of(gain: Any, **sizes: int) -> Callable[[], Any]:
    return lambda: hs.Norm("n c h w -> c", gain=gain, c=64, **sizes)


CATALOGUE: dict[str, tuple[Entry, ...]] = {
    "The classical five": (
        Entry("BatchNorm1d, 2d, 3d", lambda: nn.BatchNorm2d(64), TORCH),
        Entry("LayerNorm", lambda: nn.LayerNorm(64), TORCH),
        Entry("RMSNorm", lambda: nn.RMSNorm(64), f"{TORCH}; transformers"),
        Entry("GroupNorm", lambda: nn.GroupNorm(32, 64), f"{FORMULA}; Keras"),
        Entry("InstanceNorm1d, 2d, 3d", lambda: nn.InstanceNorm2d(64), TORCH),
    ),
    "Sources: where the statistic comes from": (
        Entry("Batch", lambda: hs.Batch(), TORCH),
        Entry("Running", lambda: hs.Running(), TORCH),
        Entry("Cumulative", lambda: hs.Running(None), TORCH),
        Entry('Running("auto")', lambda: hs.Running("auto"), "Riccati equation, simulated drift"),
        Entry("Renorm", lambda: hs.Renorm(), f"{FORMULA}; Keras"),
        Entry("Frozen", lambda: hs.Frozen(), TORCH),
        Entry("Ghost", lambda: hs.Ghost(), "a loop over the parts"),
        Entry("Domain", lambda: hs.Domain(4), "one layer per domain"),
        Entry("Shrunk", lambda: hs.Shrunk()),
        Entry("Synced", lambda: hs.Synced(), "one process with the whole batch"),
        Entry("Virtual", lambda: hs.Virtual(), "the sample and the reference, concatenated"),
        Entry("Mixed (switchable norm)", lambda: hs.Mixed()),
        Entry("Blended (batch-instance norm)", lambda: hs.Blended()),
        Entry("Partial", lambda: hs.Partial()),
        Entry("By", lambda: hs.By(abs)),
    ),
    "Gains: what is put back": (
        Entry("Learned", lambda: hs.Learned("c"), TORCH),
        Entry("Around", lambda: hs.Around("c")),
        Entry("Balanced", lambda: hs.Balanced("c", blocks=(32, 32))),
        Entry("Conditional", lambda: hs.Conditional("kind[n] c")),
        Entry("FiLM", lambda: hs.FiLM("n c", width=8)),
        Entry("Spatial", lambda: hs.Spatial("n c h w", width=3)),
        Entry("Style", lambda: hs.Style("n c")),
        Entry("Given", lambda: hs.Given("n c")),
    ),
    "Adaptive norms": (
        Entry("ConditionalBatchNorm", lambda: nn.ConditionalBatchNorm(64, 10)),
        Entry("FiLMBatchNorm", lambda: nn.FiLMBatchNorm(64, 8)),
        Entry("AdaLayerNorm, AdaLN-Zero", lambda: nn.AdaLayerNorm(64, 8), f"{FORMULA}; diffusers"),
        Entry("AdaRMSNorm", lambda: nn.AdaRMSNorm(64, 8)),
        Entry("AdaGroupNorm", lambda: nn.AdaGroupNorm(32, 64, 8), f"{FORMULA}; diffusers"),
        Entry("AdaIN", lambda: nn.AdaIN(64)),
        Entry("SPADE", lambda: nn.SPADE(64, 3)),
    ),
    "Pictures and tokens": (
        Entry("FRN", lambda: nn.FRN(64), f"{FORMULA}; timm"),
        Entry("TLU", lambda: nn.TLU(64), f"{FORMULA}; timm", own="an activation"),
        Entry("PONO", lambda: nn.PONO()),
        Entry(
            "GRN",
            lambda: nn.GRN(64),
            f"{FORMULA}; diffusers; timm",
            own="compares channels by their length, and does not standardize",
        ),
        Entry(
            "EvoNormS0",
            lambda: nn.EvoNormS0(32, 64),
            f"{FORMULA}; timm",
            own="an activation between measuring and scaling",
        ),
        Entry("EvoNormB0", lambda: nn.EvoNormB0(64), f"{FORMULA}; timm", own="x itself is in the denominator"),
        Entry("LRN", lambda: nn.LRN(5), "torch.nn.functional.local_response_norm", own="its windows overlap"),
        Entry("PowerNorm", lambda: nn.PowerNorm(64), f"{FORMULA}, five steps", own="its backward is no derivative"),
        Entry(
            "OnlineNorm",
            lambda: nn.OnlineNorm(64),
            f"{FORMULA}, sample by sample",
            own="its backward is no derivative",
        ),
        Entry("ScaleNorm", lambda: nn.ScaleNorm(64)),
        Entry("L2Norm", lambda: nn.L2Norm(), "torch.nn.functional.normalize"),
        Entry("PartialRMSNorm", lambda: nn.PartialRMSNorm(64)),
        Entry("GemmaRMSNorm", lambda: nn.GemmaRMSNorm(64), f"{FORMULA}; transformers"),
        Entry("IBN", lambda: nn.IBN(64), own="two norms, each on its channels"),
    ),
    "Heads, modalities, experts, orbits, sectors": (
        Entry("HeadNorm", lambda: nn.HeadNorm(8, 8)),
        Entry("QKNorm", lambda: nn.QKNorm(64)),
        Entry("HeadScale", lambda: nn.HeadScale(8), own="a gain without a statistic"),
        Entry("ModalityNorm", lambda: nn.ModalityNorm((48, 16))),
        Entry("SectorNorm", lambda: nn.SectorNorm({"tech": 3, "oil": 2})),
        Entry("ExpertNorm", lambda: nn.ExpertNorm(64, 4)),
        Entry("OrbitNorm", lambda: nn.OrbitNorm(16, 4), f"{FORMULA}; e3nn; commutes with its group"),
    ),
    "Graphs": (
        Entry("GraphNorm", lambda: nn.GraphNorm(64), f"{FORMULA}; PyTorch Geometric"),
        Entry("GraphInstanceNorm", lambda: nn.GraphInstanceNorm(64), f"{FORMULA}; PyTorch Geometric"),
        Entry("GraphLayerNorm", lambda: nn.GraphLayerNorm(64), f"{FORMULA}; PyTorch Geometric"),
        Entry("MeanSubtraction", lambda: nn.MeanSubtraction(64), f"{FORMULA}; PyTorch Geometric"),
        Entry("PairNorm", lambda: nn.PairNorm(64), f"{FORMULA}; PyTorch Geometric"),
        Entry("NodeNorm", lambda: nn.NodeNorm()),
        Entry("HeteroNorm", lambda: nn.HeteroNorm(64, 3), f"{FORMULA}; PyTorch Geometric"),
        Entry("DiffGroupNorm", lambda: nn.DiffGroupNorm(64, 8), f"{FORMULA}; PyTorch Geometric"),
        Entry("GraphSizeNorm", lambda: nn.GraphSizeNorm(), f"{FORMULA}; PyTorch Geometric", own="no statistic of x"),
        Entry("MessageNorm", lambda: nn.MessageNorm(), "PyTorch Geometric", own="the length of one tensor for another"),
    ),
    "Series and weights": (
        Entry("Reversible", lambda: nn.Reversible()),
        Entry("DAIN", lambda: nn.DAIN(64), own="centre and scale mix channels by what is learned"),
        Entry("WeightStandardization", lambda: nn.WeightStandardization(), f"{FORMULA}; timm"),
        Entry("WeightNorm", lambda: nn.WeightNorm(64), "torch's weight_norm, gradients too"),
        Entry(
            "spectral_weight", lambda: nn.spectral_weight, "singular value decomposition", "a matrix norm, by iteration"
        ),
    ),
    "Without a statistic": (
        Entry("DyT", lambda: nn.DyT(64)),
        Entry("Derf", lambda: nn.Derf(64)),
        Entry("LayerScale", lambda: nn.LayerScale(64), f"{FORMULA}; timm"),
        Entry("ReZero", lambda: nn.ReZero()),
    ),
    "Placements": (
        *(
            Entry(
                f"Residual, {kind}", lambda kind=kind: nn.Residual(abs, nn.LayerNorm(64), kind), own="where a norm is"
            )
            for kind in ("pre", "post", "sandwich", "peri")
        ),
        Entry(
            "Residual, deep (DeepNorm)",
            lambda: nn.Residual(abs, nn.LayerNorm(64), "deep", branches=24),
            own="where a norm is",
        ),
        Entry(
            "Residual, sub (Sub-LN)",
            lambda: nn.Residual((abs, abs), nn.LayerNorm(64), "sub"),
            own="where a norm is",
        ),
        Entry("Residual, orthogonal", lambda: nn.Residual(abs, nn.LayerNorm(64), orthogonal=True), own="a projection"),
    ),
}


def catalogue() -> str:
    count = sum(map(len, CATALOGUE.values()))
    lines = [
        "# Catalogue",
        "",
        f"{count} named methods, as sentences over frame, source and gain. Made from the code by `make docs`; the",
        "equation is the first line of each docstring. *Own code* says why a method has any beside its sentence. Every",
        "row was checked against what its last column says ([test_named](../tests/test_named.py),",
        "[test_sources](../tests/test_sources.py), [test_peers](../tests/test_peers.py)).",
        "",
        "Which one to take: [choosing.md](choosing.md). What goes with what: [composing.md](composing.md).",
    ]
    for title, entries in CATALOGUE.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| name | equation | frame | source | statistic | gain | paper | checked against |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(entry) for entry in entries]
    return "\n".join(lines) + "\n"


def _row(entry: Entry) -> str:
    made = entry.make()
    said = inspect.getdoc(made if inspect.isfunction(made) else type(made)) or ""
    if entry.name.startswith("Residual"):
        said = _placement(entry.name.split()[1])
    paper = re.search(r"arXiv:(\d+\.\d+)|openreview (\w+)", said)
    where = "" if paper is None else f"arxiv.org/abs/{paper[1]}" if paper[1] else f"openreview.net/forum?id={paper[2]}"
    link = f"[{paper[1] or paper[2]}](https://{where})" if paper else ""
    own = f"{entry.oracle}. Own code: {entry.own}" if entry.own else entry.oracle
    parts = " | ".join(map(_escaped, _parts(made)))
    return f"| {entry.name} | {_escaped(_first(said))} | {parts} | {link} | {own} |"


def _first(said: str) -> str:
    """The first paragraph without its reference."""
    text = " ".join(said.split("\n\n")[0].split())
    return re.sub(r" [A-Z][\w& ,.-]* \d{4}[^.]*, arXiv:[\d.]+\.?$", "", text)


def _parts(made: Any) -> tuple[str, str, str, str]:
    """Frame, source, statistic and gain, as far as it has them."""
    if isinstance(made, hs.Gain):
        return "", "", "", made.keep
    if isinstance(made, nn.QKNorm | nn.IBN | nn.DiffGroupNorm):  # made of norms
        found = list(dict.fromkeys(map(_parts, made.children())))
        rows = [parts for parts in found if parts[0]]
        return tuple("; ".join(dict.fromkeys(column)) for column in zip(*rows, strict=True))  # type: ignore[return-value]
    if hasattr(made, "pattern"):  # a line of its own around a measurement
        source = "its own" if any("running" in name for name, _ in made.named_buffers()) else "Batch"
        learned = "its own" if any(True for _ in made.parameters()) else ""
        return made.pattern, source, _statistic(made), learned
    frame = getattr(made, "frame", None)
    if not isinstance(frame, hs.Frame):
        return "", "", "", ""
    gain = getattr(made, "gain_frame", None)
    kept = "" if gain is None else str(gain).split("->")[1].strip() or "one for all"
    kind = getattr(made, "gain", None)
    named = kept if kind is None or type(kind) is hs.Learned else f"{type(kind).__name__}: {kept}"
    return str(frame), type(made.source).__name__, _statistic(made), named


def _statistic(made: Any) -> str:
    return "mean, variance" if getattr(made, "center", True) else "mean square"


def _placement(kind: str) -> str:
    said = inspect.getdoc(sys.modules[nn.Residual.__module__]) or ""
    if kind == "orthogonal":
        return "u - x (x.u) / (x.x), both centred, is what the branch adds"
    return next(line for line in said.splitlines() if line.split()[:1] == [kind]).split(maxsplit=1)[1]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


EXAMPLES = {
    "images": (
        {"channels": 256, "spatial": 196, "batch": 64},
        {"shape": (256, 14, 14), "batch": 2},
        {"shape": (14, 14, 256), "batch": 2, "layout": "channels_last"},
    ),
    "segmentation": ({"channels": 64, "spatial": 4096, "batch": 2, "ranks": 8},),
    "detection": ({"channels": 256, "spatial": 2500, "batch": 2, "domains": 3},),
    "generation": ({"channels": 128, "spatial": 256, "classes": 10}, {"channels": 128, "spatial": 256, "width": 512}),
    "modalities": ({"channels": 576, "blocks": (512, 64)},),
}


def choices() -> str:
    lines = ["| task | sizes | norm | because |", "|---|---|---|---|"]
    for task in TASKS:
        for sizes in EXAMPLES.get(task, ({"channels": 64, "spatial": 100},)):
            found = choose(task, **sizes)
            said = ", ".join(f"{name} {value}" for name, value in sizes.items())
            lines.append(f"| {task} | {said} | `{found.norm}` | {'; '.join(found.why)} |")
    return "\n".join(lines)


def rules() -> str:
    lines = ["| code | name | what it finds | group | limits | fix | asks for |", "|---|---|---|---|---|---|---|"]
    for rule in every_rule().values():
        limits = ", ".join(f"{limit:g}" for limit in rule.limits if limit is not None)
        asks = ", ".join(f"`{word}`" for word in rule.asks)
        said = (rule.code, rule.name, rule.what.rstrip("."), rule.group, limits, rule.safety or "by hand", asks)
        lines.append(f"| {' | '.join(map(_escaped, said))} |")
    return "\n".join(lines)


def evidence() -> str:
    """From the records of bench.zoo and bench.calibrate."""
    zoo, calibration = (json.loads((DOCS / "doctor" / f"{name}.json").read_text()) for name in ("zoo", "calibration"))
    lines = ["| code | sick, found | healthy, silent | fixed, silent | spoke of random | spoke of its own healthy |"]
    lines.append("|---|---|---|---|---|---|")
    for code, found in zoo["rules"].items():
        words = ("fires on sick", "silent on healthy", "silent once fixed")
        shares = ["by hand" if found[word] is None else f"{found[word]} / {zoo['seeds']}" for word in words]
        shares += [f"{calibration[of][code]['spoke']} / {calibration[of][code]['asked']}" for of in ("drawn", "own")]
        lines.append(f"| {' | '.join([code, *shares])} |")
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    return {
        DOCS / "catalogue.md": catalogue(),
        DOCS / "composing.md": composing.page(),
        DOCS / "choosing.md": _filled("choosing.md", {"choices": choices()}),
        DOCS / "doctor.md": _filled("doctor.md", {"rules": rules(), "evidence": evidence()}),
    }


def _filled(page: str, parts: dict[str, str]) -> str:
    """A page written by hand with some parts made."""
    whole = (DOCS / page).read_text()
    for part, text in parts.items():
        begin, end = f"<!-- made: {part} -->", f"<!-- end: {part} -->"
        before, rest = whole.split(begin)
        whole = f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    return whole


def main() -> int:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path} is not what the code says: make docs")
        return bool(stale)
    for path, text in pages().items():
        path.write_text(text)
    print(f"wrote {', '.join(path.name for path in pages())}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
