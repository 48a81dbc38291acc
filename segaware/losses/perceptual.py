"""The feature term of Liu et al. ("Connecting Image Denoising and High-Level Vision Tasks via Deep
Learning", TIP 2020): squared distance of a frozen network's features, denoised against clean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from segaware.errors import InputError, ModelError, closest
from segaware.losses.frozen import Frozen, LossThroughNetwork, need
from segaware.losses.logits import full_precision, widen

__all__ = ["PerceptualLoss", "perceptual"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def perceptual(features: Tensor, clean_features: Tensor) -> Tensor:
    """Squared distance of two feature maps over H * W of the map: summed over channels, mean over the batch.

    Args:
        features: of the denoised image, ``(B, C, h, w)``.
        clean_features: of the clean image, same shape; never receives a gradient.

    Returns:
        A float32 scalar.

    Raises:
        ModelError: shapes that differ, or no feature maps.

    Source: Liu et al. 2020, L_P (their code does not have it).
    """
    if features.shape != clean_features.shape or features.ndim != 4:
        raise ModelError(
            f"perceptual: expected two feature maps (B, C, h, w), got {tuple(features.shape)} and"
            f" {tuple(clean_features.shape)}; name layers that give maps"
        )
    with full_precision(features):
        return (widen(features) - widen(clean_features.detach())).square().sum(dim=1).mean()


class PerceptualLoss(LossThroughNetwork):
    """Weighted sum of :func:`perceptual` at named layers of a frozen network.

    The network runs no further than its last named layer. It is frozen in place and hidden.

    Args:
        extractor: any module; torchvision's VGG or SqueezeNet, the encoder of a segmenter.
        layers: names as in ``extractor.named_modules()``, with equal weights, or ``{name: weight}``.
            For torchvision's VGG (without batch norm or with) the papers' names work too:
            ``"relu3_3"``, ``"conv1_2"``.
        normalize: what is done to images in [0, 1]: ``"imagenet"``, ``(mean, std)``, or None if the
            extractor normalises by itself.

    Shape: ``loss(denoised, clean=clean)``, both ``(B, 3, H, W)`` -> float32 scalar.

    Raises:
        InputError: no ``clean``, no layers, an unknown layer.
        ModelError: a layer that did not run or gives no feature map, or parameters that were switched on.

    Example:
        >>> loss = PerceptualLoss(vgg16, ["relu3_3"])  # doctest: +SKIP

    Source: Liu et al. 2020 with relu3_3 of VGG-16. A layer that runs more than once counts at its
        first run.
    """

    name = "perceptual"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        extractor: nn.Module,
        layers: Sequence[str] | Mapping[str, float],
        *,
        normalize: Literal["imagenet"] | tuple[Sequence[float], Sequence[float]] | None = "imagenet",
    ) -> None:
        super().__init__()
        if not isinstance(extractor, nn.Module):
            raise ModelError(f"PerceptualLoss: expected a torch.nn.Module, got {type(extractor).__name__}; pass the network")
        if isinstance(layers, str):
            layers = [layers]
        wanted = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers, 1.0)
        if not wanted:
            raise InputError('PerceptualLoss: no layers; name at least one, e.g. ["relu3_3"] of a VGG')
        self.layers = {_find(extractor, name): float(weight) for name, weight in wanted.items()}
        self.extractor = Frozen(extractor, where="PerceptualLoss")
        if isinstance(normalize, str) and normalize != "imagenet":
            raise InputError(f'PerceptualLoss: normalize={normalize!r}; say "imagenet", (mean, std) or None')
        statistics = IMAGENET if isinstance(normalize, str) else normalize
        self.normalizes = statistics is not None
        mean, std = statistics or ((0.0,), (1.0,))
        # not persistent: a loss has no checkpoint
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, denoised: Tensor, *, clean: Tensor | None = None) -> Tensor:
        clean = need(clean, "clean", where="PerceptualLoss")
        with torch.no_grad():
            targets = self._features(clean)
        found = self._features(denoised)
        terms = [weight * perceptual(found[name], targets[name]) for name, weight in self.layers.items()]
        return torch.stack(terms).sum()

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        if self.normalizes:
            images = (images - self.mean.to(images)) / self.std.to(images)
        modules = dict(self.extractor.network().named_modules())
        found: dict[str, Tensor] = {}

        def keep(name: str) -> object:
            def hook(_module: nn.Module, _inputs: object, output: object) -> None:
                if name in found:
                    return
                if not isinstance(output, Tensor):
                    raise ModelError(f"PerceptualLoss: layer {name!r} gives {type(output).__name__}, not a feature map")
                last = len(found) + 1 == len(self.layers)
                # what follows may write into it (ReLU in place), unless nothing follows
                found[name] = output if last else output.clone()
                if last:
                    raise _Enough

            return hook

        handles = [modules[name].register_forward_hook(keep(name)) for name in self.layers]  # type: ignore[arg-type]
        try:
            self.extractor(images)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if missing := [name for name in self.layers if name not in found]:
            raise ModelError(f"PerceptualLoss: the extractor's forward does not run {', '.join(missing)}; name layers that it runs")
        return found


class _Enough(Exception):
    """All named layers have run; the rest of the network need not."""


def _find(extractor: nn.Module, name: str) -> str:
    """The module's name, where ``relu3_3`` may stand for ``features.15`` of a VGG."""
    known = dict(extractor.named_modules())
    if name in known and name:
        return name
    match = re.fullmatch(r"(conv|relu)(\d+)_(\d+)", name)
    features = getattr(extractor, "features", None)
    if match and isinstance(features, nn.Sequential):
        block, place = 1, 0
        for index, module in enumerate(features):
            if isinstance(module, nn.MaxPool2d):
                block, place = block + 1, 0
            place += isinstance(module, nn.Conv2d)
            kind = {nn.Conv2d: "conv", nn.ReLU: "relu"}.get(type(module))
            if (kind, str(block), str(place)) == match.groups():
                return f"features.{index}"
    raise InputError(f"PerceptualLoss: the extractor has no layer {name!r}; {closest(name, (k for k in known if k))}")
