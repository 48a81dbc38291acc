"""What NIQE looks at: statistics of normalised pixels and of their products with neighbours, in blocks.

Mittal, Soundararajan and Bovik 2013, "Making a 'completely blind' image quality analyzer", sec. II.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segaware.errors import InputError

__all__ = ["BLOCK", "FEATURES", "niqe_features"]

#: Side of a block at the first scale; half of it at the second.
BLOCK = 96
#: Features of a block, half of them at each scale.
FEATURES = 36
#: Differences from the local mean up to this, on the 0-255 scale, are taken for none.
FLAT = 1e-9


@torch.no_grad()
def niqe_features(planes: Tensor, *, at_least: int = 2) -> tuple[Tensor, Tensor]:
    """The 36 features of each block, 18 a scale.

    Args:
        planes: ``(B, H, W)``, luma on the 0-255 scale; cropped from the top left to whole blocks.
        at_least: blocks an image must hold.

    Returns:
        ``(B, L, 36)`` float64, blocks in reading order, with NaN where a part of a block is flat;
        and ``(B, L)``, the mean local deviation of each block (its sharpness).

    Raises:
        InputError: fewer blocks than that.

    Source: Mittal et al. 2013, sec. II. Halving is MATLAB's ``imresize`` (bicubic, antialiased).
    """
    height, width = planes.shape[-2:]
    rows, columns = height // BLOCK, width // BLOCK
    if rows * columns < at_least:
        need = f"{BLOCK} x {BLOCK * at_least}"
        need += f" or {BLOCK * at_least} x {BLOCK}" if at_least > 1 else ""
        raise InputError(
            f"NIQE: images of {height} x {width} pixels (height x width) hold {rows * columns} blocks of"
            f" {BLOCK} x {BLOCK}; at least {need} pixels are needed"
        )
    planes = planes[..., : rows * BLOCK, : columns * BLOCK].double()
    # A few rows of blocks at a time: on a processor they stay in its cache, which halves the time.
    budget = (1 << 17 if planes.device.type == "cpu" else 1 << 24) // (columns * BLOCK**2)
    parts = []
    for some in planes.split(max(1, budget // rows)):
        step = max(1, budget // len(some))
        scales = [_scale(some, BLOCK, step), _scale(_halve(some), BLOCK // 2, step)]
        parts.append((torch.cat([features for features, _ in scales], dim=2), scales[0][1]))
    return torch.cat([features for features, _ in parts]), torch.cat([deviation for _, deviation in parts])


def _scale(planes: Tensor, block: int, step: int) -> tuple[Tensor, Tensor]:
    """18 features of each block of ``(B, H, W)``, ``(B, L, 18)``, and its mean deviation, ``(B, L)``.

    ``step`` rows of blocks are worked on at a time.
    """
    padded = F.pad(planes[:, None], (3, 3, 3, 3), mode="replicate")[:, 0]
    rows = range(0, planes.shape[1], step * block)
    strips = [
        _strip(planes[:, top : top + step * block], padded[:, top : top + step * block + 6], block) for top in rows
    ]
    moments = torch.cat([moments for moments, _ in strips], dim=1)  # (B, L, 5, 6)
    alpha, left, right = _fit(moments)
    ratio = torch.exp(torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha))
    products = torch.stack([alpha, (right - left) * ratio, left, right], dim=3)[:, :, 1:].flatten(2)  # (B, L, 16)
    own = torch.stack([alpha[..., 0], (left + right)[..., 0] / 2], dim=2)
    return torch.cat([own, products], dim=2), torch.cat([sharpness for _, sharpness in strips], dim=1)


def _strip(planes: Tensor, padded: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Moments of the normalised pixels and of their four products, ``(B, L, 5, 6)``; mean deviations, ``(B, L)``."""
    raw = [math.exp(-((i - 3) ** 2) / (2 * (7 / 6) ** 2)) for i in range(7)]
    window = [value / sum(raw) for value in raw]
    mean = _filter(_filter(padded, window, -2), window, -1)
    power = _filter(_filter(padded.square(), window, -2), window, -1)
    deviation = power.sub_(mean.square()).abs_().sqrt_()
    batch = planes.shape[0]
    sharpness = _blocks(deviation, block).mean(dim=(1, 2)).reshape(batch, -1)
    # What is exactly flat differs from its mean by rounding errors alone. Their signs would be counted
    # below, and NIQE would differ between processors by 0.03 where a picture has flat areas.
    detail = F.hardshrink(mean.neg_().add_(planes), FLAT)
    normalised = _blocks(detail.div_(deviation.add_(1)), block)  # (N, block, block), N = B * L
    down = normalised.roll(1, 1)
    right, down_right, down_left = normalised.roll(1, 2), down.roll(1, 2), down.roll(-1, 2)
    products = (neighbour.mul_(normalised) for neighbour in (right, down, down_right, down_left))
    moments = torch.stack([_moments(normalised), *(_moments(product) for product in products)], dim=1)
    return moments.reshape(batch, -1, *moments.shape[1:]), sharpness


