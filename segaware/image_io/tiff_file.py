"""TIFF files with 16 bits or floats a channel, row by row: read with tifffile (extra ``tiff``), written here.

8-bit ones are left to Pillow. Written ones are uncompressed, in one strip, so that rows can follow
the directory as they come; Pillow packs the directory, and EXIF in it.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image as PILImage
from PIL import TiffImagePlugin, TiffTags

from segaware.errors import ImageError
from segaware.image_io.formats import DAMAGE, check_sides, words
from segaware.image_io.metadata import ORIENTATION, TIFF_KEPT, exif_block, load_exif, orientation
from segaware.image_io.picture import Head
from segaware.image_io.source import ArraySource, Source

__all__ = ["TiffWriter", "open_tiff"]

_WIDTH, _HEIGHT, _BITS, _SAMPLES, _EXTRA, _FORMAT = 256, 257, 258, 277, 338, 339
_DEFLATE = (8, 32946)
_PACKINGS = (1, 5, *_DEFLATE, 32773)  # none, LZW, deflate, PackBits: none of them can unpack without bounds
_DEPTHS = ("uint16", "float16", "float32", "float64")


def open_tiff(path: Path) -> Source | None:
    """A TIFF with more than 8 bits a channel; None for others, which are left to Pillow.

    Raises:
        ImageError: damaged, several pages, a colour kind or channels that would not survive, or no tifffile.
    """
    tags, exif = _directory(path)
    bits = max((int(value) for value in _several(tags.get(_BITS, 1))), default=1)
    if bits <= 8:
        if 0 in _several(tags.get(_EXTRA, ())):  # near infrared, for one; Pillow would drop it without a word
            raise ImageError(
                f"{path}: a channel beside the colours that is not marked as alpha would be lost; save the colours alone,"
                " or mark it as alpha (which is kept as it is, not denoised)"
            )
        return None
    check_sides(path, "TIFF", int(tags.get(_WIDTH, 0)), int(tags.get(_HEIGHT, 0)))
    try:
        import tifffile
    except ImportError as error:
        raise ImageError(
            f"{path}: {bits} bits per channel in TIFF need tifffile; install it: pip install 'segaware[tiff]'"
            " (or convert the file to PNG)"
        ) from error
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is said by the error
    file = tifffile.TiffFile(str(path))
    try:
        turned = orientation(exif)
        source = _tiff_source(path, file, tags, exif)
        return source.upright(turned)
    except BaseException:
        file.close()
        raise


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _directory(path: Path) -> tuple[dict[int, Any], PILImage.Exif]:
    """The first directory, by tag, and as EXIF."""
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = file.read(8)
        if start[2] == 43 or start[3] == 43:
            start += file.read(8)
        directory = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(directory.next)
        directory.load(file)
        tags = {tag: directory[tag] for tag in (_WIDTH, _HEIGHT, _BITS, _SAMPLES, _EXTRA, _FORMAT) if tag in directory}
        exif = PILImage.Exif()
        try:
            file.seek(0)
            exif.load_from_fp(file)
            found = {tag: exif.get_ifd(tag) if tag in (0x8769, 0x8825) else exif[tag] for tag in exif}
            exif = PILImage.Exif()
            exif.update({tag: value for tag, value in found.items() if tag == ORIENTATION or tag in TIFF_KEPT})
        except Exception:  # broken in one of many ways
            exif = PILImage.Exif()
        return tags, exif


def _tiff_source(path: Path, file: Any, tags: dict[int, Any], exif: PILImage.Exif) -> Source:
    pages = len(file.pages)
    if pages != 1:
        raise ImageError(f"{path}: {pages} frames or pages; split it into single images")
    page = file.pages[0]
    photometric = int(page.photometric)
    extra = tuple(int(value) for value in page.extrasamples)
    channels = int(page.samplesperpixel) - len(extra)
    dtype = page.dtype
    packed = dtype is not None and dtype.kind == "u" and page.bitspersample != 8 * dtype.itemsize  # 12 of 16: another white
    if dtype is None or packed or dtype.newbyteorder("=").name not in _DEPTHS:
        raise ImageError(
            f"{path}: {page.bitspersample}-bit {dtype or 'odd'} pixels are not supported; convert to 16-bit integers or floats"
        )
    if (photometric, channels) not in ((0, 1), (1, 1), (2, 3)) or page.imagedepth != 1:
        kind = getattr(page.photometric, "name", photometric)
        raise ImageError(f"{path}: colour kind {kind} with {channels} channels is not supported; convert to gray or RGB first")
    if len(extra) > 1 or extra == (1,):
        what = "alpha that is multiplied in" if extra == (1,) else f"{len(extra)} extra channels"
        raise ImageError(f"{path}: {what} would not survive; save it with plain alpha, or without")
    if int(page.compression) not in _PACKINGS:
        how = getattr(page.compression, "name", page.compression)
        raise ImageError(f"{path}: compression {how} is not supported; save it uncompressed or with deflate")
    if page.compression == 1 and sum(page.databytecounts) and max(page.dataoffsets) > path.stat().st_size:
        raise EOFError("it ends early")
    head = Head(
        height=int(page.imagelength),
        width=int(page.imagewidth),
        channels=channels,
        alpha=bool(extra),
        dtype=np.dtype(dtype.newbyteorder("=")),
        exif=exif_block(exif),
        icc_profile=_profile(page),
        resolution=_resolution(page),
        format="TIFF",
    )
    if photometric == 0:
        if head.dtype.kind == "f":
            raise ImageError(f"{path}: floats with white as zero; invert it first")
        head = dataclasses.replace(head, notices=("white-is-zero converted to black-is-zero",))
    if extra == (0,):
        told = "the channel beside the colours, of no stated kind, is kept as alpha and not denoised"
        head = dataclasses.replace(head, notices=(*head.notices, told))
    if page.planarconfig == 2 and head.channels + head.alpha > 1:
        array = page.asarray(maxworkers=1)  # channels apart: (C, H, W)
        file.close()
        return ArraySource(path, head, array.reshape(-1, head.height, head.width).transpose(1, 2, 0))
    return _TiffSource(path, head, file, inverted=photometric == 0)


def _profile(page: Any) -> bytes | None:
    tag = page.tags.get(34675)
    return bytes(tag.value) if tag is not None and isinstance(tag.value, bytes) else None


def _resolution(page: Any) -> tuple[float, float] | None:
    try:
        across, down = (page.tags[tag].value for tag in (282, 283))
        unit = page.tags.get(296)
        scale = {2: 1.0, 3: 2.54}[2 if unit is None else int(unit.value)]
        values = (across[0] / across[1] * scale, down[0] / down[1] * scale)
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError):
        return None
    return values if min(values) > 0 else None


class _TiffSource(Source):
    """Rows of strips or of rows of tiles, decoded as they are asked for."""

    def __init__(self, path: Path, head: Head, file: Any, inverted: bool) -> None:
        super().__init__(path, head)
        self._tif, self._page, self._inverted = file, file.pages[0], inverted
        self._pixel = head.channels + head.alpha
        self._bands = self._straight() if self._page.is_contiguous else self._segments()
        self._kept: list[np.ndarray] = []

    def _straight(self) -> Iterator[np.ndarray]:
        """Uncompressed, one row behind the other."""
        head, page = self.head, self._page
        line, given = head.width * self._pixel * head.dtype.itemsize, 0
        offset = int(page.dataoffsets[0])
        if offset + line * head.height > self.path.stat().st_size:
            raise EOFError("it ends early")
        step = max(1, (1 << 22) // line)
        with open(self.path, "rb") as file:
            file.seek(offset)
            while given < head.height:
                count = min(step, head.height - given)
                data = file.read(line * count)
                if len(data) < line * count:
                    raise EOFError("it ends early")
                given += count
                yield np.frombuffer(data, page.dtype.newbyteorder(self._tif.byteorder)).reshape(count, head.width, -1)

    def _segments(self) -> Iterator[np.ndarray]:
        head, page = self.head, self._page
        band = np.zeros(0)
        first = 0
        for index, (offset, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            top, left = page.decode(None, index)[1][2:4]
            if top >= head.height:
                break
            if left == 0:
                if len(band):
                    yield band
                first = top
                tall = int(page.tilelength if page.is_tiled else page.rowsperstrip)
                band = np.zeros((min(tall, head.height - top), head.width, self._pixel), head.dtype)
            if size:
                part = self._segment(index, int(offset), int(size), page)
                rows, columns = min(part.shape[0], len(band)), min(part.shape[1], head.width - left)
                band[top - first : top - first + rows, left : left + columns] = part[:rows, :columns]
        if len(band):
            yield band

    def _segment(self, index: int, offset: int, size: int, page: Any) -> np.ndarray:
        """One strip or tile, ``(rows, columns, C)``; what unpacks to more than it may is refused before it does."""
        handle = self._tif.filehandle
        handle.seek(offset)
        data = handle.read(size)
        if len(data) < size:
            raise EOFError("it ends early")
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        most = int(tall) * int(wide) * self._pixel * self.head.dtype.itemsize
        if int(page.compression) in _DEFLATE:
            unpacker = zlib.decompressobj()
            while data and most >= 0 and not unpacker.eof:
                most -= len(unpacker.decompress(unpacker.unconsumed_tail or data, 1 << 20))
                if not unpacker.unconsumed_tail:
                    break
            if most < 0:
                raise ValueError("a strip or tile that unpacks to more than its place")
        try:
            decoded = page.decode(data, index)[0]
        except DAMAGE as error:
            if "imagecodecs" in str(error):
                raise ImageError(
                    f"{self.path}: {words(error)}; install it (pip install imagecodecs), or save the file uncompressed"
                ) from error
            raise
        return np.asarray(decoded)[0]

    def _take(self, start: int, count: int) -> np.ndarray:
        rows = np.empty((count, self.head.width, self._pixel), self.head.dtype)
        filled = 0
        while filled < count:
            if not self._kept:
                band = next(self._bands, None)
                if band is None:
                    raise EOFError("it ends early")
                self._kept.append(band)
            band = self._kept.pop()
            used = min(len(band), count - filled)
            rows[filled : filled + used] = band[:used]
            filled += used
            if used < len(band):
                self._kept.append(band[used:])
        if self._inverted:
            rows[:, :, 0] = np.iinfo(rows.dtype).max - rows[:, :, 0]
        return rows

    def close(self) -> None:
        self._bands.close()  # type: ignore[attr-defined]
        self._tif.close()


class TiffWriter:
    """Write an uncompressed TIFF of 8 or 16 bits or floats as its rows come.

    Args:
        file: to write to.
        head: the picture's; its EXIF block, profile and resolution are written.
    """

    def __init__(self, file: IO[bytes], head: Head) -> None:
        samples = head.channels + head.alpha
        size = head.width * head.height * samples * head.dtype.itemsize
        if size >= (1 << 32) - (1 << 24):
            raise ValueError("more than 4 GiB")
        self._file = file
        directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
        short, long = TiffTags.SHORT, TiffTags.LONG

        def put(tag: int, kind: int, value: Any) -> None:
            directory.tagtype[tag] = kind
            directory[tag] = value

        exif = load_exif(head.exif) if head.exif else PILImage.Exif()
        for tag in exif:
            if tag in TIFF_KEPT:
                directory[tag] = exif.get_ifd(tag) if tag in (0x8769, 0x8825) else exif[tag]
        put(_WIDTH, long, head.width)
        put(_HEIGHT, long, head.height)
        put(_BITS, short, (head.bits,) * samples)
        put(259, short, 1)  # not compressed
        put(262, short, 1 if head.channels == 1 else 2)  # black is zero, RGB
        put(_SAMPLES, short, samples)
        put(278, long, head.height)  # rows of the one strip
        put(279, long, size)
        put(284, short, 1)  # the channels of a pixel together
        put(_FORMAT, short, (3 if head.dtype.kind == "f" else 1,) * samples)
        if head.alpha:
            put(338, short, 2)  # not multiplied in
        if head.resolution:
            for tag, value in zip((282, 283), head.resolution, strict=True):
                put(tag, TiffTags.RATIONAL, value)
            put(296, short, 2)  # per inch
        if head.icc_profile:
            put(34675, TiffTags.UNDEFINED, head.icc_profile)
        put(273, long, 0)  # Pillow adds where the directory ends
        gap = -(8 + len(directory.tobytes(8))) % 16
        put(273, long, gap)
        file.write(b"II*\0\x08\0\0\0" + directory.tobytes(8) + bytes(gap))

    def write(self, rows: np.ndarray) -> None:
        """The next rows ``(n, W, C or C + alpha)``."""
        self._file.write(np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder("<"), copy=False)).data)

    def finish(self) -> None:
        """After the last row."""
