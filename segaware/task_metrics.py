"""How well a network does its task: confusion matrix, mean IoU, pixel and mean accuracy, top-k.

Segmentation is counted in confusion matrices, one an image. They add up: the mean IoU of a set is that
of the sum of its matrices (one matrix for the set, as VOC, Cityscapes and CamVid are reported), never
the mean of the images' values. All measures take a matrix ``(K, K)`` or a stack ``(..., K, K)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segaware.errors import InputError

__all__ = [
    "IGNORE",
    "class_accuracy",
    "confusion_matrix",
    "iou",
    "mean_accuracy",
    "mean_iou",
    "pixel_accuracy",
    "predict_labels",
    "topk_hits",
]

#: Label of pixels that are not counted.
IGNORE = 255


def predict_labels(logits: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """The class of each pixel: logits enlarged bilinearly to the labels' size, then the arg-max.

    Labels are never resized. Ties go to the lowest class.

    Args:
        logits: ``(B, K, h, w)`` float, or ``(B, K)`` of a classifier.
        size: (H, W) of the labels; None = as they are.

    Returns:
        ``(B, H, W)`` int64, or ``(B,)``.

    Raises:
        InputError: no float logits of these shapes, NaN among them, or a size for a classifier.
    """
    _check_logits(logits, "predict_labels")
    if size is not None:
        if logits.ndim != 4:
            raise InputError(f"predict_labels: {tuple(logits.shape)} is a classifier's answer; give no size")
        if tuple(size) != tuple(logits.shape[2:]):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            logits = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
    return logits.argmax(dim=1)


def confusion_matrix(prediction: Tensor, labels: Tensor, num_classes: int, *, ignore: int | None = IGNORE) -> Tensor:
    """Counts of (label, prediction) pairs of each image: rows are the labels' classes, columns the predictions'.

    Args:
        prediction: ``(B, ...)`` integers in [0, num_classes).
        labels: same shape, integers in [0, num_classes) or ``ignore``; of any integer type.
        num_classes: K.
        ignore: label of pixels left out; None = there is none.

    Returns:
        ``(B, K, K)`` int64 on the CPU. Sum over images for the matrix of a set.

    Raises:
        InputError: other types or shapes, values outside the classes, or a class that is ignored.
    """
    where = "confusion_matrix"
    if num_classes < 1 or (ignore is not None and 0 <= ignore < num_classes):
        raise InputError(f"{where}: {num_classes} classes with label {ignore} ignored; ignore a value that is no class")
    for name, values in (("prediction", prediction), ("labels", labels)):
        if not isinstance(values, Tensor) or values.is_floating_point() or values.dtype == torch.bool:
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"{where}: {name} of {kind}; give integer class indices (arg-max of the logits, .long())")
    if prediction.shape != labels.shape or prediction.ndim < 1:
        raise InputError(
            f"{where}: prediction {tuple(prediction.shape)} and labels {tuple(labels.shape)} differ;"
            " bring the logits to the labels' size: predict_labels(logits, labels.shape[-2:])"
        )
    guess, truth = (values.long().unsqueeze(-1).flatten(1) for values in (prediction, labels))
    counted = torch.ones_like(truth, dtype=torch.bool) if ignore is None else truth != ignore
    for name, values in (("labels", truth), ("prediction", guess)):
        bad = counted & ((values < 0) | (values >= num_classes))
        if bad.any():
            low, high = int(values[bad].min()), int(values[bad].max())
            also = f" or {ignore} (ignored)" if ignore is not None and name == "labels" else ""
            raise InputError(
                f"{where}: {name} {low} to {high} are outside [0, {num_classes - 1}]{also};"
                " map them to the classes, or check that network and labels have the same classes"
            )
    batch = len(truth)
    cell = truth * num_classes + guess + torch.arange(batch, device=truth.device)[:, None] * num_classes**2
    counts = torch.bincount(cell[counted], minlength=batch * num_classes**2)
    return counts.reshape(batch, num_classes, num_classes).cpu()


def iou(matrix: Tensor) -> Tensor:
    """Intersection over union per class, ``(..., K)`` float64; NaN for a class in neither labels nor predictions."""
    matrix = _square(matrix, "iou")
    hit = matrix.diagonal(dim1=-2, dim2=-1)
    return hit / (matrix.sum(-1) + matrix.sum(-2) - hit)


def mean_iou(matrix: Tensor, *, absent: str = "skip") -> Tensor:
    """Mean IoU over the classes, ``(...)`` float64.

    Args:
        matrix: ``(..., K, K)``; for a set, the sum over its images.
        absent: what a class counts that is in neither labels nor predictions: ``"skip"``, left out of
            the mean, the field's way (NaN if all are absent); ``"zero"``, counted as 0, as in
            SDABN's code. The same when every class occurs.

    Raises:
        InputError: no square matrix of counts, or another ``absent``.
    """
    if absent not in ("skip", "zero"):
        raise InputError(f"mean_iou: absent {absent!r}; use 'skip' or 'zero'")
    values = iou(matrix)
    return values.nanmean(-1) if absent == "skip" else values.nan_to_num(0.0).mean(-1)


def pixel_accuracy(matrix: Tensor) -> Tensor:
    """Share of counted pixels that are right, ``(...)`` float64; NaN if none is counted."""
    matrix = _square(matrix, "pixel_accuracy")
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1) / matrix.sum((-2, -1))


def class_accuracy(matrix: Tensor) -> Tensor:
    """Share of each class's pixels that are right (recall), ``(..., K)`` float64; NaN for a class not in the labels."""
    matrix = _square(matrix, "class_accuracy")
    return matrix.diagonal(dim1=-2, dim2=-1) / matrix.sum(-1)


