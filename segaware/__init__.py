"""segaware: image denoisers that keep what machines need.

Public names are listed here and imported when first used, so that ``import segaware`` costs no
more than ``import torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "ConditionEncoder": "segaware.layers.sft",
    "ConsistencyLoss": "segaware.losses.consistency",
    "DDFN": "segaware.denoisers.ddfn",
    "DnCNN": "segaware.denoisers.dncnn",
    "EntropySegAwareLoss": "segaware.losses.entropy",
    "FFDNet": "segaware.denoisers.ffdnet",
    "FPNSegmenter": "segaware.segmenters.fpn",
    "Denoise": "segaware.transforms",
    "DeepLabSegmenter": "segaware.segmenters.deeplab",
    "HRNetSegmenter": "segaware.segmenters.hrnet",
    "SMPSegmenter": "segaware.segmenters.smp",
    "LiuDenoiser": "segaware.denoisers.liu",
    "PerceptualLoss": "segaware.losses.perceptual",
    "PseudoLabelLoss": "segaware.losses.pseudo_label",
    "SDABN": "segaware.cascade",
    "SDB": "segaware.cascade",
    "SFTLayer": "segaware.layers.sft",
    "SegAwareWrapper": "segaware.wrapper",
    "TaskLoss": "segaware.losses.task",
    "denoise": "segaware.inference.engine",
    "from_pretrained": "segaware.zoo.load",
    "list_models": "segaware.zoo.load",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'segaware' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


if TYPE_CHECKING:
    from segaware.cascade import SDABN, SDB
    from segaware.denoisers.ddfn import DDFN
    from segaware.denoisers.dncnn import DnCNN
    from segaware.denoisers.ffdnet import FFDNet
    from segaware.denoisers.liu import LiuDenoiser
    from segaware.inference.engine import denoise
    from segaware.layers.sft import ConditionEncoder, SFTLayer
    from segaware.losses.consistency import ConsistencyLoss
    from segaware.losses.entropy import EntropySegAwareLoss
    from segaware.losses.perceptual import PerceptualLoss
    from segaware.losses.pseudo_label import PseudoLabelLoss
    from segaware.losses.task import TaskLoss
    from segaware.segmenters.deeplab import DeepLabSegmenter
    from segaware.segmenters.fpn import FPNSegmenter
    from segaware.segmenters.hrnet import HRNetSegmenter
    from segaware.segmenters.smp import SMPSegmenter
    from segaware.transforms import Denoise
    from segaware.wrapper import SegAwareWrapper
    from segaware.zoo.load import from_pretrained, list_models
