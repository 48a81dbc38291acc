"""What happens behind the page: read, add noise, denoise, let a segmenter look, write the result. No Gradio here."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segaware import image_io
from segaware.demo.maps import View, view
from segaware.errors import ImageError, InputError
from segaware.evaluation.judges import Judge
from segaware.inference.engine import Engine
from segaware.inference.noise_level import estimate_picture
from segaware.inference.pictures import Depth

__all__ = ["LARGEST", "SEGMENTED", "Comparison", "compare", "display", "figures", "read_upload"]

#: Pixels that the page takes; larger files are for the command, whose memory does not grow with them.
LARGEST = 50_000_000
#: Side of the window from the middle that a segmenter looks at, at full resolution: noise that is scaled down is gone.
SEGMENTED = 1024
#: Longest side that is sent to the browser to be looked at. The download has all pixels.
_SHOWN = 1600

#: ``report(share done, what is being done)``
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Comparison:
    """All that the page shows.

    Args:
        noisy, denoised, clean: ``(H, W, 1 or 3)`` in [0, 1], not clamped; ``clean`` is None where it is not known.
        result: what is written, of the type and with the alpha, profile and EXIF of the upload.
        sigma: the noise level that the model was told, 8-bit units; None for a blind model.
        estimated: that of the noisy image as it is estimated, 8-bit units; None for an image too small for it.
        views: by "Noisy", "Denoised", "Clean", of the window that was segmented; empty without a segmenter.
        window: the rows and columns of it.
    """

    noisy: np.ndarray
    denoised: np.ndarray
    clean: np.ndarray | None
    result: image_io.Image
    sigma: float | None
    estimated: float | None
    views: dict[str, View]
    window: tuple[slice, slice]

    @property
    def pictures(self) -> dict[str, np.ndarray]:
        """By name, in the order of the views."""
        found = {"Noisy": self.noisy, "Denoised": self.denoised}
        return found if self.clean is None else {**found, "Clean": self.clean}


def read_upload(path: str | os.PathLike[str] | None) -> image_io.Image:
    """An image file, unless it is too large for a page.

    Raises:
        ImageError: no file, no image, a damaged one, or more than :data:`LARGEST` pixels; named without its folder.
    """
    if path is None:
        raise ImageError("no image yet: drop one into the field, or choose a file")
    path = Path(path)
    try:
        with image_io.opened(path) as source:
            pixels = source.head.height * source.head.width
            if pixels > LARGEST:
                raise ImageError(
                    f"{path}: {source.head.width} x {source.head.height} are {pixels / 1e6:.0f} megapixels; this page takes"
                    f" {LARGEST // 1_000_000}. Use the command: segaware denoise {path.name} -o clean{path.suffix}"
                )
            return source.whole()
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from error


def compare(
    image: image_io.Image,
    engine: Engine,
    judge: Judge | None,
    *,
    added: float = 0.0,
    sigma: float | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> Comparison:
    """Denoise one picture and let a segmenter look at it before and after.

    Args:
        judge: the segmenter; None = none.
        added: level of the white Gaussian noise to add, 8-bit units; then the picture counts as clean.
        sigma: noise level to tell the model, 8-bit units; None = estimated from the noisy picture. Blind
            models are told nothing.
        seed: of the noise.
        report: called with the share of the work that is done.

    Raises:
        InputError: a level outside [0, 255], or what the engine and the segmenter refuse.
    """
    tell = report or (lambda share, what: None)
    for name, level in (("noise to add", added), ("noise level", sigma)):
        if level is not None and not 0 <= level <= 255:
            raise InputError(f"{name} {level:g}: give a number from 0 to 255")
    depth = Depth(image.pixels.dtype)
    unit = np.ascontiguousarray(depth.to_unit(image.pixels)[0].permute(1, 2, 0).numpy())
    noisy = unit
    if added:
        draw = np.random.default_rng(seed)
        noisy = unit + np.float32(added / 255) * draw.standard_normal(unit.shape, dtype=np.float32)
    tell(0.02, "estimating the noise level")
    estimated = _estimate(noisy if added else image.pixels)
    told: float | None = None
    if engine.info.takes_sigma:
        told = sigma if sigma is not None else estimated
        if told is None:
            raise InputError(f"the image ({image.width} x {image.height}) is too small to estimate its noise; give the level")
    share = 0.9 if judge is None else 0.6
    denoised = engine(
        noisy,
        None if told is None else min(1.0, told / 255),
        progress=lambda done, total: tell(0.05 + share * done / total, f"denoising, piece {done} of {total}"),
    )
    result = image.with_pixels(depth.from_unit(torch.from_numpy(denoised).permute(2, 0, 1)[None]).astype(image.pixels.dtype, copy=False))
    rows, columns = (slice((n - min(n, SEGMENTED)) // 2, (n - min(n, SEGMENTED)) // 2 + min(n, SEGMENTED)) for n in unit.shape[:2])
    done = Comparison(noisy, denoised, unit if added else None, result, told, estimated, {}, (rows, columns))
    if judge is not None:
        for index, (who, picture) in enumerate(done.pictures.items()):
            tell(0.68 + 0.1 * index, f"segmenting: {who.lower()}")
            done.views[who] = view(judge(_tensor(picture[rows, columns])), judge.class_names)
    tell(1.0, "done")
    return done


def display(picture: np.ndarray) -> np.ndarray:
    """``(H, W, 3)`` uint8 for the browser, large ones made smaller."""
    tensor = _tensor(picture)[None].clamp(0, 1)
    scale = _SHOWN / max(picture.shape[:2])
    if scale < 1:
        size = [max(1, round(n * scale)) for n in picture.shape[:2]]
        tensor = torch.nn.functional.interpolate(tensor, size, mode="bilinear", antialias=True, align_corners=False)
    pixels = tensor[0].mul(255).round().byte().permute(1, 2, 0).numpy()
    return pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)


def figures(done: Comparison) -> str:
    """HTML: PSNR, noise levels, and how sure and how right the segmenter is."""
    names = list(done.pictures)
    rows: list[tuple[str, list[str]]] = []
    if done.clean is not None:
        rows.append(("PSNR, dB", [*(_number(_psnr(done.pictures[who], done.clean), 2) for who in names[:2]), "–"]))
    if done.estimated is not None:
        rows.append(("Noise level of 255, estimated", [f"{done.estimated:.1f}", *[""] * (len(names) - 1)]))
    if done.sigma is not None:
        rows.append(("Noise level that the model was told", [f"{done.sigma:.1f}", *[""] * (len(names) - 1)]))
    if done.views:
        reference = "Clean" if "Clean" in done.views else "Noisy"
        said = [f"{100 * seen.agrees(done.views[reference]):.1f} %" if who != reference else "–" for who, seen in done.views.items()]
        rows.append((f"Pixels that keep the class of {reference.lower()}", said))
        rows.append(("Entropy, of its largest", [f"{100 * seen.unsure:.1f} %" for seen in done.views.values()]))
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr><td>{html.escape(what)}</td>{''.join(f'<td>{value}</td>' for value in values)}</tr>" for what, values in rows)
    return f'<table class="figures"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'


def _estimate(pixels: np.ndarray) -> float | None:
    """The noise level in 8-bit units; None where the image is too small for one."""
    try:
        return 255 * min(1.0, estimate_picture(pixels))
    except InputError:
        return None


def _psnr(image: np.ndarray, clean: np.ndarray) -> float:
    error = float(np.mean((image.clip(0, 1) - clean) ** 2, dtype=np.float64))
    return math.inf if error == 0 else -10 * math.log10(error)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞"


def _tensor(picture: np.ndarray) -> Tensor:
    """``(H, W, C)`` -> ``(C, H, W)`` float32."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float()
