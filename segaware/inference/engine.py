"""Denoise images of any size with any denoiser: one engine for Python and the command line.

The engine reads ``denoiser.info`` and chooses the rest: batch normalisation folded, channels last,
tiles whose joined result is the whole one, freed pages kept. The module it is given is never changed.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from segaware.checks import check_finite, check_images, check_range, no_sigma, sigma_map
from segaware.contracts import DenoiserInfo, Sigma
from segaware.entries import DEFAULT_MODEL
from segaware.errors import InputError, ModelError
from segaware.inference.folding import fold_batch_norm
from segaware.inference.give_back import MACHINE, check_keep, shares, table_of
from segaware.inference.memory import keep_pages
from segaware.inference.noise_level import estimate_noise
from segaware.inference.precision import full_float32
from segaware.inference.tiling import Box, Tile, halo, tiles
from segaware.pretrained import load_pretrained

__all__ = ["PRECISIONS", "Engine", "denoise"]

#: Arithmetic by name. "auto" is float32 (float64 for a float64 network); on CUDA it lets the
#: tensor cores round float32 factors (TF32), which "float32" does not. The halves are autocast.
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
WHOLE = 1 << 20  # up to this many pixels go through in one piece: a 64-channel layer takes 256 MiB
CORE = 512  # otherwise: smaller tiles cost more than their halo, larger ones memory

Progress = Callable[[int, int], None]
Picture = TypeVar("Picture")


def denoise(
    image: Any,
    model: str | os.PathLike[str] | nn.Module = DEFAULT_MODEL,
    *,
    sigma: Sigma | str | None = None,
    keep: float | str = 0.0,
    tile: str | int = "auto",
    precision: str = "auto",
    device: str | torch.device = "auto",
) -> Any:
    """Denoise one image, or a batch, and give back the kind that came.

    Args:
        image: a float tensor ``(C, H, W)`` or ``(B, C, H, W)`` in [0, 1] plus noise; an array
            ``(H, W)`` or ``(H, W, C)``, uint8, uint16 or float in [0, 1]; a Pillow image; or the path
            of an image file.
        model: a shipped name (:func:`segaware.list_models`), the folder of a model, a repository of the
            Hugging Face Hub (``"owner/name"``, ``"owner/name@revision"``), or a denoiser.
        sigma: noise level on the [0, 1] scale (25/255, not 25), for models that take one: a float,
            for tensors also ``(B,)`` or a map ``(B, 1, H, W)``; ``"auto"``: estimated from the image
            (:func:`segaware.inference.noise_level.estimate_noise`, which see for its limits).
        keep: share of what was taken away that is given back: 0, the default, for people;
            ``"machine"``: the share that the model states for the noise level (of blind models
            estimated from the image), for segmenters. See ``docs/give-back.md``.
        tile: "auto"; "whole"; or the side of a tile in pixels. The result is the same to 1e-5.
        precision: "auto" (float32), "float32", "bfloat16" (twice as fast on processors that have
            it, and up to 0.1 dB worse), or "float16" (CUDA).
        device: "auto" (where the given module is; for names and folders CUDA if there is one),
            "cpu", "cuda", "cuda:1", "mps".

    Returns:
        Tensor: same shape, type and device, not clamped. Float array: float32, not clamped. uint8
        or uint16 array, Pillow image: rounded, alpha untouched. Path: a :class:`segaware.image_io.Image`
        (``denoise("noisy.png").save("clean.png")``).
        Tensors need the channels that the model takes. Pictures are brought to it: a gray one goes
        through a colour model three times the same and comes back as the mean of the channels;
        a gray model sees the channels of a colour one as so many gray images.

    Raises:
        InputError: a wrong kind, shape, range, channel count, sigma, tile, precision or device.
        ImageError: a file that cannot be read or kept as it is.
        WeightsError: an unknown or damaged model, or one that cannot be fetched.
        ModelError: a module that is no denoiser, or gave NaN or another shape.

    For many images make one ``Engine(model)`` and call it for each.
    """
    return Engine(model, keep=keep, tile=tile, precision=precision, device=device)(image, sigma)


class Engine:
    """A denoiser made ready once, for many images. Arguments as for :func:`denoise`.

    As a context manager it keeps freed memory between images::

        with Engine("segaware-blind") as engine:
            for path in paths:
                engine(path).save(out / path.name)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module = DEFAULT_MODEL,
        *,
        keep: float | str = 0.0,
        tile: str | int = "auto",
        precision: str = "auto",
        device: str | torch.device = "auto",
    ) -> None:
        given = isinstance(model, nn.Module)
        if not given and not isinstance(model, (str, os.PathLike)):
            raise InputError(f"model: expected a name, a folder or a denoiser module, got {type(model).__name__}")
        self.device = _device(device, model if isinstance(model, nn.Module) else None)
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}")
        if precision == "float16" and self.device.type == "cpu":
            raise InputError("precision 'float16' needs CUDA; on a processor use 'bfloat16' or 'float32'")
        self.precision = precision
        module = model if isinstance(model, nn.Module) else load_pretrained(model)
        self.name = type(module).__name__ if given else str(model)
        info = getattr(module, "info", None)
        if not isinstance(info, DenoiserInfo):
            raise ModelError(
                f"{self.name} does not state what it needs (no 'info'); a denoising network of your own:"
                " wrap it, SegAwareWrapper(network); a segmenter cannot denoise"
            )
        self.info: DenoiserInfo = info
        self.keep = check_keep(keep)
        #: Noise levels and shares of keep="machine", else empty.
        self.keep_table = table_of(info.keep, self.name) if keep == MACHINE else ()
        #: What pictures are brought to; tensors are taken as they come where ``info`` states nothing.
        self.channels: int | None = info.channels or getattr(module, "likely_channels", None)
        self.tile = _tile(tile, info)
        self._dtype = _dtype(module) if precision == "auto" else torch.float32
        self._module, self._borrowed = self._prepare(module, given)

    def _prepare(self, module: nn.Module, given: bool) -> tuple[nn.Module, bool]:
        """A folded copy in eval mode, or, of what cannot be copied, the module itself."""
        try:
            ready = copy.deepcopy(module) if given else module
        except (RuntimeError, TypeError, NotImplementedError) as error:  # weights computed from others, open handles
            parameter = next(module.parameters(), None)
            if parameter is not None and (parameter.device != self.device or parameter.dtype != self._dtype):
                raise ModelError(
                    f"{self.name} cannot be copied ({error}); move it to {self.device} and {self._dtype} yourself first"
                ) from error
            return module, True
        ready.eval().requires_grad_(False)
        fold_batch_norm(ready)
        ready.to(device=self.device, dtype=self._dtype)
        return ready.to(memory_format=torch.channels_last), False

    def __call__(self, image: Any, sigma: Sigma | str | None = None, *, progress: Progress | None = None) -> Any:
        """Denoise one image or batch; ``progress(tiles done, tiles in all)`` is called after each tile."""
        if isinstance(image, Tensor):
            return self.tensor(image, sigma, progress=progress)
        from segaware.inference.pictures import denoise_picture

        return denoise_picture(self, image, sigma, progress=progress)

    def tensor(self, noisy: Tensor, sigma: Sigma | str | None = None, *, progress: Progress | None = None) -> Tensor:
        """Denoise ``(C, H, W)`` or ``(B, C, H, W)`` in [0, 1] plus noise; same shape, type and device."""
        if noisy.ndim == 3:
            if isinstance(sigma, Tensor) and sigma.ndim == 3:
                sigma = sigma[None]
            return self.tensor(noisy[None], sigma, progress=progress)[0]
        noisy = noisy.detach()
        check_images(noisy, channels=self.info.channels, where="denoise")
        check_finite(noisy, where="denoise")
        check_range(noisy, where="denoise", spikes=True)
        clean = torch.empty_like(noisy, memory_format=torch.contiguous_format)

        def fetch(batch: slice, window: Box) -> Tensor:
            rows, columns = window.slices
            return noisy[batch, :, rows, columns]

        def store(batch: slice, core: Box, part: Tensor) -> None:
            rows, columns = core.slices
            clean[batch, :, rows, columns] = part.to(clean)

        level = self.level(sigma, noisy)
        keep = self.share(level, lambda: estimate_noise(noisy))
        self.run((noisy.shape[0], *noisy.shape[2:]), fetch, store, level, progress, keep)
        return clean

    def share(self, level: Tensor | None, estimate: Callable[[], Tensor | float]) -> Tensor | None:
        """What is given back, as ``(B, 1, 1 or H, 1 or W)``; None for nothing. ``estimate`` gives the level of blind models."""
        if self.keep == 0:
            return None
        if self.keep != MACHINE:
            return torch.tensor(float(self.keep)).expand(1, 1, 1, 1)
        level = torch.as_tensor(estimate()).reshape(-1, 1, 1, 1) if level is None else level
        return shares(self.keep_table, level)

    def level(self, sigma: Sigma | str | None, noisy: Tensor) -> Tensor | None:
        """``sigma`` as ``(B, 1, 1 or H, 1 or W)``; None for a blind model, which refuses one.

        ``"auto"`` estimates it from ``noisy``, the whole images.
        """
        if isinstance(sigma, str) and sigma != "auto":
            raise InputError(f"sigma {sigma!r} is no noise level; give a number on the [0, 1] scale, or 'auto'")
        if not self.info.takes_sigma:
            no_sigma(0.0 if isinstance(sigma, str) else sigma, f"denoise with {self.name}")
            return None
        if isinstance(sigma, str):
            sigma = estimate_noise(noisy).clamp(max=1)
        return sigma_map(sigma, noisy, where=f"denoise with {self.name}")

    def run(
        self,
        shape: tuple[int, int, int],
        fetch: Callable[[slice, Box], Tensor],
        store: Callable[[slice, Box, Tensor], None],
        level: Tensor | None,
        progress: Progress | None = None,
        keep: Tensor | None = None,
    ) -> None:
        """Walk the tiles of ``(B, H, W)``: fetch a window, denoise it, give ``keep`` of the noise back, store its core.

        ``fetch`` may give more images than it is asked for (channels as gray images); it gets them back.
        """
        batch, height, width = shape
        cut = self._tiles(height, width)
        at_once = max(1, WHOLE // max(tile.window.shape[0] * tile.window.shape[1] for tile in cut))
        groups = [slice(first, min(first + at_once, batch)) for first in range(0, batch, at_once)]
        keep = None if keep is None else keep.expand(batch, -1, -1, -1)
        done = 0
        with keep_pages(), self._arithmetic(), torch.inference_mode():
            for group in groups:
                for tile in cut:
                    part = self._window(
                        fetch(group, tile.window), _cut(level, group, tile.window), tile, _cut(keep, group, tile.window)
                    )
                    store(group, tile.core, part)
                    done += 1
                    if progress is not None:
                        progress(done, len(groups) * len(cut))

    def _tiles(self, height: int, width: int) -> list[Tile]:
        core = self.tile
        if core == "auto" and self.info.receptive_field is not None and height * width > WHOLE:
            core = CORE
        if isinstance(core, str):
            everything = Box(0, height, 0, width)
            return [Tile(everything, everything)]
        return list(tiles(height, width, core=core, halo=halo(self.info), multiple=self.info.size_multiple))

    def _window(self, noisy: Tensor, level: Tensor | None, tile: Tile, keep: Tensor | None = None) -> Tensor:
        noisy = noisy.to(device=self.device, dtype=self._dtype, memory_format=torch.channels_last)
        if level is not None:
            level = level.to(noisy).repeat_interleave(noisy.shape[0] // level.shape[0], dim=0)
            if level.shape[2:] == (1, 1):
                level = level.flatten()  # one number per image, a form that every denoiser takes
        try:
            clean = self._forward(noisy, level)
        except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
                raise InputError(
                    f"not enough memory for a piece of {tuple(noisy.shape)} pixels; pass a smaller tile, e.g. 256"
                ) from error
            raise
        if not isinstance(clean, Tensor) or clean.shape != noisy.shape:
            got = tuple(clean.shape) if isinstance(clean, Tensor) else type(clean).__name__
            raise ModelError(f"{self.name} gave {got} for {tuple(noisy.shape)}; wrap it: SegAwareWrapper(network)")
        if not torch.isfinite(clean).all():
            raise ModelError(f"{self.name} gave NaN or infinite pixels; try precision='float32' or check its weights")
        if keep is not None:
            clean = torch.lerp(clean.to(noisy), noisy, keep.to(noisy).repeat_interleave(noisy.shape[0] // keep.shape[0], dim=0))
        rows, columns = tile.core.within(tile.window).slices
        return clean[:, :, rows, columns]

    def _forward(self, noisy: Tensor, level: Tensor | None) -> Any:
        """The model's image for one window, on its device."""
        return self._module(noisy) if level is None else self._module(noisy, level)

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self._borrowed:
                stack.enter_context(_eval_mode(self._module))
            if self.precision in ("bfloat16", "float16"):
                stack.enter_context(torch.autocast(self.device.type, getattr(torch, self.precision)))
            elif self.precision == "float32" and self.device.type == "cuda":
                stack.enter_context(full_float32())
            yield

    def __enter__(self) -> Engine:
        self._pages = keep_pages()
        self._pages.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._pages.__exit__(None, None, None)


def _cut(level: Tensor | None, group: slice, window: Box) -> Tensor | None:
    if level is None:
        return None
    level = level[group]
    rows, columns = window.slices
    return level if level.shape[2:] == (1, 1) else level[:, :, rows, columns]


def _tile(tile: str | int, info: DenoiserInfo) -> str | int:
    if isinstance(tile, str):
        if tile not in ("auto", "whole"):
            raise InputError(f"tile {tile!r} is unknown; use 'auto', 'whole' or a number of pixels")
        return tile
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
        raise InputError(f"tile {tile!r} must be a positive number of pixels; or 'auto' or 'whole'")
    halo(info)  # refuses a model that cannot be tiled
    return tile


def _dtype(module: nn.Module) -> torch.dtype:
    parameter = next(module.parameters(), None)
    return torch.float64 if parameter is not None and parameter.dtype == torch.float64 else torch.float32


def _device(device: str | torch.device, module: nn.Module | None) -> torch.device:
    if device == "auto":
        if module is not None:
            parameter = next(module.parameters(), None)
            return torch.device("cpu") if parameter is None else parameter.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is unknown; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device '{wanted}' is not available here; use 'cpu', or install a CUDA build of torch")
        if wanted.index is not None and wanted.index >= torch.cuda.device_count():
            raise InputError(f"device '{wanted}' does not exist; there are {torch.cuda.device_count()}, from cuda:0")
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' is not available here; use 'cpu'")
    return wanted


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode
