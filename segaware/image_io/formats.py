"""Which file formats there are, what each can hold, and which files are refused by their size alone."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from segaware.errors import ImageError

__all__ = ["DAMAGE", "EXTENSIONS", "FORMATS", "check_kind", "check_sides", "target_format", "words"]

#: File name endings that are read and written, and the format each stands for.
EXTENSIONS = {
    ".bmp": "BMP", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
FORMATS = tuple(sorted(set(EXTENSIONS.values())))
#: What readers raise on damaged files.
DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError, AssertionError,
    ArithmeticError, RuntimeError, struct.error, zlib.error, PILImage.DecompressionBombError,
)  # fmt: skip
#: Pixels that one byte of a file can stand for at most: deflate reaches 1032 bytes, RLE of BMP 255 pixels in two.
#: JPEG and compressed TIFF have no such limit; blank ones stay far below this one. WebP has none at all.
_DENSEST = {"BMP": 256, "JPEG": 1 << 14, "TIFF": 1 << 14}


def target_format(path: str | os.PathLike[str]) -> str:
    """The format that a file name asks for; ImageError for an ending that is not written."""
    ending = Path(path).suffix.lower()
    if ending not in EXTENSIONS:
        what = f"ending {ending!r}" if ending else "a name without an ending"
        raise ImageError(f"{path}: cannot write {what}; use one of {' '.join(EXTENSIONS)}")
    return EXTENSIONS[ending]


def check_kind(path: Path, kind: str, dtype: np.dtype, alpha: bool) -> None:
    """Refuse what a format cannot hold."""
    if alpha and kind in ("JPEG", "BMP"):
        raise ImageError(f"{path}: {kind} cannot hold the alpha channel; write PNG, TIFF or WebP")
    if dtype == np.uint16 and kind not in ("PNG", "TIFF"):
        raise ImageError(f"{path}: {kind} cannot hold 16 bits per channel; write PNG or TIFF")
    if dtype.kind == "f" and kind != "TIFF":
        raise ImageError(f"{path}: {kind} cannot hold floating-point pixels; write TIFF")


def check_sides(path: Path, kind: str, width: int, height: int, bits: int = 8) -> None:
    """Refuse, before memory is taken, more pixels than Pillow's hard limit or than the file can hold.

    Args:
        bits: of a pixel, for PNG.
    """
    limit = 2 * (PILImage.MAX_IMAGE_PIXELS or 0)
    if limit and width * height > limit:
        raise ImageError(
            f"{path}: more than {limit:,} pixels, which may be a decompression bomb;"
            " if you trust the file, cut it up or raise PIL.Image.MAX_IMAGE_PIXELS"
        )
    size = path.stat().st_size
    densest = 1032 * 8 / bits if kind == "PNG" else _DENSEST.get(kind)
    if densest is not None and width * height > densest * (size + 64):
        raise ImageError(f"{path}: claims {width} x {height} pixels in {size:,} bytes; truncated or damaged, fetch or save it again")


def words(error: BaseException) -> str:
    """What an error of a reader says, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
