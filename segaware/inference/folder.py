"""Denoise a folder of any number of images: a shard of it, by several processes, with a manifest.

Names come from the folder as they are needed, so memory does not follow their number.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segaware import __version__, image_io
from segaware.errors import InputError
from segaware.inference.batches import at_once, grouped
from segaware.inference.bench import Bench, Facts, Order
from segaware.inference.files import Job, Outcome, check_folders, images_below, path_below, same_file
from segaware.inference.manifest import Manifest
from segaware.inference.pool import Pool
from segaware.inference.shards import Shard, place_of

__all__ = ["Tally", "denoise_folder"]

_COUNTED = 100_000  # images that are listed first, so that progress has an end
_SHOWN = 100  # failures that are kept to be shown


@dataclass
class Tally:
    """What became of a run.

    Args:
        failures: the first hundred, in words.
    """

    facts: Facts | None = None
    done: int = 0
    skipped: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one more image."""
        if outcome.status == "done":
            self.done += 1
        elif outcome.status == "skipped":
            self.skipped += 1
        else:
            self.failed += 1
            if len(self.failures) < _SHOWN:
                self.failures.append(outcome.error or f"{outcome.job.source}: failed")

    def __iadd__(self, other: Tally) -> Tally:
        self.done, self.skipped, self.failed = self.done + other.done, self.skipped + other.skipped, self.failed + other.failed
        self.failures = (self.failures + other.failures)[:_SHOWN]
        return self


def denoise_folder(
    source: Path,
    target: Path,
    order: Order,
    *,
    segmentation: Path | None = None,
    shard: Shard | None = None,
    manifest: Path | None = None,
    processes: int = 1,
    local: int = 0,
    report: Callable[[Outcome, int | None], None] | None = None,
) -> Tally:
    """Mirror a folder, denoised; what a manifest says is done is passed over.

    Args:
        source, target: folders; ``target`` outside of ``source``, and not around it.
        order: model and options. With a manifest, ``existing="skip"`` becomes ``"verify"``: an output that
            the manifest does not know is made again and compared, never replaced.
        segmentation: folder for maps of classes, when the order segments.
        shard: the part of the images to do.
        manifest: its file; see :class:`segaware.inference.manifest.Manifest`.
        processes: 1 = this one.
        local: which of several such calls on this machine this is, from 0; they share its GPUs.
        report: called with each outcome, and with how many there are where that is known.

    Raises:
        InputError: folders that do not go together, no images, or a manifest that is refused.
        ModelError, WeightsError: a model that cannot be loaded, or workers that end again and again.
    """
    shard = shard or Shard()
    _check(source, target, segmentation)
    if manifest is not None and order.existing == "skip":
        order = dataclasses.replace(order, existing="verify")
    tally = Tally()
    unread: list[OSError] = []
    found = images_below(source, unread.append)
    some = list(itertools.islice(found, _COUNTED))
    if not some and unread:
        raise InputError(_unread(unread[0]))
    if not some:
        raise InputError(f"{source}: no images in this folder or below; looked for {' '.join(image_io.EXTENSIONS)}")
    if segmentation is not None:  # before anything is written, as far as is known by then
        maps: dict[str, Path] = {}
        for path in some:
            chart = Path(_name(path, source)).with_suffix(".png").as_posix()
            if maps.setdefault(chart, path) != path:
                raise InputError(_twins(segmentation / chart, maps[chart], path))
    total = sum(shard.holds(place_of(_name(path, source))) for path in some) if len(some) < _COUNTED else None
    first = local * processes
    with Bench(order, first) if processes == 1 else Pool(order, processes, first) as work:
        tally.facts = facts = work.facts
        run = {
            "model": facts.model, "model_hash": facts.model_hash, **order.options(), "keep": facts.keep,
            "input": str(source.resolve()), "output": str(target.resolve()),
            "segmentation": None if segmentation is None else str(segmentation.resolve()),
            "about": {"segaware": __version__, "device": facts.device},
        }  # fmt: skip
        book = None if manifest is None else Manifest(manifest, run, shard)
        with nullcontext() if book is None else book:

            def hear(outcome: Outcome) -> None:
                tally.add(outcome)
                if book is not None and outcome.status != "skipped":
                    book.add(_record(outcome, source, order, facts, shard))
                if report is not None:
                    report(outcome, total)

            def jobs() -> Iterator[Job]:
                charts: dict[Path, Path] = {}  # of the folder at work
                for path in itertools.chain(some, found):
                    name = _name(path, source)
                    place = place_of(name)
                    chart = None if segmentation is None else (segmentation / name).with_suffix(".png")
                    twin = None
                    if chart is not None:
                        if charts and next(iter(charts)).parent != chart.parent:
                            charts.clear()
                        twin = charts.setdefault(chart, path)
                    if not shard.holds(place):
                        continue
                    job = Job(path, target / name, chart)
                    if chart is not None and twin is not None and twin != path:
                        hear(Outcome(job, "failed", _twins(chart, twin, path)))
                        continue
                    places = (job.target,) if job.segmentation is None else (job.target, job.segmentation)
                    known = book is not None and book.is_done(place, path, *places)
                    if known or order.existing == "skip" and all(file.exists() for file in places):
                        hear(Outcome(job, "skipped"))
                    elif lost := next((file for file in places if path_below(file, source) is not None), None):  # through a link
                        hear(Outcome(job, "failed", f"{lost}: leads into the input folder {source}, whose images would be lost; remove the link"))
                    elif any(same_file(path, file) for file in places):  # one of the two is a link
                        hear(Outcome(job, "failed", f"{job.target}: is the input {path} itself, which would be lost; choose another output folder"))
                    else:
                        yield job
                for error in unread:
                    folder = Path(str(error.filename))
                    if shard.holds(place_of(_name(folder, source))):
                        hear(Outcome(Job(folder, target / _name(folder, source)), "failed", _unread(error)))

            try:
                units = _units(jobs(), order, facts)
                if isinstance(work, Pool):
                    work.run(units, hear)
                else:
                    for unit in units:
                        for outcome in work.do(unit):
                            hear(outcome)
            finally:
                if isinstance(work, Pool):
                    work.stop()  # before the manifest is closed: what workers did counts
    return tally


