"""A pool of judges: one of several frozen segmenters, with a flip and a scale, is drawn at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.errors import InputError
from segaware.losses.consistency import ConsistencyLoss
from segaware.losses.frozen import asked_of

__all__ = ["JudgePoolLoss", "view"]


SCALES = (0.75, 1.0, 1.25)


def view(images: Tensor, *, flip: bool, scale: float) -> Tensor:
    """``images`` ``(B, C, H, W)`` mirrored left to right and resized (bilinear, antialiased) by ``scale``."""
    if flip:
        images = images.flip(-1)
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)


class JudgePoolLoss(nn.Module):
    """Another loss, through one of several judges and one view of the images at each call.

    What pleases one judge may be an accident of its weights; what pleases many is more likely to
    hold for a judge that took no part. Three numbers are drawn at each call (judge, flip, scale)
    from torch's global generator on the processor, as many whatever the options: ``fit`` seeds it
    by the step, so a resumed run draws what it would have drawn. The value jumps from step to step
    with the judge: compare means of the log, and judges of similar scale.

    Args:
        judges: networks, as the loss takes them. Keep those you evaluate with out.
        loss: from a judge to a loss, e.g. ``ConsistencyLoss`` or ``lambda judge: JacobianLoss(features=judge.features)``.
        flip: draw mirrored views too.
        scales: sizes to draw from; 1 is the image as it is. None = 0.75, 1 and 1.25, but 1 alone for a loss with
            a memory (D2SM), whose rows must not change their length.

    Shape: ``loss(denoised)``, with ``clean`` and ``labels`` by keyword where the inner loss takes
        them; labels are mirrored along and never resized -> float32 scalar.

    Raises:
        InputError: no judges, scales that are not positive, and what the inner loss refuses.

    Source: ours; borrowed from transferable adversarial examples (ensembles and input diversity).
    """

    name = "judge_pool"

    def __init__(
        self,
        judges: Sequence[nn.Module],
        loss: Callable[[nn.Module], nn.Module] = ConsistencyLoss,
        *,
        flip: bool = True,
        scales: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        judges = [] if isinstance(judges, nn.Module) and not isinstance(judges, nn.ModuleList) else list(judges)
        if not judges:
            raise InputError("JudgePoolLoss: no list of judges; give at least one network in a list")
        if scales is not None and not (scales and all(0 < scale < math.inf for scale in scales)):
            raise InputError(f"JudgePoolLoss: scales {tuple(scales)}; give positive numbers, 1 is the image as it is")
        self.losses = nn.ModuleList([loss(judge) for judge in judges])
        self.flip, self.scales = flip, tuple(scales or ((1.0,) if self.keeps_state else SCALES))
        self.takes = asked_of(self.losses[0])

    @property
    def keeps_state(self) -> bool:
        """Whether one of the inner losses has a memory that a training must save."""
        return any(getattr(loss, "keeps_state", False) for loss in self.losses)

    def forward(self, denoised: Tensor, *, clean: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        drawn = torch.rand(3).tolist()
        loss = self.losses[int(drawn[0] * len(self.losses))]
        flip, scale = self.flip and drawn[1] < 0.5, self.scales[int(drawn[2] * len(self.scales))]
        offered: dict[str, Tensor] = {}
        if "clean" in self.takes and clean is not None:  # whether it can do without, the loss itself says
            offered["clean"] = view(clean, flip=flip, scale=scale)
        if "labels" in self.takes and labels is not None:
            offered["labels"] = labels.flip(-1) if flip and labels.ndim > 2 else labels
        return loss(view(denoised, flip=flip, scale=scale), **offered)
