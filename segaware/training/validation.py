"""Held-out images, measured while a training runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from segaware.errors import SegawareError, TrainingError
from segaware.metrics import psnr
from segaware.training.data import as_float, degrade
from segaware.training.recipe import Recipe
from segaware.wrapper import SegAwareWrapper

__all__ = ["Validation"]


class Validation:
    """PSNR of the denoiser inside ``wrapper`` on centre crops of ``images``, as ``recipe`` has noise and levels."""

    def __init__(self, images: Any, recipe: Recipe, wrapper: SegAwareWrapper, device: torch.device, memory_format: torch.memory_format) -> None:
        self.images, self.recipe, self.wrapper = images, recipe, wrapper
        self.device, self.format = device, memory_format

    @torch.no_grad()
    def rehearse(self) -> None:
        """Denoise one crop of each size: what the network cannot take is told before the training, not after hours of it.

        Raises:
            TrainingError: with the size.
        """
        self.wrapper.eval()
        sizes = set()
        for clean in self._crops():
            if clean.shape not in sizes:
                sizes.add(clean.shape)
                try:
                    self.wrapper(clean.to(memory_format=self.format), 0.1 if self.wrapper.takes_sigma else None)
                except SegawareError as error:
                    raise TrainingError(f"validation, an image of {clean.shape[2]} x {clean.shape[3]} pixels: {error}") from error

    @torch.no_grad()
    def psnr(self) -> dict[str, float]:
        """Mean by noise level, clamped, in float32; noise seeded by image."""
        recipe = self.recipe
        levels = {"poisson": 0.0} if recipe.noise == "poisson" else {f"{level:g}": level / 255 for level in recipe.validation_sigmas}
        result = {}
        self.wrapper.eval()
        for name, level in levels.items():
            values = []
            for i, clean in enumerate(self._crops()):
                noisy = degrade(clean, recipe, level, torch.Generator().manual_seed(i))
                sigma = level if self.wrapper.takes_sigma else None
                values.append(psnr(self.wrapper(noisy.to(memory_format=self.format), sigma), clean, clamp=True))
            result[name] = round(float(torch.cat(values).mean()), 4)
        return result

    def _crops(self) -> Iterator[Tensor]:
        side = self.recipe.validation_crop
        for i in range(len(self.images)):
            item = self.images[i]
            clean = as_float(item[0] if isinstance(item, (tuple, list)) else item)
            top, left = (max(0, (n - side) // 2) for n in clean.shape[1:])
            yield clean[None, :, top : top + side, left : left + side].to(self.device)
