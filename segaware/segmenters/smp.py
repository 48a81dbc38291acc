"""A network of segmentation-models-pytorch as one of our architectures: by name, with weights that load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from segaware.errors import InputError, ModelError
from segaware.pretrained import Pretrained
from segaware.segmenters.adapters import SegmenterAdapter
from segaware.segmenters.backbones import encoder_normalisation, load_library

__all__ = ["SMPSegmenter"]

_OURS = ("encoder_name", "encoder_depth", "encoder_weights", "in_channels", "classes", "activation")


class SMPSegmenter(SegmenterAdapter, Pretrained):
    """``smp.create_model(architecture, encoder, ...)`` with normalisation, any image size, and a zoo entry.

    Trainable, unlike an adapter around a network of yours; freeze it with
    :func:`segaware.segmenters.adapters.freeze` to use it as a fixed function.

    Args:
        num_classes: K, at least 2.
        architecture: of smp: ``"Unet"``, ``"FPN"``, ``"Segformer"``, ...
        encoder: of smp, or of timm as ``"tu-NAME"``.
        depth: stages of the encoder; the coarsest has stride ``2 ** depth``.
        weights: of the encoder: None = random; a name that smp knows (``"imagenet"``) = fetched by
            smp. Only the latter may download.
        options: what else smp's constructor takes, such as ``{"decoder_channels": [96, 48, 32, 16]}``.
        mean, std: normalisation of the input inside; None = what the encoder was made for, as smp states it.
        class_names: K names, or None.

    Shape: ``(B, 3, H, W)`` in [0, 1], any H, W from 1 x 1 -> logits, as fine as the network gives them
        (full size for most).

    Raises:
        InputError: an argument or image that does not fit.
        ModelError: smp is missing, or does not build such a network.
    """

    def __init__(
        self,
        num_classes: int,
        architecture: str = "Unet",
        encoder: str = "resnet18",
        depth: int = 5,
        weights: str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        options = dict(options or {})
        taken = sorted(set(options) & set(_OURS))
        if taken:
            raise InputError(f"SMPSegmenter: options {', '.join(taken)}: set by arguments of their own; take them out")
        network = _build(architecture, encoder, depth, weights, num_classes, options)
        if mean is None or std is None:
            stated = encoder_normalisation(encoder, weights)
            mean, std = stated[0] if mean is None else mean, stated[1] if std is None else std
        super().__init__(
            network, num_classes, mean=mean, std=std, class_names=class_names, trainable=True,
        )  # fmt: skip
        # no weights here: a saved model carries its own
        self.config = {
            "num_classes": num_classes, "architecture": architecture, "encoder": encoder, "depth": depth,
            "options": options, "mean": list(mean), "std": list(std),
            "class_names": None if class_names is None else list(class_names),
        }  # fmt: skip

    @property
    def backbone(self) -> nn.Module:
        """smp's encoder."""
        encoder: Any = self.model.encoder
        found: nn.Module = encoder
        return found

    def head_parameters(self) -> list[nn.Parameter]:
        """All parameters that are not the encoder's."""
        return [p for name, p in self.named_parameters() if not name.startswith("model.encoder.")]

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image)


def _build(architecture: str, encoder: str, depth: int, weights: str | None, classes: int, options: dict[str, Any]) -> nn.Module:
    smp = load_library("segmentation_models_pytorch")
    try:
        model: nn.Module = smp.create_model(
            architecture, encoder_name=encoder, encoder_weights=weights, in_channels=3, classes=classes,
            encoder_depth=depth, **options,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"SMPSegmenter: smp does not build {architecture} on {encoder} of depth {depth} with {options}: {reason[:300]}"
        ) from error
    return model
