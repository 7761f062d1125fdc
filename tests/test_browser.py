"""The page in a real browser: it renders, asks for nothing, filters, obeys the keyboard, fits a phone."""

import os
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

import homeostat as hs
from homeostat import report as views

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed; `make browser` installs it")
AXE = Path(os.environ.get("AXE", "absent"))
KEPT = os.environ.get("SCREENSHOTS")


@pytest.fixture(scope="module")
def browser():
    found = Browser()
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with findings of three severities, in an address of its own."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(6)]
    report = hs.check(nn.Sequential(*blocks), [torch.randn(2, 8) for _ in range(8)], select="all")
    record = report.record()
    first = record["findings"][0]
    others = {"error": "0.1", "warning": "2.1", "note": '4.1<script>document.title = "run"</script>'}
    record["findings"] += [first | {"severity": word, "module": module} for word, module in others.items()]
    path = tmp_path_factory.mktemp("page") / "report.html"
    views.save(record, path)
    return path.as_uri()


@pytest.fixture
def opened(browser, page):
    browser.open(page)
    return browser


def test_the_page_renders_without_a_word_on_the_console_and_asks_for_nothing_else(browser, page):
    for width in (1280, 360):
        browser.open(page, width)
        assert browser.do("document.title").startswith("homeostat: ")
        assert browser.do("document.querySelectorAll('article.finding svg').length") > 3
        told = [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled")]
        assert told == []
        asked = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
        assert asked == {page}


def test_each_picture_shows_its_marks_in_their_order(opened):
    marks = "e => e.getBoundingClientRect()"
    found = opened.do(
        "[...document.querySelectorAll('svg')].map(svg => ['svg', 'rect', 'circle'].map(kind => "
        f"(svg.querySelector(kind) || svg)).map({marks}).map(r => [r.left, r.right, r.height]))"
    )
    assert found
    for svg, interval, effect in found:
        assert svg[0] < interval[0] < (effect[0] + effect[1]) / 2 < interval[1] < svg[1]
        assert min(interval[2], effect[2]) >= 10


def test_its_own_policy_stops_a_script_that_would_be_added(opened):
    opened.do("(s => { s.textContent = 'window.ran = 1'; document.body.append(s) })(document.createElement('script'))")
    assert opened.do("window.ran") is None


def test_a_filter_hides_the_findings_of_its_severity_alone(opened):
    shown = "[...document.querySelectorAll('.finding')].filter(f => f.offsetHeight).map(f => f.classList[1])"
    before = opened.do(shown)
    assert {"error", "warning", "note"} == set(before)
    opened.do("document.querySelector('#show-warning').click()")
    assert opened.do(shown) == [word for word in before if word != "warning"]


def test_the_keyboard_reaches_the_findings_the_filters_and_the_explanation(opened):
    opened.press("Tab")
    assert opened.do("document.activeElement.getAttribute('href')") == "#findings"
    opened.press("Enter")
    assert opened.do("location.hash") == "#findings"
    reached = set()
    for _ in range(60):
        opened.press("Tab")
        reached.add(opened.do("document.activeElement.tagName"))
        if opened.do("document.activeElement.tagName") == "SUMMARY":
            break
    assert {"INPUT", "SUMMARY"} <= reached
    opened.press("Enter")
    assert opened.do("document.activeElement.parentElement.open")


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone_and_is_dark_where_that_is_asked_for(browser, page, dark, request):
    browser.open(page, 360, dark)
    assert browser.do("document.documentElement.scrollWidth") <= 360
    ground = browser.do("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(13, 17, 23)") == dark
    if KEPT:
        browser.picture(Path(KEPT) / f"phone-{'dark' if dark else 'light'}.png")
        browser.open(page, 1280, dark)
        browser.picture(Path(KEPT) / f"desk-{'dark' if dark else 'light'}.png")


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not here; `make browser` brings it")
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_that_keeps_anyone_out(browser, page, dark):
    browser.open(page, 1280, dark)
    browser.do(AXE.read_text())
    found = browser.do("axe.run().then(r => r.violations.map(v => v.id + ': ' + v.nodes[0].html))")
    assert found == []
