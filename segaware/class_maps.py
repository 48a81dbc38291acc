"""Maps of class indices as pictures: colours that people who see few colours can tell apart, and PNG files."""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import PngImagePlugin

from segaware.errors import ImageError, InputError
from segaware.image_io import beside

__all__ = ["NAMES_KEY", "class_colours", "write_class_map"]

#: Under which key a PNG holds the names of its classes, a JSON list in the order of the indices.
NAMES_KEY = "class_names"

# Tol's "muted", then "bright" and "vibrant" where they differ
_COLOURS = (
    "#88CCEE", "#CC6677", "#332288", "#DDDDDD", "#DDCC77", "#117733", "#EE7733", "#882255", "#44AA99", "#AA4499",
    "#999933", "#0077BB", "#CC3311", "#33BBEE", "#EE3377", "#BBBBBB", "#228833", "#CCBB44", "#4477AA", "#AA3377", "#66CCEE",
)  # fmt: skip


def class_colours(count: int) -> np.ndarray:
    """``(count, 3)`` colours in [0, 1]; beyond those of the palette, hues that differ in lightness too."""
    found = [tuple(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)) for code in _COLOURS[:count]]
    for index in range(len(found), count):
        found.append(colorsys.hls_to_rgb(index * 0.618 % 1, (0.35, 0.55, 0.75)[index % 3], 0.6))
    return np.array(found)


def write_class_map(path: str | os.PathLike[str], classes: np.ndarray, names: Sequence[str]) -> Path:
    """Write ``(H, W)`` class indices as a PNG with a palette, whole or not at all; replaces an existing file.

    A pixel's value is its class; the palette gives the colours (indices beyond the classes are
    white), and the text :data:`NAMES_KEY` the names.

    Raises:
        InputError: no map of indices of these classes, or more than 256 of them.
        ImageError: another ending than .png, or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ImageError(f"{path}: a map of classes is written as PNG; give a name that ends in .png")
    if not 1 <= len(names) <= 256:
        raise InputError(f"{path}: {len(names)} classes; a PNG with a palette holds 1 to 256")
    if classes.ndim != 2 or 0 in classes.shape or not np.issubdtype(classes.dtype, np.integer):
        raise InputError(f"{path}: classes {classes.shape} of {classes.dtype}; give integers (H, W)")
    if classes.min() < 0 or classes.max() >= len(names):
        raise InputError(f"{path}: classes {classes.min()} to {classes.max()}, but there are names for 0 to {len(names) - 1}")
    colours = np.full((256, 3), 255, dtype=np.uint8)
    colours[: len(names)] = np.round(class_colours(len(names)) * 255)
    picture = PILImage.fromarray(classes.astype(np.uint8))
    picture.putpalette(colours.tobytes())  # makes it a picture with a palette
    text = PngImagePlugin.PngInfo()
    text.add_text(NAMES_KEY, json.dumps(list(names)))
    try:
        with beside(path) as file:
            picture.save(file, format="PNG", pnginfo=text, optimize=True)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror or error}); check free space and permissions") from error
    return path
