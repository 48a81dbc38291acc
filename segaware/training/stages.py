"""How each network of a cascade is trained, as data: recipes, and what a step sees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from segaware.errors import TrainingError, closest
from segaware.noise import add_gaussian, add_poisson

__all__ = ["IGNORE", "RECIPES", "Crops", "StageRecipe"]

_CHOICES = {
    "optimizer": ("sgd", "adam", "muon"),
    "noise": ("gaussian", "poisson"),
    "symmetry": ("none", "mirror", "all"),
    "precision": ("float32", "bf16"),
}
IGNORE = 255
CITYSCAPES_WEIGHTS = (
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843, 1.1116, 0.9037,
    1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip


@dataclass(frozen=True)
class StageRecipe:
    """Everything of one stage but the networks and the images.

    Args:
        steps, batch_size: optimiser steps, images a step.
        crop: height and width of what a step sees.
        optimizer: ``"sgd"`` (with ``momentum``), ``"adam"``, or ``"muon"`` (:mod:`segaware.training.muon`;
            its matrices at twice the rate).
        learning_rate, final_rate, power: the rate of step t is
            ``(learning_rate - final_rate) * (1 - t / steps) ** power + final_rate``.
        weight_decay: L2 in the gradient, of all parameters; with ``"muon"`` of matrices alone, beside the gradient.
        scales: lowest and highest factor by which images are resized before the crop, drawn
            log-uniformly. Noise comes after it, so that its level is that of the network's input.
        symmetry: ``"none"``, ``"mirror"`` (left-right) or ``"all"`` (mirrors and quarter turns; square crops).
        colours: brightness, contrast and saturation of the clean crop are each multiplied by a factor
            drawn from 1 - ``colours`` to 1 + ``colours``, before the noise.
        class_weights: of the cross-entropy, one a class; ``"frequency"`` = 1 / sqrt of each class's
            share of the training labels, mean 1; None = all alike.
        noise, sigma, peak: ``"gaussian"`` of level ``sigma`` (8-bit units), or ``"poisson"`` with
            ``peak`` photons at intensity 1.
        ema: decay of the average of the weights that is kept; 0 = the last weights.
        clip_norm: largest norm of the gradient, or None.
        precision: ``"float32"``, or ``"bf16"`` autocast.
        seed: what step s of a stage sees is a function of (seed, stage, s).
        workers: processes that prepare batches.
        log_every, checkpoint_seconds: when things are written.

    Raises:
        TrainingError: a value that makes no sense, with what would.
    """

    steps: int
    batch_size: int
    crop: tuple[int, int]
    optimizer: str
    learning_rate: float
    final_rate: float = 0.0
    power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 0.0
    scales: tuple[float, float] = (1.0, 1.0)
    symmetry: str = "mirror"
    colours: float = 0.0
    class_weights: tuple[float, ...] | str | None = None
    noise: str = "gaussian"
    sigma: float = 50.0
    peak: float = 255.0
    ema: float = 0.0
    clip_norm: float | None = None
    precision: str = "float32"
    seed: int = 0
    workers: int = 0
    log_every: int = 100
    checkpoint_seconds: float = 180.0

    def __post_init__(self) -> None:
        for field in ("crop", "scales", "class_weights"):  # lists, when they come from JSON
            if isinstance(getattr(self, field), list):
                object.__setattr__(self, field, tuple(getattr(self, field)))
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                raise TrainingError(f"recipe: {field} {getattr(self, field)!r}; {closest(str(getattr(self, field)), known)}")
        if min(self.steps, self.batch_size, self.log_every, *self.crop) < 1 or len(self.crop) != 2:
            raise TrainingError(f"recipe: steps {self.steps}, batch_size {self.batch_size}, crop {self.crop}; need at least 1 each")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.final_rate <= self.learning_rate:
            raise TrainingError(f"recipe: learning_rate {self.learning_rate:g}, final_rate {self.final_rate:g}; need 0 <= final <= first")
        whole = [name for name in ("steps", "batch_size", "log_every", "seed", "workers") if not isinstance(getattr(self, name), int)]
        if whole:
            raise TrainingError(f"recipe: {whole[0]} {getattr(self, whole[0])!r} must be a whole number, e.g. 1000 (not 1e3)")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise TrainingError(f"recipe: clip_norm {self.clip_norm:g} must be over 0; None = no limit")
        if not 0 <= self.weight_decay < math.inf or not 0 <= self.momentum < 1 or not 0 < self.peak < math.inf:
            raise TrainingError(
                f"recipe: weight_decay {self.weight_decay:g}, momentum {self.momentum:g}, peak {self.peak:g}; need at least 0, in [0, 1), over 0"
            )
        if not 0 < self.scales[0] <= self.scales[1]:
            raise TrainingError(f"recipe: scales {self.scales} must be (lowest, highest), over 0")
        if not 0 <= self.colours < 1:
            raise TrainingError(f"recipe: colours {self.colours:g} must be in [0, 1), e.g. 0.3; 0 = as they are")
        if self.symmetry == "all" and self.crop[0] != self.crop[1]:
            raise TrainingError(f'recipe: quarter turns need a square crop, not {self.crop}; use symmetry "mirror"')
        if isinstance(self.class_weights, str) and self.class_weights != "frequency":
            raise TrainingError(f'recipe: class_weights {self.class_weights!r}; give one a class, "frequency" or None')
        if not 1 < self.sigma <= 255 and self.sigma != 0:
            raise TrainingError(f"recipe: sigma {self.sigma:g} is not in 8-bit units (0, or over 1 to 255); times 255")
        if not 0 <= self.ema < 1:
            raise TrainingError(f"recipe: ema {self.ema:g} must be in [0, 1), e.g. 0.999; 0 = none")

    def rate(self, step: int) -> float:
        """The learning rate at ``step`` (0 is the first)."""
        return (self.learning_rate - self.final_rate) * (1 - step / self.steps) ** self.power + self.final_rate

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def change(self, **values: Any) -> StageRecipe:
        """The same with other values; unknown names are refused with the nearest known one."""
        known = [f.name for f in dataclasses.fields(self)]
        for key in values:
            if key not in known:
                raise TrainingError(f"recipe: unknown field {key!r}; {closest(key, known)}")
        return dataclasses.replace(self, **values)


_D: dict[str, Any] = {
    "optimizer": "adam", "learning_rate": 1e-3, "final_rate": 1e-4, "power": 1.5, "weight_decay": 1e-4, "symmetry": "all",
}  # fmt: skip
_S: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.03, "power": 0.9, "momentum": 0.9, "weight_decay": 5e-4}

#: By data set: what the segmenters and what the denoisers are trained with. The first two are the
#: release's but for this: batch statistics were of each of four GPUs; scales were drawn in steps of 0.1,
#: evenly (2.1 and 1.1 among them), not log-uniformly; OutdoorSeg's images were squashed to 960 x 960
#: before they were scaled; images below a denoiser's crop were stretched, not extended. The third is
#: ours, after them.
RECIPES: dict[str, dict[str, StageRecipe]] = {
    "cityscapes": {
        "segmenter": StageRecipe(35_816, 40, (512, 1024), scales=(0.5, 2.1), class_weights=CITYSCAPES_WEIGHTS, **_S),
        "denoiser": StageRecipe(92_000, 64, (192, 192), **_D),
    },
    "outdoorseg": {
        "segmenter": StageRecipe(54_900, 48, (480, 480), scales=(0.5, 1.1), **{**_S, "symmetry": "all"}),
        "denoiser": StageRecipe(342_500, 64, (120, 120), **_D),
    },
    "camvid": {
        "segmenter": StageRecipe(12_000, 16, (240, 320), scales=(0.67, 2.0), colours=0.3, class_weights="frequency", **_S),
        "denoiser": StageRecipe(40_000, 32, (120, 120), **_D),
    },
}  # fmt: skip


class Crops(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """What a step of a stage sees: noisy and clean ``(B, 3, h, w)``, labels ``(B, h, w)`` with 255 = not counted.

    Args:
        frames: sequence of (uint8 image ``(3, H, W)``, uint8 labels ``(H, W)``) pairs. Images
            smaller than a window are extended: by their edge, labels by 255.
        recipe: of the stage.
        stage: a number that no other stage of the training has; noise and crops are drawn by it.
    """

    def __init__(self, frames: Sequence[tuple[Tensor, Tensor]], recipe: StageRecipe, stage: int) -> None:
        self.frames, self.recipe, self.stage = frames, recipe, stage

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        parts = [self._one(step, place) for place in range(self.recipe.batch_size)]
        noisy, clean, labels = (torch.stack(list(part)) for part in zip(*parts, strict=True))
        return noisy, clean, labels

    def _one(self, step: int, place: int) -> tuple[Tensor, Tensor, Tensor]:
        recipe = self.recipe
        # numpy's SeedSequence mixes; plain sums of small seeds would overlap
        word = np.random.SeedSequence((recipe.seed, self.stage, step, place)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(word >> np.uint64(1)))

        def draw(below: int) -> int:
            return int(torch.randint(below, (1,), generator=generator))

        image, labels = self.frames[draw(len(self.frames))]
        low, high = recipe.scales
        scale = low * (high / low) ** float(torch.rand((), generator=generator))
        window = [max(1, round(side / scale)) for side in recipe.crop]
        down, right = (max(0, need - have) for need, have in zip(window, image.shape[1:], strict=True))
        if down or right:
            image = F.pad(image[None].float(), (0, right, 0, down), mode="replicate")[0].to(image.dtype)
            labels = F.pad(labels, (0, right, 0, down), value=IGNORE)
        top, left = (draw(have - need + 1) for need, have in zip(window, image.shape[1:], strict=True))
        cut = (..., slice(top, top + window[0]), slice(left, left + window[1]))
        clean, labels = image[cut].float() / 255, labels[cut]
        if window != list(recipe.crop):  # cut first: resizing whole images would cost more than the network
            clean = F.interpolate(clean[None], recipe.crop, mode="bilinear", align_corners=False, antialias=scale < 1)[0]
            labels = F.interpolate(labels[None, None].float(), recipe.crop, mode="nearest-exact")[0, 0].to(torch.uint8)
        turn = {"none": 0, "mirror": draw(2), "all": draw(8)}[recipe.symmetry]
        clean, labels = (_turned(x, turn) for x in (clean, labels))
        if recipe.colours:
            clean = _coloured(clean, *(1 + recipe.colours * (2 * torch.rand(3, generator=generator) - 1)))
        if recipe.noise == "poisson":
            noisy = add_poisson(clean[None], peak=recipe.peak, generator=generator)[0]
        else:
            noisy = add_gaussian(clean[None], recipe.sigma / 255, generator=generator)[0]
        return noisy, clean.contiguous(), labels.long()


def _coloured(image: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    image = torch.lerp(image.mean(0, keepdim=True), image, saturation)
    return (torch.lerp(image.mean(), image, contrast) * brightness).clamp_(0, 1)


def _turned(x: Tensor, turn: int) -> Tensor:
    """One of the eight symmetries of the square; 1 is left-right."""
    x = x.flip(-1) if turn & 1 else x
    x = x.flip(-2) if turn & 2 else x
    return x.transpose(-1, -2) if turn & 4 else x
