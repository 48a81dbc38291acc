"""Spatial feature transform (Wang et al., "Recovering Realistic Texture in Image Super-Resolution by
Deep Spatial Feature Transform", CVPR 2018) in the form of SDABN (Xu et al., "Synergy between Semantic
Segmentation and Image Denoising via Alternate Boosting", ACM TOMM 2023): what a segmenter says steers
the features of a denoiser.

One :class:`ConditionEncoder` is shared by all :class:`SFTLayer` of a network::

    shared = encoder(logits, size=features.shape[-2:])
    features = sft(features, shared)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.checks import check_finite
from segaware.errors import InputError

__all__ = ["ConditionEncoder", "SFTLayer", "check_condition", "resize_condition"]

SLOPE = 0.1  # of every LeakyReLU here


def resize_condition(condition: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring ``(B, K, h, w)`` to ``size``: the one place where conditions change their size.

    Bilinear with ``align_corners=False``, as released; where both sides shrink, the mean over the
    covered area, which bilinear sampling would miss. The size it has already costs nothing.
    """
    height, width = condition.shape[-2:]
    if (height, width) == tuple(size):
        return condition
    if height >= size[0] and width >= size[1]:
        return F.interpolate(condition, size=size, mode="area")
    return F.interpolate(condition, size=size, mode="bilinear", align_corners=False)


def check_condition(condition: Tensor | None, channels: int, batch: int, *, where: str) -> Tensor:
    """Refuse a condition that is missing, of another shape or class count, or not finite.

    Raises:
        InputError: with the repair.
    """
    if condition is None:
        raise InputError(f"{where}: needs the segmenter's logits; pass condition=logits, or put it into an SDB, which does")
    if not isinstance(condition, Tensor) or not condition.is_floating_point() or condition.ndim != 4:
        got = (tuple(condition.shape), condition.dtype) if isinstance(condition, Tensor) else type(condition).__name__
        raise InputError(
            f"{where}: condition {got}; expected float logits ({batch}, {channels}, h, w)"
            " (for a label map: torch.nn.functional.one_hot, channels moved to the front)"
        )
    if condition.shape[1] != channels:
        raise InputError(
            f"{where}: condition of {condition.shape[1]} channels, but it was built for {channels};"
            f" build it with condition_channels={condition.shape[1]}, or use a segmenter of {channels} classes"
        )
    if condition.shape[0] != batch:
        raise InputError(f"{where}: condition for {condition.shape[0]} images, but there are {batch}; pass one for each image")
    if 0 in condition.shape:
        raise InputError(f"{where}: empty condition of shape {tuple(condition.shape)}; give at least one position")
    if not torch.compiler.is_compiling():  # a look at values would break the graph
        check_finite(condition, where=f"{where}, condition")
    return condition


class ConditionEncoder(nn.Module):
    """Turn class scores into the condition that all SFT layers of a network share.

    Five 1 x 1 convolutions K -> 16 -> 32 -> 64 -> 32 -> ``channels``, LeakyReLU 0.1 between them and
    nothing after the last. 16 K + 5,280 parameters in the default form.

    Args:
        num_classes: K, channels of what it is given: logits (the release), probabilities, one-hot
            labels, or the channels of an image.
        channels: of the condition it gives.

    Shape: ``(B, K, h, w)`` -> ``(B, channels, H, W)`` where ``size=(H, W)`` is given, else
        ``(B, channels, h, w)``. The scores are resized first, then encoded.

    Raises:
        InputError: no channels, or another class count than it was built for.

    Source: released code of SDABN (denoiser with SFT), PyTorch's default initialisation.
    """

    def __init__(self, num_classes: int, channels: int = 16) -> None:
        super().__init__()
        if num_classes < 1 or channels < 1:
            raise InputError(f"ConditionEncoder: num_classes {num_classes}, channels {channels}; need at least 1 of both")
        self.config = {"num_classes": num_classes, "channels": channels}
        self.num_classes = num_classes
        widths = (num_classes, 16, 32, 64, 32, channels)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inputs, outputs, 1), nn.LeakyReLU(SLOPE, inplace=True)]
        self.body = nn.Sequential(*layers[:-1])

    def forward(self, condition: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if condition.shape[1] != self.num_classes:
            raise InputError(
                f"ConditionEncoder: condition of {condition.shape[1]} channels, but it was built for {self.num_classes} classes"
            )
        return self.body(condition if size is None else resize_condition(condition, size))


class SFTLayer(nn.Module):
    """Scale and shift features, position by position, as a condition says.

    ``features * (1 + scale) + shift``; scale and shift come from the condition through a branch
    each: 1 x 1 to ``hidden``, LeakyReLU 0.1, 1 x 1 to ``channels``.
    66 * channels + 1,088 parameters with 16 condition channels.

    Args:
        channels: of the features.
        condition_channels: of the condition, as a :class:`ConditionEncoder` gives it.
        hidden: channels inside each branch.
        identity: begin as the identity (both heads zero), so that a layer put into a trained
            network changes nothing until it has learned. The release does not.

    Shape: features ``(B, channels, H, W)`` and condition ``(B, condition_channels, h, w)`` -> features.
        A condition of another size is resized; encode it at the right size where many layers
        share one.

    Raises:
        InputError: no channels, or a condition of another number of channels.

    Source: SDABN's released code, where gamma of the paper is 1 + scale; PyTorch's default
        initialisation.
    """

    def __init__(self, channels: int, condition_channels: int, hidden: int = 32, *, identity: bool = False) -> None:
        super().__init__()
        if channels < 1 or condition_channels < 1 or hidden < 1:
            raise InputError(
                f"SFTLayer: channels {channels}, condition_channels {condition_channels}, hidden {hidden}; need at least 1 each"
            )
        self.config = {"channels": channels, "condition_channels": condition_channels, "hidden": hidden, "identity": identity}
        self.condition_channels = condition_channels

        def branch() -> nn.Sequential:
            head = nn.Conv2d(hidden, channels, 1)
            if identity:
                for parameter in head.parameters():
                    nn.init.zeros_(parameter)
            return nn.Sequential(nn.Conv2d(condition_channels, hidden, 1), nn.LeakyReLU(SLOPE, inplace=True), head)

        self.scale, self.shift = branch(), branch()

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        if condition.shape[1] != self.condition_channels:
            raise InputError(
                f"SFTLayer: condition of {condition.shape[1]} channels, but it was built for {self.condition_channels};"
                " pass what the ConditionEncoder gives, not the logits themselves"
            )
        condition = resize_condition(condition, (features.shape[-2], features.shape[-1]))
        return torch.addcmul(features + self.shift(condition), features, self.scale(condition))
