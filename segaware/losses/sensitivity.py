"""Sensitivity-weighted fidelity: the diagonal of a frozen network's squared Jacobian as a weight per pixel,
which can be kept beside the training images, so that no segmenter runs in the loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segaware.checks import check_finite, check_images, check_range
from segaware.errors import InputError
from segaware.losses.frozen import Frozen, LossThroughNetwork, need, outside_inference, usable
from segaware.losses.logits import full_precision, widen

__all__ = ["SensitivityLoss", "sensitivity", "sensitivity_map", "weighted_fidelity", "weights_of"]

#: Stored maps are integers: 16 is the mean weight 1, 254 the largest, 255 a pixel that does not count.
UNIT, IGNORE = 16, 255


def sensitivity(see: Any, clean: Tensor, *, probes: int = 8) -> Tensor:
    """Mean over probes v of ``(J^T v)^2``, v random signs: an estimate of the diagonal of ``J^T J``, channels averaged.

    Args:
        see: from images to logits (or one feature tensor).
        clean: ``(B, C, H, W)``.
        probes: how many; the relative error of a pixel falls with their root. Drawn from torch's
            global generator.

    Returns:
        ``(B, 1, H, W)`` float32, zero or positive, without graph.

    Source: Hutchinson's estimator of a diagonal; the weight of arXiv 2408.07028.
    """
    if probes < 1:
        raise InputError(f"sensitivity: probes {probes}; take at least 1")
    with outside_inference(), torch.enable_grad(), full_precision(clean):
        point = widen(usable(clean).detach()).requires_grad_()
        answer = see(point)
        total = torch.zeros_like(point)
        for index in range(probes):
            signs = 2.0 * torch.randint_like(answer, 2) - 1.0
            (found,) = torch.autograd.grad(answer, point, signs, retain_graph=index + 1 < probes)
            total += found.square()
    return (total / probes).mean(dim=1, keepdim=True)


def weights_of(diagonal: Tensor, *, floor: float = 0.1, clip: float = 8.0) -> Tensor:
    """``diagonal`` over its mean (image by image), clipped above, never below ``floor``; 1 everywhere where it is zero."""
    mean = diagonal.mean(dim=(1, 2, 3), keepdim=True)
    tiny = torch.finfo(diagonal.dtype).tiny
    scaled = torch.where(mean > tiny, diagonal / mean.clamp_min(tiny), torch.ones_like(diagonal))
    return scaled.clamp(floor, clip)


def sensitivity_map(
    segmenter: nn.Module | None, image: Tensor, *, probes: int = 32, floor: float = 0.1, clip: float = 8.0
) -> Tensor:
    """The weights of one training image as integers, to be handed to ``fit`` in the place of labels.

    Args:
        segmenter: as in :class:`SensitivityLoss`; None = the shipped one. It is frozen.
        image: ``(C, H, W)``, uint8 or float in [0, 1]; the whole image, before any crop.
        probes: as in :func:`sensitivity`.
        floor, clip: range of the weights, whose mean is 1 before clipping and rounding to 1/16; ``clip`` at most 15.

    Returns:
        ``(H, W)`` uint8: 16 times the weight, at most 254.

    Raises:
        InputError: no image in [0, 1], or floor and clip out of range.
    """
    if not isinstance(image, Tensor) or image.ndim != 3:
        raise InputError("sensitivity_map: expected one image (C, H, W); call it image by image")
    _check_range(floor, clip, "sensitivity_map")
    pixels = (image.float() / 255 if image.dtype == torch.uint8 else image)[None]
    for check in (check_images, check_finite, check_range):  # a map is made once and kept, and so would a wrong one be
        check(pixels, where="sensitivity_map")
    network = Frozen(segmenter, where="sensitivity_map")
    weights = weights_of(sensitivity(network.logits, pixels, probes=probes), floor=floor, clip=clip)
    least = 1 if floor > 0 else 0  # a floor under the grid of 1/16 is not none
    return (UNIT * weights[0, 0]).round().clamp(least, IGNORE - 1).to(torch.uint8)


def weighted_fidelity(denoised: Tensor, clean: Tensor, weights: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean of ``weights * (denoised - clean)^2`` over the pixels that count.

    Args:
        denoised, clean: ``(B, C, H, W)``; ``clean`` receives no gradient.
        weights: ``(B, 1, H, W)``, zero or positive.
        counted: booleans of the same shape; None = all.

    Returns:
        A float32 scalar; zero, with a zero gradient, where no pixel counts.
    """
    if denoised.shape != clean.shape or weights.shape != (clean.shape[0], 1, *clean.shape[2:]):
        raise InputError(
            f"weighted_fidelity: denoised {tuple(denoised.shape)}, clean {tuple(clean.shape)} and weights"
            f" {tuple(weights.shape)} do not fit; weights are (B, 1, H, W), cut like the images"
        )
    with full_precision(denoised):
        squares = weights * (widen(denoised) - widen(clean.detach())).square()
        if counted is None:
            return squares.mean()
        return (squares * counted).sum() / (counted.sum() * denoised.shape[1]).clamp_min(1)


