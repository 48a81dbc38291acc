"""Segmentation and denoising in turns, each building on what the other said: the blocks and the cascade
of SDABN (Xu et al., "Synergy between Semantic Segmentation and Image Denoising via Alternate
Boosting", ACM TOMM 2023).

With y the noisy image, S a segmenter and D a denoiser that takes a condition, block i computes

    logits_i = S_i(image_{i-1})            image_0 = 0, and S_1 sees y itself
    image_i  = D_i(image_{i-1} + y, logits_i)

The same y enters every block; the sum is plain (not halved), so D_1 and the later ones see different
ranges; nothing is clamped on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segaware.checks import check_finite, check_images, no_sigma
from segaware.contracts import DenoiserInfo, Sigma
from segaware.errors import InputError, ModelError
from segaware.layers.sft import resize_condition
from segaware.parts import Part, described, info_of, make
from segaware.pretrained import Pretrained

__all__ = ["SDABN", "SDB", "IgnoreCondition", "Stage"]


class Stage(NamedTuple):
    """What one block said: ``logits (B, K, h, w)`` at the segmenter's stride, ``image (B, C, H, W)``, not clamped."""

    logits: Tensor
    image: Tensor


class IgnoreCondition(nn.Module, Pretrained):
    """A plain denoiser in the place of one that takes a condition; what the segmenter says is not used.

    For comparisons ("denoise in turns, without segmentation"), and on purpose only: :class:`SDB`
    refuses a plain denoiser.

    Args:
        denoiser: any denoiser of the contract, as a module or a description.
    """

    #: 0 = takes a condition of any class count and ignores it.
    condition_channels = 0

    def __init__(self, denoiser: Part) -> None:
        super().__init__()
        self.denoiser = make(denoiser, "IgnoreCondition: denoiser")
        self.info: DenoiserInfo = info_of(self.denoiser, "IgnoreCondition")

    @property
    def config(self) -> dict[str, Any] | None:
        """Arguments to build it again; None if the denoiser states none."""
        return described({"denoiser": self.denoiser})

    def forward(self, noisy: Tensor, sigma: Sigma | None = None, condition: Tensor | None = None) -> Tensor:
        return self.denoiser(noisy) if sigma is None else self.denoiser(noisy, sigma)


class SDB(nn.Module, Pretrained):
    """Segmentation-denoising block: segment first, then denoise with what was seen. It is a denoiser.

    Args:
        segmenter: any segmenter of the contract (``num_classes``; image to logits at its stride).
        denoiser: a denoiser with ``condition_channels`` and ``forward(noisy, sigma=None,
            condition=None)``, such as ``DDFN(condition_channels=K)``. A plain one only inside
            :class:`IgnoreCondition`.
        condition: what the denoiser is given, at the size of the image: ``"logits"`` as they are
            (the release), or ``"probs"``, their softmax (the paper's words). Logits are resized,
            bilinearly, before the softmax.

    Both may be given as descriptions, ``{"architecture": "DDFN", "arguments": {...}}``.

    Shape: ``(B, C, H, W)`` in [0, 1] plus noise -> same, the clean estimate, not clamped.

    Raises:
        InputError: class counts that differ, an unknown condition; logits that are not finite.
        ModelError: a part that is no segmenter, or no denoiser that takes a condition.
    """

    def __init__(self, segmenter: Part, denoiser: Part, *, condition: str = "logits") -> None:
        super().__init__()
        segmenter, denoiser = make(segmenter, "SDB: segmenter"), make(denoiser, "SDB: denoiser")
        if condition not in ("logits", "probs"):
            raise InputError(f"SDB: condition {condition!r}; choose 'logits' (as released) or 'probs' (softmax)")
        classes, name = _classes(segmenter, "SDB"), type(denoiser).__name__
        info, channels = info_of(denoiser, "SDB"), getattr(denoiser, "condition_channels", None)
        if not isinstance(channels, int):
            raise ModelError(
                f"SDB: {name} takes no condition, so what the segmenter says would be lost; give one that does,"
                f" DDFN(condition_channels={classes}), or say that you mean it: IgnoreCondition(denoiser)"
            )
        if channels not in (0, classes):
            raise InputError(
                f"SDB: the segmenter has {classes} classes, {name} takes a condition of {channels};"
                f" build it with condition_channels={classes}"
            )
        self.segmenter, self.denoiser, self.condition = segmenter, denoiser, condition
        self.num_classes = classes
        # a segmenter sees far beyond any halo: whole images only
        self.info = replace(info, receptive_field=None, task="denoise+segment")

    @property
    def config(self) -> dict[str, Any] | None:
        """Arguments to build it again; None if a part states none."""
        return described({"segmenter": self.segmenter, "denoiser": self.denoiser}, condition=self.condition)

    def forward(self, noisy: Tensor, sigma: Sigma | None = None) -> Tensor:
        return self.step(noisy, sigma=sigma).image

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of the segmenter, or None."""
        return getattr(self.segmenter, "class_names", None)

    def stages(self, noisy: Tensor, sigma: Sigma | None = None) -> Iterator[Stage]:
        """``(logits, image)`` of this one block, as :meth:`SDABN.stages` gives them of several."""
        yield self.step(noisy, sigma=sigma)

    def step(self, noisy: Tensor, previous: Tensor | None = None, sigma: Sigma | None = None, *, name: str = "SDB") -> Stage:
        """One block of the recurrence.

        Args:
            noisy: y, the image as it came.
            previous: the estimate of the block before, which the segmenter sees, and which is added
                to ``noisy`` for the denoiser; None in the first block.
            sigma: for denoisers that take one.
            name: of the block, in error messages.
        """
        logits = self.see(noisy if previous is None else previous, name=name)
        return Stage(logits, self.clean(noisy if previous is None else previous + noisy, logits, sigma))

    def see(self, image: Tensor, *, name: str = "SDB") -> Tensor:
        """The segmenter's half: logits, checked."""
        return _see(self.segmenter, image, self.num_classes, name)

    def clean(self, total: Tensor, logits: Tensor, sigma: Sigma | None = None) -> Tensor:
        """The denoiser's half: ``total`` is the noisy image plus the estimate so far, if there is one."""
        if getattr(self.denoiser, "condition_channels", None) == 0:
            condition = logits  # nobody looks at it
        else:
            condition = resize_condition(logits, (total.shape[-2], total.shape[-1]))
            if self.condition == "probs":
                condition = condition.softmax(1)
        return self.denoiser(total, sigma, condition=condition)


