"""Output-Fisher-weighted fidelity: the divergence of predictions, clean from denoised, to second order."""

from __future__ import annotations

from torch import Tensor, nn

from segaware.errors import ModelError
from segaware.losses.frozen import Frozen, LossThroughNetwork, need
from segaware.losses.jacobian import push_forward
from segaware.losses.logits import check_logits, full_precision, log_probabilities, widen

__all__ = ["FisherLoss", "fisher"]


def fisher(logits: Tensor, change: Tensor) -> Tensor:
    """Mean over pixels and batch of ``0.5 * (sum_k p_k u_k^2 - (sum_k p_k u_k)^2)``: half the variance of u under p.

    Args:
        logits: of the clean image, ``(B, K, h, w)`` or ``(B, K)``; p is their softmax. No gradient.
        change: u, of the same shape: how the logits change (:func:`segaware.losses.jacobian.push_forward`).

    Returns:
        A float32 scalar, zero or positive; for small u it is KL(p(logits) || p(logits + u)).

    Raises:
        ModelError: logits of the wrong kind, or two shapes.

    Source: ours; Fisher information of a softmax, in the place of the squared distance of arXiv 2504.02216.
    """
    check_logits(logits, where="fisher")
    if logits.shape != change.shape:
        raise ModelError(f"fisher: logits {tuple(logits.shape)} and change {tuple(change.shape)} differ; give one shape")
    with full_precision(logits):
        p = log_probabilities(logits.detach()).exp()
        u = widen(change)
        # centred before it is squared: the difference of the two sums would lose its digits
        return 0.5 * (p * (u - (p * u).sum(dim=1, keepdim=True)).square()).sum(dim=1).mean()


class FisherLoss(LossThroughNetwork):
    """:func:`fisher` of the error that remains, through a frozen segmenter at the clean image.

    As :class:`segaware.losses.jacobian.JacobianLoss`, but a logit counts by what it does to the
    prediction: where the segmenter is sure, little does. Blind to what does not change the
    prediction (keep a fidelity term), and an approximation for large errors.

    Args:
        segmenter: see :class:`segaware.losses.entropy.EntropySegAwareLoss`; frozen and hidden alike.

    Shape: ``loss(denoised, clean=clean)``, both ``(B, 3, H, W)`` -> float32 scalar.

    Raises:
        InputError: no ``clean``.
        ModelError: no module, not logits, parameters that were switched on, or no forward-mode derivative.

    Source: see :func:`fisher`.
    """

    name = "fisher"

    def __init__(self, segmenter: nn.Module | None = None) -> None:
        super().__init__()
        self.segmenter = Frozen(segmenter, where="FisherLoss")

    def forward(self, denoised: Tensor, *, clean: Tensor | None = None) -> Tensor:
        clean = need(clean, "clean", where="FisherLoss").detach()
        ((logits, change),) = push_forward(self.segmenter.logits, clean, denoised - clean, where="FisherLoss")
        return fisher(logits, change)
