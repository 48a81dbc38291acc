"""Write an image file, at once or row by row; whole or not at all."""

from __future__ import annotations

import os
import struct
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image as PILImage

from segaware.errors import ImageError
from segaware.image_io.atomic import beside
from segaware.image_io.formats import check_kind, target_format, words
from segaware.image_io.picture import Head, Image
from segaware.image_io.png_file import PngWriter
from segaware.image_io.tiff_file import TiffWriter

__all__ = ["Target", "write"]

_OPTIONS: dict[str, dict[str, Any]] = {
    "BMP": {},
    "JPEG": {"quality": 95, "subsampling": 0},  # colour at full resolution; optimised, Pillow fails on noise
    "WEBP": {"lossless": True, "quality": 50, "exact": True},  # quality is effort here; exact: colours under alpha stay
}
_AT_ONCE = 1 << 25  # bytes of rows that are handed on in one go


class _Writer(Protocol):
    def write(self, rows: np.ndarray) -> None: ...

    def finish(self) -> None: ...


class Target:
    """An image file that is written row by row, and takes its place when all rows are there::

        with opened("a.png") as source, Target("b.png", source.head) as target:
            target.write(source.rows(source.head.height))

    PNG and TIFF are written as rows come; the others are gathered and written at the end. After an
    error, or when rows are missing, the old file stays.

    Args:
        path: its ending names the format. JPEG at quality 95 without chroma sub-sampling, WebP without
            loss, TIFF uncompressed. BMP holds neither EXIF nor profile; WebP stores gray as RGB, and no resolution.
        head: of the picture.

    Raises:
        ImageError: an unknown ending, what the format cannot hold (alpha in JPEG and BMP, 16 bits but in
            PNG and TIFF, floats but in TIFF), or a file that cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], head: Head) -> None:
        self.path, self.head = Path(path), head
        self.kind = target_format(path)
        check_kind(self.path, self.kind, head.dtype, head.alpha)
        self._place: AbstractContextManager[Any] = beside(self.path)
        self._rows = 0

    def __enter__(self) -> Target:
        try:
            file = self._place.__enter__()
        except OSError as error:
            raise self._said(error) from error
        makers: dict[str, type] = {"PNG": PngWriter, "TIFF": TiffWriter}
        try:
            maker = makers.get(self.kind)
            self._writer: _Writer = _PillowWriter(file, self.head, self.kind) if maker is None else maker(file, self.head)
        except BaseException as error:
            self._place.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, (OSError, RuntimeError, ValueError, struct.error)):
                raise self._said(error) from error
            raise
        return self

    def write(self, rows: np.ndarray) -> None:
        """The next rows, ``(n, W, C or C + alpha)`` of the head's type."""
        wanted = (self.head.width, self.head.channels + self.head.alpha)
        assert rows.shape[1:] == wanted and rows.dtype == self.head.dtype, (rows.shape, rows.dtype, wanted)
        self._rows += len(rows)
        try:
            self._writer.write(rows)
        except (OSError, RuntimeError, ValueError, struct.error) as error:
            raise self._said(error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            try:
                self._place.__exit__(kind, error, trace)
            except OSError as second:  # the buffer of a full disk, flushed on closing
                if isinstance(error, OSError) or second is error:
                    return
            return
        try:
            assert self._rows == self.head.height, f"{self._rows} rows of {self.head.height}"
            self._writer.finish()
        except BaseException as failure:
            try:
                self._place.__exit__(type(failure), failure, failure.__traceback__)
            except OSError as second:
                failure = second
            if isinstance(failure, (OSError, RuntimeError, ValueError, struct.error)):
                raise self._said(failure) from failure
            raise
        try:
            self._place.__exit__(None, None, None)
        except OSError as failure:
            raise self._said(failure) from failure

    def _said(self, error: BaseException) -> ImageError:
        if isinstance(error, OSError):
            return ImageError(f"{self.path}: cannot be written ({words(error)}); check free space and permissions")
        # a side too long for the format, broken metadata
        return ImageError(f"{self.path}: cannot be written as {self.kind} ({words(error)}); write PNG instead")


class _PillowWriter:
    """Gather the rows in a Pillow picture, and save that at the end."""

    def __init__(self, file: IO[bytes], head: Head, kind: str) -> None:
        self._file, self._head, self._kind, self._top = file, head, kind, 0
        self._picture = PILImage.new(head.mode, (head.width, head.height))

    def write(self, rows: np.ndarray) -> None:
        band = PILImage.fromarray(np.ascontiguousarray(rows[:, :, 0] if rows.shape[2] == 1 else rows))
        self._picture.paste(band, (0, self._top))
        self._top += len(rows)

    def finish(self) -> None:
        head, kind = self._head, self._kind
        options = dict(_OPTIONS[kind])
        if head.exif and kind != "BMP":
            options["exif"] = head.exif
        if head.icc_profile and kind != "BMP" and not (kind == "WEBP" and head.channels == 1):  # a gray one does not fit RGB
            options["icc_profile"] = head.icc_profile
        if head.resolution and kind != "WEBP":
            options["dpi"] = head.resolution
        self._picture.save(self._file, format=kind, **options)


def write(path: str | os.PathLike[str], image: Image) -> Path:
    """Write a picture in the format of the name, whole or not at all; replaces an existing file. See :class:`Target`.

    It is written beside its place under a temporary name and renamed, so that a full disk or an
    interrupt leaves the old file.

    Raises:
        ImageError: as for :class:`Target`, or pixels that are none.
    """
    target_format(path)
    head = image.head
    step = max(1, _AT_ONCE // (head.width * (head.channels + head.alpha) * head.dtype.itemsize))
    with Target(path, head) as target:
        for top in range(0, head.height, step):
            rows = image.pixels[top : top + step]
            if image.alpha is not None:
                rows = np.concatenate([rows, image.alpha[top : top + step, :, None]], axis=2)
            target.write(rows)
    return Path(path)
