"""The supervised term: cross-entropy with true labels through a frozen network (S-SAID of Wang et al.
2020, Liu et al. 2018 and 2020), for segmentation maps and for class labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.errors import InputError
from segaware.losses.frozen import Frozen, LossThroughNetwork, need
from segaware.losses.logits import check_labels, check_logits, full_precision, widen

__all__ = ["TaskLoss", "task"]

#: Label of pixels that do not count.
IGNORE = 255


def task(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    resize: Literal["logits", "labels"] = "logits",
) -> Tensor:
    """Cross-entropy of logits with labels, mean over all that are not 255 (weighted where weights are given).

    Args:
        logits: ``(B, K, h, w)`` for segmentation, ``(B, K)`` for classification.
        labels: integers, ``(B, H, W)`` (or ``(B, 1, H, W)``) respectively ``(B,)``; 255 is ignored
            as long as the network has no class of that number (K <= 255).
        class_weights: ``(K,)``, or None for equal ones.
        resize: where the sizes differ: ``"logits"`` are resized (bilinear) to the labels, or
            ``"labels"`` (nearest) to the logits, which costs less memory.

    Returns:
        A float32 scalar; zero, with a zero gradient, where everything is ignored.

    Raises:
        ModelError: logits of the wrong kind.
        InputError: labels that are no integers, of the wrong shape, or outside the K classes.

    Source: S-SAID, whose paper leaves open which of the two is resized; Liu et al. take labels at the logits' size.
    """
    check_logits(logits, where="task")
    classes = logits.shape[1]
    ignore = IGNORE if classes <= IGNORE else None
    check_labels(labels, classes, ignore=ignore, where="task")
    if class_weights is not None and tuple(class_weights.shape) != (classes,):
        raise InputError(f"task: class_weights of shape {tuple(class_weights.shape)} for {classes} classes; give one a class")
    if resize not in ("logits", "labels"):
        raise InputError(f'task: resize={resize!r}; say "logits" or "labels"')
    if labels.ndim == logits.ndim and labels.ndim == 4 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != logits.ndim - 1 or labels.shape[0] != logits.shape[0]:
        raise InputError(
            f"task: labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)};"
            " give (B, H, W) for a segmentation network, (B,) for a classifier"
        )
    with full_precision(logits):
        logits = widen(logits)
        labels = labels.to(logits.device).long()
        if labels.shape[1:] != logits.shape[2:]:
            if resize == "logits":
                logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
            else:
                small = F.interpolate(labels[:, None].to(logits.dtype), size=logits.shape[2:], mode="nearest")
                labels = small[:, 0].long()
        weights = None if class_weights is None else class_weights.to(logits)
        counted = torch.ones_like(labels, dtype=torch.bool) if ignore is None else labels != ignore
        skip = -100 if ignore is None else ignore
        total = F.cross_entropy(logits, labels, weight=weights, ignore_index=skip, reduction="sum")
        if weights is None:
            mass = counted.sum().to(total)
        else:
            mass = (weights[labels.where(counted, 0)] * counted).sum()
        return total / mass.where(mass > 0, 1)


class TaskLoss(LossThroughNetwork):
    """What a frozen network would lose, with true labels, on the denoised image.

    Args:
        network: a segmenter or a classifier, ``network(image in [0, 1]) -> logits``; None = the
            shipped CamVid segmenter. Frozen in place and hidden.
        class_weights: one a class, or None.
        resize: as in :func:`task`.

    Shape: ``loss(denoised, labels=labels)`` with ``(B, 3, H, W)`` and ``(B, H, W)`` or ``(B,)`` ->
        float32 scalar.

    Raises:
        InputError: no labels, or labels that do not fit.
        ModelError: no module, not logits, or parameters that were switched on.

    Source: see :func:`task`. The authors leave the dropout of their frozen networks active; here
        it is off.
    """

    name = "task"
    class_weights: Tensor | None

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        class_weights: Sequence[float] | Tensor | None = None,
        resize: Literal["logits", "labels"] = "logits",
    ) -> None:
        super().__init__()
        self.network = Frozen(network, where="TaskLoss")
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)  # a loss has no checkpoint
        self.resize = resize
        if resize not in ("logits", "labels"):
            raise InputError(f'TaskLoss: resize={resize!r}; say "logits" or "labels"')

    def forward(self, denoised: Tensor, *, labels: Tensor | None = None) -> Tensor:
        labels = need(labels, "labels", where="TaskLoss")
        return task(self.network.logits(denoised), labels, class_weights=self.class_weights, resize=self.resize)
