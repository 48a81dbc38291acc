"""The images to measure on, with labels if there are any: names first, pixels one image at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segaware import image_io
from segaware.errors import EvaluationError, ImageError
from segaware.task_metrics import IGNORE

__all__ = ["CAMVID_CLASSES", "CITYSCAPES_CLASSES", "LAYOUTS", "VOC_CLASSES", "Item", "Sample", "Source", "open_source"]

CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
# Cityscapes' 19 training classes by label id; all other ids are void.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

LAYOUTS = ("auto", "folder", "camvid", "voc", "cityscapes")


@dataclass(frozen=True)
class Item:
    """One image: its name (path below the set's folder, without ending), files, place in the sorted list."""

    name: str
    path: Path
    index: int
    label: Path | None = None


@dataclass(frozen=True)
class Sample:
    """One image in memory: ``clean (C, H, W)`` float32 in [0, 1], C = 1 or 3; ``labels (H, W)`` int64 or None."""

    item: Item
    clean: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Source:
    """A set of images, read one at a time.

    Args:
        name: for reports.
        items: sorted by name.
        classes: names of the label classes; None = no labels.
        block: how many neighbours resemble each other (video); 1 = none.
        void: label values that stand for "no class", beside 255.
        decode: label file values to classes; None = as they are.
        note: what a reader must know of the set.
    """

    name: str
    items: tuple[Item, ...]
    classes: tuple[str, ...] | None = None
    block: int = 1
    void: tuple[int, ...] = ()
    decode: Callable[[np.ndarray], np.ndarray] | None = None
    note: str = ""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def load(self, item: Item) -> Sample:
        """Read one image and its labels.

        Raises:
            ImageError: an image that cannot be read.
            EvaluationError: a label map of another size, or with values that are no class.
        """
        pixels = image_io.read(item.path, deep=False).pixels
        clean = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255
        return Sample(item, clean, None if item.label is None else self._labels(item, item.label, clean))

    def _labels(self, item: Item, path: Path, clean: Tensor) -> Tensor:
        assert self.classes is not None
        labels = _read_labels(path)
        if labels.shape != tuple(clean.shape[1:]):
            raise EvaluationError(
                f"{path}: {labels.shape[1]} x {labels.shape[0]} labels, but {item.path} is"
                f" {clean.shape[2]} x {clean.shape[1]}; give label maps of the images' size"
            )
        if self.decode is not None:
            labels = self.decode(labels)
        labels = np.where(np.isin(labels, self.void), IGNORE, labels)
        wrong = (labels >= len(self.classes)) & (labels != IGNORE)
        if wrong.any():
            raise EvaluationError(
                f"{path}: label {int(labels[wrong][0])} in {int(wrong.sum())} pixels, but there are"
                f" {len(self.classes)} classes (0-{len(self.classes) - 1}) and void"
                f" ({', '.join(map(str, (*self.void, IGNORE)))}); map other values to {IGNORE}"
            )
        return torch.from_numpy(labels.astype(np.int64))

    def select(self, names: Sequence[str] | None = None, limit: int | None = None) -> Source:
        """The images of these names (path or last part, without ending), and of those the first ``limit``.

        Places in the list are counted anew, so that a list of names reproduces a published subset.
        """
        items = list(self.items)
        if names is not None:
            known = {item.name: item for item in items}
            short: dict[str, list[Item]] = {}
            for item in items:
                short.setdefault(item.name.rpartition("/")[2], []).append(item)
            missing = [n for n in names if n not in known and len(short.get(n, ())) != 1]
            if missing:
                raise EvaluationError(
                    f"{len(missing)} of {len(names)} names are not in {self.name} (or not once): {', '.join(missing[:5])};"
                    " write them without ending"
                )
            items = sorted({known.get(n) or short[n][0] for n in names}, key=lambda item: item.name)
        if limit is not None:
            if limit < 1:
                raise EvaluationError(f"limit {limit}: measure at least one image")
            items = items[:limit]
        return replace(self, items=tuple(replace(item, index=index) for index, item in enumerate(items)))


def open_source(
    root: str | os.PathLike[str],
    layout: str = "auto",
    *,
    split: str = "val",
    classes: Sequence[str] | None = None,
    void: int | None = None,
) -> Source:
    """Find the images of a set.

    Args:
        root: a folder. "camvid": SegNet's layout, SPLIT/ and SPLITannot/ with the same stems, 11 = void.
            "voc": ImageSets/Segmentation/SPLIT.txt, JPEGImages/, SegmentationClass/. "cityscapes":
            leftImg8bit/SPLIT and gtFine/SPLIT, read through torchvision. "folder": all images below,
            without labels, but for the reports of evaluations. "auto": whichever of these it is.
        split: of a labelled set.
        classes: for "camvid": the class names of your own data in that layout; labels from
            ``len(classes)`` on are refused, 255 and ``void`` are not counted.
        void: with ``classes``: one more label that is not counted.

    Raises:
        EvaluationError: no such folder, layout or split, no images, names that clash or are no text, missing label files,
            classes for another layout.
    """
    root = Path(root)
    if not root.is_dir():
        what = "a file; give the folder it lies in" if root.exists() else "no such folder; check the name"
        raise EvaluationError(f"{root}: {what}")
    if layout == "auto":
        layout = _guess(root, split)
    if layout != "camvid" and (classes is not None or void is not None):
        raise EvaluationError(
            f"{root}: classes and void are for your own labels in SegNet's layout, {split}/ and {split}annot/; this one is {layout!r}"
        )
    if layout == "folder":
        return Source(root.resolve().name, _items(root, _images(root), root))
    if layout == "camvid":
        return _camvid(root, split, classes, void)
    if layout == "voc":
        return _voc(root, split)
    if layout == "cityscapes":
        return _cityscapes(root, split)
    raise EvaluationError(f"layout {layout!r} is unknown; use one of {', '.join(LAYOUTS)}")


def _guess(root: Path, split: str) -> str:
    if (root / f"{split}annot").is_dir():
        return "camvid"
    if (root / "ImageSets" / "Segmentation" / f"{split}.txt").is_file():
        return "voc"
    if (root / "leftImg8bit" / split).is_dir():
        return "cityscapes"
    splits = [folder.name.removesuffix("annot") for folder in root.glob("?*annot") if folder.is_dir()]
    splits += [file.stem for file in (root / "ImageSets" / "Segmentation").glob("*.txt")]
    splits += [folder.name for folder in (root / "leftImg8bit").glob("*") if folder.is_dir()]
    if splits:
        raise EvaluationError(
            f"{root}: a labelled set without the split {split!r}; there is {', '.join(sorted(splits))}:"
            " give one of these (--split), or layout folder to measure all images below without labels"
        )
    return "folder"


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder; check the layout and the split")
    found = []
    for here, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not (name.startswith(".") or _is_report(Path(here, name))))
        if "pictures" in below and _is_report(Path(here)):  # written into the folder of the images itself
            below.remove("pictures")
        found += [
            Path(here, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in image_io.EXTENSIONS
        ]
    if not found:
        raise EvaluationError(f"{folder}: no images here or below; looked for {' '.join(image_io.EXTENSIONS)}")
    return found


def _is_report(folder: Path) -> bool:
    """Whether an evaluation has written it: its pictures are no clean images."""
    return (folder / "cells.jsonl").is_file() or (folder / ".lock").is_file() and (folder / "report.json").is_file()


def _items(root: Path, images: Sequence[Path], below: Path, labels: Callable[[str], Path] | None = None) -> tuple[Item, ...]:
    """Name, sort, and pair with labels; says which names clash and which labels are missing."""
    named: dict[str, Path] = {}
    for path in images:
        name = path.relative_to(below).with_suffix("").as_posix()
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise EvaluationError(f"{ascii(str(path))}: a name that is no text cannot stand in a report; rename the file") from error
        if name in named:
            raise EvaluationError(f"{named[name]} and {path} have one name; names must differ in more than the ending")
        named[name] = path
    found = {name: None if labels is None else labels(name) for name in named}
    missing = [(named[name], label) for name, label in sorted(found.items()) if label is not None and not label.is_file()]
    if missing:
        pairs = "\n".join(f"  {image} has no {label}" for image, label in missing[:5])
        more = f"\n  and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise EvaluationError(f"{root}: {len(missing)} of {len(named)} images have no label file:\n{pairs}{more}\nadd them, or take the images out")
    return tuple(Item(name, named[name], index, found[name]) for index, name in enumerate(sorted(named)))


def _camvid(root: Path, split: str, classes: Sequence[str] | None, void: int | None) -> Source:
    images, annotations = root / split, root / f"{split}annot"
    items = _items(root, _images(images), images, lambda name: annotations / f"{name}.png")
    extra = sorted({p.stem for p in annotations.glob("*.png")} - {item.name for item in items})
    if extra:
        raise EvaluationError(f"{annotations}: {len(extra)} label files without an image: {', '.join(extra[:5])}; add the images to {images}")
    names = tuple(classes) if classes else CAMVID_CLASSES
    if classes:
        return Source(f"{root.resolve().name} {split}", items, names, void=() if void is None else (void,))
    note = "frames of one clip, neighbours alike" if split == "val" else "frames of video, neighbours alike"
    return Source(f"CamVid {split}", items, names, block=10, void=(11,), note=note)


def _voc(root: Path, split: str) -> Source:
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.is_file():
        raise EvaluationError(f"{listing}: no such file; root is the VOC folder that holds ImageSets, e.g. VOCdevkit/VOC2012")
    folder = root / "JPEGImages"
    images = [folder / f"{stem}.jpg" for stem in listing.read_text(encoding="utf-8").split()]
    missing = [path for path in images if not path.is_file()]
    if missing or not images:
        raise EvaluationError(f"{listing}: {len(missing)} of {len(images)} images are missing, e.g. {missing[:1] or folder}; unpack the set again")
    items = _items(root, images, folder, lambda name: root / "SegmentationClass" / f"{name}.png")
    return Source(f"VOC {split}", items, VOC_CLASSES)


def _cityscapes(root: Path, split: str) -> Source:
    from torchvision.datasets import Cityscapes

    try:
        found = Cityscapes(str(root), split=split, mode="fine", target_type="semantic")
    except (RuntimeError, ValueError, OSError) as error:
        raise EvaluationError(f"{root}: not Cityscapes as torchvision reads it ({error}); unpack leftImg8bit and gtFine there") from error
    labels = {Path(image): Path(target[0]) for image, target in zip(found.images, found.targets, strict=True)}
    below = root / "leftImg8bit" / split
    by_name = {path.relative_to(below).with_suffix("").as_posix(): label for path, label in labels.items()}
    table = np.full(256, IGNORE)
    table[list(_CITYSCAPES_IDS)] = range(len(_CITYSCAPES_IDS))
    items = _items(root, list(labels), below, lambda name: by_name[name])
    return Source(f"Cityscapes {split}", items, CITYSCAPES_CLASSES, decode=lambda ids: table[ids])


def _read_labels(path: Path) -> np.ndarray:
    """Class indices as the file states them: gray values, or palette indices before any colours."""
    from PIL import Image as PILImage

    try:
        with PILImage.open(path) as picture:
            array: Any = np.array(picture)
            mode = picture.mode
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: label map cannot be read ({error}); fetch or save it again") from error
    if array.ndim != 2 or array.dtype != np.uint8 or mode not in ("L", "P"):
        raise EvaluationError(f"{path}: {mode} picture of shape {array.shape}; a label map is one 8-bit channel of class indices")
    return array
