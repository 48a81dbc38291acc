"""What a segmenter's backbone sees, for :class:`segaware.losses.consistency.ConsistencyLoss`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segaware.checks import check_finite, check_images, check_range
from segaware.errors import InputError, ModelError
from segaware.layers.sizes import crop, multiple_of, pad_edges

__all__ = ["BackboneFeatures"]


class BackboneFeatures(nn.Module):
    """Levels of a segmenter's backbone, from stride 4 on: ``ConsistencyLoss(features=BackboneFeatures(segmenter))``.

    Args:
        segmenter: one of this package (it has a ``backbone`` or a ``trunk``, a ``mean`` and a ``std``).
            Of others give a callable of your own as ``features=``.
        levels: which of the levels, finest (stride 4) first, -1 the coarsest; the default is the second (stride 8).

    Shape: images ``(B, 3, H, W)`` in [0, 1] -> a list of feature maps, one a level, ``ceil(H / stride) x ceil(W / stride)``.
        Sides are padded as the segmenter itself pads them, and the levels cropped.

    Raises:
        ModelError: a segmenter that shows no backbone, or has fewer levels.
        InputError: levels that are no whole numbers, or none.

    Source: ours; Liu et al. 2020 compare features of stride 4 through their joint loss.
    """

    scales: Tensor

    def __init__(self, segmenter: nn.Module, levels: Sequence[int] = (1,)) -> None:
        super().__init__()
        body = _body(segmenter)
        if not isinstance(body, nn.Module) or not all(hasattr(segmenter, name) for name in ("mean", "std")):
            raise ModelError(
                f"BackboneFeatures: a {type(segmenter).__name__} shows no backbone with mean and std;"
                " give ConsistencyLoss(features=...) a callable from images to its feature maps"
            )
        if not levels or not all(isinstance(level, int) for level in levels):
            raise InputError(f"BackboneFeatures: levels {levels!r}; give whole numbers, e.g. (1,) for stride 8, (0, 1) for strides 4 and 8")
        self.segmenter, self.levels = segmenter, tuple(levels)
        self.register_buffer("scales", torch.ones(len(self.levels)), persistent=False)

    @torch.no_grad()
    def calibrate(self, clean: Tensor | Iterable[Tensor]) -> BackboneFeatures:
        """Divide each level by its root mean square on clean patches, so that a weight means much the same for every segmenter.

        Args:
            clean: a batch ``(B, 3, H, W)`` in [0, 1], or several.

        Returns:
            This module.

        Raises:
            InputError: no patches, or such that are no images in [0, 1].
        """
        batches = [clean] if isinstance(clean, Tensor) else list(clean)
        if not batches:
            raise InputError("BackboneFeatures.calibrate: no clean patches; give one batch at least")
        for images in batches:
            check_images(images, channels=3, where="BackboneFeatures.calibrate")
            check_finite(images, where="BackboneFeatures.calibrate")
            check_range(images, where="BackboneFeatures.calibrate")
        self.scales.fill_(1.0)
        training = [module for module in self.segmenter.modules() if module.training]
        try:
            self.segmenter.eval()  # as it will be used, and without a trace in its running statistics
            seen = [[float(level.square().mean()) for level in self(images)] for images in batches]
        finally:
            for module in training:
                module.training = True
        for index, column in enumerate(zip(*seen, strict=True)):
            self.scales[index] = max(1e-12, sum(column) / len(seen)) ** 0.5
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        segmenter: Any = self.segmenter
        sides = images.shape[-2:]
        multiple, least = _grid(segmenter)
        padded = [multiple_of(side, multiple, least) for side in sides]
        maps = _body(segmenter)(pad_edges((images - segmenter.mean) / segmenter.std, *padded))
        strides = [2 ** round(math.log2(padded[-1] / m.shape[-1])) if m.numel() else 1 for m in maps]
        maps = [crop(m, *(-(-side // s) for side in sides)) for m, s in zip(maps, strides, strict=True) if s >= 4]  # smp's begin with the image
        try:
            return [maps[level] / scale for level, scale in zip(self.levels, self.scales.to(images.dtype), strict=True)]
        except IndexError:
            raise ModelError(f"BackboneFeatures: levels {list(self.levels)} of a backbone with {len(maps)}; the finest is 0, the coarsest -1") from None


def _body(segmenter: Any) -> Any:
    return getattr(segmenter, "backbone", None) or getattr(segmenter, "trunk", None)


def _grid(segmenter: Any) -> tuple[int, int]:
    """Sides are padded to a multiple of the first and to no less than the second, by the backbone's word or the segmenter's."""
    told = _body(segmenter) if hasattr(_body(segmenter), "size_multiple") else segmenter
    return getattr(told, "size_multiple", 1), getattr(told, "min_size", 1)
