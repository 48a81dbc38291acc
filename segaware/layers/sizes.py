"""Padding, cropping and resizing by the size of the input, right in a traced graph as well.

A graph that is traced for all sizes (``torch.export``) may ask nothing whose answer holds for some of
them alone: is there anything to pad, to crop, to resize? There the work is always done, and does nothing
where there is nothing to do. Elsewhere the question is asked, and saves the work. Sizes that are still
open are no ``int``, by which the two are told apart.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["crop", "multiple_of", "pad_edges", "resize"]


def multiple_of(side: int, multiple: int, least: int = 1) -> int:
    """``side`` brought up to a multiple, and to no less than ``least``."""
    whole = (side + multiple - 1) // multiple * multiple
    if isinstance(whole, int):
        return max(whole, least)
    return torch.sym_max(whole, least) if least > multiple else whole  # type: ignore[no-any-return, no-untyped-call]


def pad_edges(images: Tensor, height: int, width: int) -> Tensor:
    """``(B, C, h, w)`` at ``height x width`` or more pixels, the last row and column repeated below and to the right."""
    bottom: Any = height - images.shape[2]
    right: Any = width - images.shape[3]
    if isinstance(bottom, int) and isinstance(right, int) and not (bottom or right):
        return images
    return F.pad(images, (0, right, 0, bottom), mode="replicate")


def crop(images: Tensor, height: int, width: int) -> Tensor:
    """The upper left ``height x width`` of ``(B, C, h, w)``."""
    if all(isinstance(side, int) for side in (height, width, *images.shape[2:])):
        return images[:, :, :height, :width]
    # of a view torch asks whether it is contiguous, which that of a part is not and that of all is
    return images.narrow_copy(2, 0, height).narrow_copy(3, 0, width)


def resize(images: Tensor, like: Tensor) -> Tensor:
    """``(B, C, h, w)`` at the size of ``like``, bilinear (``align_corners=False``); an equal size costs nothing."""
    size = like.shape[2:]
    if all(isinstance(side, int) for side in (*size, *images.shape[2:])) and images.shape[2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