def _units(jobs: Iterator[Job], order: Order, facts: Facts) -> Iterator[tuple[Job, ...]]:
    if order.batch == 1 or order.segment or isinstance(order.tile, int):
        return ((job,) for job in jobs)
    return grouped(jobs, lambda pixels: at_once(pixels, facts.device, order.batch))


def _check(source: Path, target: Path, segmentation: Path | None) -> None:
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; shards, manifests and processes are for folders of images")
    check_folders(source, target)
    if segmentation is not None:
        if segmentation.exists() and not segmentation.is_dir():
            raise InputError(f"{segmentation}: is a file; give a folder for the segmentation")
        if path_below(segmentation, source) is not None:
            raise InputError(f"{segmentation}: the folder for the segmentation lies in the input folder {source}; choose one outside of it")
        if _meet(source, segmentation, target) or _meet(source, target, segmentation):
            raise InputError(f"{segmentation}: the segmentation would replace {target}'s images; choose another folder for it")
    for folder in (target, segmentation):
        if folder is not None and _meet(source, source, folder):
            raise InputError(f"{folder}: an output would replace an input; choose another output folder")


def _meet(source: Path, inner: Path, outer: Path) -> bool:
    """Whether the input has a folder that, mirrored in ``outer``, falls on ``inner``."""
    below = path_below(inner, outer)
    return below is not None and (below == Path() or (source / below).exists())


def _unread(error: OSError) -> str:
    """Of a folder below the input."""
    if error.errno == errno.ELOOP:
        return f"{error.filename}: {error.strerror}"  # which names the repair
    return f"{error.filename}: cannot be read ({error.strerror}); check its rights"


def _twins(chart: Path, one: Path, other: Path) -> str:
    return f"{chart}: would be the segmentation of both {one} and {other}; rename one of them"


def _name(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()


def _record(outcome: Outcome, source: Path, order: Order, facts: Facts, shard: Shard) -> dict[str, Any]:
    """A line of the manifest."""
    job = outcome.job
    sigma = order.sigma if outcome.sigma is None else round(outcome.sigma * 255, 2)
    record: dict[str, Any] = {
        "file": _name(job.source, source), "status": outcome.status, "seconds": round(outcome.seconds, 3),
        "sigma": sigma if not isinstance(sigma, str) else None, "model_hash": facts.model_hash[:16], "shard": str(shard),
    }  # fmt: skip
    if outcome.error:
        record["error"] = outcome.error
    else:
        try:
            record |= {"bytes_in": job.source.stat().st_size, "bytes_out": job.target.stat().st_size}
        except OSError as error:
            record |= {"status": "failed", "error": f"{error.filename}: is gone ({error.strerror})"}
    if outcome.notices:
        record["notices"] = list(outcome.notices)
    return record
