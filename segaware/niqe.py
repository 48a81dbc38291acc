"""NIQE: how natural an image looks, measured without the clean one. Lower is better.

Statistics of normalised pixels and of their products with neighbours, in blocks of 96 pixels and at
two scales, are compared with those of a set of pristine images. Which set that was is part of the
metric's name: values under different parameters are not comparable, nor are MATLAB's toolbox values
(its model is another one). Parameters fitted on BSDS500 ship with the package.

Mittal, Soundararajan and Bovik 2013, "Making a 'completely blind' image quality analyzer".
"""

from __future__ import annotations

import functools
import math
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segaware import image_io
from segaware.checks import check_finite, check_images
from segaware.errors import EvaluationError, InputError, SegawareError, WeightsError, closest
from segaware.luma import LUMAS, luma
from segaware.niqe_features import BLOCK, FEATURES, niqe_features

__all__ = ["NIQE"]

#: Blocks whose mean deviation is below this part of the image's largest say nothing of sharp images.
SHARPNESS = 0.75

_SHIPPED = Path(__file__).parent / "weights" / "niqe-bsds500" / "parameters.npz"
#: Names of mean and covariance in files: ours, LIVE's .mat, BasicSR's .npz, MATLAB's niqeModel, deepinv's.
_NAMES = (
    ("mean", "covariance"),
    ("mu_prisparam", "cov_prisparam"),
    ("mu_pris_param", "cov_pris_param"),
    ("Mean", "Covariance"),
    ("mu", "cov"),
)


