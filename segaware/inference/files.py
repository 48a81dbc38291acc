"""Denoise image files: which file goes where, and one file after the other.

Everything that can be said of the names is said before a model is loaded.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segaware import image_io
from segaware.errors import ImageError, InputError, SegawareError

if TYPE_CHECKING:
    from segaware.inference.engine import Engine, Progress

__all__ = ["Job", "Outcome", "check_folders", "denoise_file", "folder_of", "images_below", "path_below", "plan", "plan_segmentation", "run_job", "same_file", "side_by_side"]


@dataclass(frozen=True)
class Job:
    """One image: where it is, and where the denoised one goes."""

    source: Path
    target: Path
    #: Where the map of its classes goes, or None.
    segmentation: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Args:
        status: "done", "skipped" (the output was there) or "failed".
        error: why it failed.
        notices: what was converted on the way.
        psnr: dB of the noisy and of the denoised file, when there is a reference.
        sigma: the noise level that was estimated, on the [0, 1] scale.
        bits: per channel of the files that psnr is of.
    """

    job: Job
    status: str
    error: str | None = None
    notices: tuple[str, ...] = ()
    psnr: tuple[float, float] | None = None
    seconds: float = 0.0
    sigma: float | None = None
    bits: int = 8


def plan(source: str | os.PathLike[str], target: str | os.PathLike[str], *, overwrite: bool = False) -> list[Job]:
    """The files to denoise. A folder is mirrored with all below it, hidden files left out.

    Args:
        source: a file or a folder.
        target: for a file, a file name or an existing folder; for a folder, a folder outside of it.
        overwrite: allow a single output that exists. (In a folder existing outputs are skipped by
            :func:`run_job`.)

    Raises:
        InputError: nothing to do, or an output that is an input, lies among the inputs or exists.
        ImageError: an output name whose ending is no image format.
    """
    given, source, target = os.fspath(target), Path(source), Path(target)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; check the name")
    if source.is_dir():
        return _plan_folder(source, target)
    if target.is_dir() or given.endswith(("/", os.sep)):
        target = target / source.name
    image_io.target_format(target)
    if source.resolve() == target.resolve() or same_file(source, target):
        raise InputError(f"{target}: the output is the input, which would be lost; choose another name")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; choose another name, or allow it with --overwrite")
    return [Job(source, target)]


