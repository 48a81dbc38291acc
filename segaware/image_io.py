"""Read and write image files so that what came goes back: size, alpha, profile, EXIF.

PNG, JPEG, BMP, TIFF and WebP with 8 bits a channel, gray or colour, with or without alpha. What
cannot be kept is refused rather than changed in silence: Pillow cuts 16-bit colour to 8 bits
without a word, so the depth is read from the file itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from segaware.errors import ImageError

__all__ = ["EXTENSIONS", "Image", "beside", "from_pil", "read", "target_format", "to_pil", "write"]

#: File name endings that are read and written, and the format each stands for.
EXTENSIONS = {
    ".bmp": "BMP", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
_FORMATS = tuple(sorted(set(EXTENSIONS.values())))
_WRITING: dict[str, dict[str, Any]] = {
    "BMP": {},
    "JPEG": {"quality": 95, "subsampling": 0},  # colour at full resolution; optimised, Pillow fails on noise
    "PNG": {"compress_level": 4},
    "TIFF": {},  # uncompressed: Pillow's compressed writer cannot take an EXIF block along
    "WEBP": {"lossless": True, "quality": 50, "exact": True},  # quality is effort here; exact: colours under alpha stay
}
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_ORIENTATION = 0x0112
#: TIFF tags about the picture; all others there describe how the file is laid out.
_TIFF_KEPT = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298, 0x8769, 0x8825)


@dataclass(frozen=True)
class Image:
    """A picture in memory, upright.

    Args:
        pixels: ``(H, W, C)`` uint8, C = 1 gray or 3 colour.
        alpha: ``(H, W)`` uint8, or None.
        exif: EXIF block without orientation (the pixels are upright already), or None.
        icc_profile: colour profile, or None.
        format: where it came from ("PNG", ...), or None.
        notices: what was converted on the way in, for people.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    exif: bytes | None = None
    icc_profile: bytes | None = None
    format: str | None = None
    notices: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def mode(self) -> str:
        """L, LA, RGB or RGBA."""
        return ("L" if self.pixels.shape[2] == 1 else "RGB") + ("" if self.alpha is None else "A")

    def with_pixels(self, pixels: np.ndarray) -> Image:
        """The same picture with other pixels; alpha, profile and EXIF stay."""
        return dataclasses.replace(self, pixels=pixels)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """:func:`write` it."""
        return write(path, self)


