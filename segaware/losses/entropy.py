"""Label-free uncertainty: the entropy of a frozen segmenter's prediction on the denoised image
(Wang et al., "Segmentation-aware Image Denoising without Knowing True Segmentation", IJCNN 2020).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from segaware.errors import InputError
from segaware.losses.frozen import Frozen, LossThroughNetwork
from segaware.losses.logits import check_logits, full_precision, log_probabilities

__all__ = ["EntropySegAwareLoss", "entropy"]


def entropy(logits: Tensor, *, normalize: bool = False, balance: float = 0.0) -> Tensor:
    """Mean over pixels and batch of ``-sum_k p_k log p_k`` with p the softmax over the K classes.

    Args:
        logits: ``(B, K, h, w)`` or ``(B, K)``, as they come: not upsampled, no probabilities.
        normalize: divide by log K, so that 1 is a uniform prediction whatever the class count.
        balance: subtract so many times the entropy of the mean prediction of the batch (divided
            alike), which is lost when all pixels fall into one class.

    Returns:
        A float32 scalar in [0, log K] (natural logarithm), with ``balance`` lower by up to
        ``balance * log K``.

    Raises:
        ModelError: logits of the wrong kind or of one class.
        InputError: a negative balance.

    Source: U-SAID sec. III-A, with the sum over classes written out. The released code minimises
        another function (:func:`segaware.losses.pseudo_label.pseudo_label`). ``balance`` is ours.
    """
    check_logits(logits, where="entropy")
    if not 0 <= balance < math.inf:
        raise InputError(f"entropy: balance {balance:g} must be zero or positive")
    with full_precision(logits):
        log_p = log_probabilities(logits)
        value = -(log_p.exp() * log_p).sum(dim=1).mean()
        if balance:
            # log of the mean over batch and pixels, in logarithms: no log 0 where a class is absent
            flat = log_p.movedim(1, -1).flatten(end_dim=-2)  # (B h w, K)
            log_mean = flat.logsumexp(dim=0) - math.log(flat.shape[0])
            value = value + balance * (log_mean.exp() * log_mean).sum()
        return value / math.log(logits.shape[1]) if normalize else value


class EntropySegAwareLoss(LossThroughNetwork):
    """How unsure a frozen segmenter is of the denoised image. Needs neither labels nor the clean image.

    The segmenter is frozen in place, kept in evaluation mode, and in neither ``parameters()`` nor
    ``state_dict()``; ``.to()`` moves it. Gradient flows through it to the image.

    **Do not train the segmenter's head with this loss.** Entropy alone is least for a constant
    prediction. With the head frozen, the denoiser can only make the image less ambiguous. With a
    trainable head, a bias towards one class does it: every pixel becomes that class, the entropy
    is zero, the softmax is saturated, and no gradient reaches the denoiser any more. A head whose
    parameters are switched on again is therefore refused. ``balance`` guards against the milder
    form, a denoiser that pushes all images towards one class.

    Args:
        segmenter: ``segmenter(image in [0, 1]) -> logits (B, K, h, w)``; None = the ``fpn-camvid``
            that ships with the package, loaded at the first loss.
        normalize, balance: as in :func:`entropy`.

    Shape: ``loss(denoised)`` with ``(B, 3, H, W)``, not clamped (gray is repeated) -> float32 scalar.

    Raises:
        ModelError: no module, not logits, or parameters that were switched on.

    Example:
        >>> loss = EntropySegAwareLoss(segmenter)  # doctest: +SKIP
        >>> total = 3456 * mse(denoised, clean) + loss(denoised)  # doctest: +SKIP

    Source: U-SAID, "USA module"; the whole module frozen, as in the release.
    """

    name = "entropy"

    def __init__(self, segmenter: nn.Module | None = None, *, normalize: bool = False, balance: float = 0.0) -> None:
        super().__init__()
        if not 0 <= balance < math.inf:
            raise InputError(f"EntropySegAwareLoss: balance {balance:g} must be zero or positive")
        self.segmenter = Frozen(segmenter, where="EntropySegAwareLoss")
        self.normalize = normalize
        self.balance = balance

    def forward(self, denoised: Tensor) -> Tensor:
        return entropy(self.segmenter.logits(denoised), normalize=self.normalize, balance=self.balance)
