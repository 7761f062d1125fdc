"""`homeostat check`, `explain` and `fix`, and the plugin of pytest: what they print, write and end with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from homeostat import cli
from homeostat import report as views

NET = """
import torch
from torch import nn

LOADED = True

def sick():
    return nn.Sequential(nn.Linear(4, 8),
                         nn.BatchNorm1d(8),
                         nn.Linear(8, 3))

class Healthy(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
    def forward(self, x):
        return self.norm(x)

def batches():
    return [torch.randn(2, 4) for _ in range(8)]

one = torch.randn(8, 4)

def broken():
    raise RuntimeError("no weights here")

class Crooked(nn.Module):
    def forward(self, x):
        return x @ torch.randn(7, 7)
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A user's repository, with the network above in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "pyproject.toml").write_text("[tool.homeostat]\nselect = 'HS101'\n")
    (tmp_path / "usernet.py").write_text(NET)
    yield tmp_path
    sys.modules.pop("usernet", None)


def run(words: str) -> int:
    try:
        return cli.main(words.split())
    except SystemExit as end:
        return end.code


SICK = "check usernet:sick --batch usernet:batches"


def test_findings_end_with_1_and_are_told_with_their_line(repository, capsys):
    assert run(SICK) == 1
    said = capsys.readouterr().out
    assert "HS101 small-batch-noise, error: 1\n  usernet.py:9\n" in said
    assert "model unchanged (verified)" in said.splitlines()[0]


def test_a_healthy_model_ends_with_0(repository, capsys):
    assert run("check usernet:Healthy --batch usernet:one") == 0
    assert "0 findings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("check usernet --batch usernet:batches", "package.module:name"),
        ("check usernet:__import__('os') --batch usernet:batches", "package.module:name"),
        ("check usernet:absent --batch usernet:batches", "no 'absent' in it; it has torch, nn, LOADED, sick"),
        ("check absent_module:sick --batch usernet:batches", "No module named 'absent_module'"),
        ("check usernet:LOADED --batch usernet:batches", "gives a bool"),
        ("check usernet:sick --batch usernet:LOADED", "gives a bool"),
        ("check usernet:broken --batch usernet:batches", "usernet.py, line 25: RuntimeError: no weights here"),
        ("check usernet:Crooked --batch usernet:batches", "usernet.py, line 29: RuntimeError"),
        (f"{SICK} --select HS999", "HS999"),
        (f"{SICK} --baseline absent.json", "absent.json"),
        (f"{SICK} --out report.pdf", "report.pdf"),
        (f"{SICK} --output-format xml", "invalid choice"),
        ("explain HS999", "HS999"),
        ("fix usernet:sick --batch usernet:batches --out x.pt", "safetensors"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_one_line_that_says_why(repository, capsys, words, said):
    assert run(words) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_nothing_is_imported_or_run_when_the_command_line_is_refused(repository):
    run("check usernet:sick --batch usernet:batches --select HS999")
    run("check usernet:sick --batch usernet:batches --out x.pdf")
    assert "usernet" not in sys.modules


def test_the_same_command_finds_the_same(repository, capsys):
    found = []
    for _ in range(2):
        run(f"{SICK} --output-format json")
        found.append(json.loads(capsys.readouterr().out)["findings"])
    assert found[0] == found[1]


@pytest.mark.parametrize("ending", ["json", "sarif", "html", "txt"])
def test_the_ending_of_a_file_says_which_view_is_written(repository, capsys, ending):
    assert run(f"{SICK} --out report.{ending}") == 1
    text = (repository / f"report.{ending}").read_text()
    start = {"json": '{\n "schema"', "sarif": '{\n "$schema"', "html": "<!doctype", "txt": "1 norm"}
    assert text.startswith(start[ending])
    assert f"wrote report.{ending}" in capsys.readouterr().err


def test_lines_for_github_name_the_file_and_the_line(repository, capsys):
    assert run(f"{SICK} --output-format github") == 1
    assert capsys.readouterr().out.startswith("::error file=usernet.py,line=9,title=HS101 small-batch-noise::1: ")


def test_a_baseline_lets_known_findings_pass(repository, capsys):
    assert run(f"{SICK} --write-baseline known.json") == 0
    assert run(f"{SICK} --baseline known.json") == 0
    assert "1 known from the baseline" in capsys.readouterr().out
    (repository / "known.json").write_text('{"schema": 1, "known": ["HS101 other"]}')
    assert run(f"{SICK} --baseline known.json") == 1


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("fail-on = 'error'", 1),
        ("fail-on = 'never'", 0),
        ("ignore = ['HS101']", 0),
        ("limits = { HS101 = 50.0 }", 0),
        ("limits = { HS101 = [0.01, 50.0] }\nfail-on = 'error'", 0),
        ("limits = { HS101 = [0.01, 50.0] }\nfail-on = 'warning'", 1),
        ("select = 'correctness'", 0),
        ("selekt = 'correctness'", 2),
        ("fail-on = 'always'", 2),
        ("limits = 3", 2),
        ("baseline = 'absent.json'", 2),
        ("this is no toml", 2),
    ],
)
def test_settings_of_pyproject_hold(repository, setting, code):
    (repository / "pyproject.toml").write_text(f"[tool.homeostat]\n{setting}\n")
    assert run(SICK) == code


