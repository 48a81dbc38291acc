"""Consistency: a frozen segmenter should say the same of the denoised image as of the clean one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from segaware.errors import InputError, ModelError
from segaware.losses.features import Features, as_list, as_module
from segaware.losses.frozen import Frozen, LossThroughNetwork, need
from segaware.losses.logits import check_logits, full_precision, log_probabilities, widen

__all__ = ["ConsistencyLoss", "consistency", "feature_distance"]


def consistency(logits: Tensor, clean_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean over pixels and batch of KL(p_clean || p_denoised), both softened by the temperature.

    Args:
        logits: of the denoised image, ``(B, K, h, w)`` or ``(B, K)``.
        clean_logits: of the clean image, same shape; never receives a gradient.
        temperature: both logits are divided by it. The result is not multiplied by its square.

    Returns:
        A float32 scalar, zero if both say the same.

    Raises:
        ModelError: logits of the wrong kind or of different shapes.
        InputError: a temperature that is not positive.

    Source: ours; the divergence is Hinton et al. 2015 (distillation).
    """
    check_logits(logits, where="consistency")
    check_logits(clean_logits, where="consistency (clean)")
    _check_temperature(temperature, "consistency")
    if logits.shape != clean_logits.shape:
        raise ModelError(
            f"consistency: logits {tuple(logits.shape)} and {tuple(clean_logits.shape)} of the clean image differ;"
            " one network on images of one size gives one shape"
        )
    with full_precision(logits):
        log_p = log_probabilities(widen(logits) / temperature)
        log_clean = log_probabilities(widen(clean_logits.detach()) / temperature)
        return (log_clean.exp() * (log_clean - log_p)).sum(dim=1).mean()


def feature_distance(features: Tensor, clean_features: Tensor) -> Tensor:
    """Mean over all elements of the squared difference; ``clean_features`` receives no gradient."""
    if features.shape != clean_features.shape:
        raise ModelError(
            f"feature_distance: shapes {tuple(features.shape)} and {tuple(clean_features.shape)} differ;"
            " one network on images of one size gives one shape"
        )
    with full_precision(features):
        return (widen(features) - widen(clean_features.detach())).square().mean()


class ConsistencyLoss(LossThroughNetwork):
    """Distance between what a frozen network says of the denoised and of the clean image.

    Needs no labels, and cannot collapse: a constant prediction is wrong wherever the clean image's
    is not. The clean image is seen without gradient.

    Args:
        segmenter: see :class:`segaware.losses.entropy.EntropySegAwareLoss`; frozen and hidden alike.
        temperature: as in :func:`consistency`.
        features: in place of the segmenter: from images in [0, 1] to a feature tensor or a list of
            them (a module, or a module's method such as ``net.forward_features``, is frozen too);
            the loss is then the mean of :func:`feature_distance` over the list.

    Shape: ``loss(denoised, clean=clean)``, both ``(B, 3, H, W)`` -> float32 scalar.

    Raises:
        ModelError: no module, not logits, or parameters that were switched on.
        InputError: no ``clean``, a temperature that is not positive, or segmenter and features both.

    Source: ours.
    """

    name = "consistency"

    def __init__(
        self,
        segmenter: nn.Module | None = None,
        *,
        temperature: float = 1.0,
        features: Features | None = None,
    ) -> None:
        super().__init__()
        _check_temperature(temperature, "ConsistencyLoss")
        if segmenter is not None and features is not None:
            raise InputError("ConsistencyLoss: segmenter and features; give one, two terms can be put in a list")
        self.temperature = temperature
        self.by_features = features is not None
        self.network = Frozen(segmenter if features is None else as_module(features, where="ConsistencyLoss"), where="ConsistencyLoss")

    def forward(self, denoised: Tensor, *, clean: Tensor | None = None) -> Tensor:
        clean = need(clean, "clean", where="ConsistencyLoss")
        see = self.network if self.by_features else self.network.logits
        with torch.no_grad():
            target = see(clean)
        found = see(denoised)
        if not self.by_features:
            return consistency(found, target, temperature=self.temperature)
        pairs = list(zip(*(as_list(f, where="ConsistencyLoss") for f in (found, target)), strict=True))
        return torch.stack([feature_distance(a, b) for a, b in pairs]).mean()


def _check_temperature(temperature: float, where: str) -> None:
    if not 0 < temperature < math.inf:
        raise InputError(f"{where}: temperature {temperature:g} must be positive")