class NIQE:
    """The metric with one set of parameters: ``NIQE.shipped()(images, data_range=1)``.

    Args:
        mean: ``(36,)`` of the pristine features.
        covariance: ``(36, 36)`` of the same.
        name: which images they are of; reports print it.
        luma: plane that is looked at, ``"gray"`` or ``"y"`` (see :func:`segaware.luma.luma`);
            changes values by 0.02 to 0.07.
        round_luma: round that plane to integers of the 8-bit scale, as ports do that read 8-bit
            gray files; changes values by up to 0.15.

    Raises:
        InputError: parameters of another size, not finite, or an unknown luma.
    """

    def __init__(
        self, mean: Tensor, covariance: Tensor, *, name: str, luma: str = "gray", round_luma: bool = False
    ) -> None:
        mean = torch.as_tensor(mean, dtype=torch.float64).flatten()
        covariance = torch.as_tensor(covariance, dtype=torch.float64)
        if mean.shape != (FEATURES,) or covariance.shape != (FEATURES, FEATURES):
            raise InputError(
                f"NIQE: mean {tuple(mean.shape)} and covariance {tuple(covariance.shape)};"
                f" the metric has {FEATURES} features: give ({FEATURES},) and ({FEATURES}, {FEATURES})"
            )
        if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise InputError(f"NIQE: parameters {name!r} hold NaN or infinite values; fit or fetch them again")
        if luma not in LUMAS:
            raise InputError(f"NIQE: unknown luma {luma!r}; {closest(luma, LUMAS)}")
        self.mean, self.covariance = mean, covariance
        self.name, self.luma, self.round_luma = name, luma, round_luma

    @torch.no_grad()
    def __call__(self, images: Tensor, *, data_range: float) -> Tensor:
        """NIQE of each image; no gradient (the shape parameters are looked up in a table).

        The luma plane is brought to the 0-255 scale and cropped from the top left to whole blocks.
        Values outside the range are kept: clamp first where a file would.

        Args:
            images: ``(B, C, H, W)`` float, C = 1 or 3.
            data_range: the distance from black to white; 1 for images in [0, 1]. Never guessed.

        Returns:
            ``(B,)`` float64 on the images' device (the CPU for Apple's, which has no float64). NaN
            for an image that is flat in all but one block: there is no texture to judge.

        Raises:
            InputError: no float batch, NaN or infinite pixels, other channels, or fewer than two blocks.
        """
        features, _ = niqe_features(self._plane(images, data_range))
        mean_p, covariance_p = self.mean.to(features.device), self.covariance.to(features.device)
        usable = torch.isfinite(features).all(dim=2)  # (B, L) blocks without a flat part
        count = usable.sum(dim=1)
        some = torch.where(usable[..., None], features, 0.0)
        centre = some.sum(1) / count[:, None]
        spread = torch.where(usable[..., None], features - centre[:, None], 0.0)
        covariance = spread.transpose(1, 2) @ spread / (count - 1)[:, None, None]
        valid = count >= 2
        both = torch.where(valid[:, None, None], (covariance + covariance_p) / 2, torch.eye(FEATURES).to(covariance))
        d = features.nanmean(dim=1) - mean_p
        squared = (d[:, None] @ torch.linalg.pinv(both, hermitian=True) @ d[:, :, None]).flatten()
        return torch.where(valid, squared.clamp(min=0).sqrt(), math.nan)

    def _plane(self, images: Tensor, data_range: float) -> Tensor:
        """The luma plane ``(B, H, W)``, float64 on the 0-255 scale."""
        check_images(images, where="NIQE")
        check_finite(images, where="NIQE")
        if not 0 < data_range < math.inf:
            raise InputError(f"NIQE: data_range {data_range:g} must be positive; 1 for images in [0, 1], 255 for 8-bit")
        if images.shape[1] not in (1, 3):
            raise InputError(f"NIQE: {images.shape[1]} channels; give RGB (3) or gray (1) images, without alpha")
        images = images.to("cpu" if images.device.type == "mps" else images.device, torch.float64)
        plane = luma(images, self.luma, data_range=data_range)[:, 0] * (255 / data_range)
        return plane.round() if self.round_luma else plane

    def describe(self) -> str:
        """The metric in words, for reports: parameters, plane, rounding."""
        return f"NIQE ({self.name} parameters; {self.luma} plane, {'' if self.round_luma else 'not '}rounded)"

    @classmethod
    def shipped(cls, *, luma: str = "gray", round_luma: bool = False) -> NIQE:
        """With the parameters that come with the package, fitted on the training images of BSDS500."""
        mean, covariance = _shipped()
        return cls(mean, covariance, name="bsds500", luma=luma, round_luma=round_luma)

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], *, name: str | None = None, luma: str = "gray", round_luma: bool = False
    ) -> NIQE:
        """Read parameters from an .npz or .mat file: ours, LIVE's release, BasicSR's copy, or MATLAB's model.

        MATLAB's ``niqeModel`` is an object; save its fields:
        ``Mean = model.Mean; Covariance = model.Covariance; save('model.mat', 'Mean', 'Covariance')``.
        A .mat file needs scipy (extra ``eval``). No pickled objects are read.

        Args:
            path: the file.
            name: what the parameters are called in reports; None = as the file says, or its stem.
            luma, round_luma: see :class:`NIQE`.

        Raises:
            WeightsError: missing, damaged, or without a mean and a covariance of 36 features.
        """
        path = Path(path)
        mean, covariance, stated = _read(path)
        try:
            return cls(mean, covariance, name=name or stated or path.stem, luma=luma, round_luma=round_luma)
        except InputError as error:
            if luma not in LUMAS:
                raise
            raise WeightsError(f"{path}: {error}") from error

    @classmethod
    def fit(
        cls,
        images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        name: str | None = None,
        luma: str = "gray",
        round_luma: bool = False,
    ) -> NIQE:
        """Fit parameters to pristine images: to their sharp blocks, as the paper does.

        Args:
            images: a folder (its images, not those of folders inside), or paths of image files.
            name: what the parameters are called in reports; None = the folder's name.
            luma, round_luma: see :class:`NIQE`.

        Raises:
            EvaluationError: no images, or fewer sharp blocks than a covariance of 36 features needs.
            InputError: an image below 96 x 96 pixels, named.
            ImageError: a file that cannot be read.
        """
        if isinstance(images, (str, os.PathLike)):
            folder = Path(images)
            if not folder.is_dir():
                raise EvaluationError(f"NIQE.fit: {folder} is no folder; give a folder of images or their paths")
            files = sorted(p for p in folder.iterdir() if p.suffix.lower() in image_io.EXTENSIONS)
            where, name = str(folder), name or folder.resolve().name
        else:
            files = [Path(path) for path in images]
            where, name = f"{len(files)} images", name or "own"
        if not files:
            raise EvaluationError(f"NIQE.fit: no images in {where}; known endings: {' '.join(image_io.EXTENSIONS)}")
        metric = cls(torch.zeros(FEATURES), torch.eye(FEATURES), name=name, luma=luma, round_luma=round_luma)
        kept = []
        for file in files:
            pixels = torch.from_numpy(image_io.read(file, deep=False).pixels).permute(2, 0, 1)[None].double()
            try:
                features, deviation = niqe_features(metric._plane(pixels, 255.0), at_least=1)
            except SegawareError as error:
                raise InputError(f"{file}: {error}") from error
            kept.append(features[deviation > SHARPNESS * deviation.amax()])
        blocks = torch.cat(kept)
        usable = blocks[torch.isfinite(blocks).all(dim=1)]
        if len(usable) <= FEATURES:
            raise EvaluationError(
                f"NIQE.fit: {len(usable)} sharp blocks of {BLOCK} x {BLOCK} pixels in {where}, but a covariance of"
                f" {FEATURES} features needs more than {FEATURES}; give more or larger images"
            )
        metric.mean, metric.covariance = usable.mean(dim=0), torch.cov(usable.T)
        return metric

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the parameters as .npz for :meth:`from_file`; whole or not at all."""
        path = Path(path)
        if path.suffix != ".npz":
            raise InputError(f"{path}: NIQE parameters are saved as .npz; name it {path.with_suffix('.npz').name}")
        partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial.npz")
        try:
            np.savez(partial, mean=self.mean.numpy(), covariance=self.covariance.numpy(), name=np.array(self.name))
            os.replace(partial, path)
        except OSError as error:
            raise EvaluationError(f"{path}: cannot be written ({error.strerror}); check the folder") from error
        finally:
            partial.unlink(missing_ok=True)
        return path


@functools.lru_cache(maxsize=1)
def _shipped() -> tuple[Tensor, Tensor]:
    mean, covariance, _ = _read(_SHIPPED)
    return mean, covariance


def _read(path: Path) -> tuple[Tensor, Tensor, str | None]:
    """Mean, covariance and stated name of a parameter file."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give an .npz or .mat file of NIQE parameters")
    if path.suffix.lower() not in (".npz", ".mat"):
        raise WeightsError(f"{path}: ending {path.suffix!r}; NIQE parameters are read from .npz and .mat files")
    found: dict[str, Any] = {}
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                found = {key: archive[key] for key in archive.files}
        else:
            found = {key: value for key, value in _loadmat()(path).items() if not key.startswith("__")}
    except WeightsError:
        raise
    except Exception as error:  # numpy and scipy raise many kinds for a damaged file
        raise WeightsError(f"{path}: damaged, or not a parameter file ({error}); fetch it again") from error
    for first, second in _NAMES:
        if first in found and second in found:
            try:
                mean, covariance = (torch.tensor(np.asarray(found[key], dtype=np.float64)) for key in (first, second))
            except (TypeError, ValueError) as error:
                raise WeightsError(f"{path}: {first} and {second} are no arrays of numbers ({error})") from error
            return mean, covariance, str(found["name"]) if "name" in found else None
    raise WeightsError(
        f"{path}: holds {', '.join(sorted(found)) or 'nothing'}, but a mean and a covariance are needed, named"
        f" {' or '.join(f'{a} and {b}' for a, b in _NAMES)}"
    )


def _loadmat() -> Any:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise WeightsError(
            f'reading a .mat file needs scipy ({error}); pip install "segaware[eval]", or convert it to .npz'
        ) from error
    return loadmat
