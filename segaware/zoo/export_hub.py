"""The zoo as folders to be uploaded to the Hugging Face Hub, one a model: config, weights, card, example images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from segaware import image_io
from segaware.class_maps import class_colours
from segaware.contracts import DenoiserInfo
from segaware.entries import CONFIG, WEIGHTS, load_entry, read_config, shipped_folder, shipped_names
from segaware.errors import InputError, WeightsError
from segaware.inference.engine import Engine
from segaware.metrics import psnr
from segaware.noise import add_gaussian
from segaware.zoo.card import metadata_block, model_card
from segaware.zoo.save import CARD, copy_files

__all__ = ["SIDE", "SIGMA", "export_hub"]

SIDE = 256  # of the example images at most: less than 200 kB each, noise and all
SIGMA = 25  # of 255, of the noisy example
_EXAMPLES = "images"


def export_hub(
    folder: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    *,
    owner: str | None = None,
    picture: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Write ``folder/NAME`` for each shipped model; ``hf upload OWNER/NAME folder/NAME`` takes it from there.

    Each holds ``config.json`` and ``model.safetensors`` as shipped, licence notices, ``images/before.png``
    and ``images/after.png``, and the card ``README.md`` with the Hub's block of metadata, which is written
    where there is none yet and otherwise left alone. All else is replaced.

    Args:
        names: which ones; None = all.
        owner: account on the Hub, for the card's lines of use; None = the zoo's own names in them.
        picture: clean photograph for the examples, cut to 256 x 256 in its middle; None = one that ships
            with scikit-image.

    Raises:
        WeightsError: an unknown name, or a folder that cannot be written.
        InputError: no picture, and scikit-image is not installed.
        ImageError: a picture that cannot be read.
    """
    made = []
    for name in names or shipped_names():
        source, target = shipped_folder(name), Path(folder) / name
        try:
            (target / _EXAMPLES).mkdir(parents=True, exist_ok=True)
            files = sorted(source.iterdir())
            copy_files((f for f in files if f.name in (CONFIG, WEIGHTS) or f.name.startswith(("LICENSE", "NOTICE"))), target)
            example = _example(source, target / _EXAMPLES, picture)
            card = target / CARD
            if not card.exists():
                card.write_text(_card(source, name, owner, example), encoding="utf-8")
        except OSError as error:
            raise WeightsError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
        made.append(target)
    return made


def _card(source: Path, name: str, owner: str | None, example: str) -> str:
    """The shipped card below the metadata, with the examples; one made from the config where none ships."""
    config = read_config(source)
    repo = f"{owner}/{name}" if owner else None
    shipped = source / CARD
    if shipped.is_file():
        body = shipped.read_text(encoding="utf-8")
        if repo:
            body = body.replace(f'"{name}"', f'"{repo}"')
        text = f"{metadata_block(config, name)}\n\n{body.strip()}\n"
    else:
        text = model_card(config, name, repo=repo)
    install = "" if "pip install" in text else "\n`pip install segaware`, then as above.\n"
    return f"{text}{install}\n{example}\n"


def _example(source: Path, folder: Path, picture: str | os.PathLike[str] | None) -> str:
    """Write before and after; the lines of the card that show them."""
    network: Any = load_entry(source)
    pictures = f"| before | after |\n|---|---|\n| ![before]({_EXAMPLES}/before.png) | ![after]({_EXAMPLES}/after.png) |"
    if not isinstance(getattr(network, "info", None), DenoiserInfo):
        before, origin = _photograph(picture, "camera")
        classes = _classes(network, before)
        colours = np.round(255 * class_colours(network.num_classes)).astype(np.uint8)
        _write(folder, before, colours[classes])
        names = network.class_names or tuple(map(str, range(network.num_classes)))
        seen = [f"{names[i]} `#{bytes(colours[i]).hex()}`" for i in np.unique(classes)]
        return f"{pictures}\n\n{origin}; the colours are what it sees there: {', '.join(seen)}. No picture of the kind it was trained on."
    clean, origin = _photograph(picture, "chelsea")
    levels = torch.from_numpy(clean).permute(2, 0, 1)[None].float() / 255
    noise = add_gaussian(levels, SIGMA / 255, generator=torch.Generator().manual_seed(0))
    noisy = (noise.clamp(0, 1) * 255).round().byte()[0].permute(1, 2, 0).numpy()
    engine = Engine(network, device="cpu")
    denoised = engine(noisy, SIGMA / 255 if engine.info.takes_sigma else None)
    _write(folder, noisy, denoised)
    before_db, after_db = (float(psnr(_tensor(image)[None], _tensor(clean)[None])) for image in (noisy, denoised))
    return (
        f"{pictures}\n\n{origin}; Gaussian noise of sigma {SIGMA} (of 255, clipped and rounded):"
        f" PSNR {before_db:.2f} dB before, {after_db:.2f} dB after."
    )


def _photograph(picture: str | os.PathLike[str] | None, name: str) -> tuple[np.ndarray, str]:
    """``(H, W, 3)`` uint8 of at most 256 x 256, and where it is from."""
    if picture is not None:
        pixels, origin = image_io.read(picture).pixels, "A photograph"
    else:
        try:
            from skimage import data
        except ImportError as error:
            raise InputError("export-hub: the examples need scikit-image, or a picture: pip install 'segaware[eval]', or --picture FILE") from error
        pixels = getattr(data, name)()
        origin = {"chelsea": "Chelsea the cat by Stefan van der Walt (CC0)", "camera": "Photograph by Lav Varshney (CC0)"}[name]
        if name == "camera":  # whole, at half its size
            return np.array(PILImage.fromarray(pixels).convert("RGB").reduce(2)), origin
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8:
        top_level = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
        pixels = (pixels.astype(np.float64).clip(0, top_level) * (255 / top_level)).round().astype(np.uint8)
    top, left = (max(0, (side - SIDE) // 2) for side in pixels.shape[:2])
    cut = pixels[top : top + SIDE, left : left + SIDE]
    return np.ascontiguousarray(np.broadcast_to(cut, (*cut.shape[:2], 3))), origin


def _classes(network: Any, image: np.ndarray) -> np.ndarray:
    """``(H, W)`` the class of each pixel."""
    with torch.no_grad():
        logits = network(_tensor(image)[None])
    logits = torch.nn.functional.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
    return logits[0].argmax(0).numpy()


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


def _write(folder: Path, before: np.ndarray, after: np.ndarray) -> None:
    for name, pixels in (("before", before), ("after", after)):
        PILImage.fromarray(pixels).save(folder / f"{name}.png", optimize=True)
