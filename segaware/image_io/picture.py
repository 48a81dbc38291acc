"""A picture in memory, what is known of it without its pixels, and the way to and from Pillow."""

from __future__ import annotations

import dataclasses
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from segaware.errors import ImageError
from segaware.image_io.metadata import exif_block, inches, orientation

__all__ = ["Head", "Image", "from_pil", "prepared", "to_pil"]


@dataclass(frozen=True)
class Head:
    """What is known of a picture before its pixels are read.

    Args:
        channels: 1 gray or 3 colour, alpha not counted.
        dtype: uint8, uint16, or a floating type (in [0, 1]).
        exif: EXIF block without orientation (the pixels are upright already), or None.
        icc_profile: colour profile, or None.
        resolution: dots per inch, across and down, or None.
        colour_chunks: PNG's own statements of colour (gAMA, cHRM, sRGB, cICP), as they stand in the file.
        format: where it came from ("PNG", ...), or None.
        notices: what was converted on the way in, for people.
    """

    height: int
    width: int
    channels: int
    alpha: bool = False
    dtype: np.dtype = np.dtype(np.uint8)
    exif: bytes | None = None
    icc_profile: bytes | None = None
    resolution: tuple[float, float] | None = None
    colour_chunks: tuple[tuple[bytes, bytes], ...] = ()
    format: str | None = None
    notices: tuple[str, ...] = ()

    @property
    def bits(self) -> int:
        """Per channel."""
        return int(self.dtype.itemsize * 8)

    @property
    def mode(self) -> str:
        """L, LA, RGB or RGBA."""
        return ("L" if self.channels == 1 else "RGB") + ("A" if self.alpha else "")


@dataclass(frozen=True)
class Image:
    """A picture in memory, upright.

    Args:
        pixels: ``(H, W, C)``, C = 1 gray or 3 colour; uint8, uint16, or floats in [0, 1].
        alpha: ``(H, W)`` of the same type, or None.
        exif, icc_profile, format, notices, resolution, colour_chunks: as in :class:`Head`.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    exif: bytes | None = None
    icc_profile: bytes | None = None
    format: str | None = None
    notices: tuple[str, ...] = ()
    resolution: tuple[float, float] | None = None
    colour_chunks: tuple[tuple[bytes, bytes], ...] = ()

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

    @property
    def head(self) -> Head:
        """All but the pixels; ImageError for pixels that are none."""
        pixels, alpha = self.pixels, self.alpha
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape or not is_depth(pixels.dtype):
            raise ImageError(f"pixels must be uint8, uint16 or floating (H, W, 1 or 3), got {pixels.dtype} {pixels.shape}")
        if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
            raise ImageError(f"alpha must be {pixels.dtype} {pixels.shape[:2]} like the pixels, got {alpha.dtype} {alpha.shape}")
        return Head(
            height=self.height,
            width=self.width,
            channels=int(pixels.shape[2]),
            alpha=alpha is not None,
            dtype=pixels.dtype,
            exif=self.exif,
            icc_profile=self.icc_profile,
            resolution=self.resolution,
            colour_chunks=self.colour_chunks,
            format=self.format,
            notices=self.notices,
        )

    @classmethod
    def of(cls, head: Head, pixels: np.ndarray, alpha: np.ndarray | None) -> Image:
        """The picture that ``head`` tells of."""
        return cls(
            pixels, alpha, head.exif, head.icc_profile, head.format, head.notices, head.resolution, head.colour_chunks
        )

    def with_pixels(self, pixels: np.ndarray) -> Image:
        """The same picture with other pixels of the same type; alpha, profile and EXIF stay."""
        return dataclasses.replace(self, pixels=pixels)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it: :func:`segaware.image_io.write`."""
        from segaware.image_io.target import write

        return write(path, self)


def is_depth(dtype: np.dtype) -> bool:
    """Whether pixels may be of this type."""
    return dtype in (np.uint8, np.uint16, np.float16, np.float32, np.float64)


