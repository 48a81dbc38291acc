"""What a segmenter sees, as pictures: its classes, where they change, and how unsure it is."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segaware.class_maps import class_colours
from segaware.errors import InputError

__all__ = ["View", "change_picture", "class_picture", "entropy_picture", "legend", "view"]

#: Viridis at ten even steps: its lightness grows evenly, for all kinds of colour vision.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142),
        (31, 158, 137), (53, 183, 121), (109, 205, 89), (180, 222, 44), (253, 231, 37),
    ]
)  # fmt: skip
_CHANGED = np.array([230, 97, 1])  # orange, beside gray


class View:
    """One segmenter's word on one image.

    Args:
        classes: ``(H, W)`` uint8 indices.
        entropy: ``(H, W)`` float32 in [0, 1]: entropy of the prediction over its largest, log K.
        names: of the classes.
    """

    def __init__(self, classes: np.ndarray, entropy: np.ndarray, names: tuple[str, ...]) -> None:
        self.classes, self.entropy, self.names = classes, entropy, names

    @property
    def unsure(self) -> float:
        """Mean of the entropy, in [0, 1]."""
        return float(self.entropy.mean())

    def agrees(self, other: View) -> float:
        """Share of pixels of the same class."""
        return float((self.classes == other.classes).mean())


def view(scores: Tensor, names: Sequence[str]) -> View:
    """Classes and entropy of scores ``(K, H, W)``.

    Raises:
        InputError: other shapes, one class, or more than 256.
    """
    if scores.ndim != 3 or not 2 <= len(scores) <= 256 or len(names) != len(scores):
        raise InputError(f"view: scores {tuple(scores.shape)} of {len(names)} classes; give (K, H, W) of 2 to 256 classes")
    log_p = F.log_softmax(scores.float(), dim=0)
    entropy = -(log_p.exp() * log_p).sum(dim=0) / math.log(len(scores))
    return View(scores.argmax(dim=0).to(torch.uint8).numpy(), entropy.clamp(0, 1).numpy(), tuple(names))


def class_picture(seen: View) -> np.ndarray:
    """``(H, W, 3)`` uint8, a colour a class."""
    return np.round(class_colours(len(seen.names)) * 255).astype(np.uint8)[seen.classes]


def change_picture(seen: View, reference: View, image: np.ndarray) -> np.ndarray:
    """``(H, W, 3)`` uint8: ``image`` (H, W, 3) pale and gray, in orange where the class differs from the reference's."""
    gray = np.round(0.45 * image.mean(axis=2, keepdims=True) + 130).clip(0, 255).astype(np.uint8).repeat(3, axis=2)
    gray[seen.classes != reference.classes] = _CHANGED
    return gray


def entropy_picture(seen: View) -> np.ndarray:
    """``(H, W, 3)`` uint8: dark where the segmenter is sure, yellow where all classes are as likely."""
    place = seen.entropy * (len(_VIRIDIS) - 1)
    low = np.minimum(place.astype(int), len(_VIRIDIS) - 2)
    part = (place - low)[..., None]
    return np.round(_VIRIDIS[low] * (1 - part) + _VIRIDIS[low + 1] * part).astype(np.uint8)


def legend(views: dict[str, View]) -> str:
    """HTML: the classes that occur, with their colours and the share of each picture that they fill."""
    names = next(iter(views.values())).names
    colours = np.round(class_colours(len(names)) * 255).astype(int)
    shares = {who: np.bincount(seen.classes.ravel(), minlength=len(names)) / seen.classes.size for who, seen in views.items()}
    present = sorted((i for i in range(len(names)) if any(s[i] > 0 for s in shares.values())), key=lambda i: -max(s[i] for s in shares.values()))
    head = "".join(f"<th>{html.escape(who)}</th>" for who in views)
    rows = "".join(
        f'<tr><td><span class="chip" style="background:rgb({",".join(map(str, colours[i]))})"></span>{html.escape(names[i])}</td>'
        + "".join(f"<td>{100 * s[i]:.1f} %</td>" for s in shares.values())
        + "</tr>"
        for i in present
    )
    bar = ", ".join(f"rgb({','.join(map(str, colour))})" for colour in _VIRIDIS)
    return (
        f'<table class="figures"><thead><tr><th>Class</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f'<p class="note"><span class="chip" style="background:rgb({",".join(map(str, _CHANGED))})"></span>class changed'
        f' &nbsp; entropy: sure <span class="bar" style="background:linear-gradient(to right, {bar})"></span> unsure</p>'
    )
