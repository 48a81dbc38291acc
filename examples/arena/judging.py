"""What is measured of a trained contestant: on held-out data for choosing, on test data for reporting.

All of it goes through segaware.evaluation; cells are remembered in the run's folder.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from segaware.errors import EvaluationError
from segaware.evaluation.contestants import Cell, Contestant, GiveBack, Model, Ready
from segaware.evaluation.protocol import Noise
from segaware.evaluation.report import read_report, write_report
from segaware.evaluation.results import Results
from segaware.evaluation.runner import evaluate
from segaware.evaluation.sources import Source

from .entrants import Kit, Skip
from .setting import TEST_SIGMAS, Setting, read_json, write_json


def held_out(setting: Setting, name: str, folder: Path, shares: tuple[float, ...] = ()) -> Results:
    """PSNR and mIoU on the held-out drive, with so much of the noise given back besides."""
    model = Model(name, folder / "model")
    protocol = dataclasses.replace(setting.protocols()["held-out"], harm=bool(shares))
    entrants = [model, *(GiveBack(model, share) for share in shares)]
    results = evaluate(
        setting.frames(held=True), entrants, protocol, judges=[setting.home_judge(), *setting.judges()], out=folder / "held-out",
        known=_measured(folder / "held-out"),
    )  # fmt: skip
    _whole(results)
    write_report(results, folder / "held-out", ("json",))
    return results


def known_beside(out: Path, denoiser: Contestant, spec: str) -> dict:
    """What is known of a denoiser that nobody trains here: ``{"done": False}`` where nothing is.

    Raises:
        EvaluationError: another one was measured under this name, or one folder of images stands for all levels.
    """
    base = _base(denoiser)
    if isinstance(base, Ready):
        base.check([Noise(sigma=sigma) for sigma in TEST_SIGMAS])
    file = out / "beside" / denoiser.name / "result.json"
    known = read_json(file) if file.is_file() else {"done": False}
    weights = weights_of(denoiser)
    for key, now, what in (("spec", spec, "the figures of {}"), ("weights", weights, "figures of other weights, or by another version of Python")):
        if known.get(key, now) != now:
            told = what.format(known[key])
            elsewhere = not any(file.parent.glob("test-*/cells.jsonl"))  # taken over by --known, and would be again
            repair = "leave --beside out, or give another name" if elsewhere else "give another name, or delete that folder"
            raise EvaluationError(f"--beside {denoiser.name}={spec}: {file.parent} holds {told}; {repair}")
    return known | {"contestant": denoiser.name, "kind": denoiser.kind, "spec": spec, "weights": weights}


def _base(denoiser: Contestant) -> Contestant:
    while isinstance(denoiser, GiveBack):
        denoiser = denoiser.base
    return denoiser


def weights_of(denoiser: Contestant) -> str | None:
    """By what it is known again; of ready images each file has a key of its own."""
    return None if isinstance(_base(denoiser), Ready) else denoiser.key(Cell(None, Noise(sigma=25.0), told=25 / 255))[:12]


def beside(setting: Setting, denoiser: Contestant, spec: str) -> None:
    """Measure a denoiser that nobody trains here on the reported sets; once.

    Raises:
        EvaluationError: see :func:`known_beside`.
    """
    folder = setting.out / "beside" / denoiser.name
    file, found = folder / "result.json", known_beside(setting.out, denoiser, spec)
    if not found["done"]:
        write_json(file, {**found, "done": False})
        test(setting, denoiser.name, folder, {}, denoiser)
        write_json(file, {**found, "done": True})


def figures(results: Results) -> list[dict]:
    """Every figure of the set: measure, noise, contestant, value."""
    from segaware.evaluation.significance import statistic

    found = []
    for measure in results.measures:
        if measure.key != "psnr" and not measure.key.startswith("miou:"):
            continue
        for k, noise in enumerate(results.noises):
            for c, name in enumerate(results.names):
                data = results.data(measure, c, k)
                data = data[~np.isnan(data).any(tuple(range(1, data.ndim)))]
                if len(data):
                    value = statistic(data.mean(0) if measure.kind == "mean" else data.sum(0), measure.kind)
                    found.append({"measure": measure.key, "noise": noise, "contestant": name, "value": float(value)})
    return found


def test(setting: Setting, name: str, folder: Path, keep: dict[str, float], denoiser: Contestant | None = None) -> None:
    """The reported sets: the contestant, and with the share of each level given back (``NAME+keep``).

    ``denoiser``: the contestant itself where it was not trained here, else the model in ``folder``.
    """
    for which, source in setting.test_sets().items():
        out = folder / f"test-{which}"
        if (out / "report.json").is_file():
            known = json.loads((out / "report.json").read_text(encoding="utf-8"))["images"]
            if known != [item.name for item in source]:
                raise EvaluationError(f"{out}: measured on {len(known)} other images, not these {len(source)}; give the same data, or another --out")
            continue
        labelled = source.classes is not None
        entrant = denoiser or Model(name, folder / "model")
        if not labelled:
            entrant = _looking(setting, entrant, source, out)
        whole = setting.protocols()[which]
        merged: Results | None = None
        for noise in whole.conditions:  # one at a time: each level has its own share
            share = keep.get(noise.label, 0.0)
            entrants = [entrant]
            if share > 0:
                back = GiveBack(entrant, share)
                back.name = f"{name}+keep"
                entrants.append(back)
            one = dataclasses.replace(whole, noises=(noise,), harm=False)
            part = evaluate(source, entrants, one, judges=[setting.home_judge(), *setting.judges()], out=out, known=_measured(out))
            _whole(part)
            if merged is None:
                merged = Results(whole, part.source, part.images, _with_keep(part, name), part.judges, part.environment)
            for row in part.rows():
                merged.add(row)
                if row["contestant"] == name and share == 0:
                    merged.add({**row, "contestant": f"{name}+keep"})
        assert merged is not None
        write_report(merged, out, ("json",))


def chosen_on(folder: Path, name: str, keep: dict[str, float]) -> None:
    """``test-drive``: the held-out drive as the reported sets stand, alone and with the chosen share of each level given back.

    Nothing is measured anew. It is what choices were made on, and a second street.
    """
    if (folder / "test-drive" / "report.json").is_file() or not (folder / "held-out" / "report.json").is_file():
        return
    found = read_report(folder / "held-out")
    drive = Results(found.protocol, found.source, found.images, _with_keep(found, name), found.judges, found.environment)
    for row in found.rows():
        share = keep.get(row["noise"], 0.0)
        if row["contestant"] in ("noisy", name):
            drive.add(row)
        if row["contestant"] == (f"{name}+{share:g}" if share else name):
            drive.add({**row, "contestant": f"{name}+keep"})
    write_report(drive, folder / "test-drive", ("json",))


def _with_keep(results: Results, name: str) -> list[dict]:
    """The noisy images, the contestant, and the latter with noise given back."""
    return [*results.contestants[:2], {"name": f"{name}+keep", "kind": "with the chosen share of the noise given back"}]


def _measured(out: Path) -> Path | None:
    """The cells of the run that was done first: what is the same for all, the noisy images, is measured in none but that."""
    done = [r for r in out.parent.parent.glob(f"*/{out.name}/report.json") if r.with_name("cells.jsonl").is_file()]  # not of one taken over
    return min(done, key=lambda report: report.stat().st_mtime).with_name("cells.jsonl") if done else None


def _whole(results: Results) -> None:
    if results.failures:
        first = results.failures[0]
        raise EvaluationError(f"{first['contestant']}, {first['image']}: {first['error']}")


class _Looking:
    """A contestant whose answers a classifier looks at in passing: does its first class stay that of the clean image?"""

    def __init__(self, base: Contestant, classifier: torch.nn.Module, source: Source, file: Path) -> None:
        self.base, self.name, self.kind, self.classifier, self.source, self.file = base, base.name, base.kind, classifier, source, file
        self.known: dict[str, int] = {}

    def key(self, cell) -> str:
        return self.base.key(cell)

    def denoise(self, noisy: Tensor, cell) -> Tensor:
        estimate = self.base.denoise(noisy, cell)
        if cell.item.name not in self.known:
            self.known = {cell.item.name: self._first(self.source.load(cell.item).clean)}
        same = self._first(estimate) == self.known[cell.item.name]
        with self.file.open("ab+") as file:
            _end_line(file)
            line = json.dumps({"image": cell.item.name, "noise": cell.noise.label, "same": same}) + "\n"
            file.write(line.encode())
        return estimate

    @torch.inference_mode()
    def _first(self, image: Tensor) -> int:
        return int(self.classifier(image.clamp(0, 1).expand(3, -1, -1)[None])[0].flatten().argmax())


def _end_line(file: BinaryIO) -> None:
    """What a write that was cut short has left does not swallow the next line."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _looking(setting: Setting, entrant: Contestant, source: Source, out: Path) -> Contestant:
    try:
        classifier = Kit(setting).classifier
    except Skip:
        return entrant
    out.mkdir(parents=True, exist_ok=True)
    return _Looking(entrant, classifier, source, out / "classes.jsonl")


def same_class(folder: Path) -> dict[str, dict[str, bool]]:
    """{noise: {image: whether the classifier's first class stayed}}; empty without a classifier."""
    found: dict[str, dict[str, bool]] = {}
    file = folder / "classes.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:  # cut short by a kill; its cell was not kept either
            continue
        found.setdefault(row["noise"], {})[row["image"]] = row["same"]
    return found
