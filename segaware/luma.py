"""Brightness of a colour image: two planes go by that name, and metrics differ by which one they take."""

from __future__ import annotations

from torch import Tensor

from segaware.errors import InputError, closest

__all__ = ["LUMAS", "luma"]

#: Weights of red, green, blue for values in [0, 1], and what is added, by name of the plane.
LUMAS = {
    "gray": ((0.299, 0.587, 0.114), 0.0),
    "y": ((65.481 / 255, 128.553 / 255, 24.966 / 255), 16 / 255),
}


def luma(images: Tensor, kind: str, *, data_range: float) -> Tensor:
    """The brightness of RGB images, on their own scale; images of one channel are returned as they are.

    Args:
        images: ``(..., C, H, W)`` float, C = 1 or 3.
        kind: ``"gray"``, full swing: 0.299 R + 0.587 G + 0.114 B (BT.601; MATLAB's ``rgb2gray`` to
            three digits); ``"y"``, studio swing: the Y of MATLAB's ``rgb2ycbcr``, 16 to 235 on the
            8-bit scale, as the super-resolution papers measure on.
        data_range: the distance from black to white (studio swing adds a part of it).

    Returns:
        ``(..., 1, H, W)``, not rounded.

    Raises:
        InputError: an unknown kind, or another number of channels.
    """
    if kind not in LUMAS:
        raise InputError(f"luma: unknown kind {kind!r}; {closest(kind, LUMAS)}")
    channels = images.shape[-3]
    if channels == 1:
        return images
    if channels != 3:
        raise InputError(f"luma: {channels} channels; give RGB (3) or gray (1) images, without alpha: images[:, :3]")
    (red, green, blue), offset = LUMAS[kind]
    r, g, b = images.split(1, dim=-3)
    plane = (red * r).add_(g, alpha=green).add_(b, alpha=blue)
    return plane.add_(offset * data_range) if offset else plane
