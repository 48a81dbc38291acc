"""Two measures that need no labels: does a judge say the same, and does clean input come to harm.

A judge is a trained segmenter or classifier that the denoiser has never seen. **Consistency** takes what
it says of the clean image for the truth. **Do no harm** gives the denoiser a clean image: the ideal one
returns it, and changes no pixel's class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segaware.checks import check_finite, check_images, check_range
from segaware.errors import InputError, ModelError
from segaware.metrics import PRESETS, Convention
from segaware.task_metrics import confusion_matrix, mean_iou, predict_labels, topk_hits

__all__ = ["Consistency", "Harm", "agreement", "consistency", "do_no_harm"]


@dataclass(frozen=True)
class Consistency:
    """How far a judge's word on denoised images is its word on the clean ones.

    Args:
        matrices: ``(B, K, K)`` counts of (class on clean, class on denoised), one an image; they add up.
            None for a classifier, whose K is large and whose word is one.
        top_k: k -> ``(B,)`` share of pixels (or 1 and 0, for a classifier) whose class on the clean
            image is among the k highest scores on the denoised one.
    """

    matrices: Tensor | None
    top_k: dict[int, Tensor]

    @property
    def miou(self) -> Tensor:
        """``(B,)`` mean IoU of each image; for a set take that of the matrices' sum. InputError for a classifier."""
        if self.matrices is None:
            raise InputError("a classifier's consistency has no mean IoU; read top_k")
        return mean_iou(self.matrices)


@dataclass(frozen=True)
class Harm:
    """What a denoiser does to clean images.

    Args:
        psnr: ``(B,)`` dB between its answer and the clean image; inf if nothing changes.
        changed: ``(B,)`` share of pixels whose class the judge changes (0 or 1 for a classifier); None without a judge.
    """

    psnr: Tensor
    changed: Tensor | None


def agreement(
    logits: Tensor, clean_logits: Tensor, *, size: Sequence[int] | None = None, k: Sequence[int] = (1, 5)
) -> Consistency:
    """Consistency from a judge's two answers.

    Args:
        logits: of the denoised images, ``(B, K, h, w)``, or ``(B, K)`` of a classifier.
        clean_logits: of the clean images, same shape.
        size: (H, W) of the images, where the mean IoU is counted; None = at the logits. Top-k
            agreement is always counted at the logits.
        k: numbers over the count of classes are left out.

    Raises:
        InputError: shapes that differ, or no logits.
    """
    if logits.shape != clean_logits.shape:
        raise InputError(
            f"agreement: logits {tuple(logits.shape)} and {tuple(clean_logits.shape)} of the clean images differ;"
            " one judge on images of one size gives one shape"
        )
    numbers = [number for number in k if number <= logits.shape[1]]
    if not numbers:
        raise InputError(f"agreement: k = {list(k)} with {logits.shape[1]} classes; give at least one number up to it")
    hits = topk_hits(logits, predict_labels(clean_logits), numbers, ignore=None)
    matrices = None
    if _is_map(logits):
        guess, truth = (predict_labels(scores, size) for scores in (logits, clean_logits))
        matrices = confusion_matrix(guess, truth, logits.shape[1], ignore=None)
    return Consistency(matrices, dict(zip(numbers, hits, strict=True)))


@torch.no_grad()
def consistency(
    judge: Callable[[Tensor], Tensor], denoised: Tensor, clean: Tensor, *, k: Sequence[int] = (1, 5)
) -> Consistency:
    """What a judge says of denoised images against what it says of the clean ones.

    To judge many methods, keep ``judge(clean)`` and call :func:`agreement`.

    Args:
        judge: images in [0, 1] -> logits ``(B, K, h, w)`` or ``(B, K)``, in evaluation mode.
        denoised: ``(B, 3, H, W)``; clamped to [0, 1] first, as a file would be.
        clean: same shape.
        k: for top-k agreement.

    Raises:
        InputError: images that do not fit.
        ModelError: a judge in training mode, or an answer that is no logits.
    """
    for images, where in ((denoised, "consistency (denoised)"), (clean, "consistency (clean)")):
        check_images(images, where=where)
        check_finite(images, where=where)
        check_range(images, where=where)
    if denoised.shape != clean.shape:
        raise InputError(
            f"consistency: denoised {tuple(denoised.shape)} and clean {tuple(clean.shape)} differ; compare equal sizes"
        )
    logits, reference = _ask(judge, denoised), _ask(judge, clean)
    return agreement(logits, reference, size=clean.shape[-2:], k=k)


@torch.no_grad()
def do_no_harm(
    denoiser: Callable[..., Tensor],
    clean: Tensor,
    *,
    judge: Callable[[Tensor], Tensor] | None = None,
    convention: Convention = PRESETS["usaid"],
) -> Harm:
    """What a denoiser does to images that have no noise. One that takes a noise level is told 0.

    Args:
        denoiser: as in :mod:`segaware.contracts`; anything without ``info`` is called with the images alone.
        clean: ``(B, C, H, W)`` in [0, 1].
        judge: as for :func:`consistency`; None = PSNR alone.
        convention: of the PSNR.

    Raises:
        InputError: images that do not fit.
        ModelError: a denoiser in training mode, or one that returns another shape; a judge as for :func:`consistency`.
    """
    check_images(clean, where="do_no_harm")
    check_finite(clean, where="do_no_harm")
    check_range(clean, where="do_no_harm")
    if getattr(denoiser, "training", False):
        raise ModelError("do_no_harm: the denoiser is in training mode, where it depends on the batch and learns from it; call denoiser.eval()")
    takes_sigma = getattr(getattr(denoiser, "info", None), "takes_sigma", False)
    denoised = denoiser(clean, 0.0) if takes_sigma else denoiser(clean)
    if not isinstance(denoised, Tensor) or denoised.shape != clean.shape:
        got = tuple(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
        raise ModelError(
            f"do_no_harm: the denoiser gave {got} for images {tuple(clean.shape)}; it must return the same shape"
        )
    changed = None
    if judge is not None:
        before, after = _ask(judge, clean), _ask(judge, denoised)
        size = clean.shape[-2:] if _is_map(before) else None
        was, now = (predict_labels(scores, size) for scores in (before, after))
        changed = (was != now).reshape(len(was), -1).double().mean(1).cpu()
    return Harm(convention.psnr(denoised, clean), changed)


def _ask(judge: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    if getattr(judge, "training", False):
        raise ModelError("the judge is in training mode, where its answers depend on the batch; call judge.eval()")
    logits = judge(images.clamp(0, 1))
    fits = isinstance(logits, Tensor) and logits.is_floating_point() and logits.ndim in (2, 4)
    if not fits or len(logits) != len(images):
        got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"the judge gave {got} for images {tuple(images.shape)}; logits (B, K, h, w) or (B, K) are needed:"
            " wrap it in segaware.segmenters.adapters.SegmenterAdapter"
        )
    if logits.isnan().any():
        raise ModelError("the judge's logits hold NaN; look at its weights, or at the denoised image")
    return logits


def _is_map(logits: Tensor) -> bool:
    return logits.ndim == 4 and logits.shape[-2:] != (1, 1)
