"""Deep semantic statistics matching (Mei, Patel, Huang, "Deep Semantic Statistics Matching (D2SM)
Denoising Network", ECCV 2022), from its formula, with the gradient that its release does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.errors import InputError, ModelError
from segaware.losses.frozen import Frozen, LossThroughNetwork, need
from segaware.losses.logits import full_precision, widen

__all__ = ["D2SMLoss", "d2sm", "patches"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EPSILON = 1e-6


def d2sm(
    features: Tensor,
    clean_features: Tensor,
    memory: Tensor | None = None,
    *,
    reduction: Literal["row", "entry"] = "row",
    temperature: float | None = None,
    anchors: Literal["pair", "clean"] = "pair",
) -> Tensor:
    """Divergence of how alike the samples are: clean among clean against denoised among denoised.

    Rows are brought to unit length. P[i, j] is the similarity of rows i and j over the sum of row
    i, the diagonal included: ``(cosine + 1) / 2``, or ``exp(cosine / temperature)``. The value is
    ``sum_j G[i, j] log((G[i, j] + 1e-6) / (F[i, j] + 1e-6))`` with G of the clean rows, F of the
    denoised, over the live rows i; j runs over the live rows and the memory.

    Args:
        features: of the denoised images, ``(M, d)``.
        clean_features: of the clean ones, same shape; never receives a gradient.
        memory: ``(2, Q, d)``: earlier denoised rows, then the clean rows that belong to them; None = none.
        reduction: ``"row"`` is the mean over the rows of their divergence, ``"entry"`` the mean over
            all entries, as published: smaller by their number, M + Q.
        temperature: None = the published shift, after which all rows are nearly uniform.
        anchors: ``"clean"``: both sides are compared with the clean rows, F[i, j] of denoised i and
            clean j. No stale rows of a denoiser that has changed since, and no blindness to a
            common rotation of the features.

    Returns:
        A scalar in the precision of the rows, at least float32; zero at equal features.

    Raises:
        ModelError: no two matrices of one shape, or a memory of another width.
        InputError: a single row in all (its similarity to itself says nothing), or unknown options.

    Source: the paper's formula, which is probabilistic knowledge transfer (Passalis and Tefas, ECCV
        2018) with a memory. ``anchors="clean"`` and ``temperature`` are ours.
    """
    _check(reduction, temperature, anchors, "d2sm")
    if features.ndim != 2 or features.shape != clean_features.shape:
        raise ModelError(
            f"d2sm: expected two matrices (M, d), got {tuple(features.shape)} and {tuple(clean_features.shape)}; flatten each sample"
        )
    if memory is not None and (memory.ndim != 3 or len(memory) != 2 or memory.shape[2] != features.shape[1]):
        raise ModelError(f"d2sm: memory {tuple(memory.shape)} for rows of {features.shape[1]}; give (2, Q, {features.shape[1]})")
    with full_precision(features):
        mine, clean = _unit(widen(features)), _unit(widen(clean_features.detach()))
        past, clean_past = (mine[:0], clean[:0]) if memory is None else _unit(memory.detach().to(mine))
        clean_all = torch.cat([clean, clean_past])
        if len(clean_all) < 2:
            raise InputError("d2sm: one sample in all; take a batch of two or more, or cut patches")
        mine_all = clean_all if anchors == "clean" else torch.cat([mine, past])
        cosines = torch.stack([clean @ clean_all.T, mine @ mine_all.T])
        if cosines.device.type != "mps":
            cosines = cosines.double()  # the shifted form gives an entry 1e-7 and less, from terms of 1 / N
        if temperature is None:
            shifted = (cosines + 1).clamp_min(0)  # rounding may leave -1e-8
            wanted, found = shifted / shifted.sum(dim=2, keepdim=True).clamp_min(EPSILON)
            gaps = wanted * ((wanted + EPSILON) / (found + EPSILON)).log()
        else:
            log_wanted, log_found = (cosines / temperature).log_softmax(dim=2)
            gaps = log_wanted.exp() * (log_wanted - log_found)
        value = gaps.mean() if reduction == "entry" else gaps.sum(dim=1).mean()
        return value.to(mine.dtype)


def patches(images: Tensor, side: int | None) -> Tensor:
    """``images`` cut into squares of ``side`` from the top left corner, one batch ``(B n, C, side, side)``.

    What is left at the right and the bottom is dropped; a side longer than the image takes all of it.
    """
    if side is None:
        return images
    height, width = (min(side, n) for n in images.shape[2:])
    cut = images.unfold(2, height, height).unfold(3, width, width)  # (B, C, rows, columns, height, width)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(end_dim=2)


class D2SMLoss(LossThroughNetwork):
    """:func:`d2sm` of a frozen extractor's features, flattened patch by patch, with a memory of earlier patches.

    A patch's feature map is one row of unit length. Rows of the batch are live; the memory is
    detached, used as far as it is filled, and takes the batch in only when ``denoised`` carries a
    gradient: looking at the loss without gradient leaves it as it is, whatever ``train()`` says.

    **The memory is state.** It is in ``state_dict()`` as ``memory``, and ``fit`` saves it with its
    checkpoints, so a resumed run goes on exactly (in several processes each has its own, and all
    resume with the first one's). In a loop of your own save ``loss.state_dict()`` too, or let it
    refill: ``queue`` / (patches a step) steps later it holds what it would have held.

    Zero does not mean equal features (with ``anchors="pair"`` any common rotation goes unseen), and
    the shifted similarity gives tiny values and gradients: never use it without a fidelity term,
    and set its weight by the gradient norm in the log.

    Args:
        extractor: from images to a feature tensor ``(B, ...)``; the paper's is torchvision's VGG-19
            up to conv5_4 (``vgg19(...).features[:35]``) with ``normalize="imagenet"``. Frozen and hidden.
        queue: how many rows are remembered; 0 = none.
        patch: side of the squares that images are cut into; None = whole images.
        normalize: what is done to images in [0, 1]: None, ``"imagenet"``, or ``(mean, std)``.
        reduction, temperature, anchors: as in :func:`d2sm`.

    Shape: ``loss(denoised, clean=clean)``, both ``(B, 3, H, W)``, always of one size where that is
        below ``patch`` -> float32 scalar.

    Raises:
        InputError: no ``clean``, a single row, or a size that gives rows of another length than those remembered.
        ModelError: no module, no tensor, or parameters that were switched on.

    Source: see :func:`d2sm`. Queue 256 and patch 224 are most likely the paper's. Deviations: live
        rows carry gradient, the memory starts empty instead of random, ImageNet's mean and deviation.
    """

    name = "d2sm"
    #: A training that is to resume exactly must save ``state_dict()``.
    keeps_state = True
    mean: Tensor
    std: Tensor
    memory: Tensor | None

    def __init__(
        self,
        extractor: nn.Module | None = None,
        *,
        queue: int = 256,
        patch: int | None = 224,
        normalize: Literal["imagenet"] | tuple[Sequence[float], Sequence[float]] | None = None,
        reduction: Literal["row", "entry"] = "row",
        temperature: float | None = None,
        anchors: Literal["pair", "clean"] = "pair",
    ) -> None:
        super().__init__()
        _check(reduction, temperature, anchors, "D2SMLoss")
        if queue < 0 or (patch is not None and patch < 1):
            raise InputError(f"D2SMLoss: queue {queue}, patch {patch}; a queue of 0 or more, patches of at least 1 pixel or None")
        if isinstance(normalize, str) and normalize != "imagenet":
            raise InputError(f'D2SMLoss: normalize={normalize!r}; say "imagenet", (mean, std) or None')
        self.extractor = Frozen(extractor, where="D2SMLoss")
        self.queue, self.patch = queue, patch
        self.reduction, self.temperature, self.anchors = reduction, temperature, anchors
        mean, std = IMAGENET if isinstance(normalize, str) else normalize or ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("memory", None)

    def forward(self, denoised: Tensor, *, clean: Tensor | None = None) -> Tensor:
        clean = need(clean, "clean", where="D2SMLoss")
        with torch.no_grad():
            target = self._rows(clean)
        rows = self._rows(denoised)
        if self.memory is not None and self.memory.shape[2] != rows.shape[1]:
            raise InputError(
                f"D2SMLoss: rows of {rows.shape[1]} values, but those remembered have {self.memory.shape[2]};"
                " train on images of one size, set patch to it or below, or build a new loss"
            )
        value = d2sm(
            rows, target, self.memory, reduction=self.reduction, temperature=self.temperature, anchors=self.anchors
        )
        if self.queue and torch.is_grad_enabled() and denoised.requires_grad:
            with torch.no_grad():
                latest = _unit(torch.stack([rows, target]))
                past = latest[:, :0] if self.memory is None else self.memory.to(latest)
                self.memory = torch.cat([past, latest], dim=1)[:, -self.queue :]
        return value

    def _rows(self, images: Tensor) -> Tensor:
        images = (patches(images, self.patch) - self.mean.to(images)) / self.std.to(images)
        features = self.extractor(images)
        if not isinstance(features, Tensor) or features.ndim < 2:
            raise ModelError(f"D2SMLoss: the extractor gave {type(features).__name__}; return one feature tensor (B, ...)")
        return widen(features.flatten(start_dim=1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        found = state_dict.get(f"{prefix}memory")
        # as long as what is loaded, which may be longer, shorter, or nothing yet
        self.memory = None if found is None else torch.empty_like(found, device=self.mean.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1, eps=1e-4)  # a slope that stays finite where all features are zero


def _check(reduction: str, temperature: float | None, anchors: str, where: str) -> None:
    if reduction not in ("row", "entry") or anchors not in ("pair", "clean"):
        raise InputError(f'{where}: reduction={reduction!r}, anchors={anchors!r}; say "row" or "entry", "pair" or "clean"')
    if temperature is not None and not 0 < temperature < math.inf:
        raise InputError(f"{where}: temperature {temperature:g} must be positive, or None")
