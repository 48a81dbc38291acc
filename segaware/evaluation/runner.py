"""Walk images x conditions x draws x contestants, one image in memory at a time.

What a cell gives depends on nothing but the clean image, the noise drawn from its name, and the
contestant; so cells can be cached, and a run that was cut short goes on where it was.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segaware import __version__
from segaware.errors import EvaluationError, SegawareError
from segaware.evaluation.cells import Cells
from segaware.evaluation.contestants import Cell, Contestant, GiveBack, Noisy, Ready, open_contestant
from segaware.evaluation.judges import Judge, open_judge
from segaware.evaluation.measures import Measures
from segaware.evaluation.pictures import Pictures, folder_of
from segaware.evaluation.protocol import Protocol, digest
from segaware.evaluation.results import Results
from segaware.evaluation.sources import Item, Sample, Source
from segaware.inference.memory import keep_pages

__all__ = ["evaluate"]

#: Part of every key; raised when the same inputs would give other results than before.
CACHE = 1

#: Errors of the system that are no fault of the image at work: no space, over quota, read-only.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS)

Progress = Callable[[int, int, str], None]


def evaluate(
    source: Source,
    contestants: Sequence[str | os.PathLike[str] | nn.Module | Contestant],
    protocol: Protocol | None = None,
    *,
    judges: Sequence[str | os.PathLike[str] | nn.Module | Judge] = (),
    out: str | os.PathLike[str] | None = None,
    pictures: Sequence[str] = (),
    niqe: Any = None,
    progress: Progress | None = None,
    known: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Results:
    """Measure denoisers on a set of images.

    The noisy image itself always takes part. A denoiser that fails on an image leaves that cell
    empty and marked; the others go on, and comparisons use the images that both have.

    Args:
        source: of :func:`segaware.evaluation.sources.open_source`.
        contestants: specs, modules or objects, see :mod:`segaware.evaluation.contestants`.
        protocol: noise, metrics, seeds; None = sigma 25, PSNR and SSIM.
        judges: shipped names, folders of models, or segmenters.
        out: folder that remembers finished cells (and the pictures); None = nothing is written.
        pictures: names of images whose denoised versions and class maps are kept in ``out`` for figures.
        niqe: a :class:`segaware.niqe.NIQE`; None = the parameters that ship.
        progress: called with (cells done, cells in all, what is at work).
        known: a ``cells.jsonl`` of another folder, whose finished cells are not measured again.
        options: ``tile``, ``precision``, ``device`` of the inference engine; judges go to that device.

    Raises:
        EvaluationError: nothing to measure, names given twice, judges of other classes, or an ``out``
            that another run holds.
        WeightsError, ModelError: a model that cannot be loaded.
    """
    protocol = protocol or Protocol()
    if not len(source):
        raise EvaluationError(f"{source.name}: no images; check the folder")
    entrants: list[Contestant] = [open_contestant(spec, **options) for spec in contestants]
    if not any(isinstance(entrant, Noisy) for entrant in entrants):
        entrants.insert(0, Noisy())
    device = options.get("device", "auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    panel = [open_judge(spec, device=device) for spec in judges]
    for what, names in (("contestant", [e.name for e in entrants]), ("judge", [j.name for j in panel])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise EvaluationError(f"{what} {twice[0]!r} is given twice; name each once, e.g. other={twice[0]}")
    for judge in panel:
        judge.check(source.classes, source.name)
    for entrant in entrants:
        base = _base(entrant)
        if isinstance(base, Ready):
            base.check(protocol.noises, protocol.draws)
    present = {item.name for item in source}
    strange = [name for name in pictures if name not in present]
    if strange or (pictures and out is None):
        what = f"pictures of {strange[0]!r}: no such image in {source.name}" if strange else "pictures need a folder to be kept in"
        raise EvaluationError(f"{what}; name images without ending, and give out=")
    return _Run(source, entrants, protocol, panel, out, set(pictures), niqe, progress, device, known).go()


class _Run:
    def __init__(
        self, source: Source, entrants: list[Contestant], protocol: Protocol, panel: list[Judge],
        out: str | os.PathLike[str] | None, chosen: set[str], niqe: Any, progress: Progress | None, device: Any,
        known: str | os.PathLike[str] | None = None,
    ) -> None:  # fmt: skip
        self.source, self.entrants, self.protocol, self.panel = source, entrants, protocol, panel
        self.out, self.chosen, self.progress, self.known = out, chosen, progress, known
        self.measures = Measures(protocol, panel, niqe)
        self.bases: dict[str, tuple[Tensor, float]] = {}  # of the noisy image at work
        self.sharing = any(isinstance(entrant, GiveBack) for entrant in entrants)
        self.pictures = Pictures(out) if out is not None else None
        if self.pictures is not None:  # a report shows those that are there already: of these weights and this noise, then
            self.chosen |= {item.name for item in source if (self.pictures.folder / folder_of(item.name)).is_dir()}
        self.results = Results(
            protocol=protocol,
            source={
                "name": source.name, "note": source.note, "block": source.block,
                "classes": None if source.classes is None else list(source.classes),
            },  # fmt: skip
            images=[item.name for item in source],
            contestants=[{"name": e.name, "kind": e.kind} for e in entrants],
            judges=[{"name": j.name, "key": j.key, "class_names": list(j.class_names)} for j in panel],
            environment={**environment(device), "metrics": self.measures.about},
        )
        looks = sum(protocol.draws_of(noise) for noise in protocol.conditions)
        self.total, self.done = len(source) * looks * len(entrants), 0

    def go(self) -> Results:
        with Cells(self.out, self.known) as cells, keep_pages():
            for item in self.source:
                self._image(item, cells)
        return self.results

    def _image(self, item: Item, cells: Cells) -> None:
        sample: Sample | None = None
        trouble = ""
        try:
            sample = self.source.load(item)
        except SegawareError as error:
            trouble = str(error)
        identity = "" if sample is None else _hash(sample)
        for noise in self.protocol.conditions:
            for draw in range(self.protocol.draws_of(noise)):
                cell = Cell(item, noise, draw, 0.0 if sample is None else noise.level(sample.clean))
                noisy: Tensor | None = None
                self.bases = {}
                for entrant in self.entrants:
                    row: dict[str, Any] = {"image": item.name, "contestant": entrant.name, "noise": noise.label, "draw": draw}
                    if sample is None:
                        row["error"] = trouble
                    elif noise.kind != "none" or _can_harm(entrant):
                        noisy = self._cell(row, entrant, cell, sample, identity, cells, noisy)
                    if len(row) > 4:
                        self.results.add(row)
                    self.done += 1
                    if self.progress is not None:
                        self.progress(self.done, self.total, f"{item.name}, {noise.label}, {entrant.name}")

    def _cell(
        self, row: dict[str, Any], entrant: Contestant, cell: Cell, sample: Sample, identity: str, cells: Cells, noisy: Tensor | None
    ) -> Tensor | None:
        """Fill one row from the cache or by work; gives the noisy image on, for the next contestant."""
        item = cell.item
        results: dict[str, Any] = {}
        try:
            drawn = self.protocol.noise_key(cell.noise, name=item.name, index=item.index, draw=cell.draw)
            key = digest(CACHE, entrant.key(cell), drawn, identity)[:32]
            results = cells.get(key)
            missing = self.measures.missing(results)
            wanted = cell.draw == 0 and item.name in self.chosen and not self._kept(entrant, cell, key)
            if missing or wanted:
                if noisy is None:
                    noisy = self.protocol.noisy(sample.clean, cell.noise, name=item.name, index=item.index, draw=cell.draw)
                estimate, seconds = self._denoise(entrant, noisy, cell)
                _check(estimate, sample.clean, entrant.name)
                fresh, errors, maps = self.measures.take(
                    estimate, sample, self.measures.names if wanted else missing, raw=isinstance(entrant, Noisy)
                )
                if not isinstance(entrant, (Noisy, Ready)):
                    fresh["seconds"] = round(seconds, 6)
                if any(name in fresh for name in missing):
                    cells.put(key, fresh)
                results.update(fresh)
                if errors:
                    row["error"] = "; ".join(errors)
                if wanted:
                    self._keep(entrant, cell, sample, estimate, maps, key)
        except Exception as error:  # one odd image must not end a night's run
            words = str(error) if isinstance(error, SegawareError) else f"{type(error).__name__}: {error}"
            if isinstance(error, OSError) and error.errno in _FULL:
                raise EvaluationError(f"{item.name}, {entrant.name}: {words}; free space and run again, finished cells are kept") from error
            if isinstance(error, EvaluationError) and "cannot be written" in words:
                raise
            row["error"] = words
        row.update(self.measures.row(results))
        return noisy

    def _denoise(self, entrant: Contestant, noisy: Tensor, cell: Cell) -> tuple[Tensor, float]:
        """The estimate and its seconds; what give-back contestants build on is computed once for all of them."""
        shared = self.sharing and not isinstance(entrant, GiveBack)
        key = entrant.key(cell) if shared else ""
        if key in self.bases:
            return self.bases[key]
        start = time.perf_counter()
        if isinstance(entrant, GiveBack):
            base, before = self._denoise(entrant.base, noisy, cell)
            start = time.perf_counter() - before
            estimate = entrant.blend(noisy, base, cell)
        else:
            estimate = entrant.denoise(noisy.clone(), cell)
        result = estimate, time.perf_counter() - start
        if shared:
            self.bases[key] = result
        return result

    def _state(self, key: str) -> str:
        """Of what pictures are: of this cell, seen by these judges."""
        return digest(key, [judge.key for judge in self.panel])

    def _kept(self, entrant: Contestant, cell: Cell, key: str) -> bool:
        assert self.pictures is not None
        name, noise = cell.item.name, cell.noise.label
        files = [self.pictures.image(name, entrant.name, noise), self.pictures.image(name, "clean")]
        files += [self.pictures.classes(name, entrant.name, judge.name, noise) for judge in self.panel]
        return self.pictures.state(name, entrant.name, noise) == self._state(key) and all(file.is_file() for file in files)

    def _keep(self, entrant: Contestant, cell: Cell, sample: Sample, estimate: Tensor, maps: dict[str, Tensor], key: str) -> None:
        assert self.pictures is not None
        name, noise, keep = cell.item.name, cell.noise.label, self.pictures
        keep.save(keep.image(name, entrant.name, noise), estimate)
        keep.save(keep.image(name, "clean"), sample.clean)
        if sample.labels is not None:
            keep.save(keep.classes(name, "labels"), sample.labels)
        for judge in self.panel:
            if judge.name in maps and judge.classes <= 255:
                keep.save(keep.classes(name, entrant.name, judge.name, noise), maps[judge.name])
                keep.save(keep.classes(name, "clean", judge.name), self.measures.on_clean(judge, sample))
        keep.note(name, entrant.name, noise, self._state(key))


def _base(entrant: Contestant) -> Contestant:
    while isinstance(entrant, GiveBack):
        entrant = entrant.base
    return entrant


def _can_harm(entrant: Contestant) -> bool:
    return not isinstance(_base(entrant), Ready)  # nobody denoises clean images for us


def _check(estimate: Any, clean: Tensor, name: str) -> None:
    if not isinstance(estimate, Tensor) or estimate.shape != clean.shape:
        got = tuple(estimate.shape) if isinstance(estimate, Tensor) else type(estimate).__name__
        raise EvaluationError(f"{name} gave {got} for an image {tuple(clean.shape)}; it must give (C, H, W) of the same size")
    if not torch.isfinite(estimate).all():
        raise EvaluationError(f"{name} gave NaN or infinite pixels; check its weights and range")


def _hash(sample: Sample) -> str:
    state = hashlib.sha256(repr(tuple(sample.clean.shape)).encode())
    state.update(sample.clean.numpy().tobytes())
    if sample.labels is not None:
        state.update(sample.labels.numpy().tobytes())
    return state.hexdigest()


def environment(device: Any) -> dict[str, Any]:
    """Versions and hardware, for reports."""
    record: dict[str, Any] = {
        "segaware": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}", "threads": torch.get_num_threads(), "device": str(device),
    }  # fmt: skip
    if str(device).startswith("cuda"):
        record["gpu"] = torch.cuda.get_device_name(device)
    return record
