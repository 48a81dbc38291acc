"""Judges: frozen segmenters that say what a machine sees in an image. They are never used for awareness."""

from __future__ import annotations

import copy
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.checks import check_finite
from segaware.entries import load_entry, locate, read_config, shipped_folder, shipped_names
from segaware.errors import EvaluationError, SegawareError
from segaware.evaluation.sources import Source
from segaware.fingerprint import hash_module
from segaware.inference.folding import fold_batch_norm
from segaware.pretrained import is_repo, load_pretrained

__all__ = ["Judge", "default_judges", "open_judge"]


class Judge:
    """A segmenter under a name.

    It sees images clamped to [0, 1], as any display or file would hold them, and not rounded. Logits
    are brought to the image's size (bilinear) before the class of each pixel is read off.

    Args:
        segmenter: of the contract in :mod:`segaware.contracts`; left as it is, a copy is used.

    Raises:
        EvaluationError: a network that is no segmenter.
    """

    def __init__(self, name: str, segmenter: nn.Module, *, device: str | torch.device = "cpu") -> None:
        classes = getattr(segmenter, "num_classes", None)
        if not isinstance(classes, int):
            raise EvaluationError(
                f"judge {name}: a {type(segmenter).__name__} without num_classes is no segmenter;"
                " give one that ships, or wrap yours in segaware.segmenters.adapters.SegmenterAdapter"
            )
        self.name = name
        self.device = torch.device(device)
        self.segmenter = _fast(segmenter).to(self.device)
        self.classes = classes
        names = getattr(segmenter, "class_names", None)
        self.class_names = tuple(names) if names else tuple(f"class {index}" for index in range(classes))
        self.key = hash_module(segmenter)

    def __call__(self, image: Tensor) -> Tensor:
        """Scores ``(K, H, W)`` on the CPU for one image ``(C, H, W)``; a gray one is seen as colour.

        Raises:
            EvaluationError: an image it cannot take, or an answer that is not one score a class and pixel.
        """
        height, width = image.shape[1:]
        stride = int(getattr(self.segmenter, "stride", 1))
        if stride == 0:
            raise EvaluationError(f"judge {self.name} is a classifier; give a segmenter")
        if min(height, width) < stride:
            raise EvaluationError(
                f"judge {self.name}: {width} x {height} pixels are less than its stride of {stride};"
                f" leave out images smaller than {stride} x {stride}"
            )
        check_finite(image, where=f"judge {self.name}")
        seen = image.clamp(0, 1).expand(3, -1, -1)[None].to(self.device, memory_format=torch.channels_last)
        try:
            with torch.inference_mode():
                logits = self.segmenter(seen)
                if logits.ndim != 4 or logits.shape[:2] != (1, self.classes):
                    raise EvaluationError(f"judge {self.name} gave {tuple(logits.shape)} for one image; expected (1, {self.classes}, h, w)")
                # with the classes of a pixel side by side, as an arg-max over them is 80 x faster
                logits = logits.float().contiguous(memory_format=torch.channels_last)
                return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)[0].cpu()
        except SegawareError:
            raise
        except (RuntimeError, ValueError) as error:
            raise EvaluationError(f"judge {self.name} fails on {width} x {height} pixels: {str(error).splitlines()[0]}") from error

    def check(self, classes: tuple[str, ...] | None, what: str) -> None:
        """Refuse to be measured against labels of other classes.

        Raises:
            EvaluationError: another number of classes, or other names.
        """
        if classes is None:
            return
        if len(classes) != self.classes:
            raise EvaluationError(
                f"judge {self.name} knows {self.classes} classes, the labels of {what} have {len(classes)};"
                " take a judge of these classes, or leave the labels out (layout 'folder'): consistency needs none"
            )
        known = getattr(self.segmenter, "class_names", None)
        if known and tuple(n.lower() for n in known) != tuple(n.lower() for n in classes):
            first = next((a, b) for a, b in zip(known, classes, strict=True) if a.lower() != b.lower())
            raise EvaluationError(
                f"judge {self.name} calls a class {first[0]!r} that is {first[1]!r} in {what}: the order or the set differs;"
                " take a judge of these classes"
            )


def _fast(segmenter: nn.Module) -> nn.Module:
    """A copy in eval mode, folded and channels last; what cannot be copied is only brought to eval mode."""
    try:
        ready = copy.deepcopy(segmenter).eval()
    except Exception:  # networks of other libraries hold what they like
        return segmenter.eval()
    fold_batch_norm(ready)
    return ready.to(memory_format=torch.channels_last)


def open_judge(spec: str | os.PathLike[str] | nn.Module | Judge, *, device: str | torch.device = "cpu") -> Judge:
    """A judge from a shipped name, the folder of a model, ``owner/name[@revision]`` on the Hub, or a segmenter module.

    Raises:
        WeightsError: no such model. EvaluationError: a model that is no segmenter.
    """
    if isinstance(spec, Judge):
        return spec
    if isinstance(spec, nn.Module):
        return Judge(type(spec).__name__, spec, device=device)
    if is_repo(spec):
        return Judge(str(spec).partition("@")[0].rpartition("/")[2], load_pretrained(spec), device=device)
    folder = locate(spec)
    return Judge(folder.resolve().name, load_entry(folder), device=device)


def default_judges(source: Source) -> list[str]:
    """Shipped models whose config says ``"judge": true``, else ``fpn-camvid``; for labels, those of their classes."""
    configs = {name: read_config(shipped_folder(name)) for name in shipped_names()}
    found = [name for name, config in configs.items() if config.get("judge")] or [name for name in configs if name == "fpn-camvid"]
    if source.classes is None:
        return found
    return [name for name in found if tuple(configs[name].get("class_names") or ()) == source.classes]