def check_folders(source: Path, target: Path) -> None:
    """Refuse an output folder that is a file, the input folder, or inside of it.

    Raises:
        InputError: with another place to choose.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file, but {source} is a folder; give a folder for the output")
    below = path_below(target, source)
    if below == Path():
        raise InputError(f"{target}: the output folder is the input folder; choose another one")
    if below is not None:
        raise InputError(f"{target}: the output folder lies inside the input folder {source}; choose one outside of it")


def path_below(inner: Path, outer: Path) -> Path | None:
    """The way from ``outer`` down to ``inner``, links followed; ``Path()`` if they are one, None if it is not below.

    Names alone do not tell: ``Photos`` and ``photos`` are one folder on many disks, and a folder may be mounted twice.
    """
    inner, outer = inner.resolve(), outer.resolve()
    for place in (inner, *inner.parents):
        if place == outer or same_file(place, outer):
            return inner.relative_to(place)
    return None


def same_file(one: Path, other: Path) -> bool:
    """Whether both are there and are the same file or folder."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def images_below(source: Path, onerror: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Files with an image's ending in a folder and all below it, sorted, hidden ones left out.

    Links to folders are not followed (they may lead in circles, or to the output), and told to ``onerror``.
    """
    for folder, below, names in os.walk(source, onerror=onerror):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in below:
            if onerror is not None and os.path.islink(os.path.join(folder, name)):
                onerror(OSError(errno.ELOOP, "a link to a folder, which is not followed; give that folder as input", os.path.join(folder, name)))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in image_io.EXTENSIONS:
                yield Path(folder, name)


def _plan_folder(source: Path, target: Path) -> list[Job]:
    check_folders(source, target)
    found = list(images_below(source))
    if not found:
        raise InputError(f"{source}: no images in this folder or below; looked for {' '.join(image_io.EXTENSIONS)}")
    jobs = [Job(path, target / path.relative_to(source)) for path in found]
    for job in jobs:
        if path_below(job.target, source) is not None:
            raise InputError(f"{job.target}: an output would replace an input; choose another output folder")
    return jobs


def plan_segmentation(
    jobs: Sequence[Job], source: str | os.PathLike[str], folder: str | os.PathLike[str], *, taken: Sequence[Path] = (), overwrite: bool = False
) -> list[Job]:
    """The jobs with a place for the map of classes of each: ``folder/NAME.png``, mirrored as the images are.

    Args:
        jobs, source, overwrite: of :func:`plan`.
        folder: made when needed.
        taken: files that no map may replace, beside the inputs and outputs.

    Raises:
        InputError: a folder that is none or lies among the inputs, two maps of one name, or a map in the
            place of an input, an output or what is ``taken``, or (for one image) of an existing file.
    """
    source, folder = Path(source), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder for the segmentation")
    if source.is_dir() and path_below(folder, source) is not None:
        raise InputError(f"{folder}: the folder for the segmentation lies in the input folder {source}; choose one outside of it")
    made = []
    for job in jobs:
        below = job.source.relative_to(source) if source.is_dir() else Path(job.source.name)
        made.append(dataclasses.replace(job, segmentation=folder / below.with_suffix(".png")))
    used = {path.resolve(): path for job in jobs for path in (job.source, job.target)} | {path.resolve(): path for path in taken}
    seen: dict[Path, Path] = {}
    for job in made:
        assert job.segmentation is not None
        place = job.segmentation.resolve()
        lost = used.get(place)
        if lost is None and len(made) == 1:
            lost = next((path for path in used.values() if same_file(place, path)), None)
        if lost is not None:
            raise InputError(f"{job.segmentation}: the segmentation would replace {lost}; choose another folder for it")
        if place in seen:
            raise InputError(f"{job.segmentation}: would be the segmentation of both {seen[place]} and {job.source}; rename one of them")
        seen[place] = job.source
    if not source.is_dir() and made[0].segmentation.exists() and not overwrite:  # type: ignore[union-attr]
        raise InputError(f"{made[0].segmentation}: exists already; choose another folder, or allow it with --overwrite")
    return made


def run_job(
    job: Job,
    engine: Engine,
    sigma: float | str | None = None,
    *,
    overwrite: bool = False,
    compare: Path | None = None,
    reference: image_io.Image | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """:func:`denoise_file`, with the failure of this file, whatever it is, as part of the outcome."""
    if not overwrite and not any(_missing(job)):
        return Outcome(job, "skipped")
    try:
        return denoise_file(job, engine, sigma, overwrite=overwrite, compare=compare, reference=reference, progress=progress)
    except SegawareError as error:
        return Outcome(job, "failed", str(error))
    except Exception as error:  # one odd file must not end a night's run
        return Outcome(job, "failed", f"{job.source}: {type(error).__name__}: {error}")


def denoise_file(
    job: Job,
    engine: Engine,
    sigma: float | str | None = None,
    *,
    overwrite: bool = True,
    compare: Path | None = None,
    reference: image_io.Image | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Read, denoise, write; ``sigma`` on the [0, 1] scale, or "auto".

    Args:
        engine: where the job has a place for a segmentation, one that segments.
        overwrite: else only what is not there yet is written.
        compare: where to write noisy | denoised side by side.
        reference: the clean picture, to measure against.

    Raises:
        ImageError, InputError, ModelError: whatever goes wrong; no output is left half written.
    """
    start = time.monotonic()
    if compare is None and reference is None and job.segmentation is None:
        return _in_bands(job, engine, sigma, progress, start)
    from segaware.inference.noise_level import describe, estimate_picture

    noisy = image_io.read(job.source)
    if reference is not None and (reference.pixels.shape, reference.pixels.dtype) != (noisy.pixels.shape, noisy.pixels.dtype):
        raise InputError(
            f"{job.source}: {_size(noisy)}, but the reference is {_size(reference)}; give the clean image of this one"
        )
    estimated, notices = None, noisy.notices
    if sigma == "auto" and engine.info.takes_sigma:
        sigma = estimated = min(1.0, estimate_picture(noisy.pixels))
        notices = (*notices, describe(estimated))
    classes: np.ndarray | None = None
    names: tuple[str, ...] = ()
    if job.segmentation is None:
        clean = engine(noisy, sigma, progress=progress)
    else:
        from segaware.inference.segmentation import SegmentingEngine

        assert isinstance(engine, SegmentingEngine)
        clean, classes, names = engine.segment(noisy, sigma, progress=progress)
    psnr = None if reference is None else (_psnr(noisy, reference), _psnr(clean, reference))
    image_missing, map_missing = (True, True) if overwrite else _missing(job)
    if image_missing:
        folder_of(job.target)
        image_io.write(job.target, clean)
    if compare is not None:
        folder_of(compare)
        image_io.write(compare, side_by_side(noisy, clean))
    if classes is not None and job.segmentation is not None and map_missing:
        from segaware.class_maps import write_class_map

        folder_of(job.segmentation)
        write_class_map(job.segmentation, classes, names)
    return Outcome(job, "done", None, notices, psnr, time.monotonic() - start, estimated, noisy.head.bits)