def from_pil(picture: PILImage.Image) -> Image:
    """A Pillow picture as :class:`Image`: gray or colour, upright, alpha apart.

    A palette becomes RGB or RGBA, a transparent colour an alpha channel, CMYK becomes RGB; all are noted.

    Raises:
        ImageError: bilevel, 32-bit, Lab and other kinds that would not survive.
    """
    upright, head = prepared(picture)
    array = np.array(upright)  # a copy that may be written
    if array.ndim == 2:
        array = array[:, :, None]
    array = array.astype(head.dtype, copy=False)  # in this machine's byte order
    alpha = None
    if head.alpha:
        array, alpha = np.ascontiguousarray(array[:, :, :-1]), np.ascontiguousarray(array[:, :, -1])
    return Image.of(head, array, alpha)


def prepared(picture: PILImage.Image) -> tuple[PILImage.Image, Head]:
    """``picture``, upright and in mode L, LA, RGB, RGBA or 16-bit gray, and its head. It is not copied if it is so already."""
    notices: list[str] = []
    mode, transparent = picture.mode, "transparency" in picture.info
    if mode == "1":
        raise ImageError("bilevel (1-bit) image: there are no shades to denoise; convert it to gray first")
    deep = mode.startswith("I;16")
    if not deep and mode not in ("L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
        raise ImageError(
            f"colour kind {mode} is not supported; convert to RGB first, with its colour profile (or, of more than 8 bits,"
            " pass an array)"
        )
    found = picture.getexif()
    turned = orientation(found)
    exif = exif_block(found, tiff=picture.format == "TIFF")
    profile = picture.info.get("icc_profile") or None
    source_format = "JPEG" if picture.format == "MPO" else picture.format
    upright: PILImage.Image = ImageOps.exif_transpose(picture) if turned > 1 else picture
    if mode == "CMYK":
        upright, profile, how = _from_cmyk(upright, profile)
        wanted = "RGB"
        notices.append(f"CMYK converted to RGB {how}")
    elif mode in ("P", "PA"):
        wanted = "RGBA" if mode == "PA" or transparent else "RGB"
        notices.append(f"palette converted to {wanted}")
        upright = upright.convert(wanted)
    elif transparent and mode in ("L", "RGB"):
        wanted = mode + "A"
        notices.append("transparent colour converted to an alpha channel")
        upright = upright.convert(wanted)
    else:
        wanted = mode
    head = Head(
        height=upright.height,
        width=upright.width,
        channels=1 if deep or wanted.startswith("L") else 3,
        alpha=wanted.endswith("A"),
        dtype=np.dtype(np.uint16 if deep else np.uint8),
        exif=exif,
        icc_profile=profile,
        resolution=inches(picture.info, turned=turned >= 5),
        format=source_format,
        notices=tuple(notices),
    )
    return upright, head


def _from_cmyk(picture: PILImage.Image, profile: bytes | None) -> tuple[PILImage.Image, bytes | None, str]:
    """RGB, its profile, and how: by the file's profile where that works, else by Pillow's plain formula."""
    from PIL import ImageCms

    if profile:
        try:
            srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, source, srgb, outputMode="RGB")
            if converted is not None:
                return converted, _undated(srgb.tobytes()), "by its colour profile"
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return picture.convert("RGB"), None, "without a colour profile, so colours are approximate"


def _undated(profile: bytes) -> bytes:
    """The same file always: a profile's head holds the time at which it was made."""
    return profile[:24] + bytes((7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0)) + profile[36:]


def to_pil(image: Image) -> PILImage.Image:
    """The picture for Pillow, with profile and EXIF in ``info``; 8 bits, or 16-bit gray, are what Pillow holds."""
    head = image.head
    if head.dtype != np.uint8 and (head.dtype != np.uint16 or head.mode != "L"):
        raise ImageError(f"Pillow holds no {head.dtype} {head.mode} pictures; round to uint8, or write a file (image.save)")
    pixels = image.pixels
    if image.alpha is not None:
        pixels = np.concatenate([pixels, image.alpha[:, :, None]], axis=2)
    picture = PILImage.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if image.icc_profile:
        picture.info["icc_profile"] = image.icc_profile
    if image.exif:
        picture.info["exif"] = image.exif
    if image.resolution:
        picture.info["dpi"] = image.resolution
    return picture
