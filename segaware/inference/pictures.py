"""Denoise pictures: files, Pillow images and arrays with the channels last.

Pixels stay 8- or 16-bit but for the window at work, so that a large photograph needs no float copy.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segaware.checks import check_finite, check_range
from segaware.contracts import Sigma
from segaware.errors import InputError
from segaware.inference.noise_level import describe, estimate_picture
from segaware.inference.tiling import Box

if TYPE_CHECKING:
    from segaware.inference.engine import Engine, Progress

__all__ = ["Depth", "adapters", "denoise_picture", "denoise_pixels"]


def denoise_picture(engine: Engine, picture: Any, sigma: Sigma | str | None, *, progress: Progress | None = None) -> Any:
    """Denoise a path, an ``image_io.Image``, a Pillow image or an array; see ``engine.denoise`` for what comes back."""
    from PIL import Image as PILImage

    from segaware import image_io

    if isinstance(picture, np.ndarray):
        return denoise_pixels(engine, picture, sigma, progress=progress)
    if isinstance(picture, (str, os.PathLike)):
        picture = image_io.read(picture)
    if isinstance(picture, image_io.Image):
        if isinstance(sigma, str) and sigma == "auto" and engine.info.takes_sigma:
            sigma = min(1.0, estimate_picture(picture.pixels))
            picture = dataclasses.replace(picture, notices=(*picture.notices, describe(sigma)))
        clean = denoise_pixels(engine, picture.pixels, sigma, progress=progress)
        return picture.with_pixels(clean.astype(picture.pixels.dtype, copy=False))
    if isinstance(picture, PILImage.Image):
        image = image_io.from_pil(picture)
        clean = denoise_pixels(engine, image.pixels, sigma, progress=progress)
        return image_io.to_pil(dataclasses.replace(image, pixels=clean))
    raise InputError(f"denoise: expected a path, a Pillow image, an array or a tensor, got {type(picture).__name__}")


def denoise_pixels(
    engine: Engine, pixels: np.ndarray, sigma: Sigma | str | None, *, progress: Progress | None = None
) -> np.ndarray:
    """Denoise ``(H, W)`` or ``(H, W, C)``: uint8 gives uint8, uint16 gives uint16, floats in [0, 1] give float32."""
    if pixels.ndim == 2:
        return denoise_pixels(engine, pixels[:, :, None], sigma, progress=progress)[:, :, 0]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise InputError(
            f"denoise: expected an array (H, W) or (H, W, C), got {pixels.shape}; denoise one image at a time"
        )
    if pixels.dtype.kind == "f":
        pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    depth = Depth(pixels.dtype)
    if depth.top is None:
        whole = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        check_finite(whole, where="denoise")
        check_range(whole, where="denoise", spikes=True)
    split, join = adapters(pixels.shape, engine.channels)
    clean = np.empty(pixels.shape, dtype=pixels.dtype.newbyteorder("="))

    def fetch(_: slice, window: Box) -> Tensor:
        return split(depth.to_unit(pixels[window.slices]))

    def store(_: slice, core: Box, part: Tensor) -> None:
        clean[core.slices] = depth.from_unit(join(part.float()))

    if isinstance(sigma, str) and sigma == "auto" and engine.info.takes_sigma:
        sigma = min(1.0, estimate_picture(pixels))
    height, width = pixels.shape[:2]
    one = torch.zeros(()).expand(1, 1, height, width)  # no memory: tells its shape
    level = engine.level(sigma, one)
    engine.run((1, height, width), fetch, store, level, progress, engine.share(level, lambda: estimate_picture(pixels)))
    return clean


class Depth:
    """Between the numbers of a file and [0, 1].

    Args:
        dtype: uint8, uint16 or a floating type.

    Raises:
        InputError: another one.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype.newbyteorder("=")
        if self.dtype not in (np.uint8, np.uint16) and dtype.kind != "f":
            raise InputError(f"denoise: expected uint8, uint16, or floats in [0, 1], got {dtype}; divide by its largest value")
        self.top = None if dtype.kind == "f" else float(np.iinfo(dtype).max)

    def to_unit(self, pixels: np.ndarray) -> Tensor:
        """``(h, w, C)`` -> ``(1, C, h, w)`` float32, a copy: the source may be read-only."""
        if pixels.dtype == np.uint8:  # eight bits are widened by torch, four times as fast
            part = torch.from_numpy(np.array(pixels)).float()
        else:
            part = torch.from_numpy(pixels.astype(np.float32))
        return (part if self.top is None else part / self.top).permute(2, 0, 1)[None]

    def from_unit(self, part: Tensor) -> np.ndarray:
        """``(1, C, h, w)`` -> ``(h, w, C)``; integers are clamped and rounded."""
        values = part[0].permute(1, 2, 0)
        if self.top is None:
            return values.cpu().numpy().astype(self.dtype)
        values = values.clamp(0, 1).mul(self.top).round()
        if self.dtype == np.uint8:
            return values.to(torch.uint8).cpu().numpy()
        return values.cpu().numpy().astype(self.dtype)


def adapters(shape: tuple[int, ...], wanted: int | None) -> Any:
    """How ``(1, C, h, w)`` goes into a model that takes ``wanted`` channels, and how it comes back."""
    channels = shape[2]
    if wanted is None or wanted == channels:
        return (lambda part: part), (lambda part: part)
    if channels == 1:
        return (lambda part: part.expand(-1, wanted, -1, -1)), (lambda part: part.mean(dim=1, keepdim=True))
    if wanted == 1:
        return (lambda part: part.transpose(0, 1)), (lambda part: part.transpose(0, 1))
    mend = "leave alpha out: image[:, :, :3]" if channels == 4 else "convert it, or choose another model"
    if channels > 4 and shape[0] in (1, wanted):
        mend = "the channels seem to be first: pass a tensor, torch.from_numpy(image)"
    raise InputError(f"denoise: the model takes {wanted} channels, the image {shape} has {channels}; {mend}")