def _in_bands(
    job: Job, engine: Engine, sigma: float | str | None, progress: Progress | None, start: float
) -> Outcome:
    """A file into a file, a band of rows at a time."""
    from segaware.inference.bands import denoise_bands
    from segaware.inference.noise_level import describe, estimate_file

    estimated = None
    if sigma == "auto" and engine.info.takes_sigma:
        with image_io.opened(job.source) as source:
            sigma = estimated = min(1.0, estimate_file(source))
    with image_io.opened(job.source) as source:
        notices = source.head.notices
        if estimated is not None:
            notices = (*notices, describe(estimated))
        target = image_io.Target(job.target, source.head)  # refuses what the format cannot hold
        folder_of(job.target)
        with target:
            denoise_bands(engine, source, target, sigma, progress=progress)
    return Outcome(job, "done", None, notices, None, time.monotonic() - start, estimated)


def _missing(job: Job) -> tuple[bool, bool]:
    """Whether the image, and the map where there is to be one, are not there yet."""
    return not job.target.exists(), job.segmentation is not None and not job.segmentation.exists()


def folder_of(path: Path) -> None:
    """Make the folder that a file is to go into.

    Raises:
        ImageError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{path.parent}: cannot make this folder ({error.strerror}); choose another output") from error


def side_by_side(left: image_io.Image, right: image_io.Image) -> image_io.Image:
    """Two pictures of one height in one, without the alpha channel."""
    pixels = np.concatenate([left.pixels, right.pixels], axis=1)
    return image_io.Image(pixels, icc_profile=left.icc_profile)


def _size(image: image_io.Image) -> str:
    kind = "gray" if image.pixels.shape[2] == 1 else "colour"
    return f"{image.width} x {image.height} {kind}{'' if image.head.bits == 8 else f' of {image.head.bits} bits'}"


def _psnr(image: image_io.Image, reference: image_io.Image) -> float:
    import torch

    from segaware.metrics import psnr

    dtype = image.pixels.dtype
    top = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
    wide = {np.dtype(np.uint16): np.int32, np.dtype(np.float16): np.float32}.get(dtype, dtype)  # torch knows few of 16 bits
    one, other = (
        torch.from_numpy(pixels.astype(wide, copy=False)).permute(2, 0, 1)[None] for pixels in (image.pixels, reference.pixels)
    )
    return float(psnr(one, other, data_range=top))
