"""Pixels: a picture file as values 0..1, [3, h, w], and back. Pillow reads and writes; it is loaded here alone."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.files import write_whole

Pixels = np.ndarray[Any, np.dtype[np.float64]]


class PictureError(ValueError):
    """A file that is no picture we can read, or a name that says no format we can write."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Red, green, blue as 0..1; opacity and colour profile are carried along as they are."""

    colours: Pixels  # [3, h, w]
    opacity: np.ndarray[Any, np.dtype[np.uint8]] | None = None  # [h, w]
    profile: bytes | None = None

    @property
    def size(self) -> str:
        return f"{self.colours.shape[2]} x {self.colours.shape[1]}"


def read(path: Path | str) -> Picture:
    """The picture in a file, upright; of several frames the first. 8 bits a channel."""
    image, path = _pillow(), Path(path)
    from PIL import ImageOps

    try:
        with image.open(path) as file:
            mode, upright = file.mode, ImageOps.exif_transpose(file)
            whole = np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:  # Pillow's, for damaged files
        raise PictureError(f"{path} cannot be read as a picture: {_said(error)}.") from error
    if mode.startswith(("I", "F")):
        raise PictureError(f"{path} has more than 8 bits a channel (mode {mode}); convert it to 8 bits first.")
    opacity = whole[..., 3] if whole.shape[2] == 4 else None
    return Picture(np.moveaxis(whole[..., :3], 2, 0) / 255, opacity, upright.info.get("icc_profile"))


def write(path: Path | str, picture: Picture) -> float:
    """Round to 8 bits and write, whole or not at all. Returns the share of values that were beyond 0..1."""
    path, levels = Path(path), np.rint(picture.colours * 255)
    if levels.ndim != 3 or len(levels) != 3 or not np.isfinite(levels).all():
        raise PictureError(f"{path} is not written: colours are {list(levels.shape)}, not finite values [3, h, w].")
    parts = [np.clip(levels, 0, 255).astype(np.uint8)]
    if picture.opacity is not None:
        parts.append(picture.opacity[None])
    data = BytesIO()
    try:
        whole = _pillow().fromarray(np.ascontiguousarray(np.moveaxis(np.concatenate(parts), 0, 2)))
        whole.save(data, format_of(path), icc_profile=picture.profile, quality=95)
        write_whole(path, data.getvalue())
    except OSError as error:
        raise PictureError(f"{path} cannot be written: {_said(error)}.") from error
    return float(np.mean((levels < 0) | (levels > 255)))


def format_of(path: Path | str) -> str:
    """The format that the name's ending says."""
    image, path = _pillow(), Path(path)
    found: str | None = image.registered_extensions().get(path.suffix.lower())
    if found is None or found not in image.SAVE:
        raise PictureError(f"{path}: {path.suffix or 'no ending'} names no format of pictures to write; .png does.")
    return found


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures are read by Pillow: pip install 'homeostat[pictures]'") from error
    return Image


def _said(error: Exception) -> str:
    """Without the path and number that an OSError repeats."""
    return str(getattr(error, "strerror", None) or error).rstrip(".")
