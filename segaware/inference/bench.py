"""One process's place of work: a model made ready, and images denoised one after the other or together."""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segaware.errors import InputError
from segaware.inference.files import Job, Outcome, folder_of, run_job

__all__ = ["Bench", "Facts", "Order"]


@dataclass(frozen=True)
class Order:
    """What is to be done with every image; can be sent to other processes.

    Args:
        model: a shipped name, the folder of a model, or a repository of the Hub; None = the default.
        sigma: 8-bit units, "auto", or None for blind models.
        keep, tile, precision, device: of :class:`segaware.inference.engine.Engine`.
        segment: also write maps of classes, for jobs that have a place for them.
        batch: "auto" = small images together where that changes no bit; a number = at most so many
            together, where the last bit may differ; 1 = each alone.
        existing: outputs that are there already are left alone ("skip"), replaced ("replace"), or made
            again and compared ("verify"), an image whose output differs failing.
    """

    model: str | None = None
    sigma: float | str | None = None
    keep: float | str = 0.0
    tile: str | int = "auto"
    precision: str = "auto"
    device: str = "auto"
    segment: bool = False
    batch: int | str = "auto"
    existing: str = "skip"

    @property
    def level(self) -> float | str | None:
        """``sigma`` on the [0, 1] scale."""
        return self.sigma if self.sigma is None or isinstance(self.sigma, str) else self.sigma / 255

    def options(self) -> dict[str, Any]:
        """What the bytes of the outputs depend on, beside model and machine."""
        return {key: getattr(self, key) for key in ("sigma", "keep", "tile", "precision", "batch")}


@dataclass(frozen=True)
class Facts:
    """What a bench says of itself once its model is loaded."""

    model: str
    model_hash: str
    device: str
    takes_sigma: bool
    keep: Any  #: the share given back, or for "machine" the model's table: the outputs depend on it


class Bench:
    """A model made ready for an order. A context manager: it keeps freed memory between images.

    Args:
        order: what to do.
        number: of this bench among those of one machine; with several GPUs each takes its own.

    Raises:
        InputError: a sigma for a blind model, none for another, or an option that the engine refuses.
        ModelError, WeightsError: a model that cannot be loaded or does not segment.
    """

    def __init__(self, order: Order, number: int = 0) -> None:
        from segaware.fingerprint import model_hash
        from segaware.inference.batches import Together
        from segaware.inference.engine import DEFAULT_MODEL, Engine
        from segaware.inference.ranks import own_device
        from segaware.inference.segmentation import SegmentingEngine

        self.order = order
        model = order.model or DEFAULT_MODEL
        kind = SegmentingEngine if order.segment else Engine
        device = own_device(order.device, number)
        self.engine = kind(model, keep=order.keep, tile=order.tile, precision=order.precision, device=device)
        if self.engine.info.takes_sigma and order.sigma is None:
            raise InputError(f"model {self.engine.name!r} needs the noise level: --sigma 25 (8-bit units), or --sigma auto")
        if not self.engine.info.takes_sigma and order.sigma is not None:
            raise InputError(f"model {self.engine.name!r} is blind, it finds the noise level itself; leave --sigma out")
        # of the weights as they come: folding depends on the machine
        key = model_hash(model)
        keep = [list(pair) for pair in self.engine.keep_table] or order.keep
        self.facts = Facts(self.engine.name, key, self.engine.device.type, self.engine.info.takes_sigma, keep)
        self._together = Together(self.engine, order.level, order.batch)

    def do(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Denoise jobs, several in one go where they fit together; one outcome each, in any order."""
        several = []
        for job in jobs:
            there = job.target.exists() or job.segmentation is not None and job.segmentation.exists()
            if there and self.order.existing == "verify":
                yield self._verified(job)
            elif len(jobs) == 1 or job.segmentation is not None or there and self.order.existing == "skip":
                yield run_job(job, self.engine, self.order.level, overwrite=self.order.existing == "replace")
            else:
                several.append(job)
        if several:
            yield from self._together(several)

    def _verified(self, job: Job) -> Outcome:
        """Make the outputs beside those that are there, and put them into place only where they change nothing."""
        places = [path for path in (job.target, job.segmentation) if path is not None]
        made = [path.with_name(f".{secrets.token_hex(6)}.check{path.suffix}") for path in places]
        try:
            for path in places:
                folder_of(path)
            again = dataclasses.replace(job, target=made[0], segmentation=made[1] if len(made) > 1 else None)
            outcome = dataclasses.replace(run_job(again, self.engine, self.order.level), job=job)
            if outcome.status != "done":
                return outcome
            other = [place for new, place in zip(made, places, strict=True) if place.exists() and not filecmp.cmp(new, place, shallow=False)]
            if other:
                words = f"{other[0]}: is there already, is not of this run, and differs from what it makes; move it away, or allow with --overwrite"
                return Outcome(job, "failed", words)
            for new, place in zip(made, places, strict=True):
                if not place.exists():
                    os.replace(new, place)
            return outcome
        except (OSError, InputError) as error:
            return Outcome(job, "failed", str(error) if isinstance(error, InputError) else f"{job.target}: {error.strerror}")
        finally:
            for path in made:
                with contextlib.suppress(OSError):
                    Path(path).unlink()

    def __enter__(self) -> Bench:
        self.engine.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.__exit__()