def mean_accuracy(matrix: Tensor) -> Tensor:
    """Mean of the accuracies of the classes that are in the labels, ``(...)`` float64."""
    return class_accuracy(matrix).nanmean(-1)


def topk_hits(
    logits: Tensor, labels: Tensor, k: int | Sequence[int] = (1, 5), *, ignore: int | None = IGNORE
) -> Tensor:
    """Whether the label is among the k highest scores; the mean of it is the top-k accuracy.

    Ties are broken for the lower class, so that constant scores earn nothing by chance.

    Args:
        logits: ``(B, K)`` of a classifier, or ``(B, K, h, w)``.
        labels: ``(B,)`` or ``(B, h, w)``, integers in [0, K) or ``ignore``.
        k: one or several, each in [1, K].
        ignore: label of what is not counted; None = there is none. A class of that number is counted
            all the same where K is larger (ImageNet has a class 255).

    Returns:
        ``(len(k), B)`` float64 on the CPU: 1 or 0 for a classifier, the share of counted pixels of
        each image otherwise; NaN where nothing is counted.

    Raises:
        InputError: other types or shapes, NaN, labels outside the classes, or more than K.
    """
    _check_logits(logits, "topk_hits")
    classes = logits.shape[1]
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError("topk_hits: labels must be integer class indices; convert with labels.long()")
    if labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise InputError(f"topk_hits: labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")
    several = [k] if isinstance(k, int) else list(k)
    if not several or min(several) < 1 or max(several) > classes:
        raise InputError(f"topk_hits: k = {several} with {classes} classes; give numbers from 1 to {classes}")
    labels = labels.long()
    counted = torch.ones_like(labels, dtype=torch.bool)
    if ignore is not None and not 0 <= ignore < classes:
        counted = labels != ignore
    inside = (labels >= 0) & (labels < classes)
    if (counted & ~inside).any():
        bad = labels[counted & ~inside]
        raise InputError(
            f"topk_hits: labels {int(bad.min())} to {int(bad.max())} are outside [0, {classes - 1}];"
            " check that network and labels have the same classes"
        )
    chosen = labels.where(counted, 0)[:, None]
    own, chosen = logits.gather(1, chosen)[:, 0], chosen[:, 0]
    # class after class: a sum over so short a dimension takes 20 times as long
    rank = torch.zeros_like(chosen, dtype=torch.int32)  # (B, ...)
    equal = torch.zeros_like(rank)
    for other in logits.unbind(1):
        rank += other > own
        equal += other == own
    if (equal > 1).any():
        for index, other in enumerate(logits.unbind(1)):
            rank += (other == own) & (chosen > index)
    rank, counted = rank.reshape(len(rank), -1), counted.reshape(len(rank), -1)
    total = counted.sum(1).double()
    hits = [((rank < number) & counted).sum(1) / total for number in several]
    return torch.stack(hits).where(total > 0, math.nan).cpu()


def _check_logits(logits: Tensor, where: str) -> None:
    fits = isinstance(logits, Tensor) and logits.is_floating_point() and logits.ndim in (2, 4) and 0 not in logits.shape
    if not fits:
        kind = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{where}: expected float logits (B, K) or (B, K, h, w), got {kind}")
    if logits.isnan().any():
        raise InputError(f"{where}: NaN among the logits; the network or its input is broken, look at it first")


def _square(matrix: Tensor, where: str) -> Tensor:
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise InputError(f"{where}: expected a confusion matrix (..., K, K), got {tuple(matrix.shape)}")
    return matrix.double()
