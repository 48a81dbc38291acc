"""A network that a loss looks through and that must not learn: frozen, hidden, and never in training mode."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from segaware.entries import load_entry, shipped_folder
from segaware.errors import InputError, ModelError
from segaware.losses.logits import check_logits

__all__ = ["DEFAULT_SEGMENTER", "Frozen", "LossThroughNetwork", "need"]

#: The segmenter that ships with the package, used where none is given.
DEFAULT_SEGMENTER = "fpn-camvid"

_WHY_FROZEN = (
    "A loss must not learn: on an entropy loss, say, a trainable head needs only a bias towards one class,"
    " then every prediction is the same, the entropy is zero and no gradient is left for the denoiser."
    " Call requires_grad_(False) on the network, and train it elsewhere, with labels"
)


class Frozen:
    """Holds a network out of sight of ``nn.Module``: in no ``parameters()``, no ``state_dict()``.

    Parameters are switched off (in the network itself, no copy is made); batch norm and dropout
    stay in evaluation mode, whoever calls ``train()``. Gradient flows through it to the images.

    Args:
        network: any module that takes images in [0, 1]; None = the shipped segmenter, read from
            the package when it is first called, to the device of its first images.

    Raises:
        ModelError: something that is no ``nn.Module``; at a call, parameters that somebody
            switched on again.
    """

    def __init__(self, network: nn.Module | None, *, where: str) -> None:
        if network is not None and not isinstance(network, nn.Module):
            raise ModelError(
                f"{where}: expected a torch.nn.Module, got {type(network).__name__};"
                " pass the network itself (a function can be wrapped in a small Module)"
            )
        self.where = where
        self._network = network
        self._seen_logits = False
        if network is not None:
            self._freeze(network)

    @staticmethod
    def _freeze(network: nn.Module) -> nn.Module:
        for module in network.modules():
            # strides only: convolutions run faster so, and the consistency loss runs them twice
            if isinstance(module, nn.Conv2d) and "weight" in module._parameters:
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        return network.requires_grad_(False).eval()

    def network(self, device: torch.device | None = None) -> nn.Module:
        """The network; the shipped one is loaded here if it was not yet."""
        if self._network is None:
            # the first caller may be a validation in inference mode
            with torch.inference_mode(False), torch.device("cpu"):
                network = self._freeze(load_entry(shipped_folder(DEFAULT_SEGMENTER)))
            with torch.inference_mode(False):  # what is moved to another device is made anew
                self._network = network if device is None else network.to(device)
        return self._network

    def move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the ``.to()`` of the module that holds this."""
        if self._network is not None:
            self._network._apply(fn)

    def __call__(self, images: Tensor) -> Any:
        """The network's answer, whatever that is; ``images`` of one channel are repeated where it takes three."""
        network = self.network(images.device)
        if any(module.training for module in network.modules()):
            network.eval()
        dtype = images.dtype
        for index, parameter in enumerate(network.parameters()):
            if parameter.requires_grad:
                raise ModelError(f"{self.where}: parameters of the frozen {type(network).__name__} were switched on. {_WHY_FROZEN}")
            if index == 0 and parameter.is_floating_point():
                dtype = parameter.dtype
        if images.shape[1] == 1 and _input_channels(network) == 3:
            images = images.expand(-1, 3, -1, -1)
        if not torch.is_autocast_enabled(images.device.type):
            images = images.to(dtype)
        return network(images)

    def logits(self, images: Tensor) -> Tensor:
        """The network's answer, checked to be logits ``(B, K, h, w)`` or ``(B, K)``.

        Raises:
            ModelError: no float tensor, one class, another class count than ``num_classes`` says,
                or (looked at once) probabilities.
        """
        logits = self(images)
        check_logits(logits, where=self.where)
        stated = getattr(self._network, "num_classes", None)
        if isinstance(stated, int) and stated != logits.shape[1]:
            raise ModelError(
                f"{self.where}: the network says num_classes={stated} but gave {logits.shape[1]} channels"
                f" (shape {tuple(logits.shape)}); correct num_classes, or put the classes on axis 1"
            )
        if not self._seen_logits and not torch.compiler.is_compiling():
            _refuse_probabilities(logits.detach(), self.where)
            self._seen_logits = True
        return logits


class LossThroughNetwork(nn.Module):
    """Base of the losses: moves the :class:`Frozen` networks among its attributes with itself."""

    #: Under which name the term is logged.
    name: str

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LossThroughNetwork:
        super()._apply(fn, recurse)
        for value in vars(self).values():
            if isinstance(value, Frozen):
                value.move(fn)
        return self


def asked_of(loss: nn.Module) -> tuple[str, ...]:
    """Which of ``clean`` and ``labels`` the loss takes, compiled or not."""
    arguments = inspect.signature(getattr(loss, "_orig_mod", loss).forward).parameters
    return tuple(key for key in ("clean", "labels") if key in arguments)


def outside_inference() -> contextlib.AbstractContextManager[object]:
    """Derivatives, for losses that need some of the network itself, even in a validation under ``inference_mode``."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext()


def usable(images: Tensor) -> Tensor:
    """``images`` such that autograd takes them: those of an ``inference_mode`` are copied."""
    return images.clone() if images.is_inference() and not torch.is_inference_mode_enabled() else images


def need(tensor: Tensor | None, name: str, *, where: str) -> Tensor:
    """``tensor``, or the error that says it must be passed."""
    if tensor is None:
        raise InputError(f"{where}: needs {name}; pass {name}=... (also to the wrapper)")
    return tensor


def _input_channels(network: nn.Module) -> int | None:
    """Channels of the first convolution, as a guess at those of the images; None without one."""
    return next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), None)


def _refuse_probabilities(output: Tensor, where: str) -> None:
    total = output.sum(dim=1)
    if bool((output >= 0).all()) and bool(((total - 1).abs() < 1e-2).all()) and bool((output.amax(1) < 1).any()):
        raise ModelError(
            f"{where}: the network gives probabilities (they sum to one), but the losses take logits;"
            " leave its softmax out, or take the logarithm with segaware.segmenters.adapters.SegmenterAdapter"
        )
