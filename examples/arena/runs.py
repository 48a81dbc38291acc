"""One training: its weight from the shares of the gradient, its claim, its folder, its result."""

import contextlib
import errno
import inspect
import json
import math
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from segaware import SegAwareWrapper
from segaware.errors import SegawareError, TrainingError
from segaware.inference.locks import lock
from segaware.losses.sensitivity import sensitivity_map
from segaware.training import fit
from segaware.training.data import ImageFiles, Patches
from segaware.training.guard import stop_if_dominated
from segaware.wrapper import fidelity

from .entrants import entrant, kit_of
from .setting import Setting, read_json, write_json


@dataclass(frozen=True)
class Run:
    """One contestant with one weight (``factor`` times the one its share of the gradient gives) and one seed."""

    phase: str
    name: str
    factor: float
    seed: int

    def folder(self, out: Path) -> Path:
        return out / self.phase / f"{self.name}-x{self.factor:.3g}-s{self.seed}"

    def result(self, out: Path) -> dict | None:
        """What it left, or None if it is not finished."""
        file = self.folder(out) / "result.json"
        if not file.is_file():
            return None
        found = read_json(file)
        if not math.isclose(found.get("factor", self.factor), self.factor, rel_tol=1e-9):
            raise TrainingError(f"{file.parent}: holds factor {found['factor']}, not {self.factor}; give that one, or another --out")
        return found


