"""The line that builds a norm is found in the source, however it is written."""

import importlib
import sys
import textwrap

import pytest
import torch

import homeostat as hs
from homeostat.doctor.editing import edits
from homeostat.doctor.location import Places

CASES = {
    "an attribute": """
        class M(Base):
            def __init__(self):
                super().__init__()
                self.norm = nn.BatchNorm1d(4)  # norm""",
    "a sequence": """
        def build():
            return nn.Sequential(
                nn.Linear(4, 4),
                nn.BatchNorm1d(4),  # 1
                nn.Sequential(nn.ReLU(),
                              nn.LayerNorm(4)),  # 2.1
            )""",
    "a sequence under a name": """
        def build():
            model = nn.Sequential(nn.Linear(4, 4),
                                  nn.BatchNorm1d(4))  # 1
            return model""",
    "a list of layers": """
        def build():
            layers = [nn.Linear(4, 4)]
            layers.append(nn.BatchNorm1d(4))  # 1
            return nn.Sequential(*layers)""",
    "a dictionary": """
        class M(Base):
            def __init__(self):
                super().__init__()
                self.parts = nn.ModuleDict({
                    "a": nn.Linear(4, 4),
                    "b": nn.LayerNorm(4),  # parts.b
                })""",
    "named parts": """
        class M(Base):
            def __init__(self):
                super().__init__()
                self.parts = nn.Sequential(OrderedDict([
                    ("a", nn.Linear(4, 4)),
                    ("b", nn.LayerNorm(4)),  # parts.b
                ]))""",
    "a comprehension": """
        class M(Base):
            def __init__(self):
                super().__init__()
                self.parts = nn.ModuleList([
                    nn.LayerNorm(4)  # parts.0 parts.2
                    for _ in range(3)
                ])""",
    "a base class": """
        class Parent(Base):
            def __init__(self):
                super().__init__()
                self.norm = nn.LayerNorm(4)  # norm
        class M(Parent):
            def __init__(self):
                super().__init__()
                self.more = nn.LayerNorm(4)  # more""",
    "one of two branches": """
        class M(Base):
            def __init__(self, batch=True):
                super().__init__()
                self.norm = None
                if not batch:
                    self.norm = nn.LayerNorm(4)
                else:
                    self.norm = nn.BatchNorm1d(4)  # norm""",
    "add_module": """
        class M(Base):
            def __init__(self):
                super().__init__()
                self.add_module("norm", nn.LayerNorm(4))  # norm""",
    "two at once": """
        class M(Base):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 4), nn.LayerNorm(4)  # b""",
    "a name that says nothing": """
        class M(Base):
            def __init__(self, kind=nn.BatchNorm1d):
                super().__init__()
                self.norm = kind(4)  # norm""",
}
HEAD = "from collections import OrderedDict\nfrom torch import nn\nclass Base(nn.Module):\n    def forward(self, x):\n"
HEAD += "        return x\n"
SMALL = "def build():\n    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))  # homeostat: {}\n"


@pytest.mark.parametrize("case", CASES)
def test_the_line_of_a_norm_is_found_in(case, written):
    text = HEAD + textwrap.dedent(CASES[case]) + "\n"
    module, file = written(text)
    name = "build" if "def build" in text else "M"
    places = Places(getattr(module, name)(), f"{module.__name__}:{name}")
    told = [
        (norm, f"{file.name}:{number}")
        for number, line in enumerate(text.splitlines(), 1)
        if "# " in line
        for norm in line.partition("# ")[2].split()
    ]
    assert told
    assert [(norm, places(norm).ours) for norm, _ in told] == told


def test_a_comment_on_the_line_of_a_norm_puts_its_findings_aside_and_says_so(written):
    text = HEAD + SMALL.format("ignore[HS101]")
    module, _ = written(text)
    torch.manual_seed(0)
    data = [torch.randn(2, 4) for _ in range(8)]
    report = hs.check(module.build(), data, select="HS101", built=f"{module.__name__}:build")
    assert report.codes == []
    assert [finding.code for finding in report.ignored] == ["HS101"]
    assert "1 ignored in the source" in str(report)


@pytest.mark.parametrize("comment", ["ignore[HS103]", "ignored"])
def test_a_comment_about_something_else_puts_nothing_aside(written, comment):
    text = HEAD + SMALL.format(comment)
    module, _ = written(text)
    torch.manual_seed(0)
    data = [torch.randn(2, 4) for _ in range(8)]
    assert hs.check(module.build(), data, select="HS101", built=f"{module.__name__}:build").codes == ["HS101"]


def test_a_comment_that_names_no_rule_is_refused_with_its_line(written):
    text = HEAD + SMALL.format("ignore[HS1O1]")
    module, file = written(text)
    with pytest.raises(ValueError, match=f"{file.name}:7.*HS1O1"):
        hs.check(
            module.build(), [torch.randn(2, 4) for _ in range(8)], select="HS101", built=f"{module.__name__}:build"
        )


def test_without_a_builder_the_line_that_calls_the_check_tells_where_the_model_is(written):
    text = HEAD + textwrap.dedent("""
        import homeostat, torch
        def look():
            model = nn.Sequential(
                nn.Linear(4, 8),
                nn.BatchNorm1d(8),
            )
            return homeostat.check(model, [torch.randn(4, 4) for _ in range(4)])
    """)
    module, file = written(text)
    line = 1 + text.splitlines().index("        nn.BatchNorm1d(8),")
    assert module.look().norms[0]["location"] == f"{file.name}:{line}"


def test_only_norms_that_became_something_else_change_a_line(written):
    text = HEAD + textwrap.dedent("""
        import homeostat as hs
        def build():
            return nn.Sequential(hs.nn.BatchNorm1d(8), nn.Linear(8, 8), hs.nn.BatchNorm1d(8))
    """)
    module, file = written(text)
    old, new = module.build(), module.build()
    assert edits(old, new, f"{module.__name__}:build") == ""
    new[2] = hs.nn.GroupNorm(2, 8)
    said = edits(old, new, f"{module.__name__}:build").splitlines()
    assert said[:2] == [f"--- a/{file.name}", f"+++ b/{file.name}"]
    removed, added = ([line[1:] for line in said[2:] if line[0] == sign] for sign in "-+")
    line = "    return nn.Sequential(hs.nn.BatchNorm1d(8), nn.Linear(8, 8), hs.nn.{})"
    assert removed == [line.format("BatchNorm1d(8)")]
    assert added == [line.format(f"{new[2]}")]


def test_a_line_that_builds_norms_which_became_different_things_is_left(written):
    text = HEAD + textwrap.dedent("""
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = nn.BatchNorm1d(8)
        def build():
            return nn.Sequential(Block(), Block())
    """)
    module, _ = written(text)
    old, new = module.build(), module.build()
    new[0].norm, new[1].norm = hs.nn.GroupNorm(2, 8), hs.nn.GroupNorm(4, 8)
    assert edits(old, new, f"{module.__name__}:build") == ""
    new[1].norm = hs.nn.GroupNorm(2, 8)
    assert edits(old, new, f"{module.__name__}:build").count("+        self.norm = hs.nn.GroupNorm(2, 8") == 1


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A module of that text, in a repository of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / ".git").mkdir()
    name = f"written_{abs(hash(tmp_path))}"

    def write(text):
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(name), file

    yield write
    sys.modules.pop(name, None)
