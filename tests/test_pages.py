"""The pages made from the code say what the code says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_pages_are_up_to_date():
    found = subprocess.run([sys.executable, ROOT / "tools" / "pages.py", "--check"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_catalogue_names_every_layer_and_every_part():
    page = (ROOT / "docs" / "catalogue.md").read_text()
    import homeostat as hs
    from homeostat import nn

    helpers = {"Norm", "standardize_weight", "normalize_weight", "initial_gain"}
    layers = {name for name in nn.__all__ if not name.startswith("Lazy")} - helpers
    parts = {n for n in hs.__all__ if isinstance(v := getattr(hs, n), type) and issubclass(v, hs.Source | hs.Gain)}
    for name in (layers | parts) - {"Source", "Gain"}:
        named = name.removesuffix("1d").removesuffix("2d").removesuffix("3d")
        assert named in page, name
