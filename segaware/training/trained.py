"""What a finished training leaves: the denoiser as an entry, with what it knows now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segaware.errors import TrainingError, WeightsError
from segaware.training.recipe import Recipe
from segaware.wrapper import SegAwareWrapper

__all__ = ["write_trained"]


def write_trained(folder: Path, wrapper: SegAwareWrapper, recipe: Recipe, images: int, psnr: dict[str, float]) -> None:
    """Write the denoiser inside ``wrapper``, trained by ``recipe`` on so many images."""
    record = _known(wrapper, recipe, images) | {"recipe": recipe.to_dict(), "validation_psnr": psnr}
    try:
        wrapper.save_pretrained(folder, config=record)
    except WeightsError as error:
        raise TrainingError(f"{error}; the last checkpoint is complete") from error


def _known(wrapper: SegAwareWrapper, recipe: Recipe, images: int) -> dict[str, Any]:
    """Noise and data; of what its start was loaded with, only the data stays true."""
    known: dict[str, Any] = {"training_noise": recipe.noise_words(told=wrapper.takes_sigma)}
    before = getattr(wrapper.denoiser, "provenance", {}).get("training_data")
    if before:
        data = before if isinstance(before, dict) else {"name": before}
        known["training_data"] = {**data, "name": f"{images} further images; before: {data.get('name', 'not stated')}"}
    return known
