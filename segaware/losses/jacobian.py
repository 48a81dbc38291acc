"""Jacobian-weighted fidelity: the error that remains, measured by what it does to a frozen network's answer,
to first order at the clean image (input-dependent squared error, Fernandez-Menduina et al. 2024/2025).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from segaware.errors import InputError, ModelError
from segaware.losses.features import Features, as_list, as_module
from segaware.losses.frozen import Frozen, LossThroughNetwork, need, outside_inference, usable
from segaware.losses.logits import full_precision, widen

__all__ = ["JacobianLoss", "jacobian", "push_forward"]


def push_forward(network: Callable[[Tensor], Any], clean: Tensor, error: Tensor, *, where: str) -> list[tuple[Tensor, Tensor]]:
    """``network(clean)`` and how it changes, to first order, when ``error`` is added to ``clean``: the product J error.

    One pass in forward mode. Its graph is linear in ``error``: a gradient reaches ``error`` and
    nothing else. Runs in float32 whatever the autocast, for small changes drown in half precision.

    Args:
        network: from images to a tensor or a list of tensors.
        clean: ``(B, C, H, W)``; never receives a gradient.
        error: of the same shape.

    Returns:
        A list of pairs (answer, change of the answer), of the same shape each.

    Raises:
        InputError: two shapes.
        ModelError: an operation without forward-mode derivative, or an answer that left autograd.
    """
    if clean.shape != error.shape:
        raise InputError(f"{where}: denoised {tuple(error.shape)} and clean {tuple(clean.shape)} differ; give images of one size")
    # the fused attentions have no forward mode; the plain one has
    with outside_inference(), full_precision(clean), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        point = widen(usable(clean).detach())
        try:
            answers = as_list(network(forward_ad.make_dual(point, usable(error).to(point.dtype))), where=where)
        except NotImplementedError as failure:
            raise ModelError(
                f"{where}: the frozen network uses an operation without forward-mode derivative ({str(failure)[:160]});"
                " take SensitivityLoss, which needs the backward pass alone, or another network"
            ) from failure
        pairs = [tuple(forward_ad.unpack_dual(answer)) for answer in answers]
    if any(change is None for _, change in pairs):
        raise ModelError(f"{where}: the network's answer does not follow its image (cut by detach or NumPy?); keep it in torch")
    return pairs  # type: ignore[return-value]


def jacobian(change: Tensor) -> Tensor:
    """Mean over all elements of the squared change of an answer, a float32 scalar. See :func:`push_forward`."""
    with full_precision(change):
        return widen(change).square().mean()


class JacobianLoss(LossThroughNetwork):
    """``||J(x) (denoised - x)||^2 / n`` with J the Jacobian of a frozen network at the clean image x, n its answer's size.

    For small errors it is the squared distance of the answers (of logits, or features). It is
    convex in the error and looks at the network at clean images only, so there is no
    non-linearity to exploit and nothing to collapse into. It is blind to errors that the network
    does not see (the null space of J): keep a fidelity term. For large errors (high sigma) it is
    an approximation.

    Args:
        segmenter: see :class:`segaware.losses.entropy.EntropySegAwareLoss`; frozen and hidden alike.
        features: in place of the segmenter, as in :class:`segaware.losses.consistency.ConsistencyLoss`.

    Shape: ``loss(denoised, clean=clean)``, both ``(B, 3, H, W)`` -> float32 scalar.

    Raises:
        InputError: no ``clean``, or segmenter and features both.
        ModelError: no module, not logits, parameters that were switched on, or no forward-mode derivative.

    Source: arXiv 2408.07028 and 2504.02216, there for image coding with sketched Jacobians; here
        exact, by one Jacobian-vector product.
    """

    name = "jacobian"

    def __init__(self, segmenter: nn.Module | None = None, *, features: Features | None = None) -> None:
        super().__init__()
        if segmenter is not None and features is not None:
            raise InputError("JacobianLoss: segmenter and features; give one, two terms can be put in a list")
        self.by_features = features is not None
        network = segmenter if features is None else as_module(features, where="JacobianLoss")
        self.network = Frozen(network, where="JacobianLoss")

    def forward(self, denoised: Tensor, *, clean: Tensor | None = None) -> Tensor:
        clean = need(clean, "clean", where="JacobianLoss").detach()
        see = self.network if self.by_features else self.network.logits
        pairs = push_forward(see, clean, denoised - clean, where="JacobianLoss")
        return torch.stack([jacobian(change) for _, change in pairs]).mean()
