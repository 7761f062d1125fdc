"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_of_code_runs(block):
    exec(compile(block, "README.md", "exec"), {})


def test_the_tour_is_as_short_as_it_says():
    code = [line for line in BLOCKS[0].splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= 30


def test_every_homeostat_name_the_readme_mentions_exists():
    import homeostat

    for name in set(re.findall(r"\bhs\.(?:nn\.)?([A-Za-z]\w+)\b", README)) - {"nn"}:
        stem = re.sub(r"1d$", "1d", name)
        assert hasattr(homeostat, stem) or hasattr(homeostat.nn, stem) or name == "Lazy", name


def test_every_command_the_readme_mentions_exists():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_every_link_leads_somewhere(link):
    assert (Path(__file__).parents[1] / link).exists()


def test_the_demo_runs_and_draws_who_shares(capsys):
    from homeostat import demo

    demo.main()
    said = capsys.readouterr().out
    assert "sample 0   A B C D E F" in said  # batch norm: a letter per channel
    assert "went to expert" in said
    assert "now by 0.0" in said
