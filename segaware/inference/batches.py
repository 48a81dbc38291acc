"""Small images of one size, several at once: below about 32 x 32 pixels a network's start costs more than its work.

A batch may be summed in another order than one image, which shows in the last bit, and then, rarely,
as one level of 8 bits. So a batch size is tried first: its first batch is computed both ways, and kept
to only where every bit is the same. With ``dncnn-blind`` on a processor that was so for 32 x 32 and
64 x 64, and not for 16 x 16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segaware import image_io
from segaware.errors import SegawareError
from segaware.image_io.formats import FORMATS
from segaware.inference.files import Job, Outcome, folder_of

if TYPE_CHECKING:
    from torch import Tensor

    from segaware.inference.engine import Engine

__all__ = ["Together", "at_once", "grouped"]

#: Pixels of a batch by kind of device where nobody says otherwise. On processors 64 x 64 gained 5 to 13 %, 32 x 32
#: up to 25 %; the others are what fits into memory many times over, and have not been measured.
_PIXELS = {"cpu": 1 << 15, "cuda": 1 << 22, "mps": 1 << 20}
_MOST = 64
_HELD = 4096  # jobs that may wait for others of their size


def at_once(pixels: int, device: str, batch: int | str) -> int:
    """How many images of so many pixels go through together.

    Args:
        device: its kind, "cpu", "cuda" or "mps".
        batch: "auto", or the number that the user wants.
    """
    if isinstance(batch, int):
        return batch
    return max(1, min(_MOST, _PIXELS.get(device, 1 << 15) // max(1, pixels)))


def grouped(jobs: Iterable[Job], count: Callable[[int], int]) -> Iterator[tuple[Job, ...]]:
    """Jobs as they come, those of one size gathered until there are ``count(pixels)``; the rest at the end.

    Sizes are those that the files' heads state; who denoises them looks again.
    """
    waiting: dict[Any, list[Job]] = {}
    held = 0
    for job in jobs:
        kind = _peek(job.source)
        wanted = 1 if kind is None else count(kind[1] * kind[2])
        if wanted <= 1:
            yield (job,)
            continue
        waiting.setdefault(kind, []).append(job)
        held += 1
        if held >= _HELD:
            kind = max(waiting, key=lambda key: len(waiting[key]))
        elif len(waiting[kind]) < wanted:
            continue
        group = waiting.pop(kind)
        held -= len(group)
        yield tuple(group)
    for group in waiting.values():
        yield tuple(group)


def _peek(path: Path) -> tuple[str, int, int] | None:
    """Mode, width and height as the head of the file says, without decoding it."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as picture:
            return picture.mode, *picture.size
    except Exception:  # whoever denoises it will say what is wrong
        return None


@dataclass
class _Picture:
    """A decoded file on its way through."""

    job: Job
    head: image_io.Head
    rows: np.ndarray  # (H, W, C + alpha)
    noisy: Tensor  # (k, C, H, W): k = 1, or the channels as gray images
    join: Callable[[Tensor], Tensor]
    sigma: float | None
    estimated: float | None
    clean: Tensor | None = field(default=None)


