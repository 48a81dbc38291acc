"""Any denoiser, made segmentation-aware: a module that denoises, and gives the loss when it is told the clean image."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from segaware.checks import check_finite, check_images, check_range
from segaware.contracts import DenoiserInfo, Sigma
from segaware.denoisers.foreign import Call, TakesSigma, kind, refuse_foreign
from segaware.errors import InputError, ModelError
from segaware.losses.entropy import EntropySegAwareLoss
from segaware.losses.frozen import asked_of
from segaware.pretrained import Pretrained

__all__ = ["FIDELITY_SCALE", "SegAwareWrapper", "WrapperOutput", "fidelity"]

#: Half of 48 x 48 x 3: a mean squared error times this is the "sum / (2 * batch)" of the released
#: training code at its patch size, and gamma means the same at every other size.
FIDELITY_SCALE = 3456.0

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

    def gradient_norms(self) -> dict[str, float]:
        """Norm of each weighted term's gradient at the denoised image: a term that does nothing is seen at once.

        To be asked before ``loss.backward()``, which takes the graph away.

        Raises:
            ModelError: the graph is gone.
        """
        return {name: _norm(value, self.weights[name], self.denoised) for name, value in self.terms.items()}


def _norm(value: Tensor, weight: float, at: Tensor) -> float:
    """Multiplied by a large number on the way, and by smaller ones where that is too much: float16 loses gradients of 1e-8."""
    if not value.requires_grad:
        return 0.0
    for scale in (2.0**16, 2.0**8, 1.0):
        try:
            (gradient,) = torch.autograd.grad(value * (weight * scale), at, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "second time" in str(error):
                raise ModelError("gradient_norms: the graph is gone; ask before loss.backward()") from error
            raise
        norm = 0.0 if gradient is None else float(gradient.float().norm()) / scale
        if math.isfinite(norm):
            break
    return norm


# DistributedDataParallel(static_graph=True) finds the outputs that it must hook by the tree of the answer, and without
# any it never averages the gradients. The loss alone: the graph from the denoised image to the terms stays in one piece.
register_pytree_node(
    WrapperOutput,
    lambda output: ([output.loss], (output.denoised, output.terms, output.weights)),
    lambda loss, rest: WrapperOutput(next(iter(loss)), *rest),
)


class SegAwareWrapper(nn.Module, Pretrained):
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
        refuse_foreign(denoiser)
        self.denoiser = denoiser
        self._call = Call(
            denoiser, predicts=predicts, value_range=value_range, takes_sigma=takes_sigma, size_multiple=size_multiple
        )
        # In a plain list: a segmenter is no part of the denoiser that is trained and saved.
        self._awareness: list[_Term] = []
        self._waiting: Any = (awareness,)
        self.gamma = gamma
        self._register_load_state_dict_pre_hook(_rename_keys)

    @property
    def gamma(self) -> float:
        """Weight of the awareness terms together; may be set in the course of a training, also from 0 upwards."""
        return self._gamma

    @gamma.setter
    def gamma(self, gamma: float) -> None:
        if not 0 <= gamma < math.inf:
            raise InputError(f"SegAwareWrapper: gamma {gamma:g} must be zero or positive")
        late = hasattr(self, "_gamma")
        self._gamma = float(gamma)
        if gamma > 0 and self._waiting is not None:
            self._awareness, self._waiting = _named_terms(*self._waiting), None
            at = next((tensor.device for tensor in self.denoiser.parameters()), None)
            for term in self._awareness if late and at is not None else ():
                term.loss.to(at)  # where the wrapper was moved in the meantime

    @property
    def takes_sigma(self) -> bool:
        """Whether ``sigma`` may be given; a training loop passes it only then."""
        return self.info.takes_sigma

    @property
    def adapter(self) -> dict[str, Any]:
        """The arguments that say how the denoiser is called, JSON-able: what a saved wrapper is built again with."""
        call, form = self._call, self._call.sigma.form
        takes_sigma: str | bool = False if form == "none" else "auto" if form == "contract" else form
        return {
            "predicts": call.predicts,
            "value_range": list(call.value_range),
            "takes_sigma": takes_sigma,
            "size_multiple": call.size_multiple,
        }

    @property
    def term_weights(self) -> dict[str, float]:
        """The factor of each awareness term in the loss, gamma included, by the name it is logged under."""
        return {term.name: self.gamma * term.weight for term in self._awareness}

    @property
    def term_kinds(self) -> dict[str, str]:
        """The class of each awareness term's loss, by the name it is logged under."""
        return {term.name: type(term.loss).__name__ for term in self._awareness}

    @property
    def info(self) -> DenoiserInfo:
        """The denoiser's own statement, with what the wrapper adds; built from the arguments where it has none."""
        return self._call.info(self.denoiser)

    @property
    def likely_channels(self) -> int | None:
        """``info.channels``, or what the first convolution of a denoiser without ``info`` suggests: 1, 3 or None.

        For bringing pictures and files to the network, not for refusing tensors.
        """
        return self.info.channels or self._call.likely_channels(self.denoiser)

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

        denoised = self._call(self.denoiser, noisy, sigma, must_learn=clean is not None)
        if clean is None:
            return denoised
        terms = {"fidelity": fidelity(denoised, clean)}
        weights = {"fidelity": 1.0}
        total = terms["fidelity"]
        offered = {"clean": clean, "labels": labels}
        for term in self._awareness if self.gamma > 0 else ():
            value = term.loss(denoised, **{key: offered[key] for key in term.takes})
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ModelError(f"awareness term {term.name!r}: expected a scalar tensor, got {kind(value)}; return a mean")
            terms[term.name] = value
            weights[term.name] = self.gamma * term.weight
            total = total + weights[term.name] * value
        return WrapperOutput(loss=total, denoised=denoised, terms=terms, weights=weights)

    # The checkpoint of a wrapper is the checkpoint of its denoiser.

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's own ``state_dict``, in its own key names."""
        return self.denoiser.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes what the denoiser's own ``load_state_dict`` takes."""
        return self.denoiser.load_state_dict(state_dict, strict=strict, assign=assign)

    def awareness_state(self) -> dict[str, Tensor]:
        """What awareness terms remember from step to step (those with ``keeps_state``), for a training's checkpoint."""
        kept = [term for term in self._awareness if getattr(term.loss, "keeps_state", False)]
        return {f"{term.name}.{key}": value for term in kept for key, value in term.loss.state_dict().items()}

    def load_awareness_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes what :meth:`awareness_state` gave; a term that it does not mention starts anew."""
        for term in self._awareness:
            if getattr(term.loss, "keeps_state", False):
                start = f"{term.name}."
                term.loss.load_state_dict({key[len(start) :]: value for key, value in state.items() if key.startswith(start)})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SegAwareWrapper:
        super()._apply(fn, recurse)
        for term in self._awareness:
            term.loss._apply(fn)
        return self


def _rename_keys(state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Loading through a parent (DistributedDataParallel) walks the children: put their name in."""
    for key in [k for k in state_dict if k.startswith(prefix)]:
        state_dict[f"{prefix}denoiser.{key[len(prefix):]}"] = state_dict.pop(key)


