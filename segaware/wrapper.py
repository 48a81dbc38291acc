"""Any denoiser, made segmentation-aware: a module that denoises, and gives the loss when it is told the clean image."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.checks import check_finite, check_images, check_range, sigma_map
from segaware.contracts import DenoiserInfo, Sigma
from segaware.errors import InputError, ModelError
from segaware.losses.entropy import EntropySegAwareLoss

__all__ = ["FIDELITY_SCALE", "SegAwareWrapper", "WrapperOutput", "fidelity"]

#: Half of 48 x 48 x 3: a mean squared error times this is the "sum / (2 * batch)" of the released
#: training code at its patch size, and gamma means the same at every other size.
FIDELITY_SCALE = 3456.0

_SIGMA_NAMES = ("sigma", "sigmas", "noise_level", "noise_levels", "noise_std", "noise_level_map", "noise_map")
_SIGMA_FORMS = ("auto", "argument", "vector", "scalar", "map")

TakesSigma = bool | Literal["auto", "argument", "vector", "scalar", "map"]
Awareness = nn.Module | tuple[float, nn.Module] | Iterable[nn.Module | tuple[float, nn.Module]]


def fidelity(denoised: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error times :data:`FIDELITY_SCALE`, in float32 whatever the autocast."""
    with torch.autocast(device_type=denoised.device.type, enabled=False):
        return FIDELITY_SCALE * F.mse_loss(denoised.float(), clean.float())


@dataclass
class WrapperOutput:
    """What a training step gets.

    Args:
        loss: scalar, to call ``backward()`` on: the sum of ``weights[name] * terms[name]``.
        denoised: ``(B, C, H, W)``, not clamped, in the autograd graph.
        terms: each term by name, unweighted: ``"fidelity"`` first, then the awareness terms.
        weights: the factor of each term; awareness terms carry gamma here.
    """

    loss: Tensor
    denoised: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float] = field(default_factory=dict)


