"""``DenoiseBatch``: a column of images in, a column of denoised images out, for Ray Data's ``map_batches``."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segaware import image_io
from segaware.entries import CONFIG, DEFAULT_MODEL, WEIGHTS
from segaware.errors import ImageError, InputError, SegawareError, closest
from segaware.inference.engine import Engine
from segaware.inference.noise_level import estimate_picture
from segaware.inference.pictures import Depth

__all__ = ["DenoiseBatch"]

#: Columns that tell which image it was, in messages.
_NAMES = ("path", "name", "file")
#: How a file of each format begins.
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif",
    b"II+\0": ".tif", b"MM\0+": ".tif",
}  # fmt: skip
#: Engines of this process by model and options: whoever sends an instance instead of the class gets
#: a new copy of it with every task, but not a new network.
_ENGINES: dict[tuple[Any, ...], Engine] = {}
_LOCK = threading.Lock()
_AT_MOST = 4


class DenoiseBatch:
    """Denoise the images of a batch ``{column: array}``, whatever their sizes. Picklable; needs no labels.

    ::

        photos = ray.data.read_images("s3://bucket/photos")
        photos.map_batches(DenoiseBatch, fn_constructor_kwargs={"model": "segaware-blind"}, concurrency=8, batch_size=16)

    The model is opened at the first batch, once per worker process.

    Args:
        model: a shipped name, the folder of a model, a repository of the Hub, or a denoiser (which then
            travels to the workers with its weights). A folder must be there on every worker.
        column: where the images are: arrays ``(H, W)`` or ``(H, W, C)``, uint8, uint16 or float in
            [0, 1], also read-only ones; or ``bytes``, the content of image files.
        out: where the denoised ones go; None = in their place. Arrays as :func:`segaware.denoise` gives
            them; files in the format that came, with depth, alpha, profile and EXIF kept.
        sigma: noise level on the [0, 1] scale (25/255, not 25), or ``"auto"``, for models that take one. With
            ``"auto"`` a column ``sigma`` holds the level of each image (NaN where it failed).
        keep, tile, precision, device: as for :func:`segaware.denoise`.
        errors: "raise", or "row": an image that cannot be read or denoised gives an empty one and its
            reason in the column ``error``, which is "" for all others. Rows that come with an error keep it.
        threads: of torch in this process: a number; None = as it is; "auto" = in a Ray worker the
            processors that the task or actor was given, elsewhere as it is.
        together: whether images of one size go through the network in one piece. It pays on graphics
            cards; pixels then agree with those of single images to 1e-5 (of 1). "auto" = not on processors.

    Raises:
        InputError: a wrong argument (when built, or at the first batch where it depends on the model);
            a batch of another kind.
        WeightsError, ModelError: at the first batch: no such model, or no denoiser.
        ImageError, InputError, ModelError: of an image, with ``errors="raise"``.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module = DEFAULT_MODEL,
        *,
        column: str = "image",
        out: str | None = None,
        sigma: float | str | None = None,
        keep: float | str = 0.0,
        tile: str | int = "auto",
        precision: str = "auto",
        device: str | torch.device = "auto",
        errors: str = "raise",
        threads: int | str | None = "auto",
        together: bool | str = "auto",
    ) -> None:
        if not isinstance(model, (str, os.PathLike, nn.Module)):
            raise InputError(f"DenoiseBatch: model must be a name, a folder or a denoiser module, got {type(model).__name__}")
        if errors not in ("raise", "row"):
            raise InputError(f"DenoiseBatch: errors={errors!r} is unknown; use 'raise' or 'row'")
        if threads not in ("auto", None) and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise InputError(f"DenoiseBatch: threads={threads!r}; give a positive number, 'auto', or None to leave torch as it is")
        if together not in ("auto", True, False):
            raise InputError(f"DenoiseBatch: together={together!r} is unknown; use 'auto', True or False")
        if isinstance(sigma, str):
            if sigma != "auto":
                raise InputError(f"DenoiseBatch: sigma {sigma!r} is no noise level; give a number on the [0, 1] scale, or 'auto'")
        elif sigma is not None:
            sigma = float(sigma)
        self.model, self.column, self.out, self.sigma = model, column, out or column, sigma
        self.errors, self.threads, self.together = errors, threads, together
        self._options = {"keep": keep, "tile": tile, "precision": precision, "device": str(device)}
        self._engine: Engine | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}  # opened where it is needed

    def __repr__(self) -> str:
        name = type(self.model).__name__ if isinstance(self.model, nn.Module) else repr(str(self.model))
        return f"DenoiseBatch({name}, column={self.column!r}, out={self.out!r}, sigma={self.sigma}, errors={self.errors!r})"

    def engine(self) -> Engine:
        """The denoiser of this process, opened when first asked for."""
        if self._engine is None:
            threads = _assigned() if self.threads == "auto" else self.threads
            if threads is not None:
                torch.set_num_threads(int(threads))
            engine = _opened(self.model, self._options)
            if engine.info.takes_sigma and self.sigma is None:
                raise InputError(f"DenoiseBatch: model {engine.name!r} needs the noise level; pass sigma=25/255, or sigma='auto'")
            if self.sigma != "auto" or not engine.info.takes_sigma:
                engine.level(self.sigma, torch.zeros(1, 1, 1, 1))  # refuses 8-bit units, and any for a blind model
            self._engine = engine
        return self._engine

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the denoised images, as a new dictionary; the one that came is not changed."""
        images = self._column(batch)
        count = len(images)
        engine = self.engine()
        errors = [str(error or "") for error in batch["error"]] if "error" in batch else [""] * count
        levels = np.full(count, np.nan, np.float32)
        made: list[Any] = [None] * count
        single = self._in_groups(engine, images, errors, made, levels) if self._groups(engine) else range(count)
        for row in single:
            if errors[row]:
                continue
            try:
                made[row], levels[row] = self._one(engine, images[row])
            except Exception as error:  # one odd image must not end a night's run
                if self.errors == "raise":
                    raise _named(error, _label(batch, row)) from error
                errors[row] = str(_named(error, _label(batch, row)))
        failed = [_nothing(images[row]) if made[row] is None else made[row] for row in range(count)]
        result = {**batch, self.out: _as_column(failed)}
        if self.sigma == "auto":
            result["sigma"] = levels
        if self.errors == "row" or "error" in batch:
            result["error"] = np.array(errors, dtype=object)
        return result

    def _column(self, batch: Any) -> Any:
        if not isinstance(batch, Mapping):
            raise InputError(f"DenoiseBatch: expected a batch {{column: array}}, got {type(batch).__name__}; use batch_format='numpy'")
        if self.column not in batch:
            raise InputError(f"DenoiseBatch: the batch has no column {self.column!r}; {closest(self.column, map(str, batch))}; choose with column=")
        if self.sigma == "auto" and "sigma" in batch:
            raise InputError("DenoiseBatch: the batch has a column 'sigma' already, which would be lost; drop or rename it")
        images = batch[self.column]
        if isinstance(images, np.ndarray) and images.dtype.kind in "SU":
            raise InputError(f"DenoiseBatch: column {self.column!r} holds {images.dtype}; give arrays, or bytes as objects (dtype=object)")
        return images

    def _groups(self, engine: Engine) -> bool:
        return engine.device.type != "cpu" if self.together == "auto" else bool(self.together)

    def _one(self, engine: Engine, image: Any) -> tuple[Any, float]:
        if isinstance(image, (bytes, bytearray, memoryview)):
            return self._file(engine, bytes(image))
        if not isinstance(image, np.ndarray):
            raise InputError(f"expected an array or the bytes of an image file, got {type(image).__name__}")
        if image.dtype == object and image.ndim:  # ragged tensors of some versions of Arrow come so
            image = np.stack(list(image))
        level = self._level(engine, image)
        return engine(image, level), _number(level)

    def _file(self, engine: Engine, data: bytes) -> tuple[bytes, float]:
        with tempfile.TemporaryDirectory(prefix="segaware-") as folder:
            file = Path(folder) / f"image{_ending(data)}"
            file.write_bytes(data)
            try:
                noisy = image_io.read(file)
                level = self._level(engine, noisy.pixels)
                image_io.write(file, noisy.with_pixels(engine(noisy.pixels, level).astype(noisy.pixels.dtype, copy=False)))
            except ImageError as error:
                raise ImageError(str(error).removeprefix(f"{file}: ")) from error
            return file.read_bytes(), _number(level)

    def _level(self, engine: Engine, pixels: np.ndarray) -> float | str | None:
        """Sigma of one image: estimated here, so that it can be told."""
        if self.sigma != "auto":
            return self.sigma
        return min(1.0, estimate_picture(pixels if pixels.ndim == 3 else pixels[:, :, None]))

    def _in_groups(self, engine: Engine, images: Any, errors: list[str], made: list[Any], levels: np.ndarray) -> list[int]:
        """Denoise what has a size in common; the rows that are left to go one by one."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, image in enumerate(images):
            if not errors[row]:
                plain = isinstance(image, np.ndarray) and image.ndim == 3 and 0 not in image.shape and image.dtype in (np.uint8, np.uint16)
                fits = plain and engine.channels in (None, image.shape[2])
                groups.setdefault((image.shape, image.dtype.str) if fits else (row,), []).append(row)
        left = []
        for rows in groups.values():
            if len(rows) == 1:
                left += rows
                continue
            depth = Depth(images[rows[0]].dtype)
            try:
                level = [_number(self._level(engine, images[row])) for row in rows]
                noisy = torch.cat([depth.to_unit(images[row]) for row in rows])
                clean = engine.tensor(noisy, torch.tensor(level) if engine.info.takes_sigma else None)
            except Exception:  # whose fault it is, each alone will tell
                left += rows
                continue
            for index, row in enumerate(rows):
                made[row], levels[row] = depth.from_unit(clean[index : index + 1]), level[index]
        return sorted(left)


