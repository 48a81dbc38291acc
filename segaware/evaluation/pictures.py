"""Pictures of chosen images, kept beside the rows, so that figures need no model either."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np
from torch import Tensor

from segaware import image_io

__all__ = ["Pictures", "folder_of", "slug"]


def slug(text: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("._") or "_"


def folder_of(image: str) -> str:
    """The folder of an image's pictures; no two images share one."""
    name = slug(image)
    return name if name == image else f"{name}-{hashlib.sha256(image.encode()).hexdigest()[:6]}"


class Pictures:
    """``FOLDER/pictures/IMAGE/CONDITION/WHO.png``, and beside it ``WHO.JUDGE.classes.png`` with class indices.

    ``IMAGE/clean.png``, ``IMAGE/labels.classes.png`` and ``IMAGE/clean.JUDGE.classes.png`` are the reference. ``WHO.key``
    says of which weights, noise and judges they are.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder) / "pictures"

    def image(self, image: str, who: str, noise: str | None = None) -> Path:
        """Where an image is, or will be."""
        return self._in(image, noise) / f"{slug(who)}.png"

    def classes(self, image: str, who: str, judge: str | None = None, noise: str | None = None) -> Path:
        """Where a map of class indices is, or will be."""
        return self._in(image, noise) / f"{slug(who)}{'.' + slug(judge) if judge else ''}.classes.png"

    def _in(self, image: str, noise: str | None) -> Path:
        folder = self.folder / folder_of(image)
        return folder if noise is None else folder / slug(noise)

    def state(self, image: str, who: str, noise: str) -> str:
        """What :meth:`note` has written; "" without it."""
        file = self._in(image, noise) / f"{slug(who)}.key"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def note(self, image: str, who: str, noise: str, state: str) -> None:
        """Remember of what the pictures are, once all of them are written."""
        (self._in(image, noise) / f"{slug(who)}.key").write_text(state, encoding="utf-8")

    @staticmethod
    def save(path: Path, image: Tensor) -> None:
        """Write ``(C, H, W)`` in [0, 1], clamped and rounded, or a map ``(H, W)`` of indices as they are."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if image.ndim == 2:
            pixels = image[:, :, None].numpy().astype(np.uint8)
        else:
            pixels = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        image_io.write(path, image_io.Image(np.ascontiguousarray(pixels)))

    @staticmethod
    def load(path: Path) -> np.ndarray | None:
        """``(H, W, 3)`` uint8, or None where there is none."""
        if not path.is_file():
            return None
        pixels = image_io.read(path).pixels
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

    @staticmethod
    def load_classes(path: Path) -> np.ndarray | None:
        """``(H, W)`` uint8 indices, or None where there is none."""
        return image_io.read(path).pixels[:, :, 0] if path.is_file() else None
