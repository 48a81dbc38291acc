"""Read and write image files so that what came goes back: size, depth, alpha, profile, EXIF, resolution.

What cannot be kept is refused or, where the picture stays the same to the eye, converted with a
notice, never changed in silence. Files too large for memory go through :func:`opened` and
:class:`Target`, a few rows at a time.
"""

from segaware.image_io.atomic import beside
from segaware.image_io.formats import EXTENSIONS, target_format
from segaware.image_io.picture import Head, Image, from_pil, to_pil
from segaware.image_io.source import Source, opened, read
from segaware.image_io.target import Target, write

__all__ = [
    "EXTENSIONS",
    "Head",
    "Image",
    "Source",
    "Target",
    "beside",
    "from_pil",
    "opened",
    "read",
    "target_format",
    "to_pil",
    "write",
]
