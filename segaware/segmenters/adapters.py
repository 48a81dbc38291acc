"""Other people's segmenters brought to the contract: image in [0, 1] in, logits out.

torchvision gives a dict, smp a tensor or a tuple, Hugging Face an object with ``.logits``, some give
probabilities; each wants its own normalisation and some want sizes that are multiples of 32. One
adapter handles them all, and :func:`freeze` makes any module a fixed function that gradients pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from segaware.checks import check_images
from segaware.errors import InputError, ModelError
from segaware.layers.sizes import crop, multiple_of, pad_edges
from segaware.segmenters.backbones import IMAGENET_MEAN, IMAGENET_STD, check_triple, looking

__all__ = ["SegmenterAdapter", "freeze", "read_logits"]

_M = TypeVar("_M", bound=nn.Module)

#: Smallest probability told apart from 0; bounds the logits at -13.8 and their gradient.
EPS = 1e-6


def freeze(module: _M) -> _M:
    """Make a module a fixed function: no parameter learns, and it stays in eval mode for good.

    ``train()`` of the module, or of anything that holds it, no longer reaches it: batch statistics and
    dropout stay as they are. Gradients still flow *through* it to its input: never wrap the call in
    ``no_grad``. Changes the module in place and returns it.
    """
    module.requires_grad_(False)
    module.eval()
    setattr(module, "train", functools.partial(_stay, module))  # noqa: B010  # a partial copies and pickles along
    return module


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def read_logits(output: Any, key: str | int | Callable[[Any], Tensor] | None = None) -> Tensor:
    """The class scores in whatever a segmenter returned.

    Without ``key``: a tensor itself; ``["out"]`` or ``["logits"]`` of a mapping; ``.logits`` of an object; the
    first element of a tuple or list. With it: that mapping key, attribute or index, or the result of a callable.

    Raises:
        ModelError: nothing of the kind is there.
    """
    found: Any = None
    if callable(key):
        found = key(output)
    elif key is not None:
        try:
            found = getattr(output, key) if isinstance(key, str) and not isinstance(output, Mapping) else output[key]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ModelError(
                f"segmenter output {_describe(output)} has no {key!r}; name what holds the logits with output="
            ) from error
    elif isinstance(output, Tensor):
        found = output
    elif isinstance(output, Mapping) and ("out" in output or "logits" in output):
        found = output["out"] if "out" in output else output["logits"]
    elif isinstance(getattr(output, "logits", None), Tensor):
        found = output.logits
    elif isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise ModelError(
            f"segmenter output {_describe(output)}: no logits found; name their key, attribute or index with output=,"
            " or pass a function that returns the tensor (B, K, h, w)"
        )
    return found


def _describe(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"{type(output).__name__} with keys {list(output)}"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of {len(output)}"
    return type(output).__name__


class SegmenterAdapter(nn.Module):
    """Any segmentation network as ``adapter(image in [0, 1])`` -> logits ``(B, K, h, w)``, frozen.

    Normalises the image, pads it (edges repeated, right and bottom) to a multiple the network can
    take, reads the logits out of its answer and crops them back to the part that is image.

    Args:
        model: the network. It is frozen in place (:func:`freeze`) unless ``trainable``.
        num_classes: K; a network with one output channel (sigmoid) has 2.
        stride: of the logits, checked at each call; None = found out with a small image when first
            asked for. 0 = one answer for the whole image (a classifier).
        mean, std: normalisation the network was trained with, on the [0, 1] scale. For a network that
            takes 0-255: divide its mean and std by 255.
        size_multiple: sides are padded to a multiple of it; None = as smp networks state, else 1.
        from_logits: None = scores are logits; refused if those of the first image look like
            probabilities. True = they are logits, whatever sigmoids they look like. False when the network
            returns probabilities (a softmax or sigmoid inside); they become logits through the
            logarithm, at least ``EPS``.
        class_names: K names, or None.
        output: where the logits are, see :func:`read_logits`; None finds the usual places.
        trainable: leave parameters and mode alone.

    Shape: ``(B, 3, H, W)`` in [0, 1] -> ``(B, K, h, w)`` with h = H for networks that upsample inside
        (torchvision, smp), H / 4 for SegFormer; ``(B, K, 1, 1)`` for a classifier.

    Raises:
        InputError: an argument or image that does not fit.
        ModelError: an output without logits, of another class count or of another stride;
            probabilities taken for logits or the reverse; a size the network does not take.

    A network in bfloat16 or float16 is given images of that type, and answers in it.

    Examples:
        >>> import torch, torchvision
        >>> net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
        >>> SegmenterAdapter(net, 21)(torch.rand(1, 3, 40, 56)).shape
        torch.Size([1, 21, 40, 56])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        stride: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size_multiple: int | None = None,
        from_logits: bool | None = None,
        class_names: Sequence[str] | None = None,
        output: str | int | Callable[[Any], Tensor] | None = None,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise InputError(f"SegmenterAdapter: model is a {type(model).__name__}; give the built nn.Module")
        if hasattr(type(model), "stride") and isinstance(getattr(model, "mean", None), Tensor):
            raise InputError(f"SegmenterAdapter: {type(model).__name__} is a segmenter already and normalises itself; use it as it is, freeze(model)")
        if num_classes < 2:
            raise InputError(
                f"SegmenterAdapter: num_classes {num_classes}; need at least 2 (one sigmoid channel counts as 2)"
            )
        if class_names is not None and len(class_names) != num_classes:
            raise InputError(
                f"SegmenterAdapter: {len(class_names)} class names for {num_classes} classes; give one name a class"
            )
        if size_multiple is None:
            size_multiple = _stated_multiple(model)
        if size_multiple < 1 or (stride is not None and stride < 0):
            raise InputError(f"SegmenterAdapter: size_multiple {size_multiple}, stride {stride}; need at least 1 and 0")
        self.model = model if trainable else freeze(model)
        self.num_classes = num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self.size_multiple = size_multiple
        self.from_logits = from_logits is not False
        self._sure = from_logits is True
        self.output = output
        self._stride = stride
        self._looked = False
        place = next((parameter.device for parameter in model.parameters()), None)  # the network may be on a GPU already
        self.register_buffer("mean", torch.tensor(check_triple(mean, "mean"), device=place).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(check_triple(std, "std"), device=place).reshape(1, 3, 1, 1), persistent=False)

    @property
    def stride(self) -> int:
        """Image pixels per logit; 0 for a classifier."""
        if self._stride is None:
            side = -(-64 // self.size_multiple) * self.size_multiple
            looked, self._looked = self._looked, True  # an image of one colour tells nothing of the scores of real ones
            try:
                with looking(self.model):
                    logits = self(self.mean.clamp(0, 1).expand(1, 3, side, side))
            finally:
                self._looked = looked
            self._stride = 0 if logits.shape[-1] == 1 else round(side / logits.shape[-1])
        return self._stride

    def forward(self, image: Tensor) -> Tensor:
        check_images(image, channels=3, where="SegmenterAdapter")
        height, width = image.shape[-2:]
        padded = multiple_of(height, self.size_multiple), multiple_of(width, self.size_multiple)
        x = pad_edges((image - self.mean) / self.std, *padded)
        own = next((parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point()), x.dtype)
        if x.dtype == torch.float32 != own and not (torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)):
            x = x.to(own)
        try:
            answer = self.model(x)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, (torch.OutOfMemoryError, NotImplementedError)) or not (x.shape[-2] % 32 or x.shape[-1] % 32):
                raise
            raise ModelError(
                f"{type(self.model).__name__} fails on {x.shape[-2]} x {x.shape[-1]} pixels"
                f" ({str(error).strip().partition(chr(10))[0]});"
                " if it needs certain sizes, give size_multiple=32 (or what it needs)"
            ) from error
        logits = self._to_logits(read_logits(answer, self.output))
        return self._crop(logits, (height, width), padded)

    def _to_logits(self, scores: Tensor) -> Tensor:
        if scores.ndim == 2:  # a classifier: one answer for the image
            scores = scores[..., None, None]
        if scores.ndim != 4 or not scores.is_floating_point():
            raise ModelError(
                f"segmenter output of shape {tuple(scores.shape)}, {scores.dtype}: expected float scores (B, K, h, w);"
                " a map of class indices has no gradient, take what precedes its arg-max"
            )
        binary = scores.shape[1] == 1 and self.num_classes == 2
        if not binary and scores.shape[1] != self.num_classes:
            raise ModelError(
                f"segmenter output has {scores.shape[1]} channels, but num_classes is {self.num_classes}; correct it,"
                " or choose another part with output= (for feature maps, as timm's features_only gives,"
                " use FPNSegmenter('timm:...'))"
            )
        if not self._looked and not torch.compiler.is_compiling():  # once: looking at values costs a wait on GPUs
            self._look(scores.detach())
            self._looked = True
        if not self.from_logits:
            scores = scores.float()
            if binary:
                scores = torch.cat([1 - scores, scores], dim=1)
            return scores.clamp(min=EPS).log()
        return torch.cat([torch.zeros_like(scores), scores], dim=1) if binary else scores

    def _look(self, scores: Tensor) -> None:
        low, high = float(scores.min()), float(scores.max())
        inside = low >= -1e-4 and high <= 1 + 1e-3
        if not self.from_logits and not inside:
            raise ModelError(
                f"from_logits=False, but the scores run from {low:.3g} to {high:.3g}: no probabilities;"
                " leave from_logits=True"
            )
        sums = scores.float().sum(1)
        if self.from_logits and inside and scores.shape[1] > 1 and float((sums - 1).abs().max()) < 1e-2:
            raise ModelError(
                "the scores of every pixel are in [0, 1] and sum to 1: probabilities, not logits;"
                " give from_logits=False, or build the network without its softmax"
            )
        if self.from_logits and not self._sure and low >= 0 and high <= 1 and high - low > 0.3:  # untrained logits lie closer together
            raise ModelError(
                f"all scores lie in [0, 1] ({low:.3g} to {high:.3g}), as sigmoids give them: give from_logits=False,"
                " build the network without its sigmoid, or say from_logits=True if they are logits after all"
            )

    def _crop(self, logits: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
        got = tuple(logits.shape[-2:])
        if self._stride and all(isinstance(g, int) for g in got) and any(
            g not in (p // self._stride, -(-p // self._stride)) for g, p in zip(got, padded, strict=True)
        ):
            raise ModelError(
                f"stride {self._stride} promised, but {padded[0]} x {padded[1]} pixels gave {got[0]} x {got[1]} logits;"
                " correct stride, or leave it out to have it measured"
            )
        keep = [s if g == p else (s * g + p - 1) // p for s, g, p in zip(size, got, padded, strict=True)]
        return crop(logits, keep[0], keep[1])


def _stated_multiple(model: nn.Module) -> int:
    """smp networks know what their sides must divide by: their encoder's output stride."""
    if getattr(model, "requires_divisible_input_shape", False):
        return int(getattr(getattr(model, "encoder", None), "output_stride", 1))
    return 1
