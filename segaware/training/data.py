"""Patches and noise for training: what step s sees is a function of (seed, s) alone.

So a run that was killed goes on with the very batches it would have seen, in any number of
worker processes, and n processes with batch b share what one process with batch n * b sees. They
take turns, so that each of them meets all noise levels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from segaware import image_io
from segaware.errors import InputError, SegawareError, TrainingError
from segaware.noise import add_gaussian, add_poisson, add_poisson_gaussian
from segaware.training.recipe import Recipe

__all__ = ["Batch", "ImageFiles", "Patches", "as_float", "check_readable", "degrade", "image_files", "open_images"]

#: Decoded images are kept in memory up to this many bytes; the rest is decoded anew each time.
_CACHE_BYTES = 2 << 30


class Batch(NamedTuple):
    """One step's patches: noisy and clean ``(B, C, P, P)``, sigma ``(B,)`` on the [0, 1] scale, labels or None."""

    noisy: Tensor
    clean: Tensor
    sigma: Tensor
    labels: Tensor | None


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files below a folder, recursively, sorted by name."""
    root = Path(folder)
    if not root.is_dir():
        raise TrainingError(f"{root}: no such folder; give a folder of images")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in image_io.EXTENSIONS and p.is_file())
    if not files:
        raise TrainingError(f"{root}: no images; known endings: {', '.join(sorted(image_io.EXTENSIONS))}")
    return files


class ImageFiles(Sequence[Tensor]):
    """Image files as uint8 tensors ``(C, H, W)``, kept in memory once read.

    Args:
        files: paths, of images that all have ``channels`` (1 or 3).
        channels: gray files are repeated to 3, colour files are refused for 1.
    """

    def __init__(self, files: Sequence[str | os.PathLike[str]], channels: int = 3) -> None:
        self.files = [Path(f) for f in files]
        self.channels = channels
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.files)

    def read_all(self) -> None:
        """Read what will be kept in memory; TrainingError with all the files among it that cannot be used."""
        bad = []
        for index in range(len(self)):
            try:
                self[index]
            except SegawareError as error:
                bad.append(str(error))
                continue
            if index not in self._kept:  # no room any more: the others are read when they are drawn
                break
        if bad:
            shown = "\n".join(f"  {line}" for line in bad[:10]) + ("\n  ..." if len(bad) > 10 else "")
            raise TrainingError(f"{len(bad)} of {len(self)} training images cannot be used; take them out or repair them:\n{shown}")

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if index in self._kept:
            return self._kept[index]
        pixels = image_io.read(self.files[index], deep=False).pixels
        if pixels.shape[2] == 1 and self.channels == 3:
            pixels = np.repeat(pixels, 3, axis=2)
        if pixels.shape[2] != self.channels:
            raise TrainingError(
                f"{self.files[index]}: {pixels.shape[2]} channels, the denoiser takes {self.channels};"
                f" convert the file, or build the denoiser with channels={pixels.shape[2]}"
            )
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        if self._bytes + image.nbytes <= _CACHE_BYTES:
            self._kept[index] = image
            self._bytes += image.nbytes
        return image


def open_images(data: Any, channels: int | None) -> Any:
    """A folder, a list of files, or any sequence of tensors as a sequence of images."""
    if isinstance(data, (str, os.PathLike)):
        return ImageFiles(image_files(data), channels or 3)
    if isinstance(data, (list, tuple)) and data and all(isinstance(f, (str, os.PathLike)) for f in data):
        return ImageFiles(data, channels or 3)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or len(data) == 0:
        raise TrainingError(
            "training data: give a folder, a list of files, or a non-empty sequence of clean images (C, H, W), or (image, labels) pairs"
        )
    return data


def _generator(*numbers: int) -> torch.Generator:
    # numpy's SeedSequence mixes; plain sums of small seeds would overlap between steps
    words = np.random.SeedSequence(numbers).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


def as_float(image: Tensor) -> Tensor:
    """uint8 to [0, 1]; floats as they are."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