def _blocks(planes: Tensor, block: int) -> Tensor:
    batch, height, width = planes.shape
    cut = planes.reshape(batch, height // block, block, width // block, block).transpose(2, 3)
    return cut.reshape(-1, block, block)


def _moments(values: Tensor) -> Tensor:
    """Of each row of ``(N, ...)``: how many are above and below zero, their sums of squares, sum of sizes, length."""
    values = values.flatten(1)
    positive = values.clamp(min=0)
    above = positive.sign().sum(1)
    below = above - values.sign().sum(1)
    squares = torch.linalg.vector_norm(positive, dim=1).square()
    others = (torch.linalg.vector_norm(values, dim=1).square() - squares).clamp(min=0)
    sizes = 2 * positive.sum(1) - values.sum(1)
    return torch.stack([above, below, squares, others, sizes, torch.full_like(sizes, values.shape[1])], dim=1)


def _fit(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric generalised Gaussian from moments ``(..., 6)``: shape, left scale, right scale.

    Moment matching with a table of shapes from 0.2 to 10 in steps of 0.001. A side without values
    has scale NaN, and then the shape is the table's first, as where the minimum of NaNs is sought.
    """
    above, below, squares_right, squares_left, sizes, length = moments.unbind(-1)
    left = torch.where(below > 0, squares_left / below, math.nan).sqrt()
    right = torch.where(above > 0, squares_right / above, math.nan).sqrt()
    skew = left / right
    peak = sizes.square() / (length * (squares_left + squares_right))
    wanted = peak * (skew**3 + 1) * (skew + 1) / (skew**2 + 1).square()
    shapes, borders = _table(moments.device)
    nearest = torch.where(wanted.isnan(), 0, torch.bucketize(wanted, borders))
    alpha = shapes[nearest]
    scale = torch.exp((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2)
    return alpha, left * scale, right * scale


@functools.lru_cache(maxsize=8)
def _table(device: torch.device) -> tuple[Tensor, Tensor]:
    """Shapes, and between each two the value of Gamma(2/a)^2 / (Gamma(1/a) Gamma(3/a)) half-way."""
    shapes = torch.arange(200, 10001, dtype=torch.float64) / 1000
    ratio = torch.exp(2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes))
    return shapes.to(device), ((ratio[1:] + ratio[:-1]) / 2).to(device)


def _filter(planes: Tensor, weights: list[float], dim: int, step: int = 1) -> Tensor:
    """Weighted sum of shifted planes, valid part; every ``step``-th. Faster than conv2d in float64."""
    length = (planes.shape[dim] - len(weights)) // step * step + 1

    def shifted(by: int) -> Tensor:
        part = planes.narrow(dim, by, length)
        return part if step == 1 else part[..., ::step] if dim == -1 else part[..., ::step, :]

    total = shifted(0) * weights[0]
    for by, weight in enumerate(weights[1:], start=1):
        total.add_(shifted(by), alpha=weight)
    return total


def _halve(planes: Tensor) -> Tensor:
    """Half size as MATLAB's ``imresize(planes, 0.5)``: cubic (a = -0.5), twice as wide, symmetric border."""
    raw = [_cubic(abs(i - 3.5) / 2) for i in range(8)]
    weights = [value / sum(raw) for value in raw]
    planes = torch.cat([planes[:, :3].flip(1), planes, planes[:, -3:].flip(1)], dim=1)
    planes = _filter(planes, weights, -2, step=2)
    planes = torch.cat([planes[:, :, :3].flip(2), planes, planes[:, :, -3:].flip(2)], dim=2)
    return _filter(planes, weights, -1, step=2)


def _cubic(x: float) -> float:
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
