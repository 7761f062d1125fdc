"""Files: written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one, never half of it."""
    part = path.with_name(f"{path.name}.{os.urandom(8).hex()}")  # not tempfile's, which nobody else may read
    try:
        with part.open("xb") as file:
            file.write(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
