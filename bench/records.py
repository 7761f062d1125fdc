"""Records: one line of JSON per measurement, written as it comes, so that a run can be taken up where it stopped."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import inside

Record = dict[str, Any]
PACKAGES = ("homeostat", "torch", "jax", "numpy", "pandas")


@dataclass(frozen=True)
class Task:
    """Something to measure, and the few fields that tell it from the others."""

    key: dict[str, Any]
    measure: Callable[[], Record]

    @property
    def name(self) -> str:
        return " ".join(str(value) for value in self.key.values())


class Records:
    """What was measured, last word per key, beside a file that is only appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            record = json.loads(line)
            if record["key"]["kind"] != "skipped":  # what was absent then may be there now
                self.lines[_text(record["key"])] = record

    def __contains__(self, task: Task) -> bool:
        return _text(task.key) in self.lines

    def add(self, key: dict[str, Any], found: Record) -> None:
        self.lines[_text(key)] = record = {"key": key, **found}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def drop_all(self) -> None:
        self.lines.clear()
        self.path.unlink(missing_ok=True)

    def of(self, kind: str) -> list[Record]:
        """All of one kind, key and findings side by side."""
        found = (r for r in self.lines.values() if r["key"]["kind"] == kind)
        return [{k: v for k, v in {**r["key"], **r}.items() if k not in ("key", "kind")} for r in found]


def write(path: Path, records: Records) -> None:
    """The whole run as one JSON file, a record per line."""
    kinds = ("copy", "cell", "growth", "model", "skipped")
    parts = [f'"machine": {json.dumps(machine())}']
    for kind in kinds:
        lines = ",\n    ".join(json.dumps(_rounded(record)) for record in records.of(kind))
        parts.append(f'"{kind}": [\n    {lines}\n  ]')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n  " + ",\n  ".join(parts) + "\n}\n")


def machine() -> Record:
    """What it was measured on; nothing that tells whose machine it is."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "instructions": inside.instructions(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _caches() -> dict[str, str]:
    """{"L2": "1024K", "L3": "32768K"} of the first core."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _rounded(value: Any) -> Any:
    """4 digits are more than a median of samples has."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
