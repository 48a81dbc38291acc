"""HRNetV2-W18-Small-v2 for segmentation (Wang et al., "Deep High-Resolution Representation Learning for
Visual Recognition", TPAMI 2020): the segmenter of SDABN. Stem, stages and blocks are timm's; how the
branches are fused, the head and the momentum are those of the segmentation release.

timm's own network of that name has the same parameters under the same names and another function: it
fuses by nearest neighbours at fixed factors (and so takes multiples of 32 only), with momentum 0.1.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from segaware.checks import check_images
from segaware.errors import InputError, ModelError, WeightsError
from segaware.layers.sizes import resize
from segaware.pretrained import Pretrained
from segaware.segmenters.backbones import IMAGENET_MEAN, IMAGENET_STD, check_classes, check_triple, load_library

__all__ = ["HRNetSegmenter", "convert_hrnet"]

MOMENTUM = 0.01
_TRUNK = ("conv1", "bn1", "conv2", "bn2", "layer1", "transition1", "stage2", "transition2", "stage3", "transition3", "stage4")
# of timm's and the official classifier, behind the trunk
_CLASSIFIER = ("incre_modules", "downsamp_modules", "final_layer", "classifier")


class _Trunk(nn.Module):
    """timm's layers under timm's names, walked as the segmentation release does."""

    conv1: Any
    bn1: Any
    conv2: Any
    bn2: Any
    layer1: Any
    transition1: Any
    stage2: Any
    transition2: Any
    stage3: Any
    transition3: Any
    stage4: Any

    def __init__(self, net: Any) -> None:
        super().__init__()
        for name in _TRUNK:
            self.add_module(name, getattr(net, name))
        for stage in (self.stage2, self.stage3, self.stage4):
            for module in stage:
                for target, paths in enumerate(module.fuse_layers):
                    for path in list(paths)[target + 1 :]:
                        path[2] = nn.Identity()  # was Upsample(nearest, fixed factor); it has no parameters

    def forward(self, image: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)  # stride 4
        branches = [self.layer1(x)]
        for transition, stage in (
            (self.transition1, self.stage2), (self.transition2, self.stage3), (self.transition3, self.stage4),
        ):  # fmt: skip
            # a new branch starts from the coarsest one there is; an old one goes on, or is brought to its width
            last = len(branches) - 1
            branches = [t(branches[min(i, last)]) for i, t in enumerate(transition)]
            for module in stage:
                branches = _fuse(module, [branch(x) for branch, x in zip(module.branches, branches, strict=True)])
        return branches


def _fuse(module: Any, branches: list[Tensor]) -> list[Tensor]:
    """Every branch as the sum of all, each brought to its exact size."""
    fused = []
    for index, (target, paths) in enumerate(zip(branches, module.fuse_layers, strict=True)):
        total: Tensor | None = None
        for source, (path, x) in enumerate(zip(paths, branches, strict=True)):
            x = path(x)
            if source > index:  # a coarser one; finer ones were brought to the exact size by their convolutions
                x = resize(x, target)
            total = x if total is None else total + x
        assert total is not None
        fused.append(F.relu(total, inplace=True))
    return fused


class HRNetSegmenter(nn.Module, Pretrained):
    """Four resolutions side by side, exchanged after every module; logits at stride 4.

    3,860,720 parameters in the trunk; with the head 3,939,579 at 19 classes, 3,936,598 at 8.

    Args:
        num_classes: K, at least 2.
        weights: to begin with: None = random; a safetensors or torch file of the official
            segmentation network, of the official ImageNet network or of timm's; ``"imagenet"`` =
            let timm fetch its ImageNet weights. Only the last may download. A file's segmentation
            head must have as many classes.
        width: channels of the finest branch; each coarser one has twice those of the one above.
        modules: how many times branches are exchanged in stages 2, 3 and 4.
        blocks: residual blocks of each branch between two exchanges.
        bottlenecks: of stage 1. (``width=26, bottlenecks=3`` has 7,997,371 parameters at 19 classes.)
        mean, std: normalisation of the input inside; None = ImageNet's.
        init: ``"released"`` = every convolution N(0, 0.001); ``"kaiming"`` = as timm.
        class_names: K names, or None.

    Shape: ``(B, 3, H, W)`` in [0, 1], any H, W from 1 x 1 -> logits ``(B, K, ceil(H/4), ceil(W/4))``,
        not upsampled.

    Raises:
        InputError: an argument or image that does not fit.
        WeightsError: a file that is missing, damaged or of another network.
        ModelError: timm is missing or broken.

    Source: released code of HRNet for segmentation, as SDABN uses it: bilinear resizing with
        ``align_corners=False``, batch normalisation with momentum 0.01, a bias before that of the head.
    """

    stride = 4
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        weights: str | os.PathLike[str] | None = None,
        *,
        width: int = 18,
        modules: Sequence[int] = (1, 3, 2),
        blocks: int = 2,
        bottlenecks: int = 2,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        init: str = "released",
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        names = check_classes(num_classes, class_names, "HRNetSegmenter")
        if width < 1 or blocks < 1 or bottlenecks < 1 or len(modules) != 3 or min(modules) < 1:
            raise InputError(
                f"HRNetSegmenter: width {width}, modules {tuple(modules)}, blocks {blocks}, bottlenecks {bottlenecks};"
                " need at least 1 each, modules for three stages"
            )
        if init not in ("released", "kaiming"):
            raise InputError(f"HRNetSegmenter: init {init!r}; choose 'released' or 'kaiming'")
        mean = check_triple(IMAGENET_MEAN if mean is None else mean, "mean")
        std = check_triple(IMAGENET_STD if std is None else std, "std")
        self.num_classes = num_classes
        self.class_names = names
        # neither weights nor init: a saved model carries its own
        self.config = {
            "num_classes": num_classes, "width": width, "modules": list(modules), "blocks": blocks,
            "bottlenecks": bottlenecks, "mean": list(mean), "std": list(std),
            "class_names": None if names is None else list(names),
        }  # fmt: skip
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)

        total = width * 15  # w + 2w + 4w + 8w
        self.trunk = _Trunk(_timm(width, tuple(modules), blocks, bottlenecks))
        self.head = nn.Sequential(
            nn.Conv2d(total, total, 1), nn.BatchNorm2d(total), nn.ReLU(inplace=True), nn.Conv2d(total, num_classes, 1)
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM
            elif isinstance(module, nn.Conv2d) and init == "released":
                nn.init.normal_(module.weight, 0.0, 0.001)
        if weights is not None:
            self._load(_imagenet(self.config) if weights == "imagenet" else _read(weights), str(weights))

    def forward(self, image: Tensor) -> Tensor:
        check_images(image, channels=3, where="HRNetSegmenter")
        branches = self.trunk((image - self.mean) / self.std)
        finest, *coarser = branches
        return self.head(torch.cat([finest, *(resize(x, finest) for x in coarser)], dim=1))

    def head_parameters(self) -> list[nn.Parameter]:
        """All parameters that are not the trunk's."""
        return list(self.head.parameters())

    def _load(self, state: Mapping[str, Any], source: str) -> None:
        found, own = convert_hrnet(state), self.state_dict()
        head = found.get("head.3.weight")
        if head is not None and head.shape[0] != self.num_classes:
            raise WeightsError(
                f"{source}: its head has {head.shape[0]} classes, this network {self.num_classes};"
                f" build it with num_classes={head.shape[0]}, or take the head out of the file to start from its trunk"
            )
        if not any(key.startswith("head.") for key in found):
            own = {key: value for key, value in own.items() if not key.startswith("head.")}
        missing = sorted(key for key in own.keys() - found.keys() if not key.endswith("num_batches_tracked"))
        extra = sorted(found.keys() - own.keys())
        shapes = sorted(key for key in own.keys() & found.keys() if own[key].shape != found[key].shape)
        for keys, label in ((missing, "missing"), (extra, "unexpected"), (shapes, "of another shape")):
            if keys:
                raise WeightsError(
                    f"{source}: {len(keys)} tensors {label} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''});"
                    f" the file belongs to another network than HRNet of width {self.config['width']}"
                )
        self.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in found.items()}, strict=False)


