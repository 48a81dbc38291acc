"""Whatever gives a denoised image for a noisy one, under a name and with a key for the cache.

A *spec* names one: a model (``segaware-blind``, a model's folder, ``owner/name`` of the Hub,
``DnCNN:weights.pth``, ``spandrel:file.pth``), a folder of ready images, ``nlm``, ``wavelet``, ``tv``, ``bm3d``, or
``noisy``; ``NAME=`` before it gives it another name, ``+0.03`` after it gives 3 % of the noise back,
``+machine`` what the model's own table says (``denoise(..., keep="machine")``).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from segaware import image_io
from segaware.contracts import DenoiserInfo
from segaware.entries import shipped_names
from segaware.errors import EvaluationError, WeightsError, closest
from segaware.evaluation.classical import CLASSICAL, classical
from segaware.evaluation.protocol import Noise, digest
from segaware.evaluation.sources import Item
from segaware.fingerprint import hash_module
from segaware.inference.engine import Engine
from segaware.inference.give_back import MACHINE, shares, table_of
from segaware.inference.noise_level import estimate_noise
from segaware.pretrained import is_repo, load_pretrained
from segaware.registry import ARCHITECTURES, build

__all__ = ["Cell", "Contestant", "Function", "GiveBack", "Model", "Noisy", "Ready", "hash_module", "open_contestant"]


@dataclass(frozen=True)
class Cell:
    """One look at one image: which noise, which draw of it, and the level a denoiser may be told ([0, 1] scale)."""

    item: Item
    noise: Noise
    draw: int = 0
    told: float = 0.0


class Contestant(Protocol):
    """A denoiser under test.

    ``key(cell)`` changes whenever its answer for that noisy image would: a hash of weights and settings.
    ``denoise`` takes and gives ``(C, H, W)`` float32 on the CPU, neither clamped.
    """

    name: str
    kind: str

    def key(self, cell: Cell) -> str: ...

    def denoise(self, noisy: Tensor, cell: Cell) -> Tensor: ...


class Noisy:
    """The noisy image itself: what doing nothing gives."""

    name, kind = "noisy", "the noisy image itself"

    def key(self, cell: Cell) -> str:
        """Always the same."""
        return "noisy"

    def denoise(self, noisy: Tensor, cell: Cell) -> Tensor:
        """``noisy``."""
        return noisy


class Model:
    """A denoiser network run by the inference engine; gray and colour are brought to what it takes.

    Args:
        name: for reports.
        model: a shipped name, the folder of a model, a repository of the Hub, or a denoiser module.
        options: ``tile``, ``precision``, ``device`` of :class:`segaware.inference.engine.Engine`.

    Raises:
        WeightsError, ModelError, InputError: as the engine.
    """

    def __init__(self, name: str, model: str | os.PathLike[str] | nn.Module, **options: Any) -> None:
        module = model if isinstance(model, nn.Module) else load_pretrained(model)
        self.name = name
        device = options.pop("device", "auto")
        if device == "auto" and not isinstance(model, nn.Module) and torch.cuda.is_available():
            device = "cuda"
        self.engine = Engine(module, device=device, **options)
        info: DenoiserInfo = self.engine.info
        self.kind = f"{type(module).__name__}, {'told the noise level' if info.takes_sigma else 'blind'}"
        # tiles change results by 1e-5 at most, so they are no part of the key
        self._key = digest(hash_module(module), self.engine.precision, self.engine.device.type)

    def key(self, cell: Cell) -> str:
        """A hash of architecture, weights, precision and kind of device; and the level where it is told one."""
        return digest(self._key, cell.told) if self.engine.info.takes_sigma else self._key

    def denoise(self, noisy: Tensor, cell: Cell) -> Tensor:
        """Through the engine, as any float picture."""
        sigma = cell.told if self.engine.info.takes_sigma else None
        clean = self.engine(noisy.permute(1, 2, 0).numpy(), sigma)
        return torch.from_numpy(clean).permute(2, 0, 1)


class Ready:
    """Images that something else has denoised, from files.

    Args:
        name: for reports.
        folder: holds the images under the names of the clean ones (any known ending). ``{noise}``,
            ``{sigma}``, ``{peak}`` and ``{draw}`` in it are filled in: ``theirs/s{sigma}``.
    """

    kind = "ready images, 8-bit files; which noise they had is not known here"

    def __init__(self, name: str, folder: str | os.PathLike[str]) -> None:
        self.name, self.folder = name, os.fspath(folder)

    def check(self, noises: Sequence[Noise], draws: int = 1) -> None:
        """Refuse to take one folder for images of several noise levels, or draws.

        Raises:
            EvaluationError: several, and none of ``{noise}``, ``{sigma}``, ``{peak}`` in the folder's name, or no ``{draw}``.
        """
        if draws > 1 and "{draw}" not in self.folder:
            raise EvaluationError(
                f"{self.folder}: one folder of ready images for {draws} draws of the noise; write {{draw}} where the number of the"
                " draw, from 0 on, stands in its name, e.g. theirs/s{sigma}/{draw}, or measure one draw"
            )
        if len(noises) > 1 and not re.search(r"\{(noise|sigma|peak)\}", self.folder):
            raise EvaluationError(
                f"{self.folder}: one folder of ready images for {len(noises)} noise levels ({', '.join(noise.label for noise in noises)});"
                " write {sigma} where the level stands in its name, e.g. theirs/s{sigma}, or measure one level"
            )

    def path(self, cell: Cell) -> Path:
        """The file for one look.

        Raises:
            EvaluationError: no such file.
        """
        values = {"noise": cell.noise.label, "sigma": f"{cell.noise.sigma:g}", "peak": f"{cell.noise.peak:g}", "draw": cell.draw}
        folder = Path(re.sub(r"\{(noise|sigma|peak|draw)\}", lambda found: str(values[found[1]]), self.folder))
        stem = folder / cell.item.name
        for ending in image_io.EXTENSIONS:
            for spelling in (ending, ending.upper()):
                file = stem.with_name(stem.name + spelling)
                if file.is_file():
                    return file
        raise EvaluationError(f"{stem}.*: no ready image of {cell.item.name} at {cell.noise.label}; add it, or leave {self.name} out")

    def key(self, cell: Cell) -> str:
        """A hash of the file."""
        return hashlib.sha256(self.path(cell).read_bytes()).hexdigest()

    def denoise(self, noisy: Tensor, cell: Cell) -> Tensor:
        """The file's pixels.

        Raises:
            EvaluationError: no file, or one of another size.
            ImageError: a file that cannot be read.
        """
        path = self.path(cell)
        pixels = image_io.read(path, deep=False).pixels
        ready = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255
        if ready.shape != noisy.shape:
            raise EvaluationError(f"{path}: {tuple(ready.shape)}, but the clean image is {tuple(noisy.shape)}; both (C, H, W) must agree")
        return ready


class Function:
    """A function ``(noisy (C, H, W), sigma on the [0, 1] scale) -> (C, H, W)`` under a name.

    Args:
        version: changes when its results do; part of the key.
    """

    def __init__(self, name: str, function: Callable[[Tensor, float], Tensor], kind: str = "a function, told the noise level", version: str = "") -> None:
        self.name, self.function, self.kind, self.version = name, function, kind, version
        self._what = name  # whatever it is called in a report

    def key(self, cell: Cell) -> str:
        """A hash of the name it was made with, its version and the level it is told."""
        return digest("function", self._what, self.version, cell.told)

    def denoise(self, noisy: Tensor, cell: Cell) -> Tensor:
        """Call it."""
        return self.function(noisy, cell.told)


class GiveBack:
    """Another contestant with a share of what it took away given back: denoised + share (noisy - denoised).

    Args:
        base: a contestant; for "machine" a model.
        share: in (0, 1); or "machine": the model's own, by the level that it is told, else by the one estimated
            from the noisy image, as :func:`segaware.denoise` does it.

    Raises:
        EvaluationError: another share; "machine" for what is no model.
        ModelError: "machine" for a model that states no shares.
    """

    def __init__(self, base: Contestant, share: float | str) -> None:
        self.table: tuple[tuple[float, float], ...] = ()
        if share == MACHINE:
            if not isinstance(base, Model):
                raise EvaluationError(f"{base.name}+{MACHINE}: only models state shares of their own; give a number, e.g. +0.03")
            self.table = table_of(base.engine.info.keep, base.name)
        elif isinstance(share, str) or not 0 < share < 1:
            raise EvaluationError(f"give-back share {share} must lie between 0 and 1, e.g. +0.03; or be {MACHINE}")
        self.base, self.share = base, share
        shown = share if isinstance(share, str) else f"{share:g}"
        self.name = f"{base.name}+{shown}"
        self.kind = f"{base.kind}; {'its own share' if self.table else f'{share:.3g}'} of the noise given back"

    def key(self, cell: Cell) -> str:
        """The base's key and the share."""
        return digest("give back", self.base.key(cell), self.table or self.share)

    def denoise(self, noisy: Tensor, cell: Cell) -> Tensor:
        """Denoise, then :meth:`blend`."""
        return self.blend(noisy, self.base.denoise(noisy.clone(), cell), cell)

    def blend(self, noisy: Tensor, denoised: Tensor, cell: Cell) -> Tensor:
        """The share given back to what the base has made."""
        if not isinstance(self.base, Model) or not self.table:
            return denoised + float(self.share) * (noisy - denoised)
        level = torch.tensor([cell.told]) if self.base.engine.info.takes_sigma else estimate_noise(noisy[None])
        return denoised + float(shares(self.table, level)) * (noisy - denoised)


