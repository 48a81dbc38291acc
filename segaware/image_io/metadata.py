"""EXIF blocks, orientation, resolution: what a file says of its picture besides the pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from PIL import Image as PILImage

__all__ = ["TURNS", "exif_block", "inches", "load_exif", "orientation"]

ORIENTATION = 0x0112
_SUB_IFDS = (0x8769, 0x8825)  # exposure and lens, place
#: TIFF tags about the picture; all others there describe how the file is laid out.
TIFF_KEPT = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, *_SUB_IFDS)
#: What stands upright, by EXIF orientation: axes swapped?, rows reversed?, columns reversed? (in this order).
TURNS = {
    2: (False, False, True), 3: (False, True, True), 4: (False, True, False), 5: (True, False, False),
    6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}  # fmt: skip


def load_exif(block: bytes) -> PILImage.Exif:
    """A block as Pillow's object; empty where it is broken."""
    found = PILImage.Exif()
    try:
        found.load(block)
        len(found)  # reads it
    except Exception:  # cameras write broken EXIF in many ways, and it is not what the user came for
        return PILImage.Exif()
    return found


def orientation(found: PILImage.Exif) -> int:
    """1 to 8; 1 where nothing sensible is stated."""
    try:
        value = found.get(ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in TURNS else 1


def exif_block(found: PILImage.Exif, *, tiff: bool = False) -> bytes | None:
    """What is kept, as bytes: everything but the orientation, which is applied to the pixels.

    Args:
        tiff: the tags are a TIFF's own, most of which describe its layout.
    """
    try:
        kept = PILImage.Exif()
        for tag, value in found.items():
            if tag == ORIENTATION or (tiff and tag not in TIFF_KEPT):
                continue
            kept[tag] = found.get_ifd(tag) if tag in _SUB_IFDS and not isinstance(value, dict) else value
        return kept.tobytes() if len(kept) else None
    except Exception:
        return None


def inches(info: Mapping[Any, Any], turned: bool = False) -> tuple[float, float] | None:
    """Dots per inch, across and down, as Pillow has found them; None where there are none or nonsense."""
    try:
        across, down = (float(value) for value in info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not (math.isfinite(across) and math.isfinite(down) and 0 < across < 1e8 and 0 < down < 1e8):
        return None
    return (down, across) if turned else (across, down)