def read(path: str | os.PathLike[str]) -> Image:
    """Read an image file; see :func:`from_pil` for what becomes of its kind.

    EXIF orientation is applied to the pixels and taken out of the EXIF block, so that no viewer
    turns the picture again. Of a phone's multi-picture JPEG the main picture is read.

    Raises:
        ImageError: missing, empty, truncated, damaged, no image, too large, 16-bit, animated or
            with several pages, or of a colour kind that would not survive.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error}); check the name") from error
    if not path.is_file():
        raise ImageError(f"{path}: not a file; give an image file")
    if size == 0:
        raise ImageError(f"{path}: the file is empty (0 bytes); fetch or save it again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # up to Pillow's hard limit large photographs are welcome
        try:
            opened = _open(path)
        except PILImage.DecompressionBombError as error:
            limit = 2 * (PILImage.MAX_IMAGE_PIXELS or 0)
            raise ImageError(
                f"{path}: more than {limit:,} pixels, which may be a decompression bomb;"
                " if you trust the file, cut it up or raise PIL.Image.MAX_IMAGE_PIXELS"
            ) from error
        except UnidentifiedImageError as error:
            raise ImageError(f"{path}: {_unknown(path)}") from error
        except _DAMAGE as error:
            raise ImageError(f"{path}: cannot be read ({_words(error)})") from error
        with opened:
            try:
                depth = _depth(path, opened)
                if depth > 8:
                    raise ImageError(
                        f"{path}: {depth} bits per channel, which is not supported yet and would be cut silently;"
                        " convert to 8 bits per channel first"
                    )
                frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
                if frames > 1:
                    raise ImageError(f"{path}: {frames} frames or pages; split it into single images")
                opened.load()
                image = from_pil(opened)
            except ImageError as error:
                message = str(error)
                raise ImageError(message if message.startswith(str(path)) else f"{path}: {message}") from error
            except _DAMAGE as error:
                raise ImageError(f"{path}: truncated or damaged ({_words(error)}); fetch or save it again") from error
    return image


def from_pil(picture: PILImage.Image) -> Image:
    """A Pillow picture as :class:`Image`: gray or colour, upright, alpha apart.

    A palette becomes RGB or RGBA, a transparent colour becomes an alpha channel; both are noted.

    Raises:
        ImageError: 16 bits, bilevel, CMYK, Lab and other kinds that would not survive.
    """
    notices: list[str] = []
    mode, transparent = picture.mode, "transparency" in picture.info
    if mode == "1":
        raise ImageError("bilevel (1-bit) image: there are no shades to denoise; convert it to gray first")
    if mode.startswith("I") or mode == "F":
        raise ImageError(f"{mode} pixels: more than 8 bits per channel are not supported yet; convert to 8 bits first")
    if mode not in ("L", "LA", "P", "PA", "RGB", "RGBA"):
        raise ImageError(f"colour kind {mode} is not supported; convert to RGB first, with its colour profile")
    exif = _exif(picture)
    profile = picture.info.get("icc_profile") or None
    source_format = "JPEG" if picture.format == "MPO" else picture.format
    upright = ImageOps.exif_transpose(picture)
    if mode in ("P", "PA"):
        wanted = "RGBA" if mode == "PA" or transparent else "RGB"
        notices.append(f"palette converted to {wanted}")
    else:
        wanted = mode + "A" if transparent and mode in ("L", "RGB") else mode
        if wanted != mode:
            notices.append("transparent colour converted to an alpha channel")
    if wanted != mode:
        upright = upright.convert(wanted)
    array = np.array(upright)  # a copy that may be written
    if array.ndim == 2:
        array = array[:, :, None]
    alpha = None
    if wanted.endswith("A"):
        array, alpha = np.ascontiguousarray(array[:, :, :-1]), np.ascontiguousarray(array[:, :, -1])
    return Image(array, alpha, exif, profile, source_format, tuple(notices))


def to_pil(image: Image) -> PILImage.Image:
    """The picture for Pillow, with profile and EXIF in ``info``."""
    pixels = image.pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise ImageError(f"pixels must be uint8 (H, W, 1 or 3), got {pixels.dtype} {pixels.shape}; round to 8 bits")
    if image.alpha is not None:
        pixels = np.concatenate([pixels, image.alpha[:, :, None]], axis=2)
    picture = PILImage.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if image.icc_profile:
        picture.info["icc_profile"] = image.icc_profile
    if image.exif:
        picture.info["exif"] = image.exif
    return picture


def target_format(path: str | os.PathLike[str]) -> str:
    """The format that a file name asks for; ImageError for an ending that is not written."""
    ending = Path(path).suffix.lower()
    if ending not in EXTENSIONS:
        what = f"ending {ending!r}" if ending else "a name without an ending"
        raise ImageError(f"{path}: cannot write {what}; use one of {' '.join(EXTENSIONS)}")
    return EXTENSIONS[ending]


def write(path: str | os.PathLike[str], image: Image) -> Path:
    """Write the picture in the format of the name, whole or not at all; replaces an existing file.

    It is written beside its place under a temporary name and renamed, so that a full disk or an
    interrupt leaves the old file. JPEG at quality 95 without chroma sub-sampling, WebP without
    loss, TIFF uncompressed. BMP holds neither EXIF nor profile; WebP stores gray as RGB.

    Raises:
        ImageError: an unknown ending, alpha for JPEG or BMP, or a file that cannot be written.
    """
    path = Path(path)
    kind = target_format(path)
    if image.alpha is not None and kind in ("JPEG", "BMP"):
        raise ImageError(f"{path}: {kind} cannot hold the alpha channel; write PNG, TIFF or WebP")
    picture = to_pil(image)
    options = dict(_WRITING[kind])
    if kind != "BMP":
        if image.exif:
            options["exif"] = image.exif
        if image.icc_profile and not (kind == "WEBP" and image.mode.startswith("L")):  # a gray profile does not fit RGB
            options["icc_profile"] = image.icc_profile
    try:
        with beside(path) as file:
            picture.save(file, format=kind, **options)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({_words(error)}); check free space and permissions") from error
    except (RuntimeError, ValueError, struct.error) as error:  # a side too long for the format, broken metadata
        raise ImageError(f"{path}: cannot be written as {kind} ({_words(error)}); write PNG instead") from error
    return path


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Any]:
    """A temporary file that takes the place of ``path`` at the end, and is gone after an error."""
    place = Path(os.path.realpath(path))  # a link keeps pointing to the new content
    partial = place.with_name(f".{place.stem[:40]}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            yield file
        if place.exists():
            os.chmod(partial, place.stat().st_mode & 0o777)
        os.replace(partial, place)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _open(path: Path) -> PILImage.Image:
    return PILImage.open(path, formats=_FORMATS)


def _depth(path: Path, opened: PILImage.Image) -> int:
    """Bits per channel as the file states them, before Pillow has cut any."""
    if opened.format == "PNG":
        with open(path, "rb") as file:
            head = file.read(26)
        return head[24] if len(head) > 24 else 8  # IHDR comes first: signature 8, length 4, type 4, sides 8, depth
    if opened.format == "TIFF":
        bits = opened.tag_v2.get(258, (8,))  # type: ignore[attr-defined]  # BitsPerSample
        return max(bits) if isinstance(bits, tuple) else int(bits)
    return 8


def _unknown(path: Path) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return "a damaged TIFF, or one with more than 8 bits per channel or floats; convert to 8 bits first"
    return f"not an image, or not one of {', '.join(_FORMATS)}"


def _exif(picture: PILImage.Image) -> bytes | None:
    try:
        found = picture.getexif()
        kept = PILImage.Exif()
        tiff = picture.format == "TIFF"
        for tag, value in found.items():
            if tag == _ORIENTATION or (tiff and tag not in _TIFF_KEPT):
                continue
            kept[tag] = found.get_ifd(tag) if tag in (0x8769, 0x8825) else value
        return kept.tobytes() if len(kept) else None
    except Exception:  # cameras write broken EXIF in many ways, and it is not what the user came for
        return None


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
