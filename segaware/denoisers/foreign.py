"""Calling a network of another house as a denoiser: its value range, its sigma, its sizes, what it
predicts; and the errors for one that breaks the contract.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.checks import sigma_map
from segaware.contracts import DenoiserInfo, Sigma
from segaware.errors import InputError, ModelError
from segaware.layers.sizes import crop, multiple_of

__all__ = ["Call", "SigmaPort", "TakesSigma", "kind", "refuse_foreign"]

_SIGMA_NAMES = ("sigma", "sigmas", "noise_level", "noise_levels", "noise_std", "noise_level_map", "noise_map")
#: What torch (and einops, of an axis) says where a side does not divide, or is less than a kernel.
_SIZE_TROUBLE = ("Sizes of tensors must match", "must match the size of tensor", "Kernel size can't be greater",
                 "not divisible by", "can't divide axis", "is invalid for input of size", "Padding size should be less")  # fmt: skip
_SIGMA_FORMS = ("auto", "argument", "vector", "scalar", "map")

TakesSigma = bool | Literal["auto", "argument", "vector", "scalar", "map"]


class Call:
    """How one denoiser is called; see :class:`segaware.SegAwareWrapper` for the arguments.

    Raises:
        InputError: arguments out of range.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        predicts: Literal["image", "noise"] = "image",
        value_range: tuple[float, float] = (0, 1),
        takes_sigma: TakesSigma = "auto",
        size_multiple: int | None = None,
    ) -> None:
        if predicts not in ("image", "noise"):
            raise InputError(f'SegAwareWrapper: predicts={predicts!r}; say "image" or "noise", whichever the network returns')
        if len(value_range) != 2 or not value_range[0] < value_range[1]:
            raise InputError(f"SegAwareWrapper: value_range={value_range} must be (black, white), e.g. (-1, 1) or (0, 255)")
        if size_multiple is not None and not (isinstance(size_multiple, int) and size_multiple >= 1):
            raise InputError(f"SegAwareWrapper: size_multiple={size_multiple} must be a whole number, at least 1")
        self.predicts = predicts
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.size_multiple = size_multiple or 1
        self.sigma = SigmaPort.find(denoiser, takes_sigma)
        self.told: dict[str, Any] = {}  # what a saved wrapper's config says of the training

    def info(self, denoiser: nn.Module) -> DenoiserInfo:
        """The denoiser's own statement with what is added here; built from the arguments where it has none."""
        takes = self.sigma.form != "none"
        own = getattr(denoiser, "info", None)
        if not isinstance(own, DenoiserInfo):
            return DenoiserInfo(channels=None, takes_sigma=takes, size_multiple=self.size_multiple, **self.told)
        return replace(own, takes_sigma=takes, size_multiple=math.lcm(own.size_multiple, self.size_multiple), **self.told)

    def likely_channels(self, denoiser: nn.Module) -> int | None:
        """1 or 3 if the first convolution takes so many image channels; a guess."""
        first = next((module.in_channels for module in denoiser.modules() if isinstance(module, nn.Conv2d)), 0)
        channels = first - 1 if self.sigma.form == "map" else first
        return channels if channels in (1, 3) else None

    def __call__(self, denoiser: nn.Module, noisy: Tensor, sigma: Sigma | None, *, must_learn: bool) -> Tensor:
        """The clean estimate, same shape and dtype as ``noisy``; ``must_learn`` refuses one cut from autograd."""
        low, high = self.value_range
        span = high - low
        positional: list[Any] = []
        keyword: dict[str, Any] = {}
        height, width = noisy.shape[2:]
        given = _pad(noisy, self.size_multiple)
        if span != 1 or low != 0:
            given = low + span * given
        level = self.sigma.level(sigma, noisy)
        if level is not None:
            if isinstance(level, Tensor) and level.ndim == 4 and level.shape[2:] == (height, width):
                level = _pad(level, self.size_multiple)
            level = level if span == 1 else span * level
            if self.sigma.form == "map":
                given = torch.cat([given, level.expand(-1, 1, *given.shape[2:]).to(given)], dim=1)
            elif self.sigma.keyword:
                keyword[self.sigma.keyword] = level
            else:
                positional.append(level)
        try:
            output = denoiser(given, *positional, **keyword)
        except RuntimeError as error:
            _explain(error, given, self.sigma.form)
            raise
        _check_output(denoiser, output, noisy, _pad_sizes(noisy, self.size_multiple), must_learn)
        output = crop(output, height, width).to(noisy.dtype)
        if self.predicts == "noise":
            return noisy - (output if span == 1 else output / span)
        return output if span == 1 and low == 0 else (output - low) / span


def _check_output(denoiser: nn.Module, output: object, noisy: Tensor, size: tuple[int, int], must_learn: bool) -> None:
    what = f"the wrapped {type(denoiser).__name__}"
    if not isinstance(output, Tensor):
        raise ModelError(
            f"{what} returned {kind(output)}, not a tensor; wrap it in a module whose forward picks the image out"
        )
    if not output.is_floating_point():
        raise ModelError(f"{what} returned {output.dtype}: rounding to integers stops the gradient; return floats, and round when saving")
    expected = (*noisy.shape[:2], *size)
    if tuple(output.shape) != expected:
        if output.ndim == 4 and output.shape[:2] == noisy.shape[:2]:
            mend = "pass size_multiple=8 (or what its downsampling needs), or pad its convolutions"
        else:
            mend = "a denoiser returns the shape of its image"
        raise ModelError(f"{what} returned shape {tuple(output.shape)} for an image {expected}; {mend}")
    if torch.compiler.is_compiling():  # what follows no graph can hold
        return
    if output.is_inference() and not torch.is_inference_mode_enabled():
        raise ModelError(
            f"{what} returned a tensor made in torch.inference_mode(), which cannot be learned from;"
            " take the decorator away from its forward (for spandrel: pass descriptor.model)"
        )
    cut = must_learn and torch.is_grad_enabled() and not output.requires_grad
    if cut and any(p.requires_grad for p in denoiser.parameters()):
        raise ModelError(
            f"{what} returned a tensor that is cut from autograd, so no gradient would reach its parameters;"
            " look in its forward for torch.no_grad, .detach(), .data, .numpy() or round()"
        )


