"""Denoisers without weights, as baselines: scikit-image's, and BM3D where the user has it.

All are told the noise level. At level 0 they give the image back: there is nothing to remove.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segaware.errors import EvaluationError

__all__ = ["CLASSICAL", "classical"]

Array = Any


def _nlm(image: Array, sigma: float, restoration: Any) -> Array:
    # scikit-image's advice for the fast mode with a known sigma
    return restoration.denoise_nl_means(
        image, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )


def _wavelet(image: Array, sigma: float, restoration: Any) -> Array:
    return restoration.denoise_wavelet(
        image, sigma=sigma, method="BayesShrink", mode="soft", rescale_sigma=True, convert2ycbcr=image.shape[2] == 3, channel_axis=-1
    )


def _tv(image: Array, sigma: float, restoration: Any) -> Array:
    return restoration.denoise_tv_chambolle(image, weight=0.9 * sigma, channel_axis=-1)


def _bm3d(image: Array, sigma: float, package: Any) -> Array:
    return package.bm3d_rgb(image, sigma) if image.shape[2] == 3 else package.bm3d(image[:, :, 0], sigma)


#: Method -> (function, module it runs on, distribution, other modules it needs).
CLASSICAL: dict[str, tuple[Callable[[Array, float, Any], Array], str, str, tuple[str, ...]]] = {
    "nlm": (_nlm, "skimage.restoration", "scikit-image", ()),
    "wavelet": (_wavelet, "skimage.restoration", "scikit-image", ("pywt",)),
    "tv": (_tv, "skimage.restoration", "scikit-image", ()),
    "bm3d": (_bm3d, "bm3d", "bm3d", ()),
}
_PACKAGES = {"pywt": "PyWavelets"}


def classical(name: str) -> tuple[Callable[[Tensor, float], Tensor], str, str]:
    """The method as a function ``(noisy (C, H, W), sigma) -> (C, H, W)``, what it is, and its version.

    Raises:
        EvaluationError: the package it runs on is not installed.
    """
    function, module, distribution, needs = CLASSICAL[name]
    package: Any = None
    for wanted in (*needs, module):
        try:
            package = import_module(wanted)
        except ImportError as error:
            missing = _PACKAGES.get(wanted, distribution)
            raise EvaluationError(f"{name} needs the package {missing}; pip install {missing}") from error
    version = f"{distribution} {metadata.version(distribution)}"

    def denoise(noisy: Tensor, sigma: float) -> Tensor:
        if sigma == 0:
            return noisy
        image = noisy.permute(1, 2, 0).double().numpy()
        result = np.asarray(function(image, sigma, package)).reshape(image.shape)  # some drop the axis of a gray image
        return torch.from_numpy(np.ascontiguousarray(result)).permute(2, 0, 1).float()

    return denoise, f"{version}, told the noise level", version
