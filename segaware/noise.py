"""Synthetic noise for training and measuring, on a ``torch.Generator``, never clipped nor rounded.

Clipping raises the PSNR of a noisy image and puts it out of distribution for networks trained on
additive noise, so it is left to whoever writes an 8-bit file. Generators may live on another
device than the images: numbers are drawn where the generator is, so that a seed on the CPU gives
the same noise for every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segaware.checks import check_finite, check_images, check_range, sigma_map
from segaware.contracts import Sigma
from segaware.errors import InputError

__all__ = ["add_gaussian", "add_poisson", "add_poisson_gaussian", "blind_sigma"]

#: Noise levels a blind denoiser meets in training, on the [0, 1] scale (methods of DnCNN-B: 0 to 55 of 255).
BLIND_RANGE = (0.0, 55.0 / 255.0)


def _draw_device(clean: Tensor, generator: torch.Generator | None) -> torch.device:
    return clean.device if generator is None else generator.device


def add_gaussian(clean: Tensor, sigma: Sigma, *, generator: torch.Generator | None = None) -> Tensor:
    """``clean + sigma * n`` with n standard normal.

    Args:
        clean: ``(B, C, H, W)`` in [0, 1].
        sigma: standard deviation on the [0, 1] scale: float, ``(B,)`` or ``(B, 1, H, W)``.

    Returns:
        The noisy images, same shape and dtype, not clipped.

    Raises:
        InputError: no float batch, the 0-255 scale, or a sigma of the wrong shape or unit.

    Source: Zhang et al. 2017 (DnCNN), sec. IV-A; U-SAID sec. III.
    """
    check_images(clean, where="add_gaussian")
    if not torch.compiler.is_compiling():
        check_range(clean, where="add_gaussian", spikes=True)
    return _gaussian(clean, sigma, generator)


def _gaussian(clean: Tensor, sigma: Sigma, generator: torch.Generator | None) -> Tensor:
    """Without a look at the values: photons leave some far beyond white."""
    level = sigma_map(sigma, clean, where="add_gaussian")
    unit = torch.randn(clean.shape, generator=generator, device=_draw_device(clean, generator))
    return clean + level * unit.to(clean)


def blind_sigma(
    batch: int, *, low: float = BLIND_RANGE[0], high: float = BLIND_RANGE[1], generator: torch.Generator | None = None
) -> Tensor:
    """One noise level per image, uniform in [low, high] on the [0, 1] scale, as ``(batch,)``."""
    if not 0 <= low <= high <= 1:
        raise InputError(f"blind_sigma: range [{low:g}, {high:g}] must lie in [0, 1]; divide 8-bit values by 255")
    device = None if generator is None else generator.device
    return low + (high - low) * torch.rand(batch, generator=generator, device=device)


def add_poisson(clean: Tensor, *, peak: float = 255.0, generator: torch.Generator | None = None) -> Tensor:
    """Photon noise: ``Poisson(peak * clean) / peak``.

    Negative pixels count as no light. The variance at intensity x is x / peak.

    Args:
        clean: ``(B, C, H, W)`` in [0, 1].
        peak: photons at intensity 1; fewer means noisier.

    Raises:
        InputError: no float batch, NaN or infinite pixels, the 0-255 scale, or a peak that is not positive and finite.

    Source: SDABN, Poisson experiment (peak 255).
    """
    check_images(clean, where="add_poisson")
    if not torch.compiler.is_compiling():
        check_finite(clean, where="add_poisson")
        check_range(clean, where="add_poisson")
    if not 0 < peak < math.inf:
        raise InputError(f"add_poisson: peak {peak:g} must be positive and finite: it is the number of photons at intensity 1")
    rate = clean.to(device=_draw_device(clean, generator), dtype=torch.float32).clamp_min(0) * peak
    return (torch.poisson(rate, generator=generator) / peak).to(clean)


def add_poisson_gaussian(
    clean: Tensor, sigma: Sigma, *, peak: float = 255.0, generator: torch.Generator | None = None
) -> Tensor:
    """Photon noise followed by read noise: :func:`add_poisson`, then :func:`add_gaussian`."""
    return _gaussian(add_poisson(clean, peak=peak, generator=generator), sigma, generator)
