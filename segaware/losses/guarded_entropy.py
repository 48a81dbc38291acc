"""Entropy with two guards against its drift: unsure pixels are left out, and the shares of the classes are held."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from segaware.errors import InputError, ModelError
from segaware.losses.frozen import Frozen, LossThroughNetwork, need
from segaware.losses.logits import check_logits, full_precision, log_probabilities

__all__ = ["GuardedEntropyLoss", "guarded_entropy"]


def guarded_entropy(logits: Tensor, clean_logits: Tensor, *, keep_below: float = 0.4, hold: float = 1.0) -> Tensor:
    """Entropy over the pixels that are sure enough, plus ``hold`` times KL(class shares of clean || of denoised).

    Args:
        logits: of the denoised image, ``(B, K, h, w)`` or ``(B, K)``.
        clean_logits: of the clean image, same shape; never receives a gradient.
        keep_below: pixels whose entropy is under so many log K count, with the mean over them; the
            others tell no class that could be believed. 1 keeps all but the uniform ones.
        hold: weight of the divergence of the mean predictions, taken over pixels and batch.

    Returns:
        A float32 scalar, zero or positive; the entropy is zero where no pixel is sure enough.

    Raises:
        ModelError: logits of the wrong kind or of two shapes.
        InputError: options out of range.

    Source: the filter and its 0.4 are SAR's (Niu et al., ICLR 2023). Holding the shares of the
        clean image, where test-time methods can only ask for uniform ones, is ours.
    """
    check_logits(logits, where="guarded_entropy")
    check_logits(clean_logits, where="guarded_entropy (clean)")
    _check(keep_below, hold, "guarded_entropy")
    if logits.shape != clean_logits.shape:
        raise ModelError(
            f"guarded_entropy: logits {tuple(logits.shape)} and {tuple(clean_logits.shape)} of the clean image differ;"
            " one network on images of one size gives one shape"
        )
    with full_precision(logits):
        log_p, log_clean = log_probabilities(logits), log_probabilities(clean_logits.detach())
        entropy = -(log_p.exp() * log_p).sum(dim=1)
        sure = entropy.detach() < keep_below * math.log(logits.shape[1])
        kept = (entropy * sure).sum() / sure.sum().clamp_min(1)
        shares, clean_shares = _log_shares(log_p), _log_shares(log_clean)
        return kept + hold * (clean_shares.exp() * (clean_shares - shares)).sum()


class GuardedEntropyLoss(LossThroughNetwork):
    """:func:`guarded_entropy` of what a frozen segmenter says of the denoised and of the clean image.

    Args:
        segmenter: see :class:`segaware.losses.entropy.EntropySegAwareLoss`; frozen and hidden alike.
        keep_below, hold: as in :func:`guarded_entropy`.

    Shape: ``loss(denoised, clean=clean)``, both ``(B, 3, H, W)`` -> float32 scalar.

    Raises:
        InputError: no ``clean``, or options out of range.
        ModelError: no module, not logits, or parameters that were switched on.

    Source: see :func:`guarded_entropy`.
    """

    name = "guarded_entropy"

    def __init__(self, segmenter: nn.Module | None = None, *, keep_below: float = 0.4, hold: float = 1.0) -> None:
        super().__init__()
        _check(keep_below, hold, "GuardedEntropyLoss")
        self.keep_below, self.hold = keep_below, hold
        self.segmenter = Frozen(segmenter, where="GuardedEntropyLoss")

    def forward(self, denoised: Tensor, *, clean: Tensor | None = None) -> Tensor:
        clean = need(clean, "clean", where="GuardedEntropyLoss")
        with torch.no_grad():
            target = self.segmenter.logits(clean)
        return guarded_entropy(self.segmenter.logits(denoised), target, keep_below=self.keep_below, hold=self.hold)


def _log_shares(log_p: Tensor) -> Tensor:
    """Logarithm of the mean prediction over batch and pixels, ``(K,)``; no log 0 where a class is absent."""
    flat = log_p.movedim(1, -1).flatten(end_dim=-2)  # (B h w, K)
    return flat.logsumexp(dim=0) - math.log(flat.shape[0])


def _check(keep_below: float, hold: float, where: str) -> None:
    if not 0 < keep_below <= 1:
        raise InputError(f"{where}: keep_below {keep_below:g}; a share of log K in (0, 1]")
    if not 0 <= hold < math.inf:
        raise InputError(f"{where}: hold {hold:g} must be zero or positive")
