"""The segmenter of U-SAID (Wang et al., "Segmentation-Aware Image Denoising without Knowing True
Segmentation", IJCNN 2020): a feature pyramid network (Lin et al., CVPR 2017) on an ImageNet backbone.

With a random, frozen head it is the paper's USA module. With ``head="trained"`` it is a small
segmenter to be trained, and the network behind the weights ``fpn-camvid``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.checks import check_images
from segaware.errors import InputError
from segaware.layers.sizes import crop, multiple_of, pad_edges, resize
from segaware.pretrained import Pretrained
from segaware.segmenters.backbones import build_backbone, check_classes, check_triple

__all__ = ["FPNSegmenter"]


class _Affine(nn.Module):
    """The released smoothing: 3 x 3, then 3 x 3 to half the width; nothing in between or after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1)
        self.b = nn.Conv2d(width, width // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class _Normed(nn.Module):
    """The same two convolutions, each with batch normalisation (in place of its bias) and ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_a = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width // 2, 3, padding=1, bias=False)
        self.norm_b = nn.BatchNorm2d(width // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.a(x)), inplace=True)
        return F.relu(self.norm_b(self.b(x)), inplace=True)


class FPNSegmenter(nn.Module, Pretrained):
    """Feature pyramid on a backbone's levels, merged at stride 4, one 3 x 3 convolution to K logits.

    A 1 x 1 convolution brings each level to ``width`` channels; from the coarsest down, each sum is
    resized (bilinear, to the exact size) and added to the next level; two 3 x 3 convolutions per
    level give ``width // 2`` channels; all levels are resized to the finest and concatenated.

    ========== =========================================== ==================================================
    ``head``   what it is                                  initialisation
    ========== =========================================== ==================================================
    released   affine in the features, as released:        weights N(0, 0.01), biases 0: the softmax is nearly
               no normalisation, no activation             uniform, and random weights are the point
    trained    batch normalisation after each lateral,     Kaiming normal; classifier N(0, 0.01)
               and with ReLU after each smoothing
               convolution: for training a real segmenter
    ========== =========================================== ==================================================

    The released head has 4,524,544 + 4,609 K parameters at width 256 on a bottleneck ResNet
    (K = 21: 4,621,333). Do not train it together with a denoiser on an entropy loss: a large bias for
    one class makes the entropy zero and no gradient is left for the denoiser. The losses of
    :mod:`segaware.losses` freeze it.

    Args:
        num_classes: K, at least 2.
        backbone: ``"resnet18"`` .. ``"resnet152"`` (levels at strides 4, 8, 16, 32),
            ``"squeezenet1_0"`` (4, 8, 16), ``"timm:NAME"`` or ``"smp:NAME"``.
        weights: of the backbone: None = random; a safetensors or torch file with the library's key
            names; ``"imagenet"`` = let the library fetch them. Only the last may download.
        width: channels of the pyramid, even.
        head: ``"released"`` or ``"trained"``.
        mean, std: normalisation of the input inside; None = what the backbone was made for
            (ImageNet's with the exception of some timm networks).
        class_names: K names, or None.

    Shape: ``(B, 3, H, W)`` in [0, 1], any H, W from 1 x 1 -> logits ``(B, K, ceil(H/4), ceil(W/4))``,
        not upsampled. ResNets take every size as it is; others are padded (edges repeated) to a
        multiple of 4 or 16, so 48 x 48 patches are never padded unless the network is coarser.

    Raises:
        InputError: an argument or image that does not fit.
        ModelError, WeightsError: see :func:`segaware.segmenters.backbones.build_backbone`.

    Source: paper sec. III-A; order of levels, sizes and initialisation as released. The release
        subtracts Caffe's mean and divides by nothing; ``mean=(0.48109378, 0.45752458, 0.40787054),
        std=(1, 1, 1)`` does so too.
    """

    stride = 4
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int = 21,
        backbone: str = "resnet101",
        weights: str | os.PathLike[str] | None = None,
        width: int = 256,
        *,
        head: str = "released",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        names = check_classes(num_classes, class_names, "FPNSegmenter")
        if width < 2 or width % 2:
            raise InputError(f"FPNSegmenter: width {width}; need an even number of channels")
        if head not in ("released", "trained"):
            raise InputError(f"FPNSegmenter: head {head!r}; choose 'released' or 'trained'")
        self.backbone = build_backbone(backbone, weights)
        mean = check_triple(self.backbone.mean if mean is None else mean, "mean")
        std = check_triple(self.backbone.std if std is None else std, "std")
        self.num_classes = num_classes
        self.class_names = names
        # no weights here: a saved model carries its own
        self.config = {
            "num_classes": num_classes,
            "backbone": backbone,
            "width": width,
            "head": head,
            "mean": list(mean),
            "std": list(std),
            "class_names": None if names is None else list(names),
        }
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)

        trained = head == "trained"
        levels = self.backbone.channels  # finest first, and so are the lists below
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1, bias=not trained) for c in levels)
        # backbones differ in the scale of their levels by orders of magnitude
        self.lateral_norm = nn.ModuleList(nn.BatchNorm2d(width) if trained else nn.Identity() for _ in levels)
        self.smooth = nn.ModuleList((_Normed if trained else _Affine)(width) for _ in levels)
        self.classify = nn.Conv2d(len(levels) * (width // 2), num_classes, 3, padding=1)
        self._init_head(trained)

    def _init_head(self, trained: bool) -> None:
        for module in (*self.lateral.modules(), *self.smooth.modules(), self.classify):
            if isinstance(module, nn.Conv2d):
                if trained and module is not self.classify:
                    nn.init.kaiming_normal_(module.weight)
                else:
                    nn.init.normal_(module.weight, 0.0, 0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def head_parameters(self) -> list[nn.Parameter]:
        """All parameters that are not the backbone's."""
        return [p for name, p in self.named_parameters() if not name.startswith("backbone.")]

    def forward(self, image: Tensor) -> Tensor:
        check_images(image, channels=3, where="FPNSegmenter")
        height, width = image.shape[-2:]
        x = (image - self.mean) / self.std
        x = pad_edges(x, self._padded(height), self._padded(width))

        features = self.backbone(x)
        merged: Tensor | None = None
        pyramid: list[Tensor] = []  # coarsest first, as released: P5, P4, P3, P2
        for feature, lateral, norm, smooth in reversed(
            list(zip(features, self.lateral, self.lateral_norm, self.smooth, strict=True))
        ):
            level = norm(lateral(feature))
            merged = level if merged is None else level + resize(merged, level)
            pyramid.append(smooth(merged))
        finest = pyramid.pop()
        # to the exact size: doubling would turn the 2 x 2 of a 48 x 48 patch into 4, not 3
        logits = self.classify(torch.cat([*(resize(p, finest) for p in pyramid), finest], dim=1))
        return crop(logits, (height + 3) // 4, (width + 3) // 4)

    def _padded(self, side: int) -> int:
        return multiple_of(side, self.backbone.size_multiple, self.backbone.min_size)
