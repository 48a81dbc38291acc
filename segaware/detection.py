"""Average precision of detections as COCO counts it, through torchmetrics (extra ``detection``).

For detectors of torchvision: what ``model(list of images)`` returns in evaluation mode goes in as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segaware.errors import EvaluationError, InputError

__all__ = ["DetectionAP"]

_KEYS = ("boxes", "scores", "labels")


class DetectionAP:
    """Collects the detections of a set of images; :meth:`compute` gives its average precision.

    Args:
        per_class: also list the average precision of each class.

    Raises:
        EvaluationError: torchmetrics or its COCO backend is missing or broken, with what to install.
    """

    def __init__(self, *, per_class: bool = False) -> None:
        self.per_class = per_class
        self._metric = _build(per_class)

    def update(self, detections: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Add images.

        Args:
            detections: one an image: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``scores`` (N,), ``labels`` (N,).
            targets: one an image: ``boxes`` (M, 4) and ``labels`` (M,); also ``iscrowd`` and ``area``, if known.

        Raises:
            InputError: missing keys, lengths or shapes that do not fit; the image is named by its place.
        """
        if len(detections) != len(targets):
            raise InputError(
                f"DetectionAP: {len(detections)} images detected, {len(targets)} targets; give one of each an image"
            )
        found = [_checked(one, _KEYS, f"detections[{i}]") for i, one in enumerate(detections)]
        truth = [
            _checked(one, ("boxes", "labels", *(k for k in ("iscrowd", "area") if k in one)), f"targets[{i}]")
            for i, one in enumerate(targets)
        ]
        self._metric.update(found, truth)

    def compute(self) -> dict[str, Any]:
        """The average precisions: ``ap``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``.

        ``ap`` is the mean over IoU 0.50 to 0.95, all of them over classes.
        NaN where no target is of the kind. With ``per_class`` also ``ap_per_class``, {label: ap}.
        """
        result = self._metric.compute()
        names = {
            "map": "ap", "map_50": "ap50", "map_75": "ap75", "map_small": "ap_small", "map_medium": "ap_medium",
            "map_large": "ap_large",
        }  # fmt: skip
        values: dict[str, Any] = {ours: _number(result[theirs]) for theirs, ours in names.items()}
        if self.per_class:
            values["ap_per_class"] = {}
            if "map_per_class" in result:  # not before any box
                labels, precisions = result["classes"].flatten().tolist(), result["map_per_class"].flatten()
                values["ap_per_class"] = {label: _number(ap) for label, ap in zip(labels, precisions, strict=True)}
        return values


def _number(value: Tensor) -> float:
    """COCO writes -1 where there is nothing to find."""
    number = float(value)
    return number if number >= 0 else float("nan")


def _checked(one: Mapping[str, Tensor], keys: Sequence[str], where: str) -> dict[str, Tensor]:
    missing = [key for key in keys if key not in one]
    if missing:
        raise InputError(f"DetectionAP: {where} has no {', '.join(missing)}; it holds {', '.join(one) or 'nothing'}")
    chosen = {key: one[key].detach().cpu() for key in keys}
    boxes = chosen["boxes"]
    if boxes.numel() == 0:
        chosen["boxes"] = boxes = boxes.reshape(0, 4).float()
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"DetectionAP: {where} has boxes {tuple(boxes.shape)}; give (N, 4): x1, y1, x2, y2")
    if boxes.is_floating_point() and not torch.isfinite(boxes).all():
        raise InputError(f"DetectionAP: {where} has boxes that are NaN or infinite; look for where they come from")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise InputError(
            f"DetectionAP: {where} has boxes with x2 < x1 or y2 < y1; give corners (x1, y1, x2, y2), not sizes"
        )
    for key in keys[1:]:
        if chosen[key].shape != (len(boxes),):
            raise InputError(f"DetectionAP: {where} has {len(boxes)} boxes but {key} {tuple(chosen[key].shape)}")
    if chosen["labels"].is_floating_point() and chosen["labels"].numel():
        raise InputError(f"DetectionAP: {where} has labels of type {chosen['labels'].dtype}; give class numbers as integers")
    chosen["labels"] = chosen["labels"].long()
    return chosen


def _build(per_class: bool) -> Any:
    repair = 'pip install "segaware[detection]"'
    try:
        from torchmetrics.detection import MeanAveragePrecision
    except ModuleNotFoundError as error:
        raise EvaluationError(f"average precision needs torchmetrics ({error}); {repair}") from error
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch takes torchmetrics down
        raise EvaluationError(
            f"torchmetrics is installed but cannot be imported ({error}); install torch and torchvision together again"
        ) from error
    tried = []
    for backend in ("faster_coco_eval", "pycocotools"):
        try:
            return MeanAveragePrecision(box_format="xyxy", iou_type="bbox", backend=backend, class_metrics=per_class)
        except (ImportError, RuntimeError) as error:
            tried.append(f"{backend}: {str(error).strip().splitlines()[0]}")
    raise EvaluationError(f"average precision needs faster-coco-eval or pycocotools ({'; '.join(tried)}); {repair}")
