"""What the losses ask of logits: a shape, a class count, and arithmetic in float32 whatever the autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from segaware.errors import InputError, ModelError

__all__ = ["check_labels", "check_logits", "full_precision", "log_probabilities", "widen"]


def check_logits(logits: object, *, where: str) -> None:
    """Refuse what is no float tensor ``(B, K, ...)`` of at least two classes. Looks at type and shape only."""
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"{where}: expected logits as a tensor (B, K, h, w), got {type(logits).__name__};"
            " bring the network to the contract with segaware.segmenters.adapters.SegmenterAdapter"
        )
    if not logits.is_floating_point():
        raise ModelError(
            f"{where}: expected float logits, got {logits.dtype}; labels and arg-max maps carry no gradient: return the scores"
        )
    if logits.ndim < 2 or 0 in logits.shape:
        raise ModelError(f"{where}: expected logits (B, K, h, w) or (B, K), got shape {tuple(logits.shape)}")
    if logits.shape[1] < 2:
        raise ModelError(
            f"{where}: one logit per pixel (shape {tuple(logits.shape)}), but softmax over one class is constant;"
            " for a sigmoid network give two: torch.cat([torch.zeros_like(z), z], dim=1)"
        )


def check_labels(labels: object, classes: int, *, ignore: int | None, where: str) -> None:
    """Refuse labels that are no integers in [0, classes) or ``ignore``. Reads every value."""
    if not isinstance(labels, Tensor):
        raise InputError(f"{where}: expected labels as an integer tensor, got {type(labels).__name__}; pass labels=...")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"{where}: expected integer labels, got {labels.dtype}; convert with labels.long()")
    labels = labels.long()  # uint8 would wrap below
    bad = (labels < 0) | (labels >= classes)
    if ignore is not None:
        bad &= labels != ignore
    if bad.any():
        low, high = int(labels[bad].min()), int(labels[bad].max())
        also = "" if ignore is None or ignore < classes else f" or {ignore} (ignored)"
        raise InputError(
            f"{where}: labels {low} to {high} are outside [0, {classes - 1}]{also}, the {classes} classes of the network;"
            " map them to its classes, or use a network of as many"
        )


def full_precision(tensor: Tensor) -> torch.autocast:
    """Switch autocast off for the reduction of ``tensor``: eight bits of mantissa are too few for a mean."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def widen(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or as it is when it is wider."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over axis 1 in float32, never infinite. To be called where autocast is off.

    A class that a network rules out by a logit of minus infinity adds p ln p = 0 to an entropy, where 0 times infinity would be NaN.
    """
    found = torch.log_softmax(widen(logits), dim=1)
    return found.clamp_min(torch.finfo(found.dtype).min)
