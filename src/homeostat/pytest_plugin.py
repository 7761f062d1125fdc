"""A pytest plugin: `assert_healthy(model, batches)`, as a fixture and as a function.

    def test_my_network_is_healthy(assert_healthy):
        assert_healthy(Net(), [torch.randn(32, 3, 64, 64) for _ in range(4)], select="correctness")

What it says holds no time, so it can be compared with what it said before; `pytest --homeostat=DIR` writes the page of
every model that is not healthy to DIR.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest


def assert_healthy(model: Any, batches: Iterable[Any], *, baseline: str | Path | None = None, **told: Any) -> Any:
    """The report, if it has no findings but those of a baseline; or it fails with them. `told` is what check takes."""
    __tracebackhide__ = True
    report, new = _looked(model, batches, baseline, told)
    if new["findings"]:
        pytest.fail(_said(new), pytrace=False)
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--homeostat", metavar="DIR", help="write a page for every model that is not healthy to DIR")


@pytest.fixture(name="assert_healthy")
def _assert_healthy(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`assert_healthy` with the settings of [tool.homeostat], and pages where --homeostat asks for them."""
    from homeostat import report as views
    from homeostat import settings

    said = settings.read(request.config.rootpath)
    folder = request.config.getoption("--homeostat")

    def healthy(model: Any, batches: Iterable[Any], **told: Any) -> Any:
        __tracebackhide__ = True
        told = {word: said[word] for word in ("select", "ignore", "limits", "baseline") if word in said} | told
        report, new = _looked(model, batches, told.pop("baseline", None), told)
        if new["findings"]:
            page = ""
            if folder:
                Path(folder).mkdir(parents=True, exist_ok=True)
                page = f"{folder}/{re.sub(r'[^a-zA-Z0-9_.-]+', '-', request.node.name)}.html"
                views.save(new, page)
            pytest.fail(_said(new) + (f"\npage: {page}" if page else ""), pytrace=False)
        return report

    return healthy


def _looked(model: Any, batches: Iterable[Any], baseline: Any, told: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from homeostat import doctor
    from homeostat import report as views

    report = doctor.check(model, batches, **told)
    return report, views.baseline.apart(report.record(), views.baseline.read(baseline) if baseline else set())


def _said(record: dict[str, Any]) -> str:
    """The findings without the first line, which tells seconds."""
    from homeostat import report as views

    return "\n".join(["the model is not healthy", *(text for text, _ in list(views.terminal.lines(record))[1:])])
