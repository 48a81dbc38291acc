"""PNG files, row by row and at full depth: Pillow cuts 16-bit colour to 8 bits without a word.

Rows are unpacked from the file as they are asked for. Their prediction filters are undone by Pillow's
decoder, which is handed a few rows at a time as a stream of its own, so that nothing is left for
Python to do pixel by pixel.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image as PILImage

from segaware.errors import ImageError
from segaware.image_io.formats import check_sides
from segaware.image_io.metadata import exif_block, load_exif, orientation
from segaware.image_io.picture import Head
from segaware.image_io.source import ArraySource, Source

__all__ = ["PngWriter", "open_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type, alpha counted
_COLOUR = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
_LARGEST = 1 << 24  # bytes of a chunk that is not pixels, unpacked
#: Pillow's mode and raw modes that let all bytes of a pixel through; 16-bit colour goes in two halves.
_THROUGH = {
    1: ("L", ("L",)), 2: ("LA", ("LA",)), 3: ("RGB", ("RGB",)), 4: ("RGBA", ("RGBA",)),
    6: ("RGB", ("RGB;16B", "RGB;16L")), 8: ("RGBA", ("RGBA;16B", "RGBA;16L")),
}  # fmt: skip


@dataclass
class _Layout:
    """What the chunks say; ``data`` lists (offset, length, crc) of those with pixels."""

    width: int = 0
    height: int = 0
    depth: int = 0
    colour: int = 0
    interlaced: bool = False
    frames: int = 1
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    text_exif: bytes | None = None
    data: list[tuple[int, int, int]] = field(default_factory=list)


def open_png(path: Path) -> Source | None:
    """A PNG with 8 or 16 bits; None for the kinds that are left to Pillow (palettes, fewer bits, 8-bit interlaced).

    Raises:
        ImageError: damaged, animated, or with more pixels than fit.
    """
    with open(path, "rb") as file:
        layout = _scan(file)
    if layout.frames > 1:
        raise ImageError(f"{path}: {layout.frames} frames or pages; split it into single images")
    if layout.colour not in _CHANNELS or layout.depth < 8 or (layout.interlaced and layout.depth == 8):
        return None
    counted = _CHANNELS[layout.colour]
    check_sides(path, "PNG", layout.width, layout.height, counted * layout.depth)
    key = layout.chunks.get(b"tRNS") if layout.colour in (0, 2) else None
    alpha = layout.colour in (4, 6) or key is not None
    exif = load_exif(b"Exif\0\0" + layout.chunks[b"eXIf"]) if b"eXIf" in layout.chunks else load_exif(layout.text_exif or b"")
    head = Head(
        height=layout.height,
        width=layout.width,
        channels=1 if layout.colour in (0, 4) else 3,
        alpha=alpha,
        dtype=np.dtype(np.uint16 if layout.depth == 16 else np.uint8),
        exif=exif_block(exif),
        icc_profile=_profile(layout.chunks.get(b"iCCP")),
        resolution=_resolution(layout.chunks.get(b"pHYs")),
        colour_chunks=tuple((kind, layout.chunks[kind]) for kind in _COLOUR if kind in layout.chunks),
        format="PNG",
        notices=("transparent colour converted to an alpha channel",) if key is not None else (),
    )
    if key is not None and len(key) != 2 * head.channels:
        raise ValueError("a transparent colour of the wrong length")
    source: Source
    if layout.interlaced:
        source = ArraySource(path, head, _keyed(_interlaced(path, head, counted), key, head))
    else:
        source = _PngSource(path, head, layout, counted, key)
    return source.upright(orientation(exif))


def _scan(file: IO[bytes]) -> _Layout:
    layout = _Layout()
    file.seek(len(_SIGNATURE))
    end = False
    while not end:
        start = file.read(8)
        if len(start) < 8:
            if layout.data:
                break  # cut off behind the pixels, or in them, which the rows will tell
            raise EOFError("it ends before the pixels")
        length, kind = struct.unpack(">I4s", start)
        if length >= 1 << 31:
            raise ValueError("a chunk of impossible length")
        if kind == b"IDAT":
            place = file.tell()
            file.seek(length, io.SEEK_CUR)
            crc = file.read(4)
            layout.data.append((place, length, struct.unpack(">I", crc)[0] if len(crc) == 4 else -1))
            continue
        wanted = kind in (b"IHDR", b"iCCP", b"pHYs", b"tRNS", b"eXIf", b"acTL", b"zTXt", b"tEXt", b"iTXt", *_COLOUR)
        if not wanted or length > _LARGEST:
            file.seek(length + 4, io.SEEK_CUR)
            end = kind == b"IEND"
            continue
        content, crc = file.read(length), file.read(4)
        if len(content) < length or crc != struct.pack(">I", zlib.crc32(kind + content)):
            if kind == b"IHDR":
                raise ValueError("its header is damaged")
            continue  # what is not needed for the pixels may be damaged
        if kind == b"IHDR":
            width, height, layout.depth, layout.colour, packing, filters, interlaced = struct.unpack(">IIBBBBB", content)
            layout.width, layout.height, layout.interlaced = width, height, interlaced == 1
            depths = {0: (1, 2, 4, 8, 16), 3: (1, 2, 4, 8)}.get(layout.colour, (8, 16))
            if not width or not height or packing or filters or interlaced > 1 or layout.colour not in (0, 2, 3, 4, 6):
                raise ValueError("its header makes no sense")
            if layout.depth not in depths:
                raise ValueError(f"its header states {layout.depth} bits")
        elif kind == b"acTL":
            layout.frames = max(1, struct.unpack(">I", content[:4])[0])
        elif kind in (b"zTXt", b"tEXt", b"iTXt"):
            layout.text_exif = _raw_profile(kind, content) or layout.text_exif
        else:
            layout.chunks.setdefault(kind, content)
    if not layout.depth or not layout.data:
        raise EOFError("it has no pixels")
    return layout


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(data, _LARGEST)
    return content if unpacker.eof else b""


def _profile(chunk: bytes | None) -> bytes | None:
    if chunk is None:
        return None
    try:
        return _unpacked(chunk.partition(b"\0")[2][1:]) or None
    except zlib.error:
        return None


def _raw_profile(kind: bytes, content: bytes) -> bytes | None:
    """EXIF as ImageMagick used to write it: in hexadecimal, in a text chunk."""
    name, _, rest = content.partition(b"\0")
    if name not in (b"Raw profile type exif", b"Raw profile type APP1") or kind == b"iTXt":
        return None
    try:
        lines = (_unpacked(rest[1:]) if kind == b"zTXt" else rest).split(b"\n", 3)  # "", name, length, digits
        block = bytes.fromhex(lines[3].decode("ascii"))
    except (zlib.error, ValueError, IndexError):
        return None
    return block if block.startswith(b"Exif\0\0") else None


def _resolution(chunk: bytes | None) -> tuple[float, float] | None:
    if chunk is None or len(chunk) != 9:
        return None
    across, down, unit = struct.unpack(">IIB", chunk)
    return (across * 0.0254, down * 0.0254) if unit == 1 and across and down else None


def _keyed(pixels: np.ndarray, key: bytes | None, head: Head) -> np.ndarray:
    """With an alpha channel that is zero where the pixel is the transparent colour."""
    if key is None:
        return pixels
    colour = np.array(struct.unpack(f">{len(key) // 2}H", key))
    if head.dtype == np.uint8:
        colour &= 255
    seen = (pixels != colour).any(axis=2, keepdims=True)
    return np.concatenate([pixels, np.where(seen, np.iinfo(head.dtype).max, 0).astype(head.dtype)], axis=2)


def _interlaced(path: Path, head: Head, counted: int) -> np.ndarray:
    import png

    array, filled = np.empty((head.height, head.width * counted), head.dtype), 0
    with open(path, "rb") as file:
        try:
            for filled, row in enumerate(png.Reader(file=file).read()[2], 1):
                array[filled - 1] = row
        except (png.Error, StopIteration) as error:
            raise ValueError(str(error) or "it ends early") from error
    if filled < head.height:
        raise EOFError("it ends early")
    return array.reshape(head.height, head.width, counted)


class _PngSource(Source):
    """Rows unpacked, filters undone, as they are asked for."""

    def __init__(self, path: Path, head: Head, layout: _Layout, counted: int, key: bytes | None) -> None:
        super().__init__(path, head)
        self._file = open(path, "rb")
        self._pieces = self._compressed(layout.data)
        self._unpacker, self._left = zlib.decompressobj(), b""
        self._pixel = counted * layout.depth // 8
        self._counted, self._key = counted, key
        self._last = b""  # the row above, as it is

    def _compressed(self, places: list[tuple[int, int, int]]) -> Iterator[bytes]:
        for offset, length, crc in places:
            self._file.seek(offset)
            seen = zlib.crc32(b"IDAT")
            while length:
                piece = self._file.read(min(length, 1 << 18))
                if not piece:
                    raise EOFError("it ends early")
                length -= len(piece)
                seen = zlib.crc32(piece, seen)
                yield piece
            if seen != crc:
                raise ValueError("its pixels are damaged" if crc >= 0 else "it ends early")

    def _take(self, start: int, count: int) -> np.ndarray:
        width = self.head.width
        line = 1 + width * self._pixel
        filtered = bytearray()
        while len(filtered) < count * line:
            if not self._left:
                if self._unpacker.eof:
                    raise EOFError("it has too few pixels")
                piece = next(self._pieces, None)
                if piece is None:
                    raise EOFError("it ends early")
                self._left = piece
            filtered += self._unpacker.decompress(self._left, count * line - len(filtered))
            self._left = self._unpacker.unconsumed_tail
        above = b"\0" + self._last if self._last else b""
        stream = zlib.compress(above + bytes(filtered), 0)
        lines = count + bool(above)
        mode, raw_modes = _THROUGH[self._pixel]
        halves = [np.asarray(PILImage.frombytes(mode, (width, lines), stream, "zip", raw, False)) for raw in raw_modes]
        array = np.stack(halves, axis=-1) if len(halves) == 2 else halves[0]
        array = np.ascontiguousarray(array[bool(above) :]).reshape(count, width * self._pixel)
        self._last = array[-1].tobytes()
        if self.head.dtype == np.uint16:
            array = array.view(">u2").astype(np.uint16)
        return _keyed(array.reshape(count, width, self._counted), self._key, self.head)

    def close(self) -> None:
        self._pieces.close()  # type: ignore[attr-defined]
        self._file.close()


class PngWriter:
    """Write a PNG of 8 or 16 bits as its rows come, each row with the filter that leaves the smallest numbers.

    Args:
        file: to write to.
        head: the picture's; its EXIF block, profile, resolution and colour chunks are written.
    """

    def __init__(self, file: IO[bytes], head: Head) -> None:
        if max(head.width, head.height) >= 1 << 31:
            raise ValueError("a side is too long")
        self._file, self._head = file, head
        self._pixel = (head.channels + head.alpha) * head.dtype.itemsize
        self._last = np.zeros(head.width * self._pixel, np.uint8)
        self._packer = zlib.compressobj(4)
        self._waiting = bytearray()
        file.write(_SIGNATURE)
        colour = (0 if head.channels == 1 else 2) + (4 if head.alpha else 0)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", head.width, head.height, head.bits, colour, 0, 0, 0))
        for kind, content in head.colour_chunks:
            if kind != b"sRGB" or not head.icc_profile:
                self._chunk(kind, content)
        if head.icc_profile:
            self._chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(head.icc_profile))
        if head.exif:
            self._chunk(b"eXIf", head.exif.removeprefix(b"Exif\0\0"))
        if head.resolution:
            across, down = (min(round(value / 0.0254), (1 << 31) - 1) for value in head.resolution)
            self._chunk(b"pHYs", struct.pack(">IIB", across, down, 1))

    def write(self, rows: np.ndarray) -> None:
        """The next rows ``(n, W, C or C + alpha)``."""
        ordered = rows.astype(rows.dtype.newbyteorder(">"), copy=False)
        lines = np.ascontiguousarray(ordered).view(np.uint8).reshape(len(rows), -1)
        for start in range(0, len(lines), 64):  # a few at a time: filters take several times their memory
            part = lines[start : start + 64]
            self._waiting += self._packer.compress(_filtered(part, self._last, self._pixel))
            self._last = part[-1]
            if len(self._waiting) >= 1 << 16:
                self._flush()

    def finish(self) -> None:
        """After the last row."""
        self._waiting += self._packer.flush()
        self._flush()
        self._chunk(b"IEND", b"")

    def _flush(self) -> None:
        self._chunk(b"IDAT", bytes(self._waiting))
        self._waiting.clear()

    def _chunk(self, kind: bytes, content: bytes) -> None:
        self._file.write(struct.pack(">I", len(content)) + kind + content)
        self._file.write(struct.pack(">I", zlib.crc32(kind + content)))


def _filtered(lines: np.ndarray, above: np.ndarray, pixel: int) -> bytes:
    """Rows of bytes, each behind the number of its filter: of none, left, up and Paeth the one with the smallest sum."""
    up = np.concatenate([above[None], lines[:-1]])
    left, corner = np.zeros_like(lines), np.zeros_like(lines)
    left[:, pixel:], corner[:, pixel:] = lines[:, :-pixel], up[:, :-pixel]
    to_left = np.abs(up.astype(np.int16) - corner)  # the distance of left + up - corner to left
    to_up = np.abs(left.astype(np.int16) - corner)
    to_corner = np.abs(left.astype(np.int16) + up - 2 * corner.astype(np.int16))
    nearest = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
    choices = np.stack([lines, lines - left, lines - up, lines - nearest])  # (4, n, bytes), modulo 256
    costs = np.minimum(choices, 256 - choices.astype(np.int16)).sum(axis=2, dtype=np.int64)  # as signed numbers
    best = costs.argmin(axis=0)  # (n,)
    out = np.empty((len(lines), lines.shape[1] + 1), np.uint8)
    out[:, 0] = np.array([0, 1, 2, 4], np.uint8)[best]
    out[:, 1:] = choices[best, np.arange(len(lines))]
    return out.tobytes()