@dataclass
class _Term:
    name: str
    weight: float
    loss: nn.Module
    takes: tuple[str, ...]


def _named_terms(awareness: Awareness | None) -> list[_Term]:
    if awareness is None:
        awareness = EntropySegAwareLoss()
    alone = _is_pair(awareness) or (isinstance(awareness, nn.Module) and not isinstance(awareness, nn.ModuleList))
    items: Any = [awareness] if alone else awareness
    if not isinstance(items, (list, tuple, nn.ModuleList)):
        raise InputError(
            f"SegAwareWrapper: awareness is {kind(awareness)}; give a loss, a list of losses or (weight, loss) pairs,"
            " None for the default, () for fidelity alone"
        )
    terms: list[_Term] = []
    for item in list(items):
        weight, loss = item if _is_pair(item) else (1.0, item)
        if not isinstance(loss, nn.Module):
            raise InputError(f"SegAwareWrapper: awareness holds {kind(loss)}; give losses (modules) or (weight, loss) pairs")
        if not 0 <= weight < math.inf:
            raise InputError(f"SegAwareWrapper: weight {weight:g} of {type(loss).__name__} must be zero or positive")
        if weight == 0:
            continue
        base = getattr(loss, "name", None)
        if not isinstance(base, str):
            base = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(loss).__name__).lower()
        taken = {t.name for t in terms} | {"fidelity"}
        name = next(n for n in (base, *(f"{base}_{i}" for i in range(2, 1000))) if n not in taken)
        # a loss that learns would find the easy way out: see EntropySegAwareLoss
        terms.append(_Term(name, float(weight), loss.requires_grad_(False).eval(), asked_of(loss)))
    return terms


def _is_pair(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (int, float)) and not isinstance(item[0], bool)


def _check_values(**images: Tensor | None) -> None:
    """NaN, infinite or 0-255 pixels, found by one look at the extremes of all (one wait for a GPU)."""
    if torch.compiler.is_compiling():
        return
    present = {name: tensor.detach() for name, tensor in images.items() if tensor is not None}
    extremes = torch.stack([value.float() for tensor in present.values() for value in torch.aminmax(tensor)])
    if not float(extremes.abs().amax()) <= 8:  # also catches NaN
        for name, tensor in present.items():
            check_finite(tensor, where=name)
            check_range(tensor, where=name, spikes=name == "noisy")


