"""Pseudo-labels: a frozen segmenter's own hard decision, or a teacher's on the clean image, as the target.

This is the loss that the released code of U-SAID computes in place of the paper's entropy.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.errors import InputError, ModelError
from segaware.losses.frozen import Frozen, LossThroughNetwork, need
from segaware.losses.logits import check_logits, full_precision, log_probabilities

__all__ = ["PseudoLabelLoss", "pseudo_label"]


def pseudo_label(logits: Tensor, teacher_logits: Tensor | None = None, *, focus: float = 2.0) -> Tensor:
    """Mean of ``-(1 - p_t)^focus * log p_t``, where t is the arg-max class of the teacher.

    Args:
        logits: ``(B, K, h, w)`` or ``(B, K)``.
        teacher_logits: of the same K, resized (bilinear) where the map differs; None = ``logits``
            themselves. Never receives a gradient.
        focus: exponent of the focal loss; 0 is the plain cross-entropy.

    Returns:
        A float32 scalar; at a uniform prediction over K it is ``(1 - 1/K)^focus * log K``.

    Raises:
        ModelError: logits of the wrong kind, or class counts that differ.
        InputError: a focus between 0 and 1 (infinite slope at p = 1) or below 0.

    Source: U-SAID as released (focus 2, own arg-max); Lin et al. 2017 for the focal form. The
        release clips p to [1e-7, 1 - 1e-7]; working with logarithms needs no clipping.
    """
    check_logits(logits, where="pseudo_label")
    _check_focus(focus, "pseudo_label")
    with full_precision(logits):
        log_p = log_probabilities(logits)
        if teacher_logits is None:
            target = logits.detach().argmax(dim=1, keepdim=True)
        else:
            check_logits(teacher_logits, where="pseudo_label (teacher)")
            teacher_logits = teacher_logits.detach()
            if teacher_logits.shape[:2] != logits.shape[:2] or teacher_logits.ndim != logits.ndim:
                raise ModelError(
                    f"pseudo_label: teacher logits {tuple(teacher_logits.shape)} and logits {tuple(logits.shape)}"
                    " must be of the same images and classes; take a teacher trained on the same classes"
                )
            if teacher_logits.shape != logits.shape:
                teacher_logits = F.interpolate(
                    teacher_logits.float(), size=logits.shape[2:], mode="bilinear", align_corners=False
                )
            target = teacher_logits.argmax(dim=1, keepdim=True)
        log_pt = log_p.gather(1, target)
        if focus == 0:
            return -log_pt.mean()
        return -((-torch.expm1(log_pt)) ** focus * log_pt).mean()


class PseudoLabelLoss(LossThroughNetwork):
    """Push the denoised image towards the class that a frozen segmenter (or a teacher) already sees.

    Args:
        segmenter: see :class:`segaware.losses.entropy.EntropySegAwareLoss`; frozen and hidden alike.
        focus: as in :func:`pseudo_label`; 0 is the plain cross-entropy.
        teacher: whose decision is the target. None = the segmenter's own on the denoised image;
            ``"self"`` = the segmenter's on the clean image; a module = its, on the clean image.

    Shape: ``loss(denoised)``, or ``loss(denoised, clean=clean)`` with a teacher; both
        ``(B, 3, H, W)`` -> float32 scalar.

    Raises:
        ModelError: no module, not logits, other classes, or parameters that were switched on.
        InputError: a teacher without ``clean``.

    Source: see :func:`pseudo_label`. In the release this term is cut from the denoiser by a
        passage through NumPy; here its gradient arrives.
    """

    name = "pseudo_label"

    def __init__(
        self,
        segmenter: nn.Module | None = None,
        *,
        focus: float = 2.0,
        teacher: nn.Module | Literal["self"] | None = None,
    ) -> None:
        super().__init__()
        _check_focus(focus, "PseudoLabelLoss")
        self.focus = focus
        self.segmenter = Frozen(segmenter, where="PseudoLabelLoss")
        if isinstance(teacher, str):
            if teacher != "self":
                raise InputError(f'PseudoLabelLoss: teacher={teacher!r}; give a module, "self" or None')
            self.teacher: Frozen | None = self.segmenter
        else:
            self.teacher = None if teacher is None else Frozen(teacher, where="PseudoLabelLoss (teacher)")

    def forward(self, denoised: Tensor, *, clean: Tensor | None = None) -> Tensor:
        target = None
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher.logits(need(clean, "clean", where="PseudoLabelLoss with a teacher"))
        return pseudo_label(self.segmenter.logits(denoised), target, focus=self.focus)


def _check_focus(focus: float, where: str) -> None:
    if not (focus == 0 or 1 <= focus < math.inf):
        raise InputError(f"{where}: focus {focus:g}; 0 is the cross-entropy, 2 the usual focal loss, below 1 its slope is infinite")