def convert_hrnet(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The key names of :class:`HRNetSegmenter` for a state dict of the official code or of timm.

    Taken off are the containers and prefixes that trainings leave (``state_dict``, ``model_weights``,
    ``module.``, ``model.``); left out are the ImageNet classifier behind the trunk and the class
    weights of a loss. Other keys keep their name, so that a foreign one is seen.
    """
    for container in ("model_weights", "state_dict", "model"):
        if isinstance(state.get(container), Mapping):
            state = state[container]
    converted = {}
    for key, value in state.items():
        while key.startswith(("module.", "model.")):
            key = key.partition(".")[2]
        top = key.partition(".")[0]
        if not isinstance(value, Tensor) or top == "loss" or top in _CLASSIFIER:
            continue
        if top in _TRUNK:
            key = f"trunk.{key}"
        elif top == "last_layer":
            key = f"head.{key.partition('.')[2]}"
        converted[key] = value
    return converted


def _timm(width: int, modules: tuple[int, ...], blocks: int, bottlenecks: int) -> Any:
    """timm's network without any head, with random weights."""
    hrnet = load_library("timm.models.hrnet")

    def stage(number: int, branches: int, kind: str, deep: int, first: int) -> dict[str, Any]:
        return {
            "num_modules": number, "num_branches": branches, "block_type": kind, "num_blocks": (deep,) * branches,
            "num_channels": tuple(first * 2**i for i in range(branches)), "fuse_method": "SUM",
        }  # fmt: skip

    return hrnet.HighResolutionNet(
        {
            "stem_width": 64,
            "stage1": stage(1, 1, "BOTTLENECK", bottlenecks, 64),
            **{f"stage{n}": stage(modules[n - 2], n, "BASIC", blocks, width) for n in (2, 3, 4)},
        },
        head="none",
    )


def _imagenet(config: Mapping[str, Any]) -> Mapping[str, Any]:
    if (config["width"], tuple(config["modules"]), config["blocks"], config["bottlenecks"]) != (18, (1, 3, 2), 2, 2):
        raise ModelError("HRNetSegmenter: ImageNet weights are there for the default form only; leave width, modules and blocks alone")
    return load_library("timm").create_model("hrnet_w18_small_v2", pretrained=True).state_dict()


def _read(file: str | os.PathLike[str]) -> Mapping[str, Any]:
    path = Path(file)
    if not path.is_file():
        raise WeightsError(f"weights {path}: no such file; give a safetensors or torch file, 'imagenet' or None")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"weights {path}: damaged or not a plain state dict ({error}); fetch it again") from error
    if not isinstance(state, Mapping):
        raise WeightsError(f"weights {path}: holds a {type(state).__name__}; give a state dict")
    return state

