"""What a cascade of segmentation and denoising is measured against: denoising in turns without
segmentation, a condition from the image itself, and one from the true labels (an oracle).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segaware.checks import check_images, no_sigma
from segaware.contracts import DenoiserInfo, Sigma
from segaware.errors import InputError, ModelError
from segaware.parts import Part, described, info_of, make
from segaware.pretrained import Pretrained

__all__ = ["DenoiserCascade", "ImageCondition", "LabelCondition"]

#: Label of pixels without a class.
IGNORE = 255


class DenoiserCascade(nn.Module, Pretrained):
    """Denoise in turns: ``image_i = D_i(image_{i-1} + y)``, the recurrence of SDABN without its segmenters.

    Args:
        denoisers: of the contract, as modules or descriptions. In the state dict they are
            ``stage1``, ``stage2``, ...

    Shape: ``(B, C, H, W)`` in [0, 1] plus noise -> same, the clean estimate, not clamped.

    Raises:
        InputError: none given, channels that differ, a sigma for a blind cascade.
        ModelError: parts that are no denoisers.

    Source: "DDFN x n" of SDABN's tables, after the boosting units of Chen et al., "Deep Boosting for
        Image Denoising". The sum is plain, as in SDABN's released code.
    """

    def __init__(self, denoisers: Sequence[Part]) -> None:
        super().__init__()
        if isinstance(denoisers, (nn.Module, Mapping)) and not isinstance(denoisers, nn.ModuleList):
            raise InputError("DenoiserCascade: give a list of denoisers, DenoiserCascade([first, second])")
        made = [make(part, f"DenoiserCascade: stage {i}") for i, part in enumerate(denoisers, start=1)]
        if not made:
            raise InputError("DenoiserCascade: no denoisers; give at least one")
        infos = [info_of(part, f"DenoiserCascade, stage {i}") for i, part in enumerate(made, start=1)]
        for i, info in enumerate(infos[1:], start=2):
            if info.channels != infos[0].channels:
                raise InputError(
                    f"DenoiserCascade: stage {i} takes {info.channels} image channels, stage 1 takes {infos[0].channels}; build both alike"
                )
        for i, part in enumerate(made, start=1):
            self.add_module(f"stage{i}", part)
        self._length = len(made)
        reach = [info.receptive_field for info in infos]
        # off-centre windows (sub-sampling) do not simply add up
        known = None not in reach and all(info.size_multiple == 1 for info in infos)
        takers = [info for info in infos if info.takes_sigma]
        self.info: DenoiserInfo = replace(
            takers[0] if takers else infos[0],
            receptive_field=sum(r - 1 for r in reach if r) + 1 if known else None,
            size_multiple=max(info.size_multiple for info in infos),
        )

    @property
    def denoisers(self) -> tuple[nn.Module, ...]:
        """The stages in order."""
        return tuple(getattr(self, f"stage{i}") for i in range(1, self._length + 1))

    @property
    def config(self) -> dict[str, Any] | None:
        """Arguments to build it again; None if a part states none."""
        parts = described({str(i): part for i, part in enumerate(self.denoisers)})
        return None if parts is None else {"denoisers": list(parts.values())}

    def __len__(self) -> int:
        return self._length

    def first(self, stages: int) -> DenoiserCascade:
        """The cascade of the first ``stages``, over the same networks; InputError beyond ``len(self)``."""
        if not 1 <= stages <= len(self):
            raise InputError(f"DenoiserCascade.first: {stages} stages of {len(self)}; give 1 to {len(self)}")
        part = DenoiserCascade(self.denoisers[:stages])
        part.info = replace(part.info, training_noise=self.info.training_noise)
        part.training = self.training  # of the new container alone: parts keep the mode they are in
        return part

    def forward(self, noisy: Tensor, sigma: Sigma | None = None) -> Tensor:
        check_images(noisy, channels=self.info.channels, where="DenoiserCascade")
        if not self.info.takes_sigma:
            no_sigma(sigma, "DenoiserCascade")
        image: Tensor | None = None
        for denoiser in self.denoisers:
            total = noisy if image is None else image + noisy
            image = denoiser(total, sigma) if sigma is not None and info_of(denoiser, "DenoiserCascade").takes_sigma else denoiser(total)
        assert image is not None
        return image


class ImageCondition(nn.Module, Pretrained):
    """A condition-taking denoiser that is given the image itself as its condition: "ImgD" of SDABN.

    Shows what the SFT layers gain by their size alone. With ``DDFN(condition_channels=3)`` it has
    113,920 parameters, 256 fewer than for 19 classes; the paper does not say how its count was kept
    equal.

    Args:
        denoiser: with ``condition_channels`` equal to its image channels, as a module or a description.

    Raises:
        InputError: another number of condition channels.
        ModelError: no denoiser, or one that takes no condition.
    """

    #: A segmenter's condition is not looked at, whatever its class count.
    condition_channels = 0

    def __init__(self, denoiser: Part) -> None:
        super().__init__()
        self.denoiser = make(denoiser, "ImageCondition: denoiser")
        self.info: DenoiserInfo = info_of(self.denoiser, "ImageCondition")
        channels = _condition_of(self.denoiser, "ImageCondition")
        if channels != self.info.channels:
            raise InputError(
                f"ImageCondition: the condition has {channels} channels, images have {self.info.channels};"
                f" build the denoiser with condition_channels={self.info.channels}"
            )

    @property
    def config(self) -> dict[str, Any] | None:
        """Arguments to build it again; None if the denoiser states none."""
        return described({"denoiser": self.denoiser})

    def forward(self, noisy: Tensor, sigma: Sigma | None = None, condition: Tensor | None = None) -> Tensor:
        return self.denoiser(noisy, sigma, condition=noisy)


class LabelCondition(nn.Module, Pretrained):
    """A condition-taking denoiser that is told the true labels, one-hot: the oracle "GtD" of SDABN.

    For studies only: where labels are known, a segmenter that is trained on its output reads them
    off the image. A pixel without a class (255) is told zeros; the paper does not say.

    Args:
        denoiser: with ``condition_channels`` = the number of classes, as a module or a description.

    Shape: ``(B, C, H, W)`` and integer labels ``(B, h, w)`` -> the clean estimate ``(B, C, H, W)``.

    Raises:
        InputError: no labels, or labels that are no class.
        ModelError: no denoiser, or one that takes no condition.
    """

    def __init__(self, denoiser: Part) -> None:
        super().__init__()
        self.denoiser = make(denoiser, "LabelCondition: denoiser")
        self.info: DenoiserInfo = replace(info_of(self.denoiser, "LabelCondition"), receptive_field=None)
        self.num_classes = _condition_of(self.denoiser, "LabelCondition")

    @property
    def config(self) -> dict[str, Any] | None:
        """Arguments to build it again; None if the denoiser states none."""
        return described({"denoiser": self.denoiser})

    def forward(self, noisy: Tensor, sigma: Sigma | None = None, *, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            raise InputError("LabelCondition: an oracle needs the true labels; pass labels=(B, H, W), or use a model that segments itself")
        return self.denoiser(noisy, sigma, condition=self.told(labels).to(noisy))

    def told(self, labels: Tensor) -> Tensor:
        """One-hot ``(B, K, h, w)`` float32 of labels ``(B, h, w)``; zeros where they are 255."""
        if labels.ndim != 3 or labels.is_floating_point():
            raise InputError(f"LabelCondition: labels {tuple(labels.shape)} of {labels.dtype}; give integers (B, H, W)")
        labels, known = labels.long(), labels != IGNORE
        if bool((known & ((labels < 0) | (labels >= self.num_classes))).any()):
            bad = labels[known & ((labels < 0) | (labels >= self.num_classes))]
            raise InputError(
                f"LabelCondition: labels hold {int(bad[0])}, but there are {self.num_classes} classes (0-{self.num_classes - 1});"
                f" map what has no class to {IGNORE}"
            )
        hot = F.one_hot(labels.where(known, 0), self.num_classes) * known[..., None]
        return hot.permute(0, 3, 1, 2).float()


def _condition_of(denoiser: nn.Module, where: str) -> int:
    channels = getattr(denoiser, "condition_channels", None)
    if not isinstance(channels, int) or channels < 1:
        raise ModelError(f"{where}: {type(denoiser).__name__} takes no condition; give one that does, DDFN(condition_channels=...)")
    return channels
