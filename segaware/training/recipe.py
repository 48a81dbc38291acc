"""How a training goes, as data: one frozen dataclass, saved beside every checkpoint."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from segaware.errors import TrainingError, closest

__all__ = ["Recipe"]

_CHOICES = {
    "noise": ("gaussian", "poisson", "poisson-gaussian"),
    "optimizer": ("adam", "adamw", "muon"),
    "schedule": ("cosine", "multistep", "trapezoid", "constant"),
    "precision": ("auto", "bf16", "fp16", "float32"),
}


#: Fields that a resumed run may change: they decide when things are written, not what.
_FREE = ("log_every", "validate_every", "checkpoint_every", "checkpoint_seconds", "validation_sigmas", "validation_crop", "workers")


@dataclass(frozen=True)
class Recipe:
    """Everything of a training but the network, the loss and the images.

    Noise levels are in 8-bit units here, as people write them down.

    Args:
        steps: optimiser steps in all.
        batch_size: patches per step and process.
        patch_size: side of the square patches, in pixels.
        noise: ``"gaussian"``, ``"poisson"`` or ``"poisson-gaussian"``.
        sigma: lowest and highest noise level; each image of a batch draws its own. Batches are
            stratified: image i of n draws from the i-th n-th of the range (the images are drawn
            at random), so that all batches are about equally hard.
        peak: photons at intensity 1, for the Poisson kinds.
        optimizer: ``"adam"``, ``"adamw"`` or ``"muon"`` (:mod:`segaware.training.muon`).
        learning_rate: of Adam; with muon, of what is no inner matrix.
        matrix_learning_rate: of muon's matrices; None = twice ``learning_rate``.
        weight_decay: of adam (coupled), adamw and muon's matrices (decoupled).
        schedule: ``"cosine"`` to zero, ``"multistep"`` (times ``decay`` at each milestone),
            ``"trapezoid"`` (constant, then linearly to zero over the last ``cooldown`` steps)
            or ``"constant"``.
        milestones: steps at which multistep decays.
        decay: factor of multistep.
        cooldown: steps of trapezoid's fall.
        warmup: steps over which the rate rises from zero.
        clip_norm: largest norm of the whole gradient; None = no clipping.
        ema: decay of the running average of the weights that is validated and saved; 0 = none.
        precision: ``"auto"`` = bf16 where the device computes in it, else float32.
        float32_steps: this many last steps in float32 whatever ``precision``.
        channels_last: memory format of network and images.
        fixed_norm_steps: this many last steps run batch normalisation on fixed statistics, measured
            anew before the first of them; as many as ``steps`` = never on batch statistics. What a blind
            denoiser learns from those of a batch, which tell it the noise of the other images, is
            partly lost in use.
        measure_norm: False = fix the statistics that the network comes with instead of measuring them;
            for going on with a network that was trained on fixed ones.
        renew: before the first step, set the scales of channels anew and begin dead ones, which leaves what
            the network computes (:func:`segaware.training.renew.renew`); for going on with a trained one.
        flips: draw one of the eight flips and quarter turns for each patch.
        seed: of patches and noise. What step s sees is a function of (seed, s) alone.
        log_every, validate_every, checkpoint_every: steps; checkpoint_seconds: also after so long.
        validation_sigmas: noise levels validated at.
        validation_crop: centre crop of validation images, in pixels.
        workers: processes that prepare batches; 0 = the training process itself.

    Raises:
        TrainingError: a value that makes no sense, with what would.
    """

    steps: int = 100_000
    batch_size: int = 16
    patch_size: int = 48
    noise: str = "gaussian"
    sigma: tuple[float, float] = (0.0, 55.0)
    peak: float = 255.0
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    matrix_learning_rate: float | None = None
    weight_decay: float = 0.0
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    cooldown: int = 0
    warmup: int = 0
    clip_norm: float | None = None
    ema: float = 0.0
    precision: str = "auto"
    float32_steps: int = 0
    channels_last: bool = True
    fixed_norm_steps: int = 0
    measure_norm: bool = True
    renew: bool = False
    flips: bool = True
    seed: int = 0
    log_every: int = 100
    validate_every: int = 2000
    checkpoint_every: int = 5000
    checkpoint_seconds: float = 180.0
    validation_sigmas: tuple[float, ...] = (15.0, 25.0, 50.0)
    validation_crop: int = 256
    workers: int = 0

    def __post_init__(self) -> None:
        for field in ("sigma", "milestones", "validation_sigmas"):  # lists, when they come from JSON
            value = getattr(self, field)
            if not isinstance(value, (tuple, list)):
                raise TrainingError(f"recipe: {field} {value!r} must be a tuple, e.g. ({value!r}, {value!r})")
            object.__setattr__(self, field, tuple(value))
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                raise TrainingError(f"recipe: {field} {getattr(self, field)!r}; {closest(str(getattr(self, field)), known)}")
        for field in ("steps", "batch_size", "patch_size", "log_every", "validate_every", "checkpoint_every", "validation_crop"):
            self._whole(field, 1)
        for field in ("cooldown", "warmup", "float32_steps", "fixed_norm_steps", "workers", "seed"):
            self._whole(field, 0)
        if not 0 <= self.weight_decay < math.inf:
            raise TrainingError(f"recipe: weight_decay {self.weight_decay:g} must be zero or positive")
        if len(self.sigma) != 2 or not 0 <= self.sigma[0] <= self.sigma[1] <= 255:
            raise TrainingError(f"recipe: sigma {self.sigma} must be (lowest, highest) in 8-bit units, within 0 and 255")
        for field in ("sigma", "validation_sigmas"):
            levels = getattr(self, field)
            if not all(0 <= level <= 255 for level in levels):
                raise TrainingError(f"recipe: {field} {levels} must lie within 0 and 255, the 8-bit scale")
            if levels and 0 < max(levels) <= 1:
                raise TrainingError(f"recipe: {field} {levels} looks like the [0, 1] scale; recipes are in 8-bit units, times 255")
        for field in ("learning_rate", "matrix_learning_rate", "peak", "decay"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise TrainingError(f"recipe: {field} {value:g} must be positive")
        if not 0 <= self.ema < 1:
            raise TrainingError(f"recipe: ema {self.ema:g} must be in [0, 1), e.g. 0.999; 0 = none")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise TrainingError(f"recipe: clip_norm {self.clip_norm:g} must be positive, or None for no clipping")

    def _whole(self, field: str, least: int) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise TrainingError(f"recipe: {field} {value!r} must be a whole number, at least {least}")

    def rate(self, step: int) -> float:
        """The factor of the learning rate at ``step`` (0 is the first)."""
        factor = 1.0
        if self.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        elif self.schedule == "multistep":
            factor = self.decay ** sum(step >= milestone for milestone in self.milestones)
        elif self.schedule == "trapezoid" and self.cooldown:
            factor = min(1.0, (self.steps - step) / self.cooldown)
        return factor * min(1.0, (step + 1) / self.warmup) if self.warmup else factor

    def changes(self, saved: dict[str, Any], step: int) -> dict[str, tuple[Any, Any]]:
        """Fields, with both values, in which this recipe would not go on at ``step`` as ``saved`` began."""
        now, free = self.to_dict(), set(_FREE)
        if self.schedule == saved.get("schedule") == "trapezoid":
            # up to its fall the rate is constant, so until then the end is still open; and so with
            # what is kept for the last steps, unless it is for all of them
            both = (now, now | saved)
            fall = [step <= r["steps"] - r["cooldown"] for r in both]
            lasts = ("float32_steps", "fixed_norm_steps")
            open_end = [
                all(r[name] >= r["steps"] for r in both) or all(step <= r["steps"] - r[name] for r in both) for name in lasts
            ]
            if all(fall + open_end):
                free |= {"steps", "cooldown", *lasts}
        return {k: (saved[k], now[k]) for k in now if k not in free and k in saved and saved[k] != now[k]}

    def noise_words(self, told: bool) -> str:
        """The noise of the training, for people; ``told``: the denoiser is given the level."""
        low, high = self.sigma
        gaussian = f"additive Gaussian noise, sigma {low:g}{f'-{high:g}' * (high > low)} of 255, {'told' if told else 'blind'}"
        poisson = f"Poisson noise, peak {self.peak:g}"
        return {"gaussian": gaussian, "poisson": poisson, "poisson-gaussian": f"{poisson}, and {gaussian}"}[self.noise]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The reverse; unknown keys are refused with the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise TrainingError(f"recipe: unknown field {key!r}; {closest(key, known)}")
        return cls(**values)
