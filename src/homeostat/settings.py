"""Settings: [tool.homeostat] of the nearest pyproject.toml, which the command line overrides.

[tool.homeostat]
select = ["correctness", "suspicious"]      ignore = ["HS110"]      fail-on = "error"      baseline = "known.json"
limits = { HS101 = 0.3, HS102 = [0.02, 0.1] }                       from where on a rule warns, and is an error
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

KNOWN: dict[str, tuple[type, ...]] = {
    "select": (str, list),
    "ignore": (str, list),
    "limits": (dict,),
    "fail-on": (str,),
    "baseline": (str,),
}
WORDS: dict[type, str] = {str: "word", list: "list", dict: "table"}
SEVERITIES = ("error", "warning", "note")
FAIL_ON = (*SEVERITIES, "never")


def read(start: Path | None = None) -> dict[str, Any]:
    """What the file says; {} where there is none. A baseline is relative to the file."""
    here = (start or Path.cwd()).resolve()
    file = next((top / "pyproject.toml" for top in (here, *here.parents) if (top / "pyproject.toml").exists()), None)
    if file is None:
        return {}
    try:
        said = tomllib.loads(file.read_text("utf-8")).get("tool", {}).get("homeostat", {})
    except ValueError as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from error
    for word, value in said.items():
        if not isinstance(value, KNOWN.get(word, ())):
            raise ValueError(f"{file}, [tool.homeostat] {word} = {value!r}: {_meant(word)}.")
    if said.get("fail-on", "note") not in FAIL_ON:
        raise ValueError(f"{file}, [tool.homeostat] fail-on = {said['fail-on']!r}; known are {', '.join(FAIL_ON)}.")
    if "baseline" in said:
        said["baseline"] = str(file.parent / said["baseline"])
    return {word: tuple(value) if isinstance(value, list) else value for word, value in said.items()}


def _meant(word: str) -> str:
    if word not in KNOWN:
        return f"known are {', '.join(KNOWN)}"
    return f"it is a {' or a '.join(WORDS[kind] for kind in KNOWN[word])}"
