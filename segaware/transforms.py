"""``Denoise``: a torchvision v2 transform, so that a data loader can denoise."""

from __future__ import annotations

import os
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn

from segaware.checks import check_images
from segaware.entries import DEFAULT_MODEL
from segaware.errors import InputError
from segaware.inference.engine import Engine
from segaware.segmenters.backbones import load_library

load_library("torchvision.transforms.v2")  # its one message where torch and torchvision do not match
from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

__all__ = ["Denoise"]

#: Values of an integer image at white.
_WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}


class Denoise(v2.Transform):
    """Denoise the image of a sample; boxes, masks and labels beside it pass untouched.

    ::

        transform = v2.Compose([v2.ToImage(), Denoise(), v2.ToDtype(torch.float32, scale=True)])

    What counts as the image is torchvision's rule: images and videos (``tv_tensors``) and Pillow
    images; a plain tensor if the sample holds none of them, and then the first one only. No gradient
    flows through it. Put it before what changes the noise: resizing, normalising.

    Args:
        model: as for :func:`segaware.denoise`. In worker processes that are spawned, a model given by
            name is loaded again, one given as a module travels there with its weights.
        sigma: noise level on the [0, 1] scale (25/255, not 25), or ``"auto"``, for models that take one.
        keep, tile, precision: as for :func:`segaware.denoise`.
        device: "auto" is where the image is, the processor for Pillow images.

    Images are tensors ``(..., C, H, W)``: uint8 and uint16 stay so, rounded; floats in [0, 1] plus noise
    are not clamped; gray ones go through a colour model as in :func:`segaware.denoise`. Pillow images
    keep gray, RGB and alpha (palettes and CMYK become RGB), and lie as their pixels do: a camera's note
    of how to turn them is handed on and not followed, for boxes and masks beside them do not turn.

    Raises:
        InputError: a wrong argument, when built; a tensor of another kind, when called.
        ImageError: a Pillow image of a kind that would not survive (1-bit, 32-bit, Lab, HSV).
        WeightsError, ModelError: no such model, or no denoiser.
    """

    _transformed_types = (Tensor, PIL.Image.Image)

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module = DEFAULT_MODEL,
        *,
        sigma: float | str | None = None,
        keep: float | str = 0.0,
        tile: str | int = "auto",
        precision: str = "auto",
        device: str | torch.device = "auto",
    ) -> None:
        super().__init__()
        self.sigma = sigma
        self.device = device
        # not a submodule: a transform has no parameters that an optimiser or a checkpoint should meet
        self.__dict__["_model"] = model
        self._options: dict[str, Any] = {"keep": keep, "tile": tile, "precision": precision}
        self._engines: dict[str, Engine] = {}
        first = self._engine("cpu")
        if first.info.takes_sigma and sigma is None:
            raise InputError(f"Denoise: model {first.name!r} needs the noise level; pass sigma=25/255, or sigma='auto'")
        if isinstance(sigma, Tensor) and sigma.ndim:
            raise InputError(f"Denoise: sigma of shape {tuple(sigma.shape)}; give one number, or 'auto' (it is taken for each image)")
        if sigma != "auto" or not first.info.takes_sigma:
            first.level(sigma, torch.zeros(1, 1, 1, 1))  # refuses 8-bit units, and any for a blind model

    def _engine(self, here: str | torch.device) -> Engine:
        device = str(here if self.device == "auto" else self.device)
        if device not in self._engines:
            self._engines[device] = Engine(self.__dict__["_model"], device=device, **self._options)
        return self._engines[device]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engines": {}}  # made again where it is needed

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """The denoised image, of the type that came; anything but an image as it is."""
        if isinstance(inpt, PIL.Image.Image):
            return self._picture(inpt)
        if isinstance(inpt, tv_tensors.TVTensor) and not isinstance(inpt, (tv_tensors.Image, tv_tensors.Video)):
            return inpt
        clean = self._tensor(inpt.as_subclass(Tensor))
        return tv_tensors.wrap(clean, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else clean

    _transform = transform  # its name before torchvision 0.21

    def _picture(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        plain = picture.copy()  # without what would turn it
        plain.info = {key: value for key, value in picture.info.items() if key in ("transparency", "icc_profile", "dpi")}
        clean: PIL.Image.Image = self._engine("cpu")(plain, self.sigma)
        clean.info = {key: value for key, value in picture.info.items() if key not in ("transparency", "icc_profile")} | clean.info
        return clean

    def _tensor(self, image: Tensor) -> Tensor:
        if image.ndim < 3:
            raise InputError(f"Denoise: expected an image (..., C, H, W), got {tuple(image.shape)}; add its channels: image[None]")
        if image.dtype not in _WHITE and not image.is_floating_point():
            raise InputError(f"Denoise: expected uint8, uint16 or floats in [0, 1], got {image.dtype}; convert with v2.ToDtype(torch.float32, scale=True)")
        engine = self._engine(image.device)
        white = _WHITE.get(image.dtype)
        noisy = image.reshape(-1, *image.shape[-3:])
        noisy = noisy if white is None else noisy.float() / white
        clean = _denoised(engine, noisy, self.sigma)
        if white is not None:
            clean = clean.clamp(0, 1).mul(white).round().to(image.dtype)
        return clean.reshape(image.shape)

    def extra_repr(self) -> str:
        model = self.__dict__["_model"]
        name = type(model).__name__ if isinstance(model, nn.Module) else repr(str(model))
        return f"{name}, sigma={self.sigma}, device={str(self.device)!r}"


def _denoised(engine: Engine, noisy: Tensor, sigma: float | str | None) -> Tensor:
    """``(B, C, H, W)``, its channels brought to those that the model takes."""
    batch, channels, height, width = noisy.shape
    wanted = engine.channels
    if channels == 1 and wanted not in (None, 1):
        return engine.tensor(noisy.expand(-1, wanted, -1, -1), sigma).mean(dim=1, keepdim=True)
    if channels == 3 and wanted == 1:
        return engine.tensor(noisy.reshape(-1, 1, height, width), sigma).reshape(noisy.shape)
    check_images(noisy, channels=wanted, where="Denoise")
    return engine.tensor(noisy, sigma)