@contextlib.contextmanager
def claim(folder: Path):
    """True for the one process that works on ``folder``; the system ends a claim with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".claim", "ab") as file:
        mine = _take(file)
        if not mine:  # perhaps by one that only asked whether it is claimed
            time.sleep(0.05)
            mine = _take(file)
        yield mine


def claimed(folder: Path) -> bool:
    """Whether a process works on ``folder`` now."""
    if not (folder / ".claim").is_file():
        return False
    with claim(folder) as mine:
        return not mine


@contextlib.contextmanager
def at_work(phase: Path):
    """Others see, by :func:`busy`, that this process works on the trainings of a phase: also between two of them."""
    folder = phase / f".at-work-{platform.node() or 'here'}-{os.getpid()}"  # numbers are those of one machine
    try:
        with claim(folder):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def busy(phase: Path) -> list[str]:
    """What processes work on now: trainings, or the screen itself."""
    folders = sorted(folder for folder in phase.glob("*-x*-s*") if folder.is_dir() and not (folder / "result.json").is_file())
    found = [folder.name for folder in folders if claimed(folder)]
    return found or ["between two trainings"] * any(claimed(folder) for folder in phase.glob(".at-work-*"))


def _take(file: IO[bytes]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return lock(file.fileno(), 0, wait=False)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike lock's, it also holds within one process
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise TrainingError(f"{file.name}: the file system has no locks ({error.strerror}); give an --out on another disk") from error
    return True


class NoGradient(TrainingError):
    """A term cannot be trained with: what another contestant does not suffer from."""


def gradient_shares(setting: Setting, name: str, batches: int = 8) -> list[dict]:
    """Each term's weight, such that its gradient at the denoised image has the stated share of fidelity's at the start.

    Norms are root mean squares over some batches of the training, in float32. A term without gradient
    keeps weight 1, and says so.
    """
    file = setting.out / "weights" / f"{name}.json"
    if file.is_file():
        return read_json(file)
    terms = entrant(name).terms(kit_of(setting, name))
    if not terms:
        return []
    denoiser, recipe = setting.start(), setting.recipe(seed=12_345)
    patches = Patches(images_of(setting, name), recipe)
    squares = torch.zeros(1 + len(terms), dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        for step in range(min(batches, recipe.steps)):
            batch = patches[step]
            with torch.no_grad():
                denoised = denoiser(batch.noisy, batch.sigma) if denoiser.info.takes_sigma else denoiser(batch.noisy)
            squares[0] += _norm(denoised, lambda image, clean=batch.clean: fidelity(image, clean)) ** 2
            offered = {"clean": batch.clean, "labels": batch.labels}
            for index, (_, loss) in enumerate(terms):
                torch.manual_seed(step)
                takes = inspect.signature(loss.forward).parameters
                given = {key: value for key, value in offered.items() if key in takes}
                squares[1 + index] += _norm(denoised, lambda image, loss=loss, given=given: loss(image, **given)) ** 2
    norms = (squares / max(1, min(batches, recipe.steps))).sqrt().tolist()
    found = []
    for (part, loss), norm in zip(terms, norms[1:], strict=True):
        weight = setting.args.share * part * norms[0] / norm if norm > 0 else 1.0
        found.append({"term": loss.name, "part": part, "fidelity_gradient": norms[0], "gradient": norm, "weight": weight})
    write_json(file, found)
    return found


def _norm(denoised: Tensor, loss) -> float:
    image = denoised.clone().requires_grad_()
    value = loss(image)
    if not value.requires_grad:
        return 0.0
    (gradient,) = torch.autograd.grad(value, image, allow_unused=True)
    norm = 0.0 if gradient is None else float(gradient.norm())
    if not math.isfinite(norm):
        raise NoGradient(f"the gradient at the denoised image is {norm}; look at the segmenter")
    return norm


def images_of(setting: Setting, name: str) -> list[tuple[Tensor, Tensor]]:
    """The training images, with what this contestant gets as labels: the same number in the same order for all."""
    images = setting.training_images()
    if entrant(name).labels != "maps":
        return images
    kit = kit_of(setting, name)

    def maps():
        folder = setting.out / "maps" / ("untrained" if kit.random else "home")
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        for index, (image, _) in enumerate(images):
            file = folder / f"{index}.pt"
            if not file.is_file():
                torch.manual_seed(index)
                partial = file.with_suffix(f".{os.getpid()}")
                torch.save(sensitivity_map(kit.home, image, probes=setting.args.probes), partial)
                os.replace(partial, file)
            found.append((image, torch.load(file, weights_only=True)))
        return found

    with torch.random.fork_rng(devices=[]):
        return setting.once(f"maps {kit.random}", maps)


def train(setting: Setting, run: Run) -> dict:
    """Train, or go on; the result, also written. The caller holds the claim."""
    folder = run.folder(setting.out)
    found, start = entrant(run.name), time.monotonic()
    result = {"contestant": run.name, "factor": run.factor, "seed": run.seed, "steps": setting.args.steps}
    try:
        weights = gradient_shares(setting, run.name)
    except NoGradient as error:  # as where it happens in training
        return result | {"weights": {}, "state": "stopped", "error": str(error), "shares": {}, "minutes": round((time.monotonic() - start) / 60, 2)}
    terms = found.terms(kit_of(setting, run.name))
    pairs = [(run.factor * w["weight"], loss) for w, (_, loss) in zip(weights, terms, strict=True)]
    wrapper = SegAwareWrapper(setting.start(), pairs or ())
    guard = stop_if_dominated(wrapper)
    held = ImageFiles(setting.photographs()[1])
    result["weights"] = wrapper.term_weights
    try:
        done = fit(wrapper, images_of(setting, run.name), setting.recipe(run.seed), folder, validation=held, progress=setting.args.progress)
        result |= {"state": "trained", "photographs_psnr": done.psnr, "precision": done.precision, "device": done.device}
    except SegawareError as error:
        if "dominates" not in str(error) and "not finite" not in str(error):
            raise
        result |= {"state": "stopped", "error": str(error)}
    guard.remove()
    wrapper.cpu()  # the segmenters are shared with the contestants that follow
    result |= {"shares": shares_of(folder / "log.jsonl"), "minutes": round((time.monotonic() - start) / 60, 2)}
    return result


def shares_of(log: Path) -> dict[str, list[float]]:
    """By term: its gradient at the denoised image over fidelity's, in the four quarters of the training."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    rows = [row["terms"] for row in rows if "terms" in row]
    found: dict[str, list[float]] = {}
    for name in rows[0] if rows else ():
        if name == "fidelity":
            continue
        ratios = torch.tensor([row[name]["gradient"] / max(row["fidelity"]["gradient"], 1e-12) for row in rows])
        found[name] = [round(float(part.mean()), 4) for part in ratios.tensor_split(4) if len(part)]
    return found


def finish(setting: Setting, run: Run, result: dict) -> None:
    """Keep the result; the checkpoint is not needed any more."""
    folder = run.folder(setting.out)
    write_json(folder / "result.json", result)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
