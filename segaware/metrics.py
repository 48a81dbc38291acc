"""How far an image is from the clean one: PSNR and SSIM. A metric says exactly which metric it is.

Papers measure under different conventions, which move PSNR by tenths of a dB and SSIM by hundredths.
Each is an argument here; :data:`PRESETS` holds those of the papers, by name.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from segaware.errors import InputError, closest
from segaware.luma import LUMAS, luma

__all__ = ["COLORS", "PRESETS", "WINDOWS", "Convention", "convention", "psnr", "ssim"]

#: What is compared: every channel as it comes, or one brightness plane (see :mod:`segaware.luma`).
COLORS = ("rgb", *LUMAS)
#: SSIM's windows: name -> (side, what it is).
WINDOWS = {
    "gaussian": (11, "11 x 11 Gaussian of sigma 1.5, population covariance (MATLAB)"),
    "uniform": (7, "7 x 7 uniform, sample covariance (scikit-image's defaults)"),
}

_CHUNK = 1 << 22  # values compared at a time, so that a large photograph needs no second copy in float64
_STRIP = 1 << 16  # the same for SSIM: its maps of so many stay in a processor's cache, which halves the time
_K1, _K2 = 0.01, 0.03


def psnr(
    estimate: Tensor,
    reference: Tensor,
    *,
    data_range: float = 1.0,
    color: str = "rgb",
    clamp: bool = False,
    round_8bit: bool = False,
    border: int = 0,
) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB: ``10 log10(data_range^2 / mean squared error)``.

    The mean is over all pixels and channels of one image, computed in float64; no epsilon is added,
    so equal images give inf. For a data set take the mean of the values.
    There is no gradient: as a loss use the mean squared error.

    Args:
        estimate: ``(B, C, H, W)``, float or integer.
        reference: same shape, the clean images.
        data_range: the distance from black to white: 1 for floats in [0, 1], 255 for 8-bit values.
        color: ``"rgb"``: all channels as they come; ``"gray"``, ``"y"``: one plane, see :func:`segaware.luma.luma`.
        clamp: bring both to [0, data_range] first, as writing a file would.
        round_8bit: round both to the 256 levels of an 8-bit file (to even on a tie); to be useful, with ``clamp``.
        border: pixels left out on each side.

    Returns:
        ``(B,)`` float64 on the CPU.

    Raises:
        InputError: different shapes, no batch, integers together with data_range 1, a border that
            leaves nothing, or an unknown color.

    Examples:
        >>> import torch
        >>> psnr(torch.full((1, 3, 8, 8), 0.6), torch.full((1, 3, 8, 8), 0.5)).round(decimals=3)
        tensor([20.], dtype=torch.float64)
    """
    _check(estimate, reference, data_range, color, border, side=1, where="psnr")
    if not torch.compiler.is_compiling():
        _check_scales(estimate, reference, data_range, "psnr")
    values = []
    for one, other in zip(_crop(estimate.detach(), border), _crop(reference.detach(), border), strict=True):
        total, count = 0.0, 0
        rows = max(1, _CHUNK // (one.shape[0] * one.shape[2]))
        for part, target in zip(one.split(rows, dim=1), other.split(rows, dim=1), strict=True):
            part, target = (
                _prepare(p.to("cpu", torch.float64), data_range, color, clamp, round_8bit) for p in (part, target)
            )
            total += float((part - target).square().sum())
            count += part.numel()
        values.append(total / count)
    return 10 * torch.log10(data_range**2 / torch.tensor(values, dtype=torch.float64))


def ssim(
    estimate: Tensor,
    reference: Tensor,
    *,
    data_range: float = 1.0,
    window: str = "gaussian",
    color: str = "rgb",
    clamp: bool = False,
    round_8bit: bool = False,
    border: int = 0,
) -> Tensor:
    """Structural similarity of each image; 1 for equal images.

    The mean over the positions where the whole window lies in the image (nothing is padded), then
    over the channels; K1 = 0.01, K2 = 0.03, float64. Gradients flow to both images (none through
    ``round_8bit``), so ``1 - ssim(...)`` can be a loss. Not comparable to torchmetrics, which pads.

    Args:
        estimate: ``(B, C, H, W)``, float or integer.
        reference: same shape, the clean images.
        data_range: the distance from black to white: 1 for floats in [0, 1], 255 for 8-bit values.
        window: ``"gaussian"``: 11 x 11, sigma 1.5, population covariance, as in MATLAB and the 2004
            paper; ``"uniform"``: 7 x 7, sample covariance, scikit-image's defaults.
        color, clamp, round_8bit, border: as for :func:`psnr`.

    Returns:
        ``(B,)`` float64 on the images' device (the CPU for Apple's, which has no float64).

    Raises:
        InputError: as :func:`psnr`; an unknown window, or images smaller than it.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
    """
    if window not in WINDOWS:
        raise InputError(f"ssim: unknown window {window!r}; {closest(window, WINDOWS)}")
    side = WINDOWS[window][0]
    _check(estimate, reference, data_range, color, border, side=side, where="ssim")
    values = []
    for one, other in zip(_crop(estimate, border), _crop(reference, border), strict=True):
        valid = one.shape[1] - side + 1
        rows = max(1, _STRIP // (one.shape[0] * one.shape[2]))
        total: Tensor | float = 0.0
        for top in range(0, valid, rows):
            part = slice(top, min(top + rows, valid) + side - 1)
            x, y = (_prepare(_double(image[:, part]), data_range, color, clamp, round_8bit) for image in (one, other))
            total = total + _similarity(x, y, data_range, window).sum()
        channels = one.shape[0] if color == "rgb" else 1
        assert isinstance(total, Tensor)
        values.append(total / (channels * valid * (one.shape[2] - side + 1)))
    return torch.stack(values)


def _similarity(x: Tensor, y: Tensor, data_range: float, window: str) -> Tensor:
    """The map of SSIM values of ``(C, h, w)`` planes, where the whole window fits."""
    side = WINDOWS[window][0]
    if window == "gaussian":
        raw = [math.exp(-((i - side // 2) ** 2) / (2 * 1.5**2)) for i in range(side)]
        weights, correction = [value / sum(raw) for value in raw], 1.0
    else:
        weights, correction = [1 / side] * side, side**2 / (side**2 - 1)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    # the formula needs the two variances only as a sum: four maps to filter, not five
    mean_x, mean_y, power, product = _window(torch.stack([x, y, x * x + y * y, x * y]), weights)
    of_means, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    likeness = (2 * of_means + c1) * (2 * correction * (product - of_means) + c2)
    return likeness / ((squares + c1) * (correction * (power - squares) + c2))


def _window(planes: Tensor, weights: list[float]) -> Tensor:
    """Weighted mean under the window, rows then columns, valid part. Faster than conv2d in float64."""
    for dim in (-2, -1):
        length = planes.shape[dim] - len(weights) + 1
        mean = planes.narrow(dim, 0, length) * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            mean = mean.add_(planes.narrow(dim, shift, length), alpha=weight)
        planes = mean
    return planes


def _whole(border: object) -> bool:
    """A number of pixels, of NumPy's integers as well."""
    try:
        return operator.index(border) >= 0  # type: ignore[arg-type]
    except TypeError:
        return False


@dataclass(frozen=True)
class Convention:
    """One way to compare images: the arguments of :func:`psnr` and :func:`ssim`, to be stated with every figure.

    Raises:
        InputError: a plane, window or border that does not exist.
    """

    color: str = "rgb"
    clamp: bool = False
    round_8bit: bool = False
    border: int = 0
    window: str = "gaussian"

    def __post_init__(self) -> None:
        for name, choices in (("color", COLORS), ("window", WINDOWS)):
            if getattr(self, name) not in choices:
                raise InputError(f"convention: unknown {name} {getattr(self, name)!r}; {closest(str(getattr(self, name)), choices)}")
        if not _whole(self.border):
            raise InputError(f"convention: border {self.border} must be a number of pixels, 0 or more")

    def psnr(self, estimate: Tensor, reference: Tensor, *, data_range: float = 1.0) -> Tensor:
        """:func:`psnr` under this convention, ``(B,)``."""
        return psnr(
            estimate,
            reference,
            data_range=data_range,
            color=self.color,
            clamp=self.clamp,
            round_8bit=self.round_8bit,
            border=self.border,
        )

    def ssim(self, estimate: Tensor, reference: Tensor, *, data_range: float = 1.0) -> Tensor:
        """:func:`ssim` under this convention, ``(B,)``."""
        return ssim(
            estimate,
            reference,
            data_range=data_range,
            window=self.window,
            color=self.color,
            clamp=self.clamp,
            round_8bit=self.round_8bit,
            border=self.border,
        )

    def describe(self) -> str:
        """The convention in words, for reports."""
        planes = {"rgb": "all channels", "gray": "gray plane", "y": "Y plane (studio swing)"}
        return "; ".join(
            [
                planes[self.color],
                "clamped" if self.clamp else "not clamped",
                "rounded to 8 bits" if self.round_8bit else "not rounded",
                f"{self.border}-pixel border left out" if self.border else "whole image",
                f"SSIM window {WINDOWS[self.window][1]}",
            ]
        )


#: The conventions of the papers. Liu et al. report no SSIM, SDABN's authors released no code for
#: theirs: the window there is our choice.
PRESETS = {
    "usaid": Convention(clamp=True, window="uniform"),
    "liu": Convention(clamp=True, round_8bit=True, border=3),
    "sdabn": Convention(border=1),
}


def convention(name: str) -> Convention:
    """A preset by name; InputError with the nearest names if there is none."""
    if name not in PRESETS:
        raise InputError(f"unknown metric convention {name!r}; {closest(name, PRESETS)}")
    return PRESETS[name]


def _check(
    estimate: Tensor, reference: Tensor, data_range: float, color: str, border: int, *, side: int, where: str
) -> None:
    for images in (estimate, reference):
        if not isinstance(images, Tensor):
            raise InputError(f"{where}: expected tensors, got {type(images).__name__}; use torch.from_numpy")
    if estimate.shape != reference.shape:
        raise InputError(
            f"{where}: shapes {tuple(estimate.shape)} and {tuple(reference.shape)} differ; compare equal sizes"
        )
    if estimate.ndim != 4 or 0 in estimate.shape:
        raise InputError(
            f"{where}: expected (B, C, H, W), got {tuple(estimate.shape)}; add a batch axis with image[None]"
        )
    if not 0 < data_range < math.inf:
        raise InputError(f"{where}: data_range {data_range:g} must be positive")
    if data_range <= 1 and not (estimate.is_floating_point() and reference.is_floating_point()):
        raise InputError(
            f"{where}: {estimate.dtype} and {reference.dtype} with data_range {data_range:g};"
            " for 8-bit values pass data_range=255"
        )
    if color not in COLORS:
        raise InputError(f"{where}: unknown color {color!r}; {closest(color, COLORS)}")
    if not _whole(border):
        raise InputError(f"{where}: border {border} must be a number of pixels, 0 or more")
    height, width = estimate.shape[2] - 2 * border, estimate.shape[3] - 2 * border
    if min(height, width) < side:
        raise InputError(
            f"{where}: {estimate.shape[2]} x {estimate.shape[3]} pixels with border {border} leave too little;"
            f" at least {side + 2 * border} x {side + 2 * border} are needed"
        )


def _check_scales(estimate: Tensor, reference: Tensor, data_range: float, where: str) -> None:
    """Images on another scale than ``data_range``, as far as their values tell."""
    for one, other in ((estimate, reference), (reference, estimate)):
        if one.is_floating_point() and not other.is_floating_point() and float(one.amax()) <= 1 < float(other.amax()):
            raise InputError(f"{where}: {estimate.dtype} and {reference.dtype}, which have other scales here; bring both to one")
    top = float(reference.amax())
    if top > 8 * data_range and float((reference > 8 * data_range).float().mean()) > 1e-3:
        raise InputError(
            f"{where}: a reference of values up to {top:g} with data_range {data_range:g};"
            " give the distance from black to white, 255 for 8-bit values"
        )


def _crop(images: Tensor, border: int) -> Tensor:
    return images[:, :, border:-border, border:-border] if border else images


def _double(image: Tensor) -> Tensor:
    return image.to("cpu" if image.device.type == "mps" else image.device, torch.float64)


def _prepare(image: Tensor, data_range: float, color: str, clamp: bool, round_8bit: bool) -> Tensor:
    if clamp:
        image = image.clamp(0, data_range)
    if round_8bit:
        image = (image * (255 / data_range)).round() * (data_range / 255)
    return image if color == "rgb" else luma(image, color, data_range=data_range)
