"""How far an image is from the clean one. A metric says exactly which metric it is."""

from __future__ import annotations

import torch
from torch import Tensor

from segaware.errors import InputError

__all__ = ["psnr"]

_CHUNK = 1 << 22  # values compared at a time, so that a large photograph needs no second copy in float64


def psnr(estimate: Tensor, reference: Tensor, *, data_range: float = 1.0, clamp: bool = False) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB: ``10 log10(data_range^2 / mean squared error)``.

    The mean is over all pixels and channels of one image, computed in float64; nothing is cropped
    and no epsilon is added, so equal images give inf. For a data set take the mean of the values.
    There is no gradient: as a loss use the mean squared error.

    Args:
        estimate: ``(B, C, H, W)``, float or integer.
        reference: same shape, the clean images.
        data_range: the distance from black to white: 1 for floats in [0, 1], 255 for 8-bit values.
        clamp: bring the estimate to [0, data_range] first, as writing a file would.

    Returns:
        ``(B,)`` float64 on the CPU.

    Raises:
        InputError: different shapes, no batch, or integers together with data_range 1.
    """
    if estimate.shape != reference.shape:
        raise InputError(
            f"psnr: shapes {tuple(estimate.shape)} and {tuple(reference.shape)} differ; compare equal sizes"
        )
    if estimate.ndim != 4 or 0 in estimate.shape:
        raise InputError(f"psnr: expected (B, C, H, W), got {tuple(estimate.shape)}; add a batch axis with image[None]")
    if not data_range > 0:
        raise InputError(f"psnr: data_range {data_range:g} must be positive")
    if data_range <= 1 and not (estimate.is_floating_point() and reference.is_floating_point()):
        raise InputError(
            f"psnr: {estimate.dtype} and {reference.dtype} with data_range {data_range:g};"
            " for 8-bit values pass data_range=255"
        )
    values = []
    for one, other in zip(estimate.detach(), reference.detach(), strict=True):
        total = 0.0
        rows = max(1, _CHUNK // (one.shape[0] * one.shape[2]))
        for part, target in zip(one.split(rows, dim=1), other.split(rows, dim=1), strict=True):
            part, target = part.to("cpu", torch.float64), target.to("cpu", torch.float64)
            if clamp:
                part = part.clamp(0, data_range)
            total += float((part - target).square().sum())
        values.append(total / one.numel())
    return 10 * torch.log10(data_range**2 / torch.tensor(values, dtype=torch.float64))