@dataclass
class SigmaPort:
    """How the network is told the noise level."""

    form: str  # "none", "contract" (as the caller gave it), or one of _SIGMA_FORMS
    keyword: str = ""
    required: bool = True

    @classmethod
    def find(cls, denoiser: nn.Module, wish: TakesSigma) -> SigmaPort:
        """By the caller's wish, the denoiser's ``info``, or the names of its arguments."""
        if wish is False:
            return cls("none")
        form = "argument" if wish is True else wish
        if form not in _SIGMA_FORMS:
            raise InputError(f"SegAwareWrapper: takes_sigma={wish!r}; say True, False or one of {', '.join(map(repr, _SIGMA_FORMS))}")
        info = getattr(denoiser, "info", None)
        if form == "auto" and isinstance(info, DenoiserInfo):
            return cls("contract", "sigma") if info.takes_sigma else cls("none")
        if form == "map":
            return cls("map")
        try:
            arguments = dict(inspect.signature(denoiser.forward).parameters)
        except (TypeError, ValueError):  # compiled or scripted
            arguments = {}
        for name in _SIGMA_NAMES:
            if name in arguments:
                parameter = arguments[name]
                required = parameter.default is parameter.empty
                keyword = "" if parameter.kind is parameter.POSITIONAL_ONLY else name
                return cls("argument" if form == "auto" else form, keyword, required)
        return cls("none") if form == "auto" else cls(form)

    def level(self, sigma: Sigma | None, noisy: Tensor) -> Any:
        """``sigma`` in the form the network takes, still on the [0, 1] scale; None = do not pass it."""
        if self.form == "none":
            if sigma is not None:
                raise InputError(
                    "SegAwareWrapper: the wrapped denoiser is blind and takes no sigma; call it without,"
                    ' or say takes_sigma="argument" or "map" if it does take one'
                )
            return None
        if sigma is None and not self.required:
            return None
        level = sigma_map(sigma, noisy, where="SegAwareWrapper")
        if self.form == "contract":
            return sigma if not isinstance(sigma, Tensor) or sigma.ndim < 4 else level
        if self.form in ("argument", "map"):
            return level
        first = level[:, 0, 0, 0]
        # a look at values would break the graph
        if not torch.compiler.is_compiling() and not bool((level == first.reshape(-1, 1, 1, 1)).all()):
            raise InputError(f'SegAwareWrapper: takes_sigma="{self.form}" cannot pass a map that varies; give one sigma per image')
        if self.form == "vector":
            return first
        if not bool((first == first[0]).all()):
            raise InputError('SegAwareWrapper: takes_sigma="scalar" passes one sigma for the batch; give one, or use "vector"')
        return float(first[0])


def refuse_foreign(denoiser: object) -> None:
    """Refuse what is no module, with the repair where it is known (a spandrel descriptor)."""
    if isinstance(denoiser, nn.Module):
        return
    if type(denoiser).__module__.split(".")[0] == "spandrel":
        size = getattr(getattr(denoiser, "size_requirements", None), "multiple_of", 1)
        more = f", size_multiple={size}" if size > 1 else ""
        names = [getattr(getattr(denoiser, "architecture", None), "id", ""), *getattr(denoiser, "tags", [])]
        if {"DRUNet", "FDnCNN"} & set(names):  # the descriptor makes a noise map of its own, at a fixed level
            more += ', takes_sigma="map"'
        raise ModelError(
            "SegAwareWrapper: a spandrel descriptor runs in inference mode and clamps, so nothing can be learned through it;"
            f" pass its network: SegAwareWrapper(descriptor.model{more})"
        )
    raise ModelError(
        f"SegAwareWrapper: expected a torch.nn.Module, got {kind(denoiser)};"
        " put a function into the forward of a small Module, and pass instances, not classes"
    )


def kind(value: object) -> str:
    """What a value is, in the words of an error message."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _pad_sizes(images: Tensor, multiple: int) -> tuple[int, int]:
    height, width = images.shape[2:]
    return multiple_of(height, multiple), multiple_of(width, multiple)


def _pad(images: Tensor, multiple: int) -> Tensor:
    if multiple == 1:
        return images
    height, width = images.shape[2:]
    down, right = multiple_of(height, multiple) - height, multiple_of(width, multiple) - width
    if not isinstance(down, int) or not isinstance(right, int):  # traced for all sizes, of at least a multiple
        return F.pad(images, (0, right, 0, down), mode="reflect")
    if right:
        images = F.pad(images, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    if down:
        images = F.pad(images, (0, 0, 0, down), mode="reflect" if down < height else "replicate")
    return images


def _explain(error: RuntimeError, given: Tensor, form: str) -> None:
    """Turn the commonest failures inside a foreign network into words; others pass as they are."""
    text = str(error)
    if "channels" in text and "expected input" in text:
        mend = (
            "give images with the channels it was built for"
            if form == "map"
            else 'give images with the channels it was built for, or takes_sigma="map" if one of them is a noise-level map'
        )
    elif any(sign in text for sign in _SIZE_TROUBLE):
        mend = "if its sides must be multiples of 8 (or 16, 64), pass size_multiple to the wrapper"
    else:
        return
    raise ModelError(f"the wrapped network failed on an input of shape {tuple(given.shape)}; {mend}. It said: {text}") from error
