"""Read an image file, at once or row by row."""

from __future__ import annotations

import dataclasses
import os
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from segaware.errors import ImageError
from segaware.image_io.formats import DAMAGE, FORMATS, check_sides, words
from segaware.image_io.metadata import ORIENTATION, TURNS
from segaware.image_io.picture import Head, Image, prepared

__all__ = ["ArraySource", "Source", "opened", "read"]

_AT_ONCE = 1 << 25  # bytes of rows that are copied in one go


class Source(ABC):
    """An opened image file: its head, and its rows from the top, each asked for once.

    Args:
        path: to be named in messages.
        head: see :class:`segaware.image_io.Head`.
    """

    def __init__(self, path: Path, head: Head) -> None:
        self.path, self.head, self._given = path, head, 0

    def rows(self, count: int) -> np.ndarray:
        """The next rows ``(count, W, C or C + alpha)``, fewer at the end, of ``head.dtype``; read-only from some formats.

        Raises:
            ImageError: truncated or damaged.
        """
        count = min(count, self.head.height - self._given)
        if count <= 0:
            return np.empty((0, self.head.width, self.head.channels + self.head.alpha), self.head.dtype)
        try:
            taken = self._take(self._given, count)
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(f"{self.path}: not enough memory for {count} rows of {self.head.width} pixels") from error
        except DAMAGE as error:
            raise ImageError(f"{self.path}: truncated or damaged ({words(error)}); fetch or save it again") from error
        self._given += count
        return taken

    @abstractmethod
    def _take(self, start: int, count: int) -> np.ndarray: ...

    def close(self) -> None:  # noqa: B027  # nothing to close in memory
        """Close the file."""

    def whole(self) -> Image:
        """All of it in memory."""
        head = self.head
        pixels = np.empty((head.height, head.width, head.channels), head.dtype)
        alpha = np.empty((head.height, head.width), head.dtype) if head.alpha else None
        step = max(1, _AT_ONCE // max(1, head.width * (head.channels + head.alpha) * head.dtype.itemsize))
        for top in range(0, head.height, step):
            part = self.rows(step)
            pixels[top : top + step] = part[:, :, : head.channels]
            if alpha is not None:
                alpha[top : top + step] = part[:, :, -1]
        return Image.of(head, pixels, alpha)

    def upright(self, turn: int) -> Source:
        """This picture turned by its EXIF orientation, which takes all of it in memory unless it is 1."""
        if turn not in TURNS:
            return self
        with self:
            image = self.whole()
        array = image.pixels if image.alpha is None else np.concatenate([image.pixels, image.alpha[:, :, None]], axis=2)
        swap, rows, columns = TURNS[turn]
        if swap:
            array = array.transpose(1, 0, 2)
        array = array[:: -1 if rows else 1, :: -1 if columns else 1]
        return ArraySource(self.path, self.head, array, swapped=swap)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class ArraySource(Source):
    """A picture that is in memory already, ``(H, W, C or C + alpha)``."""

    def __init__(self, path: Path, head: Head, array: np.ndarray, swapped: bool = False) -> None:
        resolution = head.resolution[::-1] if swapped and head.resolution else head.resolution
        super().__init__(
            path, dataclasses.replace(head, height=array.shape[0], width=array.shape[1], resolution=resolution)
        )
        self._array = array

    def _take(self, start: int, count: int) -> np.ndarray:
        return self._array[start : start + count].astype(self.head.dtype)  # a copy


class PillowSource(Source):
    """A picture that Pillow has decoded, which takes four bytes a pixel; its rows are given away as they are asked for."""

    def __init__(self, path: Path, picture: PILImage.Image, head: Head) -> None:
        super().__init__(path, head)
        width, height = picture.size
        step = max(1, _AT_ONCE // (8 * width))
        self._bands = [np.array(picture.crop((0, top, width, min(top + step, height)))) for top in range(0, height, step)]
        self._bands.reverse()  # the next one last
        picture.close()

    def _take(self, start: int, count: int) -> np.ndarray:
        rows = np.empty((count, self.head.width, self.head.channels + self.head.alpha), self.head.dtype)
        filled = 0
        while filled < count:
            band = self._bands.pop()
            band = band.reshape(len(band), self.head.width, -1)
            used = min(len(band), count - filled)
            rows[filled : filled + used] = band[:used]
            filled += used
            if used < len(band):
                self._bands.append(band[used:])
        return rows

    def close(self) -> None:
        self._bands.clear()


def opened(path: str | os.PathLike[str]) -> Source:
    """Open an image file: ``with opened(path) as source: ...``; see :func:`read` for what it may be.

    PNG and TIFF with 8 or more bits are decoded as rows are asked for, the rest at once (by Pillow).

    Raises:
        ImageError: as for :func:`read`, damage further down excepted: rows tell of it.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read ({words(error)}); check the name") from error
    if not path.is_file():
        raise ImageError(f"{path}: not a file; give an image file")
    if size == 0:
        raise ImageError(f"{path}: the file is empty (0 bytes); fetch or save it again")
    try:
        with open(path, "rb") as file:
            magic = file.read(8)
        if magic == b"\x89PNG\r\n\x1a\n":
            from segaware.image_io.png_file import open_png

            source = open_png(path)
            if source is not None:
                return source
        elif magic[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            from segaware.image_io.tiff_file import open_tiff

            source = open_tiff(path)
            if source is not None:
                return source
        return _open_with_pillow(path)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{path}: not enough memory to decode it; cut it up") from error
    except DAMAGE as error:
        raise ImageError(f"{path}: truncated or damaged ({words(error)}); fetch or save it again") from error


def _open_with_pillow(path: Path) -> Source:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # up to Pillow's hard limit large photographs are welcome
        try:
            picture = PILImage.open(path, formats=FORMATS)
        except PILImage.DecompressionBombError as error:
            limit = 2 * (PILImage.MAX_IMAGE_PIXELS or 0)
            raise ImageError(
                f"{path}: more than {limit:,} pixels, which may be a decompression bomb;"
                " if you trust the file, cut it up or raise PIL.Image.MAX_IMAGE_PIXELS"
            ) from error
        except UnidentifiedImageError as error:
            raise ImageError(f"{path}: not an image, or not one of {', '.join(FORMATS)}") from error
        try:
            frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            if frames > 1:
                raise ImageError(f"{path}: {frames} frames or pages; split it into single images")
            check_sides(path, picture.format or "", picture.width, picture.height)
            turned = picture.format == "TIFF" and picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            picture.load()  # a TIFF is turned here already, and then says so no more
            upright, head = prepared(picture)
            if turned and head.resolution:
                head = dataclasses.replace(head, resolution=head.resolution[::-1])
        except ImageError as error:
            picture.close()
            message = str(error)
            raise ImageError(message if message.startswith(str(path)) else f"{path}: {message}") from error
        except BaseException:
            picture.close()
            raise
    return PillowSource(path, upright, head)


def read(path: str | os.PathLike[str], *, deep: bool = True) -> Image:
    """Read an image file: PNG, JPEG, BMP, TIFF or WebP, gray or colour, with or without alpha.

    PNG with up to 16 bits a channel, TIFF with 16 bits or floats (extra ``tiff``), others with 8. EXIF
    orientation is applied to the pixels and taken out of the EXIF block, so that no viewer turns the
    picture again. Of a phone's multi-picture JPEG the main picture is read.

    Args:
        deep: False = refuse more than 8 bits a channel, for code that works on 8 bits.

    Raises:
        ImageError: missing, empty, truncated, damaged, no image, too large, animated or with several
            pages, or of a colour kind that would not survive.
    """
    with opened(path) as source:
        if not deep and source.head.dtype != np.uint8:
            raise ImageError(f"{path}: {source.head.bits} bits per channel, but here 8-bit images are needed; convert it first")
        return source.whole()