def _opened(model: Any, options: dict[str, Any]) -> Engine:
    """An engine, for models by name shared within this process."""
    if isinstance(model, nn.Module):
        return Engine(model, **options)
    files = [Path(model) / name for name in (CONFIG, WEIGHTS)]
    # a folder whose weights were replaced is another model
    state = tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.exists())
    key = (os.fspath(model), state, *sorted(options.items()))
    with _LOCK:
        if key not in _ENGINES:
            engine = Engine(model, **options)
            while len(_ENGINES) >= _AT_MOST:
                del _ENGINES[next(iter(_ENGINES))]
            _ENGINES[key] = engine
        return _ENGINES[key]


def _assigned() -> int | None:
    """Processors that Ray gave to the task or actor that runs this; None outside of one."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_task_id() is None:  # the program that started it all
        return None
    return max(1, int(context.get_assigned_resources().get("CPU", 1)))


def _label(batch: Mapping[str, Any], row: int) -> str:
    return next((str(batch[name][row]) for name in _NAMES if name in batch), f"image {row} of the batch")


def _named(error: Exception, label: str) -> Exception:
    """The same kind of error, with the image that it is about."""
    if isinstance(error, SegawareError):
        return type(error)(f"{label}: {str(error).removeprefix('denoise: ')}")
    return InputError(f"{label}: {type(error).__name__}: {error}")


def _ending(data: bytes) -> str:
    if not data:
        raise ImageError("the file is empty (0 bytes); fetch or save it again")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    for magic, ending in _MAGIC.items():
        if data.startswith(magic):
            return ending
    raise ImageError(f"not an image, or not one of {', '.join(sorted(set(image_io.EXTENSIONS.values())))}")


def _number(level: float | str | None) -> float:
    return float(level) if isinstance(level, (int, float)) else float("nan")


def _nothing(image: Any) -> Any:
    """What stands in the place of an image that failed: as many dimensions and the type that a good one has."""
    if not isinstance(image, np.ndarray):
        return b""
    shape = (0, 0) if image.ndim == 2 else (0, 0, image.shape[2] if image.ndim == 3 else 3)
    dtype = image.dtype.newbyteorder("=")
    return np.empty(shape, dtype if dtype in (np.uint8, np.uint16) else np.float32)


def _as_column(images: list[Any]) -> np.ndarray:
    """One array where all have a size in common, else an array of them."""
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    if arrays and len(arrays) == len(images) and len({(a.shape, a.dtype.str) for a in arrays}) == 1 and arrays[0].size:
        return np.stack(arrays)
    column = np.empty(len(images), dtype=object)
    for row, image in enumerate(images):
        column[row] = image
    return column
