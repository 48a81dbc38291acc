"""Checks of tensors at the border of the library; each error says what, where and the repair."""

from __future__ import annotations

import torch
from torch import Tensor

from segaware.contracts import Sigma
from segaware.errors import InputError

__all__ = ["check_finite", "check_images", "check_range", "no_sigma", "sigma_map"]


def check_images(images: Tensor, *, channels: int | None = None, where: str = "images") -> None:
    """Refuse what is no float batch ``(B, C, H, W)`` with the channels a network takes.

    Costs nothing: looks at type and shape only, so networks may call it in ``forward``.
    """
    if not isinstance(images, Tensor):
        hint = "stack them: torch.stack(list)" if isinstance(images, (list, tuple)) else "torch.as_tensor(...)"
        raise InputError(
            f"{where}: expected a tensor (B, C, H, W), got {type(images).__name__}; {hint}"
            " (images of different sizes go one by one or cropped to one size)"
        )
    if not images.is_floating_point():
        raise InputError(
            f"{where}: expected a float tensor in [0, 1], got {images.dtype}; convert with images.float() / 255"
        )
    if images.ndim != 4:
        add = "add a batch axis with images[None]" if images.ndim == 3 else "reshape it"
        raise InputError(f"{where}: expected shape (B, C, H, W), got {tuple(images.shape)}; {add}")
    if 0 in images.shape:
        raise InputError(f"{where}: empty tensor of shape {tuple(images.shape)}; give at least one pixel of one image")
    if channels is not None and images.shape[1] != channels:
        if images.shape[-1] == channels and images.shape[1] > 4:
            mend = "the channels seem to be last: images.permute(0, 3, 1, 2)"
        elif images.shape[1] == 1 and channels == 3:
            mend = "repeat the gray channel: images.expand(-1, 3, -1, -1)"
        elif images.shape[1] == 4 and channels == 3:
            mend = "leave alpha out: images[:, :3]"
        else:
            mend = f"build the network with channels={images.shape[1]} or convert the image"
        raise InputError(f"{where}: expected {channels} channels, got {images.shape[1]} (shape {tuple(images.shape)}); {mend}")


def check_finite(images: Tensor, *, where: str = "images") -> None:
    """Refuse NaN and infinite pixels. Reads every pixel, so it is for borders, not for networks."""
    if not torch.isfinite(images).all():
        bad = int((~torch.isfinite(images)).sum())
        raise InputError(
            f"{where}: {bad} of {images.numel()} values are NaN or infinite; repair them first, e.g. torch.nan_to_num(images)"
        )


def check_range(images: Tensor, *, where: str = "images", spikes: bool = False) -> None:
    """Refuse images that are plainly on the 0-255 scale (an absolute value over 8).

    Args:
        spikes: up to one value in a thousand may be over it: a white pixel that should have one photon now and then has nine.
    """
    size = images.detach().abs()
    top = float(size.amax())
    if top > 8 and not (spikes and float((size > 8).float().mean()) <= 1e-3):
        raise InputError(f"{where}: values up to {top:g}, but images live in [0, 1]; divide by 255 (8-bit) or 65535 (16-bit)")


def no_sigma(sigma: Sigma | None, where: str) -> None:
    """A blind network is told no noise level; ignoring one silently would mislead."""
    if sigma is not None:
        raise InputError(f"{where}: this denoiser is blind and takes no sigma; call it without, or use a model that takes one (ffdnet)")


def sigma_map(sigma: Sigma | None, noisy: Tensor, *, where: str) -> Tensor:
    """``sigma`` in any of its forms as ``(B, 1, h, w)``, with h, w either 1 or those of ``noisy``.

    Raises:
        InputError: no sigma, a wrong shape, not finite, negative, or over 1 (8-bit units).
    """
    if sigma is None:
        raise InputError(f"{where}: needs the noise level; pass sigma, e.g. sigma=25/255")
    level = torch.as_tensor(sigma, dtype=noisy.dtype, device=noisy.device)
    batch, _, height, width = noisy.shape
    if level.ndim == 0:
        level = level.expand(batch)
    if level.ndim == 1 and level.shape[0] in (1, batch):
        level = level.expand(batch).reshape(batch, 1, 1, 1)
    if level.ndim != 4 or level.shape[1] != 1 or level.shape[0] not in (1, batch) or tuple(level.shape[2:]) not in ((1, 1), (height, width)):
        raise InputError(
            f"{where}: sigma of shape {tuple(level.shape)} does not fit images {tuple(noisy.shape)};"
            f" give a float, ({batch},) or ({batch}, 1, {height}, {width})"
        )
    if not torch.compiler.is_compiling():  # a look at values would break the graph
        low, high = float(level.detach().min()), float(level.detach().max())
        if not (low >= 0 and high <= 1):  # also catches NaN
            mend = f"divide by 255 (sigma={high:g}/255)" if high > 1 else "give values in [0, 1]"
            raise InputError(f"{where}: sigma {low:g} to {high:g} is outside [0, 1], the scale of the images; {mend}")
    return level.expand(batch, -1, -1, -1)
