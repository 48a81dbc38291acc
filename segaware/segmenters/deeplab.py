"""DeepLabV3+ (Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", ECCV 2018) on any backbone of :mod:`segaware.segmenters.backbones`.

Another decoder than :class:`~segaware.segmenters.fpn.FPNSegmenter`'s on the same features: a judge
should not look at a picture as the network does that helped to train the denoiser.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segaware.checks import check_images
from segaware.errors import InputError
from segaware.layers.sizes import crop, multiple_of, pad_edges, resize
from segaware.pretrained import Pretrained
from segaware.segmenters.backbones import build_backbone, check_classes, check_triple, load_library

__all__ = ["DeepLabSegmenter"]

LOW_LEVEL = 48  # channels kept of the finest level (paper sec. 4.1)


class DeepLabSegmenter(nn.Module, Pretrained):
    """Atrous pyramid on the coarsest level, joined with the finest, two convolutions to K logits.

    Args:
        num_classes: K, at least 2.
        backbone: ``"resnet18"`` .. ``"resnet152"`` (coarsest stride 32: no dilation is put into them),
            ``"squeezenet1_0"`` (16), ``"timm:NAME"`` or ``"smp:NAME"``.
        weights: of the backbone: None = random; a safetensors or torch file with the library's key
            names; ``"imagenet"`` = let the library fetch them. Only the last may download.
        width: channels of the pyramid and of the decoder (paper: 256).
        rates: dilations of the pyramid's 3 x 3 convolutions (paper: 6, 12, 18 at stride 16).
        dropout: behind the pyramid, in training.
        mean, std: normalisation of the input inside; None = what the backbone was made for.
        class_names: K names, or None.

    Shape: ``(B, 3, H, W)`` in [0, 1], any H, W from 1 x 1 -> logits ``(B, K, ceil(H/4), ceil(W/4))``,
        not upsampled. Training needs at least 2 images a batch (batch normalisation of the image
        level of the pyramid).

    Raises:
        InputError: an argument or image that does not fit.
        ModelError, WeightsError: see :func:`segaware.segmenters.backbones.build_backbone`.

    Source: paper sec. 3 and 4.1; the pyramid is torchvision's ``ASPP``. The decoder's convolutions are
        separable as in the paper's best model; its backbone (Xception) is replaced by yours.
    """

    stride = 4
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int = 21,
        backbone: str = "squeezenet1_0",
        weights: str | os.PathLike[str] | None = None,
        width: int = 128,
        *,
        rates: Sequence[int] = (6, 12, 18),
        dropout: float = 0.1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        names = check_classes(num_classes, class_names, "DeepLabSegmenter")
        if width < 1 or not rates or min(rates) < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"DeepLabSegmenter: width {width}, rates {tuple(rates)}, dropout {dropout};"
                " need width and rates of at least 1, dropout in [0, 1)"
            )
        self.backbone = build_backbone(backbone, weights)
        mean = check_triple(self.backbone.mean if mean is None else mean, "mean")
        std = check_triple(self.backbone.std if std is None else std, "std")
        self.num_classes = num_classes
        self.class_names = names
        # no weights here: a saved model carries its own
        self.config = {
            "num_classes": num_classes, "backbone": backbone, "width": width, "rates": list(rates),
            "dropout": dropout, "mean": list(mean), "std": list(std),
            "class_names": None if names is None else list(names),
        }  # fmt: skip
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)

        deeplab = load_library("torchvision.models.segmentation.deeplabv3")
        finest, coarsest = self.backbone.channels[0], self.backbone.channels[-1]
        # SqueezeNet has no batch normalisation: its features reach the hundreds
        self.norm = nn.BatchNorm2d(coarsest)
        self.pyramid = deeplab.ASPP(coarsest, list(rates), width)
        self.pyramid.project[-1].p = dropout  # torchvision's 0.5 is for long trainings of large networks
        self.low = nn.Sequential(nn.Conv2d(finest, LOW_LEVEL, 1, bias=False), nn.BatchNorm2d(LOW_LEVEL), nn.ReLU(inplace=True))
        self.decoder = nn.Sequential(*_separable(width + LOW_LEVEL, width), *_separable(width, width))
        self.classify = nn.Conv2d(width, num_classes, 1)
        for part in (self.low, self.decoder):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        nn.init.normal_(self.classify.weight, 0.0, 0.01)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def head_parameters(self) -> list[nn.Parameter]:
        """All parameters that are not the backbone's."""
        return [p for name, p in self.named_parameters() if not name.startswith("backbone.")]

    def forward(self, image: Tensor) -> Tensor:
        check_images(image, channels=3, where="DeepLabSegmenter")
        height, width = image.shape[-2:]
        x = (image - self.mean) / self.std
        x = pad_edges(x, self._padded(height), self._padded(width))
        features = self.backbone(x)
        low = self.low(features[0])
        deep = self.pyramid(self.norm(features[-1]))
        logits = self.classify(self.decoder(torch.cat([resize(deep, low), low], dim=1)))
        return crop(logits, (height + 3) // 4, (width + 3) // 4)

    def _padded(self, side: int) -> int:
        return multiple_of(side, self.backbone.size_multiple, self.backbone.min_size)


def _separable(channels: int, width: int) -> list[nn.Module]:
    """3 x 3 per channel, then 1 x 1 across, each with batch normalisation and ReLU."""
    return [
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
