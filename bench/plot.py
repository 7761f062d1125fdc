"""Plot: the figures of the report. How near every cell comes to the copy limit, and how time grows with elements."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.cases import LARGE
from bench.view import Cell

Data = dict[str, Any]
INK, SOFT, FAINT = "#22262b", "#7a828c", "#d4d9de"
# Wong's palette: told apart by those who see fewer colours, too.
COLORS = {
    "LayerNorm": "#0072b2",
    "RMSNorm": "#56b4e9",
    "BatchNorm": "#d55e00",
    "GroupNorm": "#009e73",
    "InstanceNorm": "#e69f00",
}
COMPOSED = "#cc79a7"
CLEAR = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
BESIDE = 0.1  # octaves
SHAPES = {"forward": "o", "kernel_forward": "o", "forward_backward": "D", "kernel_backward": "v"}
STYLE = {"font.size": 9, "axes.titlesize": 10.5, "axes.edgecolor": SOFT, "text.color": INK, "axes.labelcolor": INK}


def roofline(data: Data, path: Path) -> None:
    """GB/s against the bytes that must move: kernels alone, and through the public modules."""
    threads = max(c["threads"] for c in data["copy"])
    copy = next(c for c in data["copy"] if c["threads"] == threads)
    cells = [c for c in data["cell"] if c["threads"] == threads and "homeostat" in c["contenders"]]
    figure, panels = _figure(10.5, 9.2, 2)
    titles = (
        (f"Kernels alone, on tensors that are there already, {threads} threads", ("kernel_forward", "kernel_backward")),
        ("Through the public modules, allocation and autograd included", ("forward", "forward_backward")),
    )
    for axes, (title, whats) in zip(panels, titles, strict=True):
        shown = [c for c in cells if c["what"] in whats]
        _limits(axes, data["machine"], copy)
        _points(axes, shown)
        axes.set_title(title, loc="left", pad=10)
        axes.set_ylabel("GB/s")
        _bytes_axis(axes, [c["bytes"] for c in cells if c["what"] in SHAPES])
    panels[0].set_yscale("linear")  # near the limit, where a factor is too coarse
    panels[0].set_ylim(0, None)
    panels[1].set_xlabel("bytes that must move")
    _legend(figure)
    _save(figure, path)


def _limits(axes: Axes, machine: Data, copy: Data) -> None:
    axes.axhline(copy["limit"], color=INK, lw=1.1, ls=(0, (6, 3)), zorder=2)
    said = f"copy limit {copy['limit']:.0f} GB/s"
    axes.annotate(said, (0, copy["limit"]), (6, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                  va="bottom", fontsize=9, color=INK, bbox=CLEAR, zorder=5)  # fmt: skip
    axes.plot(*zip(*copy["curve"], strict=True), color=FAINT, lw=6, solid_capstyle="round", zorder=1)
    for level, each in (("L2", machine["cores"]), ("L3", 1)):
        if level in machine["caches"]:
            size = each * (int(machine["caches"][level].rstrip("K")) << 10)
            axes.axvline(size, color=SOFT, lw=0.8, ls=":", zorder=0)
            axes.annotate(level, (size, 1), (3, -10), xycoords=("data", "axes fraction"), textcoords="offset points",
                          fontsize=8.5, color=SOFT)  # fmt: skip


def _points(axes: Axes, cells: list[Cell]) -> None:
    families = [*COLORS, "composed"]
    for cell in cells:
        family = cell["family"] if cell["family"] in COLORS else "composed"
        color, shape = COLORS.get(family, COMPOSED), SHAPES[cell["what"]]
        # Cases of one size stand side by side, a colour in its own column.
        at = cell["bytes"] * 2 ** (BESIDE * (families.index(family) - (len(families) - 1) / 2))
        found = cell["contenders"]
        if "torch" in found:
            axes.plot(at, found["torch"]["gb_s"], shape, ms=3.5, mfc=SOFT, mec="none", alpha=0.5, zorder=3)
        face = color if cell["dtype"] == "float32" else "white"
        axes.plot(at, found["homeostat"]["gb_s"], shape, ms=6, mfc=face, mec=color, mew=1.3, alpha=0.9, zorder=4)


def _legend(figure: Figure) -> None:
    def mark(label: str, shape: str = "o", face: str = INK, edge: str = INK, size: float = 6) -> Line2D:
        return Line2D([], [], ls="", marker=shape, mfc=face, mec=edge, ms=size, mew=1.3, label=label)

    layers = [mark(name, "s", color, color) for name, color in [*COLORS.items(), ("composed", COMPOSED)]]
    kinds = [mark("forward"), mark("backward", "v"), mark("forward + backward", "D"), mark("bf16: open", face="white")]
    torch = mark("torch eager", face=SOFT, edge=SOFT, size=3.5)
    copies = Line2D([], [], color=FAINT, lw=6, label=" torch's copy, by size")
    style = {"loc": "lower center", "frameon": False, "handletextpad": 0.4, "columnspacing": 1.6, "ncols": 6}
    figure.add_artist(figure.legend(handles=layers, bbox_to_anchor=(0.5, 0.03), **style))
    figure.legend(handles=[*kinds, torch, copies], bbox_to_anchor=(0.5, 0.005), **style)
    figure.subplots_adjust(left=0.06, right=0.97, top=0.955, bottom=0.125, hspace=0.2)


def growth(data: Data, path: Path) -> None:
    """Milliseconds against elements."""
    figure, (axes,) = _figure(7.5, 4.6, 1)
    titles = {"homeostat": ("homeostat", "#0072b2"), "torch": ("torch", SOFT), "kernel": ("kernel alone", "#d55e00")}
    for found in data["growth"][-1:]:
        for name, line in found["series"].items():
            title, color = titles[name]
            label = f"{title}: slope {line['all'][0]:.2f}, R² {line['all'][1]:.4f}" if line["all"] else title
            axes.plot(found["elements"], line["ms"], "o-", color=color, lw=1.6, ms=4, label=label)
        axes.legend(frameon=False, loc="upper left")
        axes.axvline(LARGE / 4, color=SOFT, lw=0.7, ls=":")
        axes.annotate("fresh pages from here", (LARGE / 4, 0), (4, 5), xycoords=("data", "axes fraction"),
                      textcoords="offset points", fontsize=8, color=SOFT)  # fmt: skip
        axes.set_title(f"{found['case']}, forward, {found['threads']} threads", loc="left", pad=10)
        powers = range(found["elements"][0].bit_length() - 1, found["elements"][-1].bit_length(), 2)
        axes.xaxis.set_major_locator(FixedLocator([1 << k for k in powers]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"$2^{{{int(n).bit_length() - 1}}}$"))
    axes.set_xlabel("elements")
    axes.set_ylabel("ms")
    figure.subplots_adjust(left=0.09, right=0.98, top=0.9, bottom=0.12)
    _save(figure, path)


def _figure(width: float, height: float, panels: int) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=160)
        every = list(figure.subplots(panels, 1, squeeze=False)[:, 0])
    for axes in every:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.grid(color=FAINT, lw=0.5, alpha=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(color=SOFT, labelcolor=INK)
    return figure, every


def _bytes_axis(axes: Axes, sizes: list[int]) -> None:
    if sizes:
        axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.35)
    axes.xaxis.set_major_locator(FixedLocator([1 << k for k in range(14, 32, 2)]))
    axes.xaxis.set_major_formatter(FuncFormatter(_size))


def _size(n: float, _position: int = 0) -> str:
    step, unit = (1 << 20, "MiB") if n >= 1 << 20 else (1 << 10, "KiB")
    return f"{n / step:g} {unit}"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white", metadata={"Software": None})