class Patches(Dataset[Batch]):
    """Batch s of the training, for one of ``processes``.

    Args:
        images: sequence of ``(C, H, W)`` images (uint8, or float in [0, 1]) or of ``(image,
            labels (H, W))`` pairs, or ``(image, class index)`` pairs. Sides below the patch size
            are extended by reflection (labels by 255, which losses ignore).
        recipe: batch and patch size, noise, seed.
        process, processes: which part of the batch this process takes.
    """

    def __init__(self, images: Any, recipe: Recipe, process: int = 0, processes: int = 1) -> None:
        self.images, self.recipe, self.process, self.processes = images, recipe, process, processes
        self.channels: int | None = None  # of the first image, and so of all

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> Batch:
        size = self.recipe.batch_size
        parts = [self._one(step, i * self.processes + self.process, size * self.processes) for i in range(size)]
        noisy, clean = torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])
        labels = [p[3] for p in parts if p[3] is not None]
        if 0 < len(labels) < size:
            raise InputError("training data: some images have labels and some have none; give labels with all, or with none")
        return Batch(noisy, clean, torch.tensor([p[2] for p in parts]), torch.stack(labels) if labels else None)

    def _one(self, step: int, place: int, total: int) -> tuple[Tensor, Tensor, float, Tensor | None]:
        recipe = self.recipe
        generator = _generator(recipe.seed, step, place)

        def draw(below: int) -> int:
            return int(torch.randint(below, (1,), generator=generator))

        index = draw(len(self.images))
        item = self.images[index]
        image, labels = item if isinstance(item, (tuple, list)) else (item, None)
        if not isinstance(image, Tensor) or image.ndim != 3:
            raise InputError(f"training image: expected a tensor (C, H, W), got {getattr(image, 'shape', type(image).__name__)}")
        if self.channels is None:
            first = self.images[0]
            first = first[0] if isinstance(first, (tuple, list)) and first else first
            self.channels = first.shape[0] if isinstance(first, Tensor) and first.ndim else image.shape[0]  # what is no image is told when drawn
        if image.shape[0] != self.channels:
            raise InputError(
                f"training image {index}: {image.shape[0]} channels, the first has {self.channels}; give all the same (gray: image.expand(3, -1, -1))"
            )
        labels = None if labels is None else torch.as_tensor(labels).long()
        maps = labels is not None and labels.ndim == 2
        if labels is not None and labels.ndim and labels.shape != image.shape[1:]:
            raise InputError(f"training labels: shape {tuple(labels.shape)} for an image {tuple(image.shape)}; give (H, W) or one class")
        image = _at_least(image, recipe.patch_size)
        top, left = draw(image.shape[1] - recipe.patch_size + 1), draw(image.shape[2] - recipe.patch_size + 1)
        window = (..., slice(top, top + recipe.patch_size), slice(left, left + recipe.patch_size))
        turn = draw(8) if recipe.flips else 0
        clean = _turned(as_float(image[window]), turn)
        if labels is not None and maps:
            labels = _turned(_at_least(labels, recipe.patch_size, fill=255)[window], turn)

        low, high = (level / 255 for level in recipe.sigma)
        sigma = low + (high - low) * (place + float(torch.rand((), generator=generator))) / total
        return degrade(clean[None], recipe, sigma, generator)[0], clean.contiguous(), sigma, labels


def degrade(clean: Tensor, recipe: Recipe, sigma: float, generator: torch.Generator) -> Tensor:
    """``clean`` ``(B, C, H, W)`` with the recipe's kind of noise; ``sigma`` on the [0, 1] scale."""
    if recipe.noise == "gaussian":
        return add_gaussian(clean, sigma, generator=generator)
    if recipe.noise == "poisson":
        return add_poisson(clean, peak=recipe.peak, generator=generator)
    return add_poisson_gaussian(clean, sigma, peak=recipe.peak, generator=generator)


def _at_least(image: Tensor, side: int, fill: int | None = None) -> Tensor:
    """Extend the last two axes to ``side``, by reflection or by ``fill``."""
    down, right = max(0, side - image.shape[-2]), max(0, side - image.shape[-1])
    if not down and not right:
        return image
    if fill is not None:
        return torch.nn.functional.pad(image, (0, right, 0, down), value=fill)
    widths = ((0, 0), (0, down), (0, right))
    return torch.from_numpy(np.pad(image.numpy(), widths, mode="symmetric"))  # torch reflects once only


def _turned(patch: Tensor, turn: int) -> Tensor:
    """One of the eight symmetries of the square."""
    if turn & 1:
        patch = patch.flip(-1)
    if turn & 2:
        patch = patch.flip(-2)
    return patch.transpose(-1, -2) if turn & 4 else patch


def check_readable(images: Any) -> None:
    """Read images now, so that a wrong folder or a bad file is told before the training starts, not after hours.

    Of files, those that fit into memory; of another sequence, the first.
    """
    if isinstance(images, ImageFiles):
        images.read_all()
        return
    try:
        images[0]
    except SegawareError:
        raise
    except Exception as error:
        raise TrainingError(f"training data: the first image cannot be read ({error})") from error
