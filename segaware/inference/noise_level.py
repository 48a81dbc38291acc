"""How noisy is an image? The level of white Gaussian noise, read off the image itself.

``"patch"`` looks at the covariance of all 8 x 8 patches, colours together: the picture lives in a
few directions, the noise in all alike, so the small eigenvalues are its variance. ``"wavelet"``
takes the median of the finest diagonal detail: quicker, but texture counts as noise.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segaware.checks import check_finite, check_images, check_range
from segaware.errors import InputError
from segaware.image_io import Source

__all__ = ["CLEAN_LOOKING", "METHODS", "describe", "estimate_file", "estimate_noise", "estimate_picture"]

METHODS = ("auto", "patch", "wavelet")
#: Below this level an image cannot be told from a clean one: the texture of photographs reads so.
CLEAN_LOOKING = 1.5 / 255
_SIDE = 8  # of a patch
_FEWEST = 10 * _SIDE**2  # patches for 64 eigenvalues: with fewer, the smallest lie below the noise by chance
_ALIKE = 0.6 / 255  # a channel that is others' within this, as rounding makes it, may have no noise of its own
_LEAST = 0.3  # of a picture that must be left when areas of one value are left out; less may be all there is to it
_PATCHES = 60_000  # enough per channel; a large image is sampled on a grid
_MAD = 0.6744897501960817  # median of |n|, n standard normal


def estimate_noise(images: Tensor, *, method: str = "auto", clipped: bool | None = None) -> Tensor:
    """The standard deviation of the noise of each image, on the [0, 1] scale.

    Args:
        images: ``(B, C, H, W)`` in [0, 1] plus noise, any number of channels, at least 2 x 2.
        method: "patch", "wavelet", or "auto": patches where there are enough (33 x 33 pixels; three
            colours together from 69 x 69, and up to four channels).
        clipped: whether the noise was cut at 0 and 1, as 8-bit files do; near black and white that
            takes noise away, and the estimate is corrected for it. None = where nothing lies beyond.

    Returns:
        ``(B,)`` float32, one level for all channels of an image: the root of their mean variance.

    Raises:
        InputError: no float batch, NaN, the 0-255 scale, too small, or an unknown method.

    White Gaussian noise is assumed. Noise that was smoothed, scaled or compressed is correlated and
    reads far too low; noise that grows with brightness reads as its mean; where channels have noise of
    very different levels, colours together read that of the quietest. Areas of one value (borders, masks) of
    up to about half the picture are left out by patches, not by wavelets. A channel that is a sum of others
    (a tint, an empty one) has the noise that it has of them; one that is a curve of another reads far too
    low. Estimates carry no gradient.

    Measured with patches on CBSD68, sigma 5 / 15 / 25 / 40 / 55 of 255: mean absolute error 0.02 / 0.05 /
    0.10 / 0.15 / 0.20 on float noise; 0.02 / 0.18 / 0.42 / 0.86 / 1.32 after clipping to 8 bits, nearly
    all of it too low.

    Source: Chen, Zhu, Heng, "An Efficient Statistical Method for Image Noise Level Estimation", ICCV
    2015 (eigenvalues); Donoho, Johnstone, "Ideal Spatial Adaptation by Wavelet Shrinkage", 1994
    (median). The correction for clipping is ours: the level whose clipped variance, averaged over
    the brightness of the patches, is the one measured.
    """
    if method not in METHODS:
        raise InputError(f"estimate_noise: method {method!r} is unknown; use one of {', '.join(METHODS)}")
    check_images(images, where="estimate_noise")
    images = images.detach().float()
    check_finite(images, where="estimate_noise")
    check_range(images, where="estimate_noise", spikes=True)
    levels = []
    for image in images:
        cut = bool(image.min() >= 0 and image.max() <= 1) if clipped is None else clipped
        levels.append(_level(image, method, cut))
    return torch.tensor(levels, device=images.device)


def estimate_picture(pixels: np.ndarray, *, method: str = "auto") -> float:
    """:func:`estimate_noise` of an array ``(H, W, C)``, uint8 or uint16 (clipped, then) or float in [0, 1].

    Of a large picture no float copy is made.
    """
    if pixels.dtype.newbyteorder("=") in (np.uint8, np.uint16) and pixels.ndim == 3 and 0 not in pixels.shape:
        if method not in METHODS:
            raise InputError(f"estimate_picture: method {method!r} is unknown; use one of {', '.join(METHODS)}")
        step = None if method == "wavelet" else _sparse(*pixels.shape[:2])
        if step is not None:
            parts = [pixels[top : top + _SIDE] for top in range(0, len(pixels) - _SIDE + 1, step)]
            return _level(_tensor(_columns(parts, step)), method, True, _SIDE)
        return _level(_tensor(pixels), method, True)
    images = torch.as_tensor(np.array(pixels, dtype=np.float32 if pixels.dtype.kind == "f" else pixels.dtype))
    return float(estimate_noise(images.permute(2, 0, 1)[None] if images.ndim == 3 else images, method=method))


def estimate_file(source: Source) -> float:
    """:func:`estimate_picture` of an opened image file, of which no more is kept in memory than is looked at.

    Raises:
        ImageError: damaged further down.
        InputError: floats that are not finite or on another scale; too small.
    """
    head = source.head
    step = _sparse(head.height, head.width)
    if step is None:
        return estimate_picture(source.whole().pixels)
    parts, clipped = [], True
    for _ in range(0, head.height, step):
        rows = source.rows(step)[:, :, : head.channels]
        if head.dtype.kind == "f":
            whole = torch.from_numpy(rows.astype(np.float32))
            check_finite(whole, where=str(source.path))
            check_range(whole, where=str(source.path), spikes=True)
            clipped = clipped and bool(whole.min() >= 0 and whole.max() <= 1)
        if len(rows) >= _SIDE:
            parts.append(rows[:_SIDE].copy())
    return _level(_tensor(_columns(parts, step)), "auto", clipped, _SIDE)


def describe(level: float) -> str:
    """An estimate in words, in 8-bit units, for people."""
    return f"noise level {level * 255:.1f}{', which looks clean' if level < CLEAN_LOOKING else ''}"


def _sparse(height: int, width: int) -> int | None:
    """How far apart the patches of a large picture lie, where they do not overlap; None for others."""
    step = _step(height, width)
    return step if step > _SIDE and min(height, width) >= 3 * _SIDE else None


def _columns(parts: list[np.ndarray], step: int) -> np.ndarray:
    """Of rows that are looked at, the columns that are: patches side by side, ``(8 n, 8 m, C)``."""
    rows = np.concatenate(parts)
    count = (rows.shape[1] - _SIDE) // step + 1
    return np.concatenate([rows[:, first * step : first * step + _SIDE] for first in range(count)], axis=1)


def _tensor(pixels: np.ndarray) -> Tensor:
    """``(C, H, W)``: uint8 as it is, others as float32 on the [0, 1] scale."""
    if pixels.dtype == np.uint8:
        ready = pixels if pixels.flags.writeable else pixels.copy()
    else:
        ready = pixels.astype(np.float32) / (1 if pixels.dtype.kind == "f" else np.float32(65535))
    return torch.from_numpy(np.ascontiguousarray(ready)).permute(2, 0, 1)


def _level(image: Tensor, method: str, clipped: bool, step: int | None = None) -> float:
    """The level of one image ``(C, H, W)``, float or uint8; its patches ``step`` apart, None = by its size."""
    height, width = image.shape[1:]
    if min(height, width) < 2:
        raise InputError(f"noise level: an image of {height} x {width} is too small; give at least 2 x 2 pixels")
    patches = max(0, height - _SIDE + 1) * max(0, width - _SIDE + 1)
    if method == "patch" and patches < _FEWEST:
        raise InputError(f"noise level: {height} x {width} holds too few patches; use method='wavelet'")
    if method == "wavelet" or patches < _FEWEST:
        return math.sqrt(sum(_wavelet(channel, clipped) for channel in image) / len(image))
    own, made_of = _independent(image, clipped, step)
    if len(own) <= 4 and patches >= 20 * len(own) * _SIDE**2:
        variances = [_patch(image[own], clipped, step)] * len(own) if own else []
    else:
        variances = [_patch(image[i : i + 1], clipped, step) for i in own]
    return math.sqrt(float((made_of.square() @ torch.tensor(variances, dtype=made_of.dtype)).mean()))


def _independent(image: Tensor, clipped: bool, step: int | None) -> tuple[list[int], Tensor]:
    """Channels with noise of their own, and how all are made of these, ``(C, own)``.

    A gray picture in colour, tinted or not, has the noise of one channel: three in the covariance of the patches
    would leave directions without any, and these would be taken for the noise.
    """
    apart = _step(*image.shape[1:])
    pixels = _unit(image[:, ::apart, ::apart].reshape(len(image), -1)).cpu().double()
    lively = (pixels.amax(dim=1) > pixels.amin(dim=1)).nonzero()[:, 0].tolist()
    if clipped and lively:
        inside = ((pixels[lively] > 0.5 / 255) & (pixels[lively] < 1 - 0.5 / 255)).all(dim=0)
        if int(inside.sum()) >= 64:
            pixels = pixels[:, inside]
    left = covariance = torch.cov(pixels).reshape(len(pixels), len(pixels))
    own: list[int] = []
    alone: float | None = None
    for _ in lively:
        most = max(lively, key=lambda i: float(left[i, i]))
        if own and (rest := float(left[most, most])) < _ALIKE**2:
            if alone is None:
                alone = _patch(image[own[:1]], clipped, step)
            if rest < alone / 4:  # noise of its own would be as large as that of the first
                break
        own.append(most)
        left = left - left[:, most : most + 1] @ left[most : most + 1] / left[most, most].clamp_min(1e-300)
    own.sort()
    made_of = covariance[:, own] @ torch.linalg.pinv(covariance[own][:, own], hermitian=True)
    made_of[own] = torch.eye(len(own), dtype=made_of.dtype)
    made_of[[i for i in range(len(pixels)) if i not in lively]] = 0
    return own, made_of


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def _patch(channels: Tensor, clipped: bool, step: int | None) -> float:
    """Variance of the noise of ``(C, H, W)`` from the eigenvalues of its patches."""
    parts = [_unit(_grid(channel, step)) for channel in channels]
    patches = torch.cat(parts, dim=1)
    flat = torch.stack([part.amax(dim=1) == part.amin(dim=1) for part in parts]).all(dim=0)
    if flat.any():  # borders and masks: nothing was added there
        kept = ~_areas(flat, channels.shape[1:], step)
        if int(kept.sum()) >= max(_LEAST * len(kept), 10 * patches.shape[1]):
            parts, patches = [part[kept] for part in parts], patches[kept]
    means = torch.cat([part.mean(dim=1) for part in parts])
    patches = patches - patches.mean(dim=0)
    covariance = (patches.T @ patches / len(patches)).cpu().double()
    values = torch.linalg.eigvalsh(covariance).clamp_min(0)  # rising
    counts = torch.arange(1, len(values) + 1, dtype=values.dtype)
    average = values.cumsum(0) / counts
    # Of the smallest k values, equal but for chance if they are noise, the mean is the median; values
    # of the picture among them raise the mean over it. The largest k that passes is taken.
    middle = (values[(counts.long() - 1) // 2] + values[counts.long() // 2]) / 2
    passing = torch.nonzero(average <= middle)
    variance = float(average[passing[-1, 0]]) if len(passing) else float(values[0])
    return _unclipped(variance, means) if clipped else variance


def _areas(flat: Tensor, shape: tuple[int, ...], step: int | None) -> Tensor:
    """Patches in or across large areas of one value; of few photons, patches are empty here and there by chance."""
    step = step or _step(*shape)
    rows, columns = ((side - _SIDE) // step + 1 for side in shape)
    away = -(-_SIDE // step)  # patches from one to the next that shares no pixel with it
    mixed = (~flat).float().reshape(1, 1, rows, columns)
    inner = 1 - F.max_pool2d(mixed, 2 * away + 1, 1, away)
    return F.max_pool2d(inner, 4 * away + 1, 1, 2 * away).flatten() > 0


def _step(height: int, width: int) -> int:
    return max(1, math.ceil(math.sqrt(height * width / _PATCHES)))


def _grid(channel: Tensor, step: int | None) -> Tensor:
    """Patches ``(N, 64)`` of ``(H, W)``, all of them or on a grid that gives about ``_PATCHES``."""
    step = step or _step(*channel.shape)
    return channel.unfold(0, _SIDE, step).unfold(1, _SIDE, step).reshape(-1, _SIDE * _SIDE)


def _wavelet(channel: Tensor, clipped: bool) -> float:
    """Variance of the noise of ``(H, W)`` from its finest diagonal Haar detail."""
    height, width = (side - side % 2 for side in channel.shape)
    quarters = F.pixel_unshuffle(_unit(channel[None, :height, :width]), 2)  # top left, top right, bottom left, bottom right
    detail = (quarters[0] - quarters[1] - quarters[2] + quarters[3]) / 2
    variance = (float(detail.abs().median()) / _MAD) ** 2
    return _unclipped(variance, quarters.mean(dim=0).flatten()) if clipped else variance


@lru_cache(maxsize=1)
def _table() -> tuple[Tensor, Tensor, Tensor]:
    """Levels (L,), and mean and variance (L, M) of noisy pixels of M clean values after clipping to [0, 1]."""
    level = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
    clean = torch.linspace(0, 1, 129, dtype=torch.float64)[None]
    spread = level.clamp_min(1e-9)
    low, high = (0 - clean) / spread, (1 - clean) / spread
    below, above = torch.special.ndtr(low), torch.special.ndtr(-high)
    bell_low, bell_high = ((-(edge**2) / 2).exp() / math.sqrt(2 * math.pi) for edge in (low, high))
    inside = 1 - below - above
    mean = clean * inside + spread * (bell_low - bell_high) + above
    square = (clean**2 + spread**2) * inside + spread * (clean * bell_low - (1 + clean) * bell_high) + above
    return level[:, 0], mean, (square - mean**2).clamp_min(0)


def _unclipped(variance: float, means: Tensor) -> float:
    """Variance before clipping, given the one after it and the local means of the clipped image."""
    levels, mean, clipped = _table()
    shares = torch.histc(means.float().cpu().clamp(0, 1), bins=64, min=0, max=1).double()
    shares /= shares.sum()
    seen = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    # for each level: the clean value behind each local mean, then the clipped variance there
    right = torch.searchsorted(mean.contiguous(), seen.expand(len(levels), -1).contiguous()).clamp(1, mean.shape[1] - 1)
    left_mean, right_mean = mean.gather(1, right - 1), mean.gather(1, right)
    share = ((seen - left_mean) / (right_mean - left_mean).clamp_min(1e-12)).clamp(0, 1)
    there = torch.lerp(clipped.gather(1, right - 1), clipped.gather(1, right), share)
    expected = (there * shares).sum(dim=1).cummax(0).values  # (L,), rising
    index = int(torch.searchsorted(expected, variance).clamp(1, len(levels) - 1))
    low, high = float(expected[index - 1]), float(expected[index])
    part = min(1.0, max(0.0, (variance - low) / max(high - low, 1e-12)))
    # variances between the levels' squares, so that a part of the way is right near zero as well
    return float(torch.lerp(levels[index - 1] ** 2, levels[index] ** 2, part))