class SDABN(nn.Module, Pretrained):
    """A cascade of blocks: every next one segments the last estimate and denoises it, with y, again.

    It is a denoiser: ``cascade(noisy)`` is the last image. :meth:`stages` gives all of them, with
    the segmentations, and :meth:`first` a shorter cascade over the same networks. What a block no
    longer needs is freed, so n blocks take little more memory than one (in inference).

    S1 D1 S2, a block and a closing segmenter, has 7,993,334 parameters with HRNetV2-W18-Small-v2
    and DDFN at 19 classes.

    Args:
        blocks: :class:`SDB`, or descriptions of them (``{"segmenter": ..., "denoiser": ...}``).
            In the state dict they are ``stage1``, ``stage2``, ...
        closing_segmenter: S_{n+1}, which segments the last estimate; it adds nothing to the image.

    Shape: ``(B, C, H, W)`` in [0, 1] plus noise -> same, the clean estimate, not clamped.

    Raises:
        InputError: no blocks, or blocks that differ in classes or channels; a sigma for a blind
            cascade; logits of a stage that are not finite.
        ModelError: blocks that are none.
    """

    def __init__(self, blocks: Sequence[SDB | Mapping[str, Any]], closing_segmenter: Part | None = None) -> None:
        super().__init__()
        if isinstance(blocks, (nn.Module, Mapping)) and not isinstance(blocks, nn.ModuleList):
            raise InputError("SDABN: give a list of blocks, SDABN([SDB(segmenter, denoiser), ...])")
        made = [_block(block, i) for i, block in enumerate(blocks, start=1)]
        if not made:
            raise InputError("SDABN: no blocks; give at least one, SDABN([SDB(segmenter, denoiser)])")
        first = made[0]
        for i, block in enumerate(made[1:], start=2):
            if block.num_classes != first.num_classes:
                raise InputError(f"SDABN: stage {i} has {block.num_classes} classes, stage 1 has {first.num_classes}; use one set of classes")
            if block.info.channels != first.info.channels:
                raise InputError(
                    f"SDABN: stage {i} takes {block.info.channels} image channels, stage 1 takes {first.info.channels}; build both alike"
                )
        for i, block in enumerate(made, start=1):
            self.add_module(f"stage{i}", block)
        self._length = len(made)
        self.closing_segmenter = None if closing_segmenter is None else make(closing_segmenter, "SDABN: closing_segmenter")
        if self.closing_segmenter is not None:
            classes = _classes(self.closing_segmenter, "SDABN: closing_segmenter")
            if classes != first.num_classes:
                raise InputError(
                    f"SDABN: the closing segmenter has {classes} classes, the blocks {first.num_classes}; use one set of classes"
                )
        self.num_classes = first.num_classes
        takers = [block.info for block in made if block.info.takes_sigma]
        self.info = replace(takers[0] if takers else first.info, size_multiple=max(b.info.size_multiple for b in made))

    @property
    def blocks(self) -> tuple[SDB, ...]:
        """The blocks in order."""
        return tuple(getattr(self, f"stage{i}") for i in range(1, self._length + 1))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of the segmenters, or None."""
        return getattr(self.blocks[0].segmenter, "class_names", None)

    @property
    def config(self) -> dict[str, Any] | None:
        """Arguments to build it again; None if a part states none."""
        blocks = [block.config for block in self.blocks]
        closing = self.closing_segmenter
        rest = {} if closing is None else described({"closing_segmenter": closing})
        return None if rest is None or None in blocks else {"blocks": blocks, **rest}

    def __len__(self) -> int:
        return self._length

    def first(self, blocks: int, *, closing: bool = False) -> SDABN:
        """The cascade of the first ``blocks`` blocks, over the same networks.

        Args:
            blocks: 1 to ``len(self)``.
            closing: segment its image once more, with the segmenter of the block that follows (after
                the last block: with the closing one).

        Raises:
            InputError: more blocks than there are, or nothing to close with.
        """
        if not 1 <= blocks <= len(self):
            raise InputError(f"SDABN.first: {blocks} blocks of {len(self)}; give 1 to {len(self)}")
        last: nn.Module | None = None
        if closing:
            last = self.blocks[blocks].segmenter if blocks < len(self) else self.closing_segmenter
            if last is None:
                raise InputError(f"SDABN.first: no segmenter follows stage {blocks}; leave closing=True out, or take fewer blocks")
        part = SDABN(self.blocks[:blocks], last)
        part.info = replace(part.info, training_noise=self.info.training_noise)
        part.training = self.training  # of the new container alone: parts keep the mode they are in
        return part

    def forward(self, noisy: Tensor, sigma: Sigma | None = None) -> Tensor:
        self._check(noisy, sigma)
        image: Tensor | None = None
        for i, block in enumerate(self.blocks, 1):  # torch 2.4 does not compile it by keyword
            image = block.step(noisy, image, _own(block, sigma), name=f"SDABN, stage {i}").image
        assert image is not None
        return image

    def stages(self, noisy: Tensor, sigma: Sigma | None = None) -> Iterator[Stage]:
        """``(logits, image)`` of every block, as they are computed.

        With a closing segmenter there is one more: its logits, and the last image once again.
        """
        self._check(noisy, sigma)
        return self._stages(noisy, sigma)

    def _stages(self, noisy: Tensor, sigma: Sigma | None) -> Iterator[Stage]:
        image: Tensor | None = None
        for i, block in enumerate(self.blocks, 1):
            stage = block.step(noisy, image, _own(block, sigma), name=f"SDABN, stage {i}")
            image = stage.image
            yield stage
            del stage  # its logits are the caller's now
        if self.closing_segmenter is not None and image is not None:
            yield Stage(_see(self.closing_segmenter, image, self.num_classes, "SDABN, closing segmenter"), image)

    def _check(self, noisy: Tensor, sigma: Sigma | None) -> None:
        check_images(noisy, channels=self.info.channels, where="SDABN")
        if not self.info.takes_sigma:
            no_sigma(sigma, "SDABN")


def _own(block: SDB, sigma: Sigma | None) -> Sigma | None:
    """A blind block in a cascade that takes a sigma is not told it."""
    return sigma if block.info.takes_sigma else None


def _see(segmenter: nn.Module, image: Tensor, classes: int, name: str) -> Tensor:
    logits = segmenter(image)
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[1] != classes:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"{name}: {type(segmenter).__name__} gave {got}, not logits (B, {classes}, h, w);"
            " bring it to the contract with SegmenterAdapter(network, num_classes)"
        )
    if not torch.compiler.is_compiling():  # a look at values would break the graph
        check_finite(logits, where=f"{name}, logits of {type(segmenter).__name__} (check the images and its weights)")
    return logits


def _classes(segmenter: nn.Module, where: str) -> int:
    classes = getattr(segmenter, "num_classes", None)
    if not isinstance(classes, int):
        raise ModelError(
            f"{where}: {type(segmenter).__name__} states no num_classes; bring it to the contract with SegmenterAdapter(network, num_classes)"
        )
    return classes


def _block(block: SDB | Mapping[str, Any], number: int) -> SDB:
    if isinstance(block, Mapping):
        keys = sorted(block)
        try:
            block = SDB(**block)
        except TypeError as error:
            raise ModelError(f"SDABN: stage {number} is described by {keys}; SDB takes segmenter, denoiser, condition") from error
        except InputError as error:
            raise InputError(f"SDABN, stage {number}: {error}") from error
    if not isinstance(block, SDB):
        raise ModelError(f"SDABN: stage {number} is a {type(block).__name__}; put its networks into SDB(segmenter, denoiser)")
    return block