class SegAwareWrapper(nn.Module):
    """Wrap a denoiser so that it can be trained with awareness; the wrapper is a denoiser itself.

    ``wrapper(noisy)`` denoises. ``wrapper(noisy, clean=clean)`` gives a :class:`WrapperOutput`
    whose ``loss`` is fidelity + gamma * awareness. Both go through ``forward``, so that
    DistributedDataParallel and accelerate see them. Parameters and ``state_dict`` are those of the
    denoiser alone, the latter under the denoiser's own names; segmenters are frozen and hidden.

    Args:
        denoiser: any module from noisy images to clean ones (or to the noise), of the same shape.
        awareness: a loss of :mod:`segaware.losses`, any module called as ``loss(denoised)`` with
            ``clean`` and ``labels`` by keyword where its ``forward`` names them, a ``(weight,
            loss)`` pair, or a list of these. None = :class:`EntropySegAwareLoss` on the segmenter
            that ships with the package; ``()`` = no term, fidelity alone.
        gamma: weight of the awareness terms together; 1 is the paper's. At 0 nothing of them is
            loaded or run.
        predicts: ``"noise"`` if the network returns the noise; it is subtracted here.
        value_range: what black and white are for the network, e.g. (-1, 1) or (0, 255). Images are
            in [0, 1] outside and converted here; sigma and predicted noise are scaled by
            ``high - low``.
        takes_sigma: how the network is told the noise level. ``"argument"`` (or True): as ``sigma``
            or second argument, ``(B, 1, 1, 1)``, or ``(B, 1, H, W)`` when a map was given;
            ``"vector"``: ``(B,)``; ``"scalar"``: one float for the batch; ``"map"``: as a further
            channel of the image (KAIR's DRUNet and FDnCNN); False: not at all. ``"auto"``: what
            ``denoiser.info`` says, else whether ``forward`` has an argument named like sigma.
        size_multiple: sides the network needs multiples of; images are padded by reflection (by
            replication where too small) and cropped back. None = any size, or what it does itself.

    Shape: ``(B, C, H, W)`` in [0, 1] plus noise; sigma on the [0, 1] scale as float, ``(B,)`` or
        ``(B, 1, H, W)`` -> the clean estimate, same shape and dtype, not clamped.

    Raises:
        ModelError: a network that is no module, or whose output breaks the contract (shape, dtype,
            cut from autograd).
        InputError: arguments out of range; images or sigma of the wrong kind, shape or unit.
    """

    denoiser: nn.Module

    def __init__(
        self,
        denoiser: nn.Module,
        awareness: Awareness | None = None,
        *,
        gamma: float = 1.0,
        predicts: Literal["image", "noise"] = "image",
        value_range: tuple[float, float] = (0, 1),
        takes_sigma: TakesSigma = "auto",
        size_multiple: int | None = None,
    ) -> None:
        super().__init__()
        _refuse_foreign(denoiser)
        if not 0 <= gamma < math.inf:
            raise InputError(f"SegAwareWrapper: gamma {gamma:g} must be zero or positive")
        if predicts not in ("image", "noise"):
            raise InputError(f'SegAwareWrapper: predicts={predicts!r}; say "image" or "noise", whichever the network returns')
        if len(value_range) != 2 or not value_range[0] < value_range[1]:
            raise InputError(f"SegAwareWrapper: value_range {value_range} must be (black, white), e.g. (-1, 1) or (0, 255)")
        if size_multiple is not None and size_multiple < 1:
            raise InputError(f"SegAwareWrapper: size_multiple {size_multiple} must be at least 1")

        self.denoiser = denoiser
        self.gamma = float(gamma)
        self.predicts = predicts
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.size_multiple = size_multiple or 1
        self._sigma = _SigmaPort.find(denoiser, takes_sigma)
        # In a plain list: a segmenter is no part of the denoiser that is trained and saved.
        self._awareness = _named_terms(awareness) if gamma > 0 else []
        self._register_load_state_dict_pre_hook(_rename_keys)

    @property
    def takes_sigma(self) -> bool:
        """Whether ``sigma`` may be given; a training loop passes it only then."""
        return self._sigma.form != "none"

    @property
    def info(self) -> DenoiserInfo:
        """The denoiser's own statement, with what the wrapper adds; built from the arguments where it has none."""
        own = getattr(self.denoiser, "info", None)
        if not isinstance(own, DenoiserInfo):
            return DenoiserInfo(channels=None, takes_sigma=self.takes_sigma, size_multiple=self.size_multiple)
        multiple = math.lcm(own.size_multiple, self.size_multiple)
        return replace(own, takes_sigma=self.takes_sigma, size_multiple=multiple)

    def forward(
        self, noisy: Tensor, sigma: Sigma | None = None, *, clean: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor | WrapperOutput:
        """The clean estimate; with ``clean``, a :class:`WrapperOutput`. ``labels`` go to the terms that ask for them."""
        own = getattr(self.denoiser, "info", None)
        check_images(noisy, channels=own.channels if isinstance(own, DenoiserInfo) else None, where="noisy")
        if clean is None and labels is not None:
            raise InputError("SegAwareWrapper: labels without clean; pass clean=... as well to get a loss")
        if clean is not None:
            check_images(clean, where="clean")
            if clean.shape != noisy.shape:
                raise InputError(f"clean: shape {tuple(clean.shape)} differs from that of noisy, {tuple(noisy.shape)}; cut both alike")
        _check_values(noisy=noisy, clean=clean)

        denoised = self._denoise(noisy, sigma, must_learn=clean is not None)
        if clean is None:
            return denoised
        terms = {"fidelity": fidelity(denoised, clean)}
        weights = {"fidelity": 1.0}
        total = terms["fidelity"]
        offered = {"clean": clean, "labels": labels}
        for term in self._awareness:
            value = term.loss(denoised, **{key: offered[key] for key in term.takes})
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ModelError(f"awareness term {term.name!r}: expected a scalar tensor, got {_kind(value)}; return a mean")
            terms[term.name] = value
            weights[term.name] = self.gamma * term.weight
            total = total + weights[term.name] * value
        return WrapperOutput(loss=total, denoised=denoised, terms=terms, weights=weights)

    def _denoise(self, noisy: Tensor, sigma: Sigma | None, *, must_learn: bool) -> Tensor:
        low, high = self.value_range
        span = high - low
        given, positional, keyword = noisy, [], {}
        height, width = noisy.shape[2:]
        given = _pad(noisy, self.size_multiple)
        if span != 1 or low != 0:
            given = low + span * given
        level = self._sigma.level(sigma, noisy)
        if level is not None:
            if isinstance(level, Tensor) and level.ndim == 4 and level.shape[2:] == (height, width):
                level = _pad(level, self.size_multiple)
            level = level if span == 1 else span * level
            if self._sigma.form == "map":
                given = torch.cat([given, level.expand(-1, 1, *given.shape[2:]).to(given)], dim=1)
            elif self._sigma.keyword:
                keyword[self._sigma.keyword] = level
            else:
                positional.append(level)
        try:
            output = self.denoiser(given, *positional, **keyword)
        except RuntimeError as error:
            _explain(error, given, self._sigma.form)
            raise
        self._check_output(output, noisy, _pad_sizes(noisy, self.size_multiple), must_learn)
        output = output[:, :, :height, :width].to(noisy.dtype)
        if self.predicts == "noise":
            return noisy - (output if span == 1 else output / span)
        return output if span == 1 and low == 0 else (output - low) / span

    def _check_output(self, output: object, noisy: Tensor, size: tuple[int, int], must_learn: bool) -> None:
        what = f"the wrapped {type(self.denoiser).__name__}"
        if not isinstance(output, Tensor):
            raise ModelError(
                f"{what} returned {_kind(output)}, not a tensor; wrap it in a module whose forward picks the image out"
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
        if output.is_inference() and not torch.is_inference_mode_enabled():
            raise ModelError(
                f"{what} returned a tensor made in torch.inference_mode(), which cannot be learned from;"
                " take the decorator away from its forward (for spandrel: pass descriptor.model)"
            )
        cut = must_learn and torch.is_grad_enabled() and not output.requires_grad
        if cut and any(p.requires_grad for p in self.denoiser.parameters()):
            raise ModelError(
                f"{what} returned a tensor that is cut from autograd, so no gradient would reach its parameters;"
                " look in its forward for torch.no_grad, .detach(), .data, .numpy() or round()"
            )

    # The checkpoint of a wrapper is the checkpoint of its denoiser.

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's own ``state_dict``, in its own key names."""
        return self.denoiser.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes what the denoiser's own ``load_state_dict`` takes."""
        return self.denoiser.load_state_dict(state_dict, strict=strict, assign=assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SegAwareWrapper:
        super()._apply(fn, recurse)
        for term in self._awareness:
            term.loss._apply(fn)
        return self


def _rename_keys(state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Loading through a parent (DistributedDataParallel) walks the children: put their name in."""
    for key in [k for k in state_dict if k.startswith(prefix)]:
        state_dict[f"{prefix}denoiser.{key[len(prefix):]}"] = state_dict.pop(key)


def _refuse_foreign(denoiser: object) -> None:
    if isinstance(denoiser, nn.Module):
        return
    if type(denoiser).__module__.split(".")[0] == "spandrel":
        size = getattr(getattr(denoiser, "size_requirements", None), "multiple_of", 1)
        more = f", size_multiple={size}" if size > 1 else ""
        architecture = getattr(getattr(denoiser, "architecture", None), "id", "")
        if architecture == "DRUNet":  # the descriptor makes a noise map of its own, at a fixed level
            more += ', takes_sigma="map"'
        raise ModelError(
            "SegAwareWrapper: a spandrel descriptor runs in inference mode and clamps, so nothing can be learned through it;"
            f" pass its network: SegAwareWrapper(descriptor.model{more})"
        )
    raise ModelError(
        f"SegAwareWrapper: expected a torch.nn.Module, got {_kind(denoiser)};"
        " put a function into the forward of a small Module, and pass instances, not classes"
    )


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@dataclass
class _Term:
    name: str
    weight: float
    loss: nn.Module
    takes: tuple[str, ...]


def _named_terms(awareness: Awareness | None) -> list[_Term]:
    if awareness is None:
        awareness = EntropySegAwareLoss()
    if isinstance(awareness, nn.Module) or _is_pair(awareness):
        awareness = [awareness]
    if not isinstance(awareness, (list, tuple, nn.ModuleList)):
        raise InputError(
            f"SegAwareWrapper: awareness is {_kind(awareness)}; give a loss, a list of losses or (weight, loss) pairs,"
            " None for the default, () for fidelity alone"
        )
    terms: list[_Term] = []
    for item in awareness:
        weight, loss = item if _is_pair(item) else (1.0, item)
        if not isinstance(loss, nn.Module):
            raise InputError(f"SegAwareWrapper: awareness holds {_kind(loss)}; give losses (modules) or (weight, loss) pairs")
        if not 0 <= weight < math.inf:
            raise InputError(f"SegAwareWrapper: weight {weight:g} of {type(loss).__name__} must be zero or positive")
        if weight == 0:
            continue
        base = getattr(loss, "name", None)
        if not isinstance(base, str):
            base = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(loss).__name__).lower()
        taken = {t.name for t in terms} | {"fidelity"}
        name = next(n for n in (base, *(f"{base}_{i}" for i in range(2, 1000))) if n not in taken)
        arguments = inspect.signature(loss.forward).parameters
        takes = tuple(key for key in ("clean", "labels") if key in arguments)
        # a loss that learns would find the easy way out: see EntropySegAwareLoss
        terms.append(_Term(name, float(weight), loss.requires_grad_(False).eval(), takes))
    return terms


def _is_pair(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (int, float)) and not isinstance(item[0], bool)


@dataclass
class _SigmaPort:
    """How the network is told the noise level."""

    form: str  # "none", "contract" (as the caller gave it), or one of _SIGMA_FORMS
    keyword: str = ""
    required: bool = True

    @classmethod
    def find(cls, denoiser: nn.Module, wish: TakesSigma) -> _SigmaPort:
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
            arguments = inspect.signature(denoiser.forward).parameters
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
        if not bool((level == first.reshape(-1, 1, 1, 1)).all()):
            raise InputError(f'SegAwareWrapper: takes_sigma="{self.form}" cannot pass a map that varies; give one sigma per image')
        if self.form == "vector":
            return first
        if not bool((first == first[0]).all()):
            raise InputError('SegAwareWrapper: takes_sigma="scalar" passes one sigma for the batch; give one, or use "vector"')
        return float(first[0])


def _check_values(**images: Tensor | None) -> None:
    """NaN, infinite or 0-255 pixels, found by one look at the extremes of all (one wait for a GPU)."""
    if torch.compiler.is_compiling():
        return
    present = {name: tensor.detach() for name, tensor in images.items() if tensor is not None}
    extremes = torch.stack([value.float() for tensor in present.values() for value in torch.aminmax(tensor)])
    if not float(extremes.abs().amax()) <= 8:  # also catches NaN
        for name, tensor in present.items():
            check_finite(tensor, where=name)
            check_range(tensor, where=name)


def _pad_sizes(images: Tensor, multiple: int) -> tuple[int, int]:
    height, width = images.shape[2:]
    return height + -height % multiple, width + -width % multiple


def _pad(images: Tensor, multiple: int) -> Tensor:
    height, width = images.shape[2:]
    down, right = -height % multiple, -width % multiple
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
    elif "Sizes of tensors must match" in text or "must match the size of tensor" in text:
        mend = "if its sides must be multiples of 8 (or 16, 64), pass size_multiple to the wrapper"
    else:
        return
    raise ModelError(f"the wrapped network failed on an input of shape {tuple(given.shape)}; {mend}. It said: {text}") from error