def _loaded_here(options: dict[str, Any]) -> dict[str, Any]:
    """A module that was just read from a file goes where models by name go; a module of the user's stays where it is."""
    auto = options.get("device", "auto") == "auto" and torch.cuda.is_available()
    return {**options, "device": "cuda"} if auto else options


def open_contestant(spec: str | os.PathLike[str] | nn.Module | Contestant, **options: Any) -> Contestant:
    """The contestant that a spec names (see the module's docstring), or that a module or object is.

    ``options`` go to the engine: ``tile``, ``precision``, ``device``.

    Raises:
        EvaluationError: a spec that names nothing, with what may have been meant.
        WeightsError, ModelError: a model that cannot be loaded.
    """
    if isinstance(spec, nn.Module):
        return Model(type(spec).__name__, spec, **options)
    if not isinstance(spec, (str, os.PathLike)):
        return spec
    text = os.fspath(spec)
    named = re.fullmatch(r"([^=/\\:]+)=(.+)", text)
    if named:
        contestant = open_contestant(named[2], **options)
        if isinstance(contestant, Noisy):
            raise EvaluationError(f"{text}: the noisy image keeps its name, all others are compared with it; write noisy, or leave it out, it is there anyway")
        contestant.name = named[1].strip()
        return contestant
    given_back = re.fullmatch(rf"(.+)\+(\d*\.\d+|{MACHINE})", text)
    if given_back and not Path(text).exists():
        return GiveBack(open_contestant(given_back[1], **options), given_back[2] if given_back[2] == MACHINE else float(given_back[2]))
    if text == "noisy":
        return Noisy()
    if text in CLASSICAL:
        function, kind, version = classical(text)
        return Function(text, function, kind, version)
    prefix, colon, rest = text.partition(":")
    if colon and prefix == "spandrel":
        return Model(Path(rest).stem, _spandrel(Path(rest)), **_loaded_here(options))
    if colon and prefix in ARCHITECTURES:
        return Model(Path(rest).stem, _checkpoint(prefix, Path(rest)), **_loaded_here(options))
    if text in shipped_names():
        return Model(text, text, **options)
    path = Path(text)
    if (path / "config.json").is_file():
        return Model(path.resolve().name, path, **options)
    if "{" in text or path.is_dir():
        parts = [part for part in path.parts if "{" not in part]
        return Ready(parts[-1] if parts else text, text)
    if path.is_file():
        if path.suffix in (".pth", ".pt", ".safetensors", ".ckpt"):
            raise EvaluationError(f"{text}: say what it holds: spandrel:{text}, or an architecture, e.g. DnCNN:{text}")
        raise EvaluationError(f"{text}: a file that is no model; give a folder of ready images or a model")
    if is_repo(text):
        return Model(text, text, **options)
    known = [*shipped_names(), *CLASSICAL, "noisy"]
    raise EvaluationError(f"{text}: no model, method or folder of this name; {closest(text, known)}")


