"""The views of one record: each says what was found, is escaped where it must be, and is written whole."""

import copy
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat import report as views
from homeostat.doctor.rule import every_rule

NASTY = '<script>alert("1")</script>&'


def sick() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))  # the line that is told


def batches() -> list[torch.Tensor]:
    return [torch.randn(2, 4) for _ in range(8)]


@pytest.fixture(scope="module")
def report():
    return hs.check(sick(), batches(), select="HS101", built=f"{__name__}:sick")


@pytest.fixture
def record(report):
    return copy.deepcopy(report.record())


def renamed(record, name):
    """The record of a model whose norm has another name."""
    record["findings"][0]["module"] = record["norms"][0]["name"] = record["results"][0]["measured"][0]["where"] = name
    record["findings"][0]["message"] += name
    return record


def line_of(comment: str) -> int:
    return next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith(comment))


class Page(HTMLParser):
    """What a browser would make of a page: its tags and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


# ---- JSON ----


def test_a_report_that_was_saved_and_loaded_is_the_report(report, tmp_path):
    report.save(tmp_path / "r.json")
    again = hs.Report.load(tmp_path / "r.json")
    assert again == report
    assert again.record() == report.record()
    assert str(again) == str(report)


def test_a_loaded_report_says_that_it_cannot_fix(report, tmp_path):
    report.save(tmp_path / "r.json")
    with pytest.raises(ValueError, match="check the model again"):
        hs.Report.load(tmp_path / "r.json").fix("HS101")


def test_numbers_without_end_survive_strict_json(record, tmp_path):
    record["findings"][0] |= {"effect": math.inf, "high": math.inf, "null": math.nan}
    views.save(record, tmp_path / "r.json")

    def refuse(word):
        raise AssertionError(word)

    json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    again = views.read(tmp_path / "r.json")["findings"][0]
    assert again["effect"] == again["high"] == math.inf
    assert math.isnan(again["null"])


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not JSON"), ("[]", "no schema"), ('{"schema": 999}', "schema 999"), ('{"schema": 1}', "lacks")],
)
def test_what_is_no_record_is_refused_with_the_reason(tmp_path, text, said):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(views.RecordError, match=said):
        views.read(tmp_path / "r.json")


def test_a_record_that_someone_changed_is_refused(record, tmp_path):
    record["findings"][0]["more"] = 1
    views.save(record, tmp_path / "r.json")
    with pytest.raises(views.RecordError, match="more"):
        hs.Report.load(tmp_path / "r.json")


@pytest.mark.parametrize("code", sorted(every_rule()))
def test_what_any_rule_finds_is_saved_without_loss_and_drawn_in_every_view(code, tmp_path):
    case = every_rule()[code].bad(0)
    report = hs.check(case.model, case.batches, select=code, **case.told)
    report.save(tmp_path / "r.json")
    again = hs.Report.load(tmp_path / "r.json")
    assert again == report
    for form, draw in views.FORMATS.items():
        assert code in draw(again.record()), form
    check_sarif(draw_sarif := views.FORMATS["sarif"](again.record()))
    assert len(json.loads(draw_sarif)["runs"][0]["results"]) == len(report)
    assert Page(views.FORMATS["html"](again.record())).open == []


def test_a_view_that_cannot_be_drawn_leaves_the_old_file(record, tmp_path):
    file = tmp_path / "r.json"
    views.save(record, file)
    before = file.read_bytes()
    record["norms"] = object()
    with pytest.raises(TypeError):
        views.save(record, file)
    assert file.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["r.json"]


def test_an_ending_that_means_no_view_is_refused(record, tmp_path):
    with pytest.raises(ValueError, match=r"\.sarif"):
        views.save(record, tmp_path / "r.pdf")


# ---- where a norm is built ----


def test_a_finding_tells_the_line_that_builds_its_norm(report):
    line = line_of("# the line that is told")
    assert report.findings[0].location == f"tests/test_report.py:{line}"
    assert report.record()["norms"][0]["location"] == f"tests/test_report.py:{line}"


# ---- SARIF: what the schema asks, and what GitHub asks beyond it ----

# object: (what it must have, what it may have)
SHAPES = {
    "log": ({"version", "runs"}, {"$schema"}),
    "run": ({"tool"}, {"results", "invocations", "columnKind"}),
    "driver": ({"name"}, {"version", "rules"}),
    "rule": (
        {"id", "shortDescription", "fullDescription", "help"},
        {"name", "defaultConfiguration", "properties"},
    ),
    "result": (
        {"message", "ruleId", "locations", "partialFingerprints"},
        {"ruleIndex", "level", "relatedLocations"},
    ),
    "location": ({"physicalLocation"}, {"id", "message", "logicalLocations"}),
    "physical": ({"artifactLocation", "region"}, set()),
    "artifact": ({"uri"}, {"uriBaseId"}),
    "region": ({"startLine"}, set()),
    "invocation": ({"executionSuccessful"}, {"toolExecutionNotifications"}),
    "notification": ({"message"}, {"level", "associatedRule"}),
}


def shaped(kind, value):
    must, may = SHAPES[kind]
    assert must <= value.keys() <= must | may, kind
    return value


def check_location(location, in_repository):
    physical = shaped("physical", shaped("location", location)["physicalLocation"])
    uri = shaped("artifact", physical["artifactLocation"])["uri"]
    assert re.fullmatch(r"[A-Za-z0-9_.~/%-]+", uri)
    line = shaped("region", physical["region"])["startLine"]
    assert isinstance(line, int)
    assert line >= 1
    if in_repository:
        assert not uri.startswith(("/", "../"))
        assert (Path(__file__).parents[1] / uri).exists()


def check_sarif(text):
    log = shaped("log", json.loads(text))
    assert log["version"] == "2.1.0"
    for run in log["runs"]:
        driver = shaped("driver", shaped("run", run)["tool"]["driver"])
        ids = [shaped("rule", rule)["id"] for rule in driver["rules"]]
        assert len(set(ids)) == len(ids)
        for rule in driver["rules"]:
            assert all(rule[part]["text"] for part in ("shortDescription", "fullDescription", "help"))
            assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
        for result in run["results"]:
            assert shaped("result", result)["message"]["text"]
            assert ids[result["ruleIndex"]] == result["ruleId"]
            assert result["level"] in ("none", "note", "warning", "error")
            assert result["locations"]
            for location in result["locations"]:
                check_location(location, in_repository=True)
            for location in result.get("relatedLocations", ()):
                check_location(location, in_repository=False)
            assert all(isinstance(value, str) and value for value in result["partialFingerprints"].values())
            assert "primaryLocationLineHash" in result["partialFingerprints"]
        for invocation in run["invocations"]:
            for notice in shaped("invocation", invocation)["toolExecutionNotifications"]:
                assert shaped("notification", notice)["associatedRule"]["id"] in ids
    return log["runs"][0]


def test_sarif_is_what_the_schema_and_github_ask_for(report):
    run = check_sarif(views.FORMATS["sarif"](report.record()))
    assert [result["ruleId"] for result in run["results"]] == ["HS101"]


def test_a_norm_that_a_library_builds_is_shown_where_the_user_builds_the_librarys_model():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16)  # whose norms torch builds
    report = hs.check(encoder, [torch.randn(2, 3, 8)], select="HS101")
    norm = report.norms[0]
    here = line_of("# whose norms torch builds")
    assert norm["location"] == f"tests/test_report.py:{here}"
    assert norm["library"].startswith("torch/nn/modules/transformer.py:")
    record = report.record()
    record["findings"] = [
        {
            **dict.fromkeys(("effect", "null", "low", "high", "limit"), 1.0),
            **dict.fromkeys(("message", "fix", "safety"), "x"),
            **{"code": "HS101", "name": "n", "severity": "note", "module": norm["name"]},
            **{"location": norm["location"], "library": norm["library"]},
        }
    ]
    result = check_sarif(views.FORMATS["sarif"](record))["results"][0]
    related = result["relatedLocations"][0]["physicalLocation"]["artifactLocation"]
    assert related == {"uri": "torch/nn/modules/transformer.py", "uriBaseId": "PYTHONPATH"}


def test_a_finding_without_a_line_is_a_notification_because_one_such_result_would_void_the_file(record):
    record["findings"][0]["location"] = None
    run = check_sarif(views.FORMATS["sarif"](record))
    assert run["results"] == []
    assert "HS101" in run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]


def test_fingerprints_hold_the_rule_and_the_module_and_no_number(record):
    def prints():
        return check_sarif(views.FORMATS["sarif"](record))["results"][0]["partialFingerprints"]

    before = prints()
    record["findings"][0] |= {"effect": 0.123, "low": 0.1, "message": "other numbers"}
    assert prints() == before
    record["findings"][0]["module"] = "elsewhere"
    assert prints() != before


# ---- GitHub's lines ----


def test_a_line_for_github_cannot_be_ended_or_continued_by_what_is_in_it(record):
    renamed(record, "a,b:c%\n::error::injected")["findings"][0]["location"] = "x,line=1::y.py:24"
    said = views.FORMATS["github"](record).splitlines()
    assert len(said) == 1
    told = r"::(error|warning) file=x%2Cline=1%3A%3Ay.py,line=\d+,title=HS101 small-batch-noise::(.*)"
    match = re.fullmatch(told, said[0])
    assert match
    assert "a,b:c%25%0A::error::injected" in match[2]


# ---- baselines ----


def test_what_a_baseline_knows_is_put_aside_and_what_is_new_is_not(record, tmp_path):
    assert views.baseline.save(record, tmp_path / "b.json") == 1
    known = views.baseline.read(tmp_path / "b.json")
    aside = views.baseline.apart(record, known)
    assert (aside["findings"], aside["known"]) == ([], record["findings"])
    record["findings"][0] |= {"effect": 1.0}  # numbers differ from run to run
    assert views.baseline.apart(record, known)["findings"] == []
    assert len(views.baseline.apart(renamed(record, "new"), known)["findings"]) == 1


def test_a_file_that_is_no_baseline_is_refused(tmp_path):
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(views.RecordError, match="--write-baseline"):
        views.baseline.read(tmp_path / "b.json")


# ---- text ----


def test_text_says_head_finding_place_and_counts(record):
    said = views.FORMATS["text"](record)
    lines = said.splitlines()
    assert "model unchanged (verified)" in lines[0]
    assert re.search(r"^HS101 small-batch-noise, error: 1$", said, re.MULTILINE)
    assert f"  {record['findings'][0]['location']}" in lines
    assert "1 finding (1 error)" in lines


def test_text_shows_what_would_steer_a_terminal(record):
    said = views.FORMATS["text"](renamed(record, "\x1b[2J[red]"))
    assert "\x1b" not in said
    assert r"\x1b[2J[red]" in said


def test_rich_shows_the_same_words(record, capsys):
    pytest.importorskip("rich")
    views.show(renamed(record, "[bold]x[/bold]"))
    assert capsys.readouterr().out == views.FORMATS["text"](record)


@pytest.mark.parametrize("numbers", [(0, 0, 0, 0, 1), (math.inf,) * 3 + (0, 1), (math.nan, -1, math.inf, 0, 0.5)])
def test_a_picture_is_drawn_of_any_numbers(record, numbers):
    finding = record["findings"][0] | dict(zip(("effect", "low", "high", "null", "limit"), numbers, strict=True))
    assert len(views.picture.line(finding)) == 40
    at = views.picture.scaled(finding)
    assert all(0 <= share <= 1 for share in at.values())
    assert at["limit"] > at["null"]


def test_a_picture_keeps_the_order_and_the_proportions_of_its_numbers(record):
    rng, names = random.Random(0), ("null", "limit", "low", "effect", "high")
    for _ in range(50):
        numbers = _, limit, _, effect, _ = sorted(rng.uniform(0, 10) for _ in range(5))
        finding = record["findings"][0] | dict(zip(names, numbers, strict=True))
        at = views.picture.scaled(finding)
        assert at["effect"] / at["limit"] == pytest.approx(effect / limit)
        assert at["high"] == pytest.approx(1 / 1.1)


# ---- the page ----


def test_the_page_needs_nothing_from_outside_and_allows_nothing(record):
    page = Page(views.FORMATS["html"](record))
    assert page.open == []
    assert not {"script", "link", "iframe", "img", "object", "form", "base"} & {tag for tag, _ in page.tags}
    policy = next(told["content"] for _, told in page.tags if told.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    for _, told in page.tags:
        assert not {"style", "src", "onclick", "onload"} & told.keys()
        assert told.get("href", "#").startswith("#")


def test_every_link_of_the_page_leads_to_one_place_on_it(record):
    page = Page(views.FORMATS["html"](record))
    ids = [told["id"] for _, told in page.tags if "id" in told]
    assert len(set(ids)) == len(ids)
    assert {told["href"][1:] for tag, told in page.tags if tag == "a"} <= set(ids)
    assert {told["aria-labelledby"] for _, told in page.tags if "aria-labelledby" in told} <= set(ids)
    assert "f-0" in {told["href"][1:] for tag, told in page.tags if tag == "a"}


@pytest.mark.parametrize("form", ["html", "notebook"])
def test_a_module_name_with_a_script_in_it_is_shown_as_text(record, form):
    renamed(record, NASTY)
    plain = copy.deepcopy(record)
    renamed(plain, "norm")
    draw = views.fragment if form == "notebook" else views.FORMATS["html"]
    page = Page(draw(record))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in Page(draw(plain)).tags]
    assert page.text.count(NASTY) >= 2
    titles = [told["title"] for _, told in page.tags if "title" in told]
    assert form == "notebook" or titles == [f"{NASTY}: HS101 small-batch-noise, error"]


def test_the_page_tells_what_is_wrong_why_what_to_do_what_passed_and_what_was_not_measured(record):
    state = {"code": "HS999", "name": "other", "group": "nursery", "why": "", "measured": [], "text": "", "limits": []}
    record["results"] += [state | {"state": "passed"}, state | {"state": "not measured", "why": "it has no roles"}]
    text = " ".join(Page(views.FORMATS["html"](record)).text.split())
    finding = record["findings"][0]
    for said in (finding["message"], finding["fix"], finding["location"], record["head"], "Known false alarms."):
        assert " ".join(said.split()) in text
    assert "Passed: 1" in text
    assert "because it has no roles" in text


def test_each_norm_on_the_map_has_the_sign_of_its_worst_finding(record):
    worse = record["findings"][0]
    record["norms"] = [record["norms"][0] | {"name": f"body.{i}.norm"} for i in range(3)]
    record["findings"] = [
        worse | {"module": "body.1.norm", "severity": "error"},
        worse | {"module": "body.1.norm", "severity": "note"},
        worse | {"module": "body.2.norm", "severity": "warning"},
    ]
    page = Page(views.FORMATS["html"](record))
    cells = [told for _, told in page.tags if (told.get("class") or "").startswith("cell")]
    assert [told["class"] for told in cells] == ["cell passed", "cell error", "cell warning"]
    assert [told.get("href") for told in cells] == [None, "#f-0", "#f-2"]


def test_a_page_of_a_huge_model_stays_below_two_megabytes_and_says_what_it_left_out(record):
    finding, norm = record["findings"][0], record["norms"][0]
    names = [f"{'block.' * 20}{i}.norm" for i in range(20_000)]
    record["norms"] = [norm | {"name": name} for name in names]
    record["findings"] = [finding | {"module": name} for name in names]
    page = views.FORMATS["html"](record)
    assert len(page.encode()) < 2e6
    assert "19960 more of this rule" in page
    assert "18500 more norms" in page
    linked = Page(page)
    ids = {told["id"] for _, told in linked.tags if "id" in told}
    assert {told["href"][1:] for tag, told in linked.tags if tag == "a"} <= ids


def test_text_on_the_page_can_be_read_in_light_and_in_dark():
    style = views.page.STYLE
    assert style.count("--paper:") == 2
    for theme in re.findall(r"{([^{}]*--paper:[^{}]*)}", style):
        colours = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        for name in ("ink", "soft", "link", "error", "warning", "note", "passed"):
            for ground in ("paper", "field"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def contrast(one: str, other: str) -> float:
    """WCAG 2's."""
    light = []
    for colour in (one, other):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


# ---- notebooks ----


def test_a_notebook_shows_the_findings_without_script_or_style(report):
    page = Page(report._repr_html_())
    assert not {"script", "style", "link"} & {tag for tag, _ in page.tags}
    assert report.findings[0].message in page.text