class Together:
    """Denoise several small files in one pass of the network, each to the same bits as alone.

    Args:
        engine: made ready.
        sigma: on the [0, 1] scale, "auto", or None for blind models.
        batch: "auto" = only full batches, after a trial; a number = at most so many, whatever the last bit.
    """

    def __init__(self, engine: Engine, sigma: float | str | None, batch: int | str) -> None:
        self._engine, self._sigma, self._batch = engine, sigma, batch
        #: Whether a batch of this shape gives the bits of single images, as far as tried.
        self.same: dict[tuple[int, ...], bool] = {}

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Read, denoise, write; one outcome a job, the failed among them."""
        start = time.monotonic()
        groups: dict[tuple[int, ...], list[_Picture]] = {}
        for job in jobs:
            try:
                picture = self._read(job)
            except Exception as error:
                yield _failed(job, error)
            else:
                groups.setdefault(tuple(picture.noisy.shape), []).append(picture)
        for shape, group in groups.items():
            limit = at_once(shape[-2] * shape[-1], self._engine.device.type, self._batch)
            for first in range(0, len(group), limit):
                part = group[first : first + limit]
                self._denoise(part, limit)
                seconds = (time.monotonic() - start) / len(part)
                for picture in part:
                    yield self._write(picture, seconds)
                start = time.monotonic()

    def _read(self, job: Job) -> _Picture:
        from segaware.checks import check_finite, check_range
        from segaware.inference.noise_level import estimate_file
        from segaware.inference.pictures import Depth, adapters

        sigma, estimated = self._sigma, None
        if sigma == "auto" and self._engine.info.takes_sigma:
            with image_io.opened(job.source) as source:
                sigma = estimated = min(1.0, estimate_file(source))
        with image_io.opened(job.source) as source:
            head = source.head
            rows = source.rows(head.height)
        depth = Depth(head.dtype)
        split, join = adapters((head.height, head.width, head.channels), self._engine.channels)
        part = depth.to_unit(rows[:, :, : head.channels])
        if depth.top is None:
            check_finite(part, where=str(job.source))
            check_range(part, where=str(job.source), spikes=True)
        return _Picture(job, head, rows, split(part), join, None if isinstance(sigma, str) else sigma, estimated)

    def _denoise(self, group: list[_Picture], full: int) -> None:
        """Fill ``clean`` of each; what fails as a batch is left to :meth:`_write`, one by one."""
        import torch

        if len(group) == 1 or self._batch == "auto" and len(group) < full:
            return
        shape = (len(group), *group[0].noisy.shape)
        tried = self._batch != "auto" or shape in self.same
        if tried and not self.same.get(shape, True):
            return
        try:
            clean = self._pass(group)
            if not tried:
                alone = [self._pass([picture])[0] for picture in group]
                self.same[shape] = all(torch.equal(one, other) for one, other in zip(clean, alone, strict=True))
                clean = alone
        except Exception:  # one of them, perhaps: alone it will say so
            return
        for picture, part in zip(group, clean, strict=True):
            picture.clean = part

    def _pass(self, group: list[_Picture]) -> list[Tensor]:
        import torch

        from segaware.inference.bands import estimate_noise_of

        engine, per = self._engine, group[0].noisy.shape[0]
        noisy = torch.cat([picture.noisy for picture in group])
        count, (height, width) = len(group), noisy.shape[2:]
        clean = torch.empty(noisy.shape, dtype=torch.float32)

        def fetch(batch: slice, window: Any) -> Tensor:
            rows, columns = window.slices
            return noisy[batch.start * per : batch.stop * per, :, rows, columns]

        def store(batch: slice, core: Any, part: Tensor) -> None:
            rows, columns = core.slices
            clean[batch.start * per : batch.stop * per, :, rows, columns] = part.float().cpu()

        sigmas = None if group[0].sigma is None else torch.tensor([picture.sigma for picture in group])
        level = engine.level(sigmas, torch.zeros(()).expand(count, 1, height, width))
        keep = engine.share(level, lambda: torch.tensor([estimate_noise_of(picture.job.source) for picture in group]))
        engine.run((count, height, width), fetch, store, level, None, keep)
        return list(clean.split(per))

    def _write(self, picture: _Picture, seconds: float) -> Outcome:
        from segaware.inference.noise_level import describe
        from segaware.inference.pictures import Depth

        job, head = picture.job, picture.head
        start = time.monotonic()
        try:
            part = self._pass([picture])[0] if picture.clean is None else picture.clean
            rows = picture.rows.copy()  # those of some formats are read-only
            rows[:, :, : head.channels] = Depth(head.dtype).from_unit(picture.join(part))
            target = image_io.Target(job.target, head)
            folder_of(job.target)
            with target:
                target.write(rows)
        except Exception as error:
            return _failed(job, error)
        notices = head.notices if picture.estimated is None else (*head.notices, describe(picture.estimated))
        return Outcome(job, "done", None, notices, None, seconds + time.monotonic() - start, picture.estimated)


def _failed(job: Job, error: Exception) -> Outcome:
    words = str(error) if isinstance(error, SegawareError) else f"{job.source}: {type(error).__name__}: {error}"
    return Outcome(job, "failed", words)
