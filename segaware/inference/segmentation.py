"""Denoise and segment at once, with models that do both (SDB, SDABN)."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segaware.contracts import Sigma
from segaware.errors import ModelError
from segaware.inference.engine import Engine, Progress
from segaware.task_metrics import predict_labels

__all__ = ["Segmented", "SegmentingEngine", "denoise_and_segment"]


class Segmented(NamedTuple):
    """Both answers.

    Args:
        image: the denoised image, of the kind that came (:func:`segaware.denoise`).
        classes: index of the class of each pixel, int64: for a tensor ``(C, H, W)`` or ``(B, C, H, W)`` a tensor
            ``(H, W)`` or ``(B, H, W)`` on its device, for pictures an array ``(H, W)``.
        class_names: in the order of the indices.
    """

    image: Any
    classes: Any
    class_names: tuple[str, ...]


def denoise_and_segment(image: Any, model: str | os.PathLike[str] | nn.Module, *, sigma: Sigma | str | None = None, **options: Any) -> Segmented:
    """Denoise one image, or a batch, and say what is where.

    The segmentation is that of the model's last segmenter: the closing one where there is one, else
    that of the last block, which saw the estimate of the block before. Its logits are enlarged
    bilinearly to the image. Such a model sees the image whole, never in tiles: so does this.

    Args:
        image, sigma: as for :func:`segaware.denoise`.
        model: a cascade: a shipped name, the folder of a model, or a module with ``stages``.
        options: ``keep``, ``precision``, ``device`` of :func:`segaware.denoise`.

    Raises:
        ModelError: a model that does not segment.
        Others: as :func:`segaware.denoise`.
    """
    return SegmentingEngine(model, **options).segment(image, sigma)


class SegmentingEngine(Engine):
    """An engine for models that segment: :meth:`segment` gives both answers, a call the image alone.

    Args:
        model, options: as for :class:`segaware.inference.engine.Engine`.

    Raises:
        ModelError: a model that does not segment, with what to do.
    """

    def __init__(self, model: str | os.PathLike[str] | nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        classes = getattr(self._module, "num_classes", None)
        if not callable(getattr(self._module, "stages", None)) or not isinstance(classes, int):
            raise ModelError(
                f"{self.name} denoises but does not segment; choose a cascade (SDABN, SDB),"
                " or segment its result with a segmenter of its own"
            )
        self.num_classes: int = classes
        names = getattr(self._module, "class_names", None)
        self.class_names: tuple[str, ...] = tuple(names) if names else tuple(f"class {i}" for i in range(classes))
        self._said: list[Tensor] | None = None

    def segment(self, image: Any, sigma: Sigma | str | None = None, *, progress: Progress | None = None) -> Segmented:
        """Denoise and segment one image or batch."""
        self._said = []
        try:
            clean = self(image, sigma, progress=progress)
            logits = torch.cat(self._said)
        finally:
            self._said = None
        if isinstance(image, Tensor):
            classes = predict_labels(logits, image.shape[-2:]).to(image.device)
            return Segmented(clean, classes[0] if image.ndim == 3 else classes, self.class_names)
        height, width = clean.size[::-1] if hasattr(clean, "getbands") else _sides(clean)
        return Segmented(clean, predict_labels(logits, (height, width))[0].numpy(), self.class_names)

    def _forward(self, noisy: Tensor, level: Tensor | None) -> Any:
        if self._said is None:
            return super()._forward(noisy, level)
        module: Any = self._module
        last: Any = None
        for last in module.stages(noisy) if level is None else module.stages(noisy, level):  # noqa: B007
            pass  # one at a time, so that earlier ones are freed
        self._said.append(last.logits.float().cpu())
        return last.image


def _sides(picture: Any) -> tuple[int, int]:
    """Height and width of an array or an ``image_io.Image``."""
    shape = picture.shape if hasattr(picture, "shape") else picture.pixels.shape
    return shape[0], shape[1]