def test_the_command_line_overrides_settings(repository):
    (repository / "pyproject.toml").write_text("[tool.homeostat]\nselect = 'correctness'\nfail-on = 'never'\n")
    assert run(f"{SICK} --select HS101,HS102 --fail-on note") == 1


def test_a_model_of_a_library_is_anchored_where_the_batches_are(repository, capsys):
    assert run("check torch.nn:Identity --batch usernet:batches --output-format json") == 0
    more = "\nfrom torch.nn import LayerNorm\ndef library():\n    return LayerNorm(4)\n"
    (repository / "usernet.py").write_text(NET + more)
    sys.modules.pop("usernet")
    capsys.readouterr()
    run("check usernet:library --batch usernet:batches --output-format json")
    assert json.loads(capsys.readouterr().out)["norms"][0]["location"] == "usernet.py:33"


def test_explain_prints_what_a_rule_is_about_and_lists_them_all(capsys):
    assert run("explain HS101") == 0
    said = capsys.readouterr().out
    assert said.startswith("HS101 small-batch-noise")
    assert "Known false alarms." in said
    assert run("explain") == 0
    assert "HS101 small-batch-noise (suspicious): statistics of so few" in capsys.readouterr().out


def test_fix_cures_a_copy_and_writes_it(repository, capsys):
    from safetensors.torch import load_file

    assert run("fix usernet:sick --batch usernet:batches --out cured.safetensors") == 0
    said = capsys.readouterr().out
    assert "HS101 fixed on a copy (needs training)" in said
    assert "usernet.py:9 builds 1" in said
    old, new = "nn.BatchNorm1d(8),\n", "hs.nn.GroupNorm(1, 8, eps=1e-05, affine=True"
    assert f"-{' ' * 25}{old}+{' ' * 25}{new}" in said
    assert (repository / "usernet.py").read_text() == NET
    cured = load_file(repository / "cured.safetensors")
    assert {"0.weight", "1.weight"} <= cured.keys()
    assert "1.running_mean" not in cured


def test_fix_of_a_healthy_model_says_that_there_is_nothing_to_fix(repository, capsys):
    assert run("fix usernet:Healthy --batch usernet:one") == 0
    assert "nothing to fix" in capsys.readouterr().out


def test_a_name_that_would_run_code_if_it_were_evaluated_is_a_name(repository):
    (repository / "usernet.py").write_text(NET + f"\nopen({str(repository / 'ran')!r}, 'w')\n")
    assert run("check usernet:sick() --batch usernet:batches") == 2
    assert not (repository / "ran").exists()


# ---- pytest ----

TESTS = """
import torch, usernet

def test_healthy(assert_healthy):
    assert_healthy(usernet.Healthy(), [usernet.one]).results

def test_sick(assert_healthy):
    torch.manual_seed(0)
    assert_healthy(usernet.sick(), usernet.batches())

def test_selected(assert_healthy):
    assert_healthy(usernet.sick(), usernet.batches(), select="correctness")
"""


def test_the_fixture_of_pytest_passes_the_healthy_and_fails_the_sick_with_its_findings(repository):
    (repository / "test_net.py").write_text(TESTS)
    words = "-m pytest -q -p homeostat.pytest_plugin --homeostat=pages test_net.py".split()
    env = {"PYTHONPATH": str(repository), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    told = {"capture_output": True, "text": True, "env": os.environ | env}
    done = subprocess.run([sys.executable, *words], **told)
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert "HS101 small-batch-noise, error: 1" in done.stdout
    assert "passes a batch" not in done.stdout  # nothing that differs from run to run
    assert [page.name for page in (repository / "pages").iterdir()] == ["test_sick.html"]
    assert Path(repository / "pages" / "test_sick.html").read_text().startswith("<!doctype html>")


def test_the_function_takes_a_baseline(repository):
    import torch

    from homeostat.pytest_plugin import assert_healthy

    sys.path.insert(0, str(repository))
    import usernet

    torch.manual_seed(0)
    model, batches = usernet.sick(), usernet.batches()
    with pytest.raises(pytest.fail.Exception, match="HS101"):
        assert_healthy(model, batches, select="HS101")
    report = assert_healthy(model, batches, select=())
    views.baseline.save(report.record() | {"findings": [{"code": "HS101", "module": "1"}]}, "known.json")
    assert assert_healthy(model, batches, select="HS101", baseline="known.json").codes == ["HS101"]
