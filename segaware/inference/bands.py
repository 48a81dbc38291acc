"""Denoise an image file into another, a band of rows at a time: memory follows the band, not the picture.

The tiles are those of the whole picture, so the result is the same to the last bit.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from segaware.checks import check_finite, check_range
from segaware.contracts import Sigma
from segaware.image_io import Source, Target, opened
from segaware.inference.noise_level import estimate_file
from segaware.inference.pictures import Depth, adapters
from segaware.inference.tiling import Box

if TYPE_CHECKING:
    from segaware.inference.engine import Engine, Progress

__all__ = ["denoise_bands", "estimate_noise_of"]


def denoise_bands(
    engine: Engine, source: Source, target: Target, sigma: Sigma | str | None, *, progress: Progress | None = None
) -> None:
    """Denoise ``source`` into ``target``, which has the same head; alpha is passed on untouched.

    Raises:
        ImageError: a source that is damaged further down, or a target that cannot be written.
        InputError: float pixels that are not finite or on another scale.
    """
    head = source.head
    depth = Depth(head.dtype)
    split, join = adapters((head.height, head.width, head.channels), engine.channels)
    window = _Window(source)
    clean = np.empty((0, head.width, head.channels + head.alpha), head.dtype)

    def fetch(_: slice, box: Box) -> Tensor:
        rows = window.rows(box.top, box.bottom)
        part = depth.to_unit(rows[:, box.left : box.right, : head.channels])
        if depth.top is None:
            check_finite(part, where=str(source.path))
            check_range(part, where=str(source.path), spikes=True)
        return split(part)

    def store(_: slice, core: Box, part: Tensor) -> None:
        nonlocal clean
        if core.left == 0:  # the first tile of a row of them; the others follow before the next row
            clean = window.rows(core.top, core.bottom).copy()
        clean[:, core.left : core.right, : head.channels] = depth.from_unit(join(part.float()))
        if core.right == head.width:
            target.write(clean)

    one = torch.zeros(()).expand(1, 1, head.height, head.width)  # no memory: tells its shape
    level = engine.level(sigma, one)
    keep = engine.share(level, lambda: estimate_noise_of(source.path))
    engine.run((1, head.height, head.width), fetch, store, level, progress, keep)


def estimate_noise_of(path: str | os.PathLike[str]) -> float:
    """The noise level of a file, read by itself."""
    with opened(path) as again:
        return estimate_file(again)


class _Window:
    """Rows of a source, asked for from the top down; those above the latest start are forgotten."""

    def __init__(self, source: Source) -> None:
        self._source, self._top = source, 0
        self._kept = source.rows(0)

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Rows ``top`` to ``bottom``; ``top`` may go back to the start of the latest window, no further."""
        end = self._top + len(self._kept)
        if bottom > end:  # a new window: what lies above it is not asked for again
            old = self._kept[top - self._top :]
            self._kept = np.empty((bottom - top, *old.shape[1:]), old.dtype)
            self._kept[: len(old)] = old
            self._kept[len(old) :] = self._source.rows(bottom - end)
            self._top = top
        return self._kept[top - self._top : bottom - self._top]