def _checkpoint(architecture: str, path: Path) -> nn.Module:
    """A state dict of another program in one of our architectures; the names may differ by a common prefix."""
    state = _load(path)
    module = build(architecture)
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    found = {key: value for key, value in state.items() if isinstance(value, Tensor) and not key.endswith("num_batches_tracked")}
    ours, theirs = _common(list(wanted)), _common(list(found))
    renamed = {ours + key[len(theirs) :]: value for key, value in found.items()}
    if {k: v.shape for k, v in renamed.items()} != {k: v.shape for k, v in wanted.items()}:
        odd = sorted(set(renamed) ^ set(wanted))[:3] or "other shapes"
        raise WeightsError(f"{path}: not a {architecture} in its default form ({odd}); convert it to a model folder first")
    module.load_state_dict(renamed, strict=False)
    return module.eval()


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in many ways
        raise WeightsError(f"{path}: cannot be read as weights ({str(error).splitlines()[0]}); give a state dict saved by torch.save or safetensors") from error
    for inner in ("state_dict", "params_ema", "params"):
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a state dict; save model.state_dict()")
    return state


def _common(keys: Sequence[str]) -> str:
    """The dotted prefix that all keys share: ``module.dncnn.`` of the released checkpoints."""
    prefix = os.path.commonprefix([key.rpartition(".")[0] + "." for key in keys])
    return prefix[: prefix.rfind(".") + 1]


def _spandrel(path: Path) -> nn.Module:
    """A file that spandrel knows, as a denoiser of ours: its network, not its descriptor, which clamps."""
    try:
        from spandrel import ModelLoader
    except ImportError as error:
        raise EvaluationError(f"spandrel:{path} needs the package spandrel; pip install spandrel") from error
    from segaware.wrapper import SegAwareWrapper

    try:
        found = ModelLoader(device="cpu").load_from_file(path)
    except Exception as error:  # its loaders raise whatever they meet
        raise WeightsError(f"{path}: spandrel cannot load it ({type(error).__name__}: {error})") from error
    if getattr(found, "scale", 1) != 1 or found.input_channels != found.output_channels:
        raise EvaluationError(f"{path}: {found.architecture.name} of scale {found.scale} is no denoiser; give one that keeps the size")
    told = bool({found.architecture.id, *found.tags} & {"DRUNet", "FDnCNN"})  # their last channel is a noise map
    network: Any = found.model
    network.info = DenoiserInfo(channels=found.output_channels, size_multiple=max(1, found.size_requirements.multiple_of))
    return SegAwareWrapper(
        network, (), takes_sigma="map" if told else False, size_multiple=network.info.size_multiple
    ).eval()
