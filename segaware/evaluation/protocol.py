"""What is measured, with which noise: plain data, JSON-able, and the only source of randomness.

Noise is a function of (seed, image name, draw) alone, so every denoiser sees the same pixels, and
neither the order of the images nor batches, tiles or an interrupt change them. The unit noise does
not depend on the level either: sigma 15 and sigma 50 are the same draw, scaled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from segaware.errors import EvaluationError
from segaware.noise import add_gaussian, add_poisson, add_poisson_gaussian

__all__ = ["Noise", "Protocol", "digest", "parse_noise"]

_KINDS = ("gaussian", "poisson", "poisson-gaussian", "none")


@dataclass(frozen=True)
class Noise:
    """One noise condition.

    Args:
        kind: "gaussian", "poisson", "poisson-gaussian", or "none" (clean input: does the denoiser do harm?).
        sigma: of the Gaussian part, in 8-bit units (25 is 25/255).
        peak: photons at intensity 1, of the Poisson part.

    Raises:
        EvaluationError: a kind or level that does not exist.
    """

    kind: str = "gaussian"
    sigma: float = 0.0
    peak: float = 255.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise EvaluationError(f"noise {self.kind!r} is unknown; use one of {', '.join(_KINDS)}")
        if not 0 <= self.sigma <= 255:
            raise EvaluationError(f"noise sigma {self.sigma:g} is outside 0 to 255: it is in 8-bit units, e.g. 25")
        if "gaussian" in self.kind and 0 < self.sigma < 1:
            raise EvaluationError(
                f"noise sigma {self.sigma:g} seems to be on the [0, 1] scale; in 8-bit units it is {self.sigma * 255:g}"
            )
        if not (self.peak > 0 and math.isfinite(self.peak)):
            raise EvaluationError(f"noise peak {self.peak:g} must be positive: the photons at intensity 1, e.g. 255")
        if self.sigma and "gaussian" not in self.kind:
            raise EvaluationError(f"noise {self.kind!r} has no sigma ({self.sigma:g}); leave it out, or take 'poisson-gaussian'")

    @property
    def label(self) -> str:
        """Short and unique: ``sigma 25``, ``peak 30``, ``peak 30 + sigma 10``, ``clean``."""
        return {
            "gaussian": f"sigma {self.sigma:g}",
            "poisson": f"peak {self.peak:g}",
            "poisson-gaussian": f"peak {self.peak:g} + sigma {self.sigma:g}",
            "none": "clean",
        }[self.kind]

    def add(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """``clean (C, H, W)`` in [0, 1] with this noise, neither clipped nor rounded."""
        batch = clean[None]
        if self.kind == "gaussian":
            return add_gaussian(batch, self.sigma / 255, generator=generator)[0]
        if self.kind == "poisson":
            return add_poisson(batch, peak=self.peak, generator=generator)[0]
        if self.kind == "poisson-gaussian":
            return add_poisson_gaussian(batch, self.sigma / 255, peak=self.peak, generator=generator)[0]
        return clean

    def level(self, clean: Tensor) -> float:
        """What a denoiser that must be told is told, on the [0, 1] scale.

        For Poisson noise it is the standard deviation over the image, sqrt(mean / peak): an average,
        and one that only a test that knows the clean image can give.
        """
        variance = (self.sigma / 255) ** 2 if "gaussian" in self.kind else 0.0
        if "poisson" in self.kind:
            variance += float(clean.clamp_min(0).mean()) / self.peak
        return min(1.0, math.sqrt(variance))


def parse_noise(text: str) -> Noise:
    """``"25"``, ``"sigma 25"``, ``"peak 30"``, ``"peak 30 + sigma 10"`` or ``"clean"`` (the labels of :class:`Noise`)."""
    words = text.replace("+", " ").split()
    try:
        if words == ["clean"]:
            return Noise("none")
        if len(words) == 1:
            return Noise("gaussian", float(words[0]))
        parts = dict(zip(words[::2], map(float, words[1::2]), strict=True))
        if 2 * len(parts) < len(words):
            raise ValueError("a level given twice")
        if set(parts) == {"sigma"}:
            return Noise("gaussian", parts["sigma"])
        if set(parts) == {"peak"}:
            return Noise("poisson", peak=parts["peak"])
        if set(parts) == {"peak", "sigma"}:
            return Noise("poisson-gaussian", parts["sigma"], parts["peak"])
    except ValueError:
        pass
    raise EvaluationError(f"noise {text!r} is not understood; write '25', 'peak 30', 'peak 30 + sigma 10' or 'clean'")


@dataclass(frozen=True)
class Protocol:
    """How denoisers are compared.

    Args:
        noises: the conditions, each once.
        seed: of all noise.
        draws: independent noise draws an image; images stay the unit of every test.
        seed_by: "name": from (seed, draw, image name), so that a subset sees the same noise as the
            whole set. "index": image i of the sorted list takes a generator seeded ``seed + i``
            (draw d: ``seed + i + 1,000,000 d``), the convention of published CBSD68 figures.
        preset: convention of PSNR and SSIM: "usaid" (estimate clamped to [0, 1], nothing rounded or
            cropped), "liu" (both rounded to 8 bits, border of 3 left out), "sdabn" (nothing clipped
            or rounded, border of 1 left out).
        metrics: of the image: any of "psnr", "ssim", "niqe".
        harm: also give each denoiser the clean image, and see what it does to it.
        block: images per resampled block; above 1 for video, whose neighbouring frames are alike.
            None = what the data says (1 for photographs, 10 for CamVid's clip).
        level: of all intervals.

    Raises:
        EvaluationError: nothing to measure, or a value that does not exist.
    """

    noises: tuple[Noise, ...] = (Noise("gaussian", 25.0),)
    seed: int = 0
    draws: int = 1
    seed_by: Literal["name", "index"] = "name"
    preset: str = "usaid"
    metrics: tuple[str, ...] = ("psnr", "ssim")
    harm: bool = False
    block: int | None = None
    level: float = 0.95

    def __post_init__(self) -> None:
        object.__setattr__(self, "noises", tuple(self.noises))
        object.__setattr__(self, "metrics", tuple(self.metrics))
        if not self.conditions:
            raise EvaluationError("no noise to measure with; give at least one level, e.g. 25, or the clean input (harm)")
        _once([noise.label for noise in self.conditions], "noise")
        _once(self.metrics, "metric")
        unknown = set(self.metrics) - {"psnr", "ssim", "niqe"}
        if unknown:
            raise EvaluationError(f"metric {sorted(unknown)[0]!r} is unknown; use psnr, ssim, niqe")
        if self.preset not in ("usaid", "liu", "sdabn"):
            raise EvaluationError(f"preset {self.preset!r} is unknown; use usaid, liu or sdabn")
        if self.seed_by not in ("name", "index"):
            raise EvaluationError(f"seed_by {self.seed_by!r} is unknown; use 'name' or 'index'")
        if self.draws < 1 or (self.block is not None and self.block < 1):
            raise EvaluationError(f"draws {self.draws} and block {self.block} must be at least 1")
        if not 0.5 <= self.level < 1:
            raise EvaluationError(f"level {self.level:g} of the intervals must lie in [0.5, 1), e.g. 0.95")

    @property
    def conditions(self) -> tuple[Noise, ...]:
        """The noises, and the clean input last if harm is asked for."""
        clean = Noise("none")
        return (*self.noises, clean) if self.harm and clean not in self.noises else self.noises

    def draws_of(self, noise: Noise) -> int:
        """Clean input does not vary, so it is looked at once."""
        return 1 if noise.kind == "none" else self.draws

    def noisy(self, clean: Tensor, noise: Noise, *, name: str, index: int, draw: int = 0) -> Tensor:
        """The noisy image that every denoiser sees: ``clean (C, H, W)`` float32 on the CPU in, the same out."""
        if self.seed_by == "index":
            seed = self.seed + index + 1_000_000 * draw
        else:
            seed = int(digest("noise", self.seed, draw, name)[:15], 16)
        return noise.add(clean, torch.Generator().manual_seed(seed))

    def noise_key(self, noise: Noise, *, name: str, index: int, draw: int) -> str:
        """What makes two noisy versions of one image the same, for the cache."""
        who = index if self.seed_by == "index" else name
        return digest("noise", dataclasses.astuple(noise), self.seed, self.seed_by, who, draw)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; :meth:`from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Protocol:
        """Read :meth:`to_dict`'s record."""
        noises = tuple(Noise(**noise) for noise in record["noises"])
        return cls(**{**record, "noises": noises, "metrics": tuple(record["metrics"])})


def digest(*parts: Any) -> str:
    """A hash of values that print the same everywhere (strings, numbers, tuples of them)."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _once(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise EvaluationError(f"{what} {twice[0]!r} is given twice; name each once")
