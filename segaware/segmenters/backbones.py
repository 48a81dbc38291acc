"""Classification networks as feature pyramids: torchvision's ResNets and SqueezeNet 1.0, timm's and smp's encoders.

Every backbone here takes a normalised image and returns its levels, finest first, the finest at
stride 4. torchvision, timm and smp are imported where one of their networks is built, through
:func:`load_library`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from segaware.errors import InputError, ModelError, WeightsError, closest

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Backbone", "build_backbone", "encoder_normalisation", "load_library", "looking"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_TORCHVISION = (*_RESNETS, "squeezenet1_0")
_PACKAGES = {"segmentation_models_pytorch": "segmentation-models-pytorch"}


class Backbone(Protocol):
    """A feature pyramid: ``backbone(normalised image)`` -> levels, finest first."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    #: sides are padded to a multiple of this ...
    size_multiple: int
    #: ... and to no less than this, so that every level has a pixel.
    min_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Tensor) -> list[Tensor]: ...


def load_library(name: str) -> ModuleType:
    """Import torchvision, timm or smp by module name, with one clear error where that fails.

    timm and smp import torchvision in turn, and a torchvision built for another torch fails with a
    message about an operator (``torchvision::nms does not exist``) that names neither build.

    Raises:
        ModelError: the package is not installed, or torch and torchvision do not match.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        package = _PACKAGES.get(name.partition(".")[0], name.partition(".")[0])
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == name.partition(".")[0]:
            raise ModelError(f"{package} is not installed; install it with: pip install {package}") from error
        text = str(error)
        if "torchvision" in text or "operator" in text or "undefined symbol" in text:
            raise ModelError(
                f"torch {_version('torch')} and torchvision {_version('torchvision')} do not match"
                f" ({text.splitlines()[0]}); install both in one command: pip install -U torch torchvision"
            ) from error
        raise ModelError(
            f"{package} {_version(package)} cannot be imported: {text}; reinstall it: pip install -U {package}"
        ) from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


class _ResNetLevels(nn.Module):
    """A torchvision ResNet without pool and classifier, under torchvision's own key names.

    Every layer pads, so a level of stride s is exactly ceil(H / s) x ceil(W / s), from 1 x 1.
    """

    strides = (4, 8, 16, 32)
    size_multiple, min_size = 1, 1
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, net: Any) -> None:
        super().__init__()
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(net, name))
        self.channels = tuple(c * (4 if hasattr(net.layer1[0], "conv3") else 1) for c in (64, 128, 256, 512))

    def forward(self, image: Tensor) -> list[Tensor]:
        levels = []
        x = image
        for name, layer in self.named_children():
            x = layer(x)
            if name.startswith("layer"):
                levels.append(x)
        return levels


class _SqueezeNetLevels(nn.Module):
    """SqueezeNet 1.0 without its classifier, under torchvision's key names; levels before each pool and at the end.

    The stem gets the padding of 3 that the original leaves out: with sides that are multiples of 16
    the levels are then exactly H/4, H/8, H/16 (48 x 48 gives 12, 6, 3; unpadded it would be 10, 5, 2).
    """

    channels = (256, 512, 512)
    strides = (4, 8, 16)
    size_multiple, min_size = 16, 16
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.features = net.features
        net.features[0].padding = (3, 3)

    def forward(self, image: Tensor) -> list[Tensor]:
        levels = []
        x = image
        for index, layer in enumerate(self.features.children()):
            x = layer(x)
            if index in (5, 10, 12):
                levels.append(x)
        return levels


@contextmanager
def looking(net: nn.Module) -> Iterator[None]:
    """``net`` in evaluation mode and without gradients; afterwards each part is in the mode it was in."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class _EncoderLevels(nn.Module):
    """A timm or smp encoder: of its feature maps those at strides 4, 8, 16, 32."""

    def __init__(self, net: nn.Module, channels: list[int], strides: list[int], mean: Any, std: Any, name: str) -> None:
        super().__init__()
        # the last map of each stride is the richest; smp's transformers give empty maps at stride 2
        last = {
            stride: index for index, stride in enumerate(strides) if stride in (4, 8, 16, 32) and channels[index] > 0
        }
        if 4 not in last or len(last) < 2:
            raise ModelError(
                f"backbone {name!r}: feature maps at strides {strides}; a pyramid needs one at stride 4"
                " and a coarser one: choose a convolutional or hierarchical network (resnet, mobilenet, convnext, ...)"
            )
        self.net = net
        self.strides = tuple(sorted(last))
        self._take = tuple(last[s] for s in self.strides)
        self.channels = tuple(channels[i] for i in self._take)
        # multiples of 4 make the finest level H/4 with networks that round up and with those that round down;
        # some add their branches only where all of them divide evenly
        self.min_size = self.strides[-1]
        self.size_multiple = next((multiple for multiple in (4, 32) if self._takes(multiple)), 0)
        if not self.size_multiple:
            raise ModelError(
                f"backbone {name!r}: takes no image of 36 x 68 or of 64 x 96 pixels, or gives no maps (B, C, h, w) for them;"
                " networks of one size, or whose convolutions do not pad, are no pyramid here: choose another (resnet, mobilenet,"
                " convnext, ...)"
            )
        self.mean, self.std = tuple(mean), tuple(std)

    def _takes(self, multiple: int) -> bool:
        """Whether sides of such multiples give the maps that are promised."""
        height, width = {4: (36, 68), 32: (64, 96)}[multiple]
        like = next(self.net.parameters())
        try:
            with looking(self.net):
                maps = self(torch.zeros(1, 3, height, width, device=like.device, dtype=like.dtype))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, ValueError, IndexError):
            return False
        return all(
            level.ndim == 4 and level.shape[1] == channels and all(side // stride <= got <= -(-side // stride) for side, got in zip((height, width), level.shape[2:], strict=True))
            for level, channels, stride in zip(maps, self.channels, self.strides, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = self.net(image)
        return [maps[i] for i in self._take]


def build_backbone(name: str, weights: str | os.PathLike[str] | None = None) -> Any:
    """A backbone by name: ``"resnet18"`` .. ``"resnet152"``, ``"squeezenet1_0"``, ``"timm:NAME"`` or ``"smp:NAME"``.

    Args:
        name: torchvision's name, or timm's / smp's with their prefix: networks whose maps are ``(B, C, h, w)``
            and that take any size, or any multiple of 32.
        weights: None = random; ``"imagenet"`` = ask the library that has the network, which may
            download; else a safetensors or torch file with the library's own key names, whose
            classifier is left out and whose other keys must fit exactly. Encoders of smp's own are then normalised
            as ImageNet: what they were trained with only smp's server tells.

    Raises:
        ModelError: an unknown name, a network without a level at stride 4 or of one fixed size, or a library
            that does not load.
        WeightsError: a file that is missing, damaged or of another network.
    """
    download = weights == "imagenet"
    library, _, rest = name.partition(":") if isinstance(name, str) else ("", "", "")
    if name in _TORCHVISION:
        models = load_library("torchvision.models")
        net = models.get_model(name, weights="IMAGENET1K_V1" if download else None)
        backbone: Any = _SqueezeNetLevels(net) if name == "squeezenet1_0" else _ResNetLevels(net)
    elif library == "timm" and rest:
        backbone = _timm(rest, name, download)
    elif library == "smp" and rest:
        backbone = _smp(rest, name, download)
    else:
        raise ModelError(f"unknown backbone {name!r}; {closest(str(name), _TORCHVISION)} (or 'timm:NAME', 'smp:NAME')")
    if weights is not None and not download:
        _load(backbone.net if isinstance(backbone, _EncoderLevels) else backbone, weights, name)
    return backbone


def _timm(model: str, name: str, download: bool) -> _EncoderLevels:
    timm = load_library("timm")
    if not timm.is_model(model.partition(".")[0]):
        raise ModelError(f"unknown backbone {name!r}; {closest(model, timm.list_models())}")
    try:
        net = timm.create_model(model, pretrained=download, features_only=True)
    except (RuntimeError, AttributeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"backbone {name!r}: timm cannot give its feature maps ({error}); choose another network"
        ) from error
    cfg = getattr(net, "pretrained_cfg", None) or getattr(net, "default_cfg", None) or {}
    info = net.feature_info
    mean, std = cfg.get("mean", IMAGENET_MEAN), cfg.get("std", IMAGENET_STD)
    return _EncoderLevels(net, list(info.channels()), list(info.reduction()), mean, std, name)


def _smp(encoder: str, name: str, download: bool) -> _EncoderLevels:
    smp = load_library("segmentation_models_pytorch")
    try:
        net = smp.encoders.get_encoder(encoder, in_channels=3, depth=5, weights="imagenet" if download else None)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"unknown backbone {name!r} ({error}); {closest(encoder, smp.encoders.get_encoder_names())}"
        ) from error
    channels = list(net.out_channels)
    mean, std = encoder_normalisation(encoder, "imagenet" if download else None)
    return _EncoderLevels(net, channels, [2**i for i in range(len(channels))], mean, std, name)


def encoder_normalisation(encoder: str, weights: str | None) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation that an encoder of smp was made for; ImageNet's where smp would have to fetch the answer."""
    if weights is None and not encoder.startswith("tu-"):
        return IMAGENET_MEAN, IMAGENET_STD
    smp = load_library("segmentation_models_pytorch")
    try:
        stated = smp.encoders.get_preprocessing_params(encoder, weights or "imagenet")
    except (KeyError, ValueError, AttributeError, RuntimeError):  # random weights of a network that smp has none for
        return IMAGENET_MEAN, IMAGENET_STD
    scale = float(max(stated.get("input_range") or (0, 1)))
    mean, std = stated.get("mean") or IMAGENET_MEAN, stated.get("std") or IMAGENET_STD
    return tuple(v / scale for v in mean), tuple(v / scale for v in std)


def _load(net: nn.Module, weights: str | os.PathLike[str], name: str) -> None:
    file = Path(weights)
    if not file.is_file():
        raise WeightsError(
            f"backbone weights {file}: no such file; give a safetensors or torch file, 'imagenet' or None"
        )
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        ValueError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise WeightsError(
            f"backbone weights {file}: damaged or not a plain state dict ({error}); fetch it again"
        ) from error
    expected = net.state_dict()
    tops = {key.partition(".")[0] for key in expected}
    # timm's features_only has stages_0 for stages.0
    state = {key if key.partition(".")[0] in tops or key.replace(".", "_", 1).partition(".")[0] not in tops else key.replace(".", "_", 1): value
             for key, value in state.items()}  # fmt: skip
    # what hangs behind the features (classifier, fc, head, ...) is named by its own top-level module
    own = {key.partition(".")[0] for key in expected}
    state = {key: value for key, value in state.items() if key.partition(".")[0] in own}
    missing = sorted(k for k in expected.keys() - state.keys() if not k.endswith("num_batches_tracked"))
    extra = sorted(state.keys() - expected.keys())
    shapes = sorted(k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape)
    for keys, label in ((missing, "missing"), (extra, "unexpected"), (shapes, "of another shape")):
        if keys:
            raise WeightsError(
                f"backbone weights {file}: {len(keys)} tensors {label} for {name!r} ({', '.join(keys[:3])}"
                f"{', ...' if len(keys) > 3 else ''}); the file belongs to another network"
            )
    net.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in state.items()}, strict=False
    )


def check_triple(values: Any, what: str) -> tuple[float, ...]:
    """Three finite numbers, as a mean or standard deviation of RGB in [0, 1]."""
    try:
        triple = tuple(float(v) for v in values)
    except TypeError:
        triple = ()
    if len(triple) != 3 or not all(abs(v) < 1e4 for v in triple) or (what == "std" and not all(v > 0 for v in triple)):
        raise InputError(
            f"{what}: expected three numbers on the [0, 1] scale{', over 0' if what == 'std' else ''}, got {values!r}"
        )
    return triple


def check_classes(num_classes: int, class_names: Sequence[str] | None, who: str) -> tuple[str, ...] | None:
    """The names as a tuple.

    Raises:
        InputError: fewer than 2 classes, or not one name a class.
    """
    if num_classes < 2:
        raise InputError(f"{who}: num_classes {num_classes}; need at least 2 (foreground and background are two)")
    if class_names is not None and len(class_names) != num_classes:
        raise InputError(f"{who}: {len(class_names)} class names for {num_classes} classes; give one name a class")
    return None if class_names is None else tuple(class_names)
