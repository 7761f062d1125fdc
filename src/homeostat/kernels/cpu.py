"""The compiled CPU path: here when a compiler was, and never required.

`native` is the extension, or None: then the reference path serves, with the same results.

    >>> from homeostat.kernels import cpu
    >>> cpu.info()["native"] is (cpu.native is not None)
    True

HOMEOSTAT_NATIVE=0 in the environment turns it off, so that a test can ask the two paths the same question.
"""

import os
from ctypes import CDLL
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

__all__ = ["Native", "info", "native"]


class Native(Protocol):
    """What `homeostat._native` offers; csrc/native.cpp is its definition."""

    def update_running(
        self,
        mean: int,
        var: int,
        tracked: int,
        skipped: int,
        m_mean: int,
        m_m2: int,
        m_count: int,
        count: float,
        groups: int,
        momentum: float,
        dtype: int,
        rows: int = 1,
    ) -> bool:
        """Move running buffers towards a batch's moments; False, and one more skip, if any moment is not finite."""

    def task(
        self,
        sizes: tuple[int, ...],
        gain: tuple[int, ...],
        where: tuple[int, ...],
        labels: int,
        eps: float,
        dtype: int,
        gain_dtype: int,
        flags: int,
        r_max: float,
        d_max: float,
    ) -> Any:
        """All about a call but its arrays: `forward`, `backward`, `groups`. None if weights cannot be walked."""

    def copy_limit(self, to: int, source: int, nbytes: int, threads: int) -> None:
        """Copy from one address to another as fast as the machine can."""

    def build_info(self) -> dict[str, str]:
        """Which compiler built it, and for which version of homeostat."""


def info() -> dict[str, object]:
    """Say which path serves: {"native": True, "compiler": ..., "version": ...} or {"native": False, "reason": ...}."""
    if native is None:
        return {"native": False, "reason": f"{_absence}: reference path serves"}
    return {"native": True, **native.build_info()}


def _load() -> tuple[Native | None, str]:
    if os.environ.get("HOMEOSTAT_NATIVE") == "0":
        return None, "turned off by HOMEOSTAT_NATIVE=0"
    try:
        try:
            return _import(), ""
        except ImportError as error:
            if "libgomp" in str(error) and _load_torchs_libgomp():
                return _import(), ""
            raise
    except ModuleNotFoundError:
        return None, "built without a working C++ compiler"
    except ImportError as error:  # it was built, but for another Python or C++ runtime
        return None, f"the compiled part does not load ({error})"


def _import() -> Native:
    return cast(Native, import_module("homeostat._native"))


def _load_torchs_libgomp() -> bool:
    """On a system without libgomp, torch's copy serves; it has the same name, so it is the one pool either way."""
    torch = find_spec("torch")
    path = Path(torch.origin).parent / "lib" / "libgomp.so.1" if torch is not None and torch.origin else None
    if path is None or not path.exists():
        return False
    CDLL(str(path))
    return True


native, _absence = _load()