class SensitivityLoss(LossThroughNetwork):
    """Squared error, weighted pixel by pixel by how much a frozen network's answer depends on the clean pixel.

    Two ways to get the weights. **Kept**: :func:`sensitivity_map` of every training image, once,
    handed to ``fit`` as its labels (``data=[(image, sensitivity_map(segmenter, image)), ...]``), and
    ``SensitivityLoss()`` without a segmenter; the loop then costs what fidelity alone costs. **Each
    step anew**: ``SensitivityLoss(segmenter)``, from the clean patch.

    The diagonal is right for errors like noise, whose pixels are independent. It knows nothing of
    errors that act together, e.g. a shift of a whole area, which the network may see much more.

    Args:
        segmenter: None = the weights come as labels; otherwise a network as in
            :class:`segaware.losses.entropy.EntropySegAwareLoss`, frozen and hidden alike.
        probes: for the second way, as in :func:`sensitivity`.
        floor, clip: as in :func:`sensitivity_map`.

    Shape: ``loss(denoised, clean=clean, labels=maps)`` with ``(B, 3, H, W)`` and integers
        ``(B, H, W)``; with a segmenter ``labels`` are not looked at -> float32 scalar.

    Raises:
        InputError: no ``clean``, no maps, or options out of range.
        ModelError: no module, or parameters that were switched on.

    Source: see :func:`sensitivity`; weights of mean 1 with floor and clip are ours.
    """

    name = "sensitivity"

    def __init__(
        self, segmenter: nn.Module | None = None, *, probes: int = 4, floor: float = 0.1, clip: float = 8.0
    ) -> None:
        super().__init__()
        if probes < 1:
            raise InputError(f"SensitivityLoss: probes {probes}; take at least 1")
        _check_range(floor, clip, "SensitivityLoss")
        self.probes, self.floor, self.clip = probes, floor, clip
        self.segmenter = None if segmenter is None else Frozen(segmenter, where="SensitivityLoss")

    def forward(self, denoised: Tensor, *, clean: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        clean = need(clean, "clean", where="SensitivityLoss")
        if self.segmenter is not None:
            diagonal = sensitivity(self.segmenter.logits, clean, probes=self.probes)
            return weighted_fidelity(denoised, clean, weights_of(diagonal, floor=self.floor, clip=self.clip))
        maps = need(labels, "labels (maps of sensitivity_map)", where="SensitivityLoss without a segmenter")
        if maps.is_floating_point() or maps.ndim != 3 or bool((maps < 0).any()) or bool((maps > IGNORE).any()):
            raise InputError(
                f"SensitivityLoss: expected integer maps (B, H, W) in [0, 255], got {maps.dtype} {tuple(maps.shape)};"
                " make them with sensitivity_map"
            )
        maps = maps[:, None].to(denoised.device)
        return weighted_fidelity(denoised, clean, maps.float() / UNIT, maps != IGNORE)


def _check_range(floor: float, clip: float, where: str) -> None:
    if not 0 <= floor <= 1 <= clip <= 15:
        raise InputError(f"{where}: floor {floor:g} and clip {clip:g}; need 0 <= floor <= 1 <= clip <= 15")
