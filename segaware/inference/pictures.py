"""Denoise pictures: files, Pillow images and arrays with the channels last.

Pixels stay 8-bit but for the window at work, so that a large photograph needs no float copy.
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
from segaware.inference.noise_level import estimate_picture
from segaware.inference.tiling import Box

if TYPE_CHECKING:
    from segaware.inference.engine import Engine, Progress

__all__ = ["denoise_picture", "denoise_pixels"]


def denoise_picture(engine: Engine, picture: Any, sigma: Sigma | str | None, *, progress: Progress | None = None) -> Any:
    """Denoise a path, an ``image_io.Image``, a Pillow image or an array; see ``engine.denoise`` for what comes back."""
    from PIL import Image as PILImage

    from segaware import image_io

    if isinstance(picture, np.ndarray):
        return denoise_pixels(engine, picture, sigma, progress=progress)
    if isinstance(picture, (str, os.PathLike)):
        picture = image_io.read(picture)
    if isinstance(picture, image_io.Image):
        return picture.with_pixels(denoise_pixels(engine, picture.pixels, sigma, progress=progress))
    if isinstance(picture, PILImage.Image):
        image = image_io.from_pil(picture)
        clean = denoise_pixels(engine, image.pixels, sigma, progress=progress)
        return image_io.to_pil(dataclasses.replace(image, pixels=clean))
    raise InputError(f"denoise: expected a path, a Pillow image, an array or a tensor, got {type(picture).__name__}")


def denoise_pixels(
    engine: Engine, pixels: np.ndarray, sigma: Sigma | str | None, *, progress: Progress | None = None
) -> np.ndarray:
    """Denoise ``(H, W)`` or ``(H, W, C)``, uint8 or float in [0, 1]; uint8 gives uint8, float gives float32."""
    if pixels.ndim == 2:
        return denoise_pixels(engine, pixels[:, :, None], sigma, progress=progress)[:, :, 0]
    eight_bit = pixels.dtype == np.uint8
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise InputError(
            f"denoise: expected an array (H, W) or (H, W, C), got {pixels.shape}; denoise one image at a time"
        )
    if not eight_bit:
        if not np.issubdtype(pixels.dtype, np.floating):
            raise InputError(
                f"denoise: expected uint8, or floats in [0, 1], got {pixels.dtype}; divide by its largest value"
            )
        whole = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
        check_finite(whole, where="denoise")
        check_range(whole, where="denoise")
        pixels = whole.numpy()
    split, join = _adapters(pixels.shape, engine.channels)
    clean = np.empty(pixels.shape, dtype=np.uint8 if eight_bit else np.float32)

    def fetch(_: slice, window: Box) -> Tensor:
        part = torch.from_numpy(np.array(pixels[window.slices]))  # (h, w, C), copied: the source may be read-only
        return split((part.float() / 255 if eight_bit else part).permute(2, 0, 1)[None])

    def store(_: slice, core: Box, part: Tensor) -> None:
        values = join(part.float())[0].permute(1, 2, 0)
        if eight_bit:
            values = values.clamp(0, 1).mul(255).round().to(torch.uint8)
        clean[core.slices] = values.cpu().numpy()

    if isinstance(sigma, str) and sigma == "auto" and engine.info.takes_sigma:
        sigma = min(1.0, estimate_picture(pixels))
    height, width = pixels.shape[:2]
    one = torch.zeros(()).expand(1, 1, height, width)  # no memory: tells its shape
    level = engine.level(sigma, one)
    engine.run((1, height, width), fetch, store, level, progress, engine.share(level, lambda: estimate_picture(pixels)))
    return clean


def _adapters(shape: tuple[int, ...], wanted: int | None) -> Any:
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
