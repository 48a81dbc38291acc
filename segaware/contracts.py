"""What a denoiser and a segmenter are. No base class to inherit: a network that behaves so is one.

Images are float tensors ``(B, C, H, W)``, nominally in [0, 1] and never clipped on the way: noise
goes beyond, and a cascade's next stage must see what the last one said. ``sigma`` is a standard
deviation on the same [0, 1] scale; 8-bit units exist only on the command line and in reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Denoiser", "DenoiserInfo", "Segmenter", "Sigma"]

#: A noise level: one for all, one per image ``(B,)``, or a map ``(B, 1, H, W)``; [0, 1] scale.
Sigma = float | Tensor


@dataclass(frozen=True)
class DenoiserInfo:
    """What the inference engine must know of a denoiser, stated by the denoiser itself.

    Args:
        channels: image channels it takes and gives; None = any number.
        takes_sigma: whether it is told the noise level. A blind one refuses a sigma.
        size_multiple: tiles start at multiples of this many pixels (the sub-sampling grid).
            Any H x W is accepted all the same: padding is inside the denoiser.
        receptive_field: side in pixels of the input window that one output pixel depends on;
            None = unbounded or unknown, such a denoiser is never tiled. The window of a network
            that sub-samples is off-centre: it reaches up to
            ``receptive_field // 2 + size_multiple - 1`` pixels to a side, the halo of a tile.
        task: ``"denoise"``, or ``"denoise+segment"`` for cascades.
        training_noise: what the weights know, in words ("AWGN, sigma 0-55"); "" = untrained.
        keep: pairs of noise level (8-bit units) and the share of the noise that machines want back
            there, for ``denoise(..., keep="machine")``; () = not known.
    """

    channels: int | None = 3
    takes_sigma: bool = False
    size_multiple: int = 1
    receptive_field: int | None = None
    task: str = "denoise"
    training_noise: str = ""
    keep: tuple[tuple[float, float], ...] = ()


@runtime_checkable
class Denoiser(Protocol):
    """``denoiser(noisy, sigma=None)`` -> the clean estimate, same shape, not clamped."""

    info: DenoiserInfo

    def __call__(self, noisy: Tensor, sigma: Sigma | None = None) -> Tensor: ...


@runtime_checkable
class Segmenter(Protocol):
    """``segmenter(image)`` -> logits ``(B, num_classes, h, w)`` at ``stride``.

    ``image`` is ``(B, 3, H, W)`` in [0, 1]; normalisation and padding happen inside.
    """

    num_classes: int
    stride: int
    class_names: tuple[str, ...] | None

    def __call__(self, image: Tensor) -> Tensor: ...
