"""Picture: what was measured, between nothing wrong and too much, on one line.

0 ----null----------limit======low----effect----high
"""

from __future__ import annotations

import math
from typing import Any

from homeostat.report.tags import Markup, tag

MARKS = ("null", "limit", "effect")


def scaled(finding: dict[str, Any]) -> dict[str, float]:
    """Each number of a finding as a share of the line, which ends a tenth after the largest of them."""
    numbers = {name: float(finding[name]) for name in ("null", "limit", "low", "high", "effect")}
    finite = [value for value in numbers.values() if math.isfinite(value)]
    lowest, end = min([0.0, *finite]), max([1e-300, *finite]) * 1.1
    return {name: _clip((value - lowest) / (end - lowest)) for name, value in numbers.items()}


def line(finding: dict[str, Any], width: int = 40) -> str:
    """In characters: n null, | limit, = the interval, o what was measured."""
    at = {name: round(share * (width - 1)) for name, share in scaled(finding).items()}
    drawn = ["·"] * width
    drawn[at["low"] : at["high"] + 1] = "=" * (at["high"] + 1 - at["low"])
    for name, letter in zip(MARKS, "n|o", strict=True):
        drawn[at[name]] = letter
    return "".join(drawn)


def svg(finding: dict[str, Any]) -> Markup:
    """The same as a picture; every length is in percent, so it fits any width."""
    at = {name: f"{share:.2%}" for name, share in scaled(finding).items()}
    wide = f"{scaled(finding)['high'] - scaled(finding)['low']:.2%}"
    return tag(
        "svg",
        tag("title", legend(finding)),
        tag("line", x1="0", x2="100%", y1="14", y2="14", class_="axis", stroke="currentColor", stroke_opacity=".3"),
        tag("rect", x=at["low"], width=wide, y="9", height="10", class_="interval", fill="currentColor", opacity=".35"),
        tag("line", x1=at["null"], x2=at["null"], y1="4", y2="24", stroke="currentColor", stroke_dasharray="3 2"),
        tag("line", x1=at["limit"], x2=at["limit"], y1="1", y2="27", stroke="currentColor", stroke_width="2"),
        tag("circle", cx=at["effect"], cy="14", r="5", class_="effect", fill="currentColor"),
        role="img",
        width="100%",
        height="28",
        class_=f"picture {finding['severity']}",
    )


def legend(finding: dict[str, Any]) -> str:
    """The same in words."""
    n = {name: f"{float(finding[name]):.3g}" for name in ("effect", "low", "high", "null", "limit")}
    return f"measured {n['effect']} in [{n['low']}, {n['high']}]; null {n['null']}, said from {n['limit']} on"


def _clip(share: float) -> float:
    return 1.0 if math.isnan(share) else min(1.0, max(0.0, share))
