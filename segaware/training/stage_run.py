"""The training of one network after those before it, which are fixed: eval mode, no gradient, folded.

Its folder knows what it was trained with and after, so that nothing is taken up by mistake.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from segaware.baselines import DenoiserCascade, LabelCondition
from segaware.cascade import SDABN, SDB, Stage
from segaware.entries import load_entry, read_config, write_entry
from segaware.errors import InputError, TrainingError
from segaware.inference.folding import fold_batch_norm
from segaware.metrics import psnr
from segaware.noise import add_gaussian, add_poisson
from segaware.training import checkpoint
from segaware.training.average import Average
from segaware.training.log import Log, not_finite
from segaware.training.muon import Muon
from segaware.training.stages import IGNORE, Crops, StageRecipe
from segaware.training.variants import Entry

__all__ = ["Frames", "StageRun", "chain", "noise_words", "number_of"]

#: Fields of a recipe that a resumed stage may change: they decide when things are written, not what.
_FREE = ("log_every", "checkpoint_seconds", "workers")

#: (uint8 image ``(3, H, W)``, uint8 labels ``(H, W)``, 255 = not counted) pairs.
Frames = Sequence[tuple[Tensor, Tensor]]


class StageRun:
    """One stage: its network, what is fixed before it, and where it is written.

    Args:
        entry: what it is.
        network: to train, with the weights it starts from.
        recipe, folder, device: how, where to write, where to compute.
        before: fixed networks that make the estimate it goes on from: blocks, or denoisers in turns.
        eyes: fixed segmenter that tells a denoiser its condition.
        judge, weight: fixed segmenter whose cross-entropy on the denoised image, times ``weight``,
            is added to a denoiser's loss.
        start: network whose weights it starts from; only remembered, to recognise it again.
        condition: see :class:`segaware.cascade.SDB`.
    """

    def __init__(
        self, entry: Entry, network: nn.Module, recipe: StageRecipe, folder: Path, device: torch.device, *,
        before: Sequence[nn.Module] = (), eyes: nn.Module | None = None, judge: nn.Module | None = None,
        weight: float = 0.0, start: nn.Module | None = None, condition: str = "logits",
    ) -> None:  # fmt: skip
        self.entry, self.network, self.recipe, self.folder, self.device = entry, network, recipe, folder, device
        try:
            self.block = None if eyes is None else SDB(eyes, network, condition=condition)
        except InputError as error:
            raise TrainingError(f"stage {entry.name}: {error}") from error
        self.eyes = None if eyes is None else _fixed(eyes, device)
        self.judge, self.weight = None if judge is None else _fixed(judge, device), weight
        self.chain = _fixed(chain(before), device) if before else None
        self.setting: dict[str, Any] = {
            "stage": entry.name, "recipe": recipe.to_dict(), "condition": condition,
            "network": [type(network).__name__, getattr(network, "config", None)],
            "start": None if start is None else _digest([start]),
            "before": _digest([*before, *([] if eyes is None else [eyes])]),
        }  # fmt: skip
        if judge is not None:
            self.setting["judge"] = [_digest([judge]), weight]

    def train(self, frames: Frames, validation: Frames, progress: bool) -> nn.Module:
        """The trained network, on the CPU in eval mode; from its folder where it is finished."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TrainingError(
                f"{self.folder}: several processes (WORLD_SIZE={os.environ['WORLD_SIZE']}) would write the same files; stages are trained in one process"
            )
        finished = self.folder / "model"
        if (finished / "config.json").exists():
            self._same(read_config(finished).get("setting"), "finished")
            return load_entry(finished)
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                self._loop(frames, progress)
        except OSError as error:
            raise TrainingError(f"{self.folder}: cannot be written ({error.strerror}); free space, then resume") from error
        self.network.eval()
        measured = self._measure(validation) if len(validation) else None
        record = {"setting": self.setting, "measured": measured, "training_noise": noise_words(self.recipe)}
        write_entry(finished, self.network.cpu(), record)
        return self.network

    def _loop(self, frames: Frames, progress: bool) -> None:
        recipe, network = self.recipe, self.network
        network.to(self.device).to(memory_format=torch.channels_last)
        optimizer = _optimizer(network, recipe)
        average = Average(network, recipe.ema)
        step = 0
        found = checkpoint.latest(self.folder)
        if found is not None:
            tensors, state, record = checkpoint.load(found)
            self._same(record.get("setting"), f"half trained ({found.name})")
            network.load_state_dict(tensors["model"])
            checkpoint.restore_optimizer(optimizer, state)
            average.load(tensors.get("ema", {}))
            step = record["step"]
        weights = self._class_weights(frames)

        def save() -> None:
            tensors = {"model": network.state_dict(), "ema": average.values}
            checkpoint.save(self.folder, step, tensors, optimizer.state_dict(), {"setting": self.setting})

        crops = Crops(frames, recipe, number_of(self.entry))
        loader = DataLoader(
            crops, batch_size=None, sampler=range(step, recipe.steps), num_workers=recipe.workers,
            pin_memory=self.device.type == "cuda",
        )  # type: ignore[arg-type]  # fmt: skip
        log, saved = Log(self.folder / "log.jsonl", step), time.monotonic()
        bar = tqdm(total=recipe.steps, initial=step, unit="step", desc=self.entry.name, disable=not progress, mininterval=2)
        with bar, contextlib.closing(log):
            for noisy, clean, labels in loader:
                network.train()
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(step) * (2 if group.get("matrix") else 1)
                noisy, clean = (x.to(self.device, memory_format=torch.channels_last, non_blocking=True) for x in (noisy, clean))
                # dropout: a function of the step, so that a resumed run draws the same
                torch.manual_seed(((recipe.seed * 1_000_003 + step) * 65_537 + number_of(self.entry)) % 2**63)
                with self._arithmetic():
                    loss = self._loss(noisy, clean, labels.to(self.device, non_blocking=True), weights)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm or math.inf)
                logged = (step + 1) % recipe.log_every == 0 or step + 1 == recipe.steps
                late = time.monotonic() - saved > recipe.checkpoint_seconds
                if logged or late:  # here alone: looking at values makes a GPU wait
                    for what, value in (("loss", loss.detach()), ("gradient", norm)):  # before weights take it in
                        if not torch.isfinite(value):
                            raise not_finite(f"{what} of stage {self.entry.name}", step + 1, [], checkpoint.latest(self.folder))
                optimizer.step()
                average.update(step)
                step += 1
                bar.update()
                if logged:
                    log.write({"step": step, "loss": float(loss.detach()), "rate": recipe.rate(step - 1)})
                if late and step < recipe.steps:
                    save()
                    saved = time.monotonic()
        if average.values:
            network.load_state_dict(average.values)

    def _loss(self, noisy: Tensor, clean: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        if self.entry.part == "joint":
            return _cross_entropy(_last(self.network, noisy).logits, labels, weights)
        seen, total = self._seen(noisy, clean, labels)
        if self.entry.part == "segmenter":
            return _cross_entropy(self.network(seen), labels, weights)
        image = self._denoise(seen, total, labels).float()
        # summed, as released: with a mean, the same weight decay would be thousands of times as strong
        inner = (..., slice(1, -1), slice(1, -1))
        loss = (image[inner] - clean[inner]).square().sum() / (2 * len(clean))
        return loss if self.judge is None else loss + self.weight * _cross_entropy(self.judge(image), labels, None)

    def _seen(self, noisy: Tensor, clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What this stage's segmenter sees, and what its denoiser is given."""
        if self.entry.stage == 0:
            return clean, clean
        if self.chain is None:
            return noisy, noisy
        with torch.no_grad():
            image = self.chain(noisy, labels=labels) if isinstance(self.chain, LabelCondition) else self.chain(noisy)
        return image, image + noisy

    def _denoise(self, seen: Tensor, total: Tensor, labels: Tensor) -> Tensor:
        if self.block is not None and self.eyes is not None:
            with torch.no_grad():
                said = self.eyes(seen)
            return self.block.clean(total, said)
        if isinstance(self.network, LabelCondition):
            return self.network(total, labels=labels)
        return self.network(total)

    @torch.no_grad()
    def _measure(self, frames: Frames) -> dict[str, float]:
        """Mean IoU (percent, one matrix for the set) or mean PSNR (dB, one pixel border, as released) on whole images."""
        values: list[Tensor] = []
        classes = int(getattr(self.network, "num_classes", 1))
        matrix = torch.zeros(classes * classes, dtype=torch.int64)
        for i, (image, labels) in enumerate(frames):
            clean, truth = image[None].float() / 255, labels[None].to(self.device)
            generator = torch.Generator().manual_seed(i)
            noisy = _noisy(clean, self.recipe, generator).to(self.device, memory_format=torch.channels_last)
            clean = clean.to(self.device)
            if self.entry.part == "joint":
                logits, estimate = _last(self.network, noisy)
                values.append(psnr(estimate.float(), clean, border=1))
            else:
                seen, total = self._seen(noisy, clean, truth)
                if self.entry.part == "denoiser":
                    values.append(psnr(self._denoise(seen, total, truth).float(), clean, border=1))
                    continue
                logits = self.network(seen)
            logits = F.interpolate(logits.float(), labels.shape, mode="bilinear", align_corners=False)
            guess, valid = logits[0].argmax(0).cpu(), labels < classes
            matrix += torch.bincount(labels[valid].long() * classes + guess[valid], minlength=classes * classes)
        found = {"psnr": round(float(torch.cat(values).mean()), 3)} if values else {}
        if matrix.any():
            square = matrix.reshape(classes, classes)
            union = square.sum(0) + square.sum(1) - square.diag()
            found["miou"] = round(100 * float((square.diag() / union)[union > 0].mean()), 2)
        return found

    def _class_weights(self, frames: Frames) -> Tensor | None:
        told = self.network if self.judge is None else self.judge
        if self.entry.part == "denoiser" and self.judge is None and not isinstance(told, LabelCondition):
            return None  # labels are not looked at
        classes = int(getattr(told, "num_classes", 0))
        counts = torch.zeros(256, dtype=torch.int64)
        for i, (_, labels) in enumerate(frames):
            here = torch.bincount(labels.flatten().long(), minlength=256)
            if here[classes:IGNORE].any():
                raise TrainingError(
                    f"stage {self.entry.name}: labels of frame {i} hold {classes + int(here[classes:IGNORE].nonzero()[0])},"
                    f" but there are {classes} classes (0-{classes - 1}); map what is not counted to {IGNORE}"
                )
            counts += here
        wish = self.recipe.class_weights
        if wish is None or self.entry.part == "denoiser":
            return None
        if not isinstance(wish, str):
            if len(wish) != classes:
                raise TrainingError(f"stage {self.entry.name}: {len(wish)} class weights for {classes} classes; give one a class")
            return torch.tensor(wish, device=self.device)
        share = counts[:classes].double() / counts[:classes].sum()
        rare = share.clamp(min=1e-12).rsqrt() * (share > 0)
        return (rare / rare.sum() * (share > 0).sum()).float().to(self.device)

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16) if self.recipe.precision == "bf16" else contextlib.nullcontext():
            yield

    def _same(self, saved: Any, state: str) -> None:
        """Refuse to take up what was trained otherwise."""
        where = f"{self.folder}: stage {self.entry.name} is {state}"
        if not isinstance(saved, dict):
            raise TrainingError(f"{where} by something else; choose another folder")
        mine = json.loads(json.dumps(self.setting))
        if saved.get("stage") != mine["stage"]:
            raise TrainingError(f"{where}, but as stage {saved.get('stage')}; put each stage into the folder of its name")
        had, have = ({k: v for k, v in s["recipe"].items() if k not in _FREE} for s in (saved, mine))
        if other := sorted(k for k in had.keys() | have.keys() if had.get(k) != have.get(k)):
            changes = ", ".join(f"{k} {had.get(k)} -> {have.get(k)}" for k in other)
            raise TrainingError(f"{where} with another recipe ({changes}); give the same values, or another folder")
        for key, what in (
            ("condition", "with another condition"), ("network", "as another network"), ("start", "from another start"),
            ("before", "after other networks"), ("judge", "through another segmenter, or at another weight"),
        ):  # fmt: skip
            if saved.get(key) != mine.get(key):
                raise TrainingError(f"{where} {what}; remove the folder to train it anew, or choose another")


def _optimizer(network: nn.Module, recipe: StageRecipe) -> torch.optim.Optimizer:
    params = list(network.parameters())
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(params, recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(params, recipe.learning_rate, weight_decay=recipe.weight_decay)
    # DDFN's convolutions are narrow (8): by the rule for denoisers that fold the image few of them would be matrices
    matrices = [p for p in params if p.ndim >= 2 and min(p.shape[:2]) > 3]
    chosen = {id(p) for p in matrices}
    return Muon(matrices, [p for p in params if id(p) not in chosen], weight_decay=recipe.weight_decay)


def _fixed(network: nn.Module, device: torch.device) -> nn.Module:
    """A copy for running only: eval mode, no gradient, folded, channels last."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    fold_batch_norm(network)
    return network.to(device).to(memory_format=torch.channels_last)


def chain(before: Sequence[nn.Module]) -> nn.Module:
    """Finished blocks, or denoisers, as one denoiser that makes the last estimate."""
    if all(isinstance(part, SDB) for part in before):
        return SDABN([part for part in before if isinstance(part, SDB)])
    return before[0] if len(before) == 1 else DenoiserCascade(before)


def number_of(entry: Entry) -> int:
    """By which crops and noise are drawn, and networks begin: stages that stand in for each other share it."""
    return 2 * entry.stage + (entry.part == "denoiser")


def _last(network: nn.Module, noisy: Tensor) -> Stage:
    """What a cascade with a closing segmenter says last."""
    assert isinstance(network, SDABN)
    *_, last = network.stages(noisy)
    return last


def _cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    logits = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    counted = (labels != IGNORE) if weights is None else F.pad(weights, (0, 1))[labels.clamp(max=len(weights))]
    # not the mean: of a batch that is all void it would be NaN
    return F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="sum") / counted.sum().clamp(min=1e-6)


def _noisy(clean: Tensor, recipe: StageRecipe, generator: torch.Generator) -> Tensor:
    if recipe.noise == "poisson":
        return add_poisson(clean, peak=recipe.peak, generator=generator)
    return add_gaussian(clean, recipe.sigma / 255, generator=generator)


def noise_words(recipe: StageRecipe) -> str:
    """The noise it was trained with, for people."""
    return f"Poisson, peak {recipe.peak:g}" if recipe.noise == "poisson" else f"AWGN, sigma {recipe.sigma:g}"


def _digest(networks: Sequence[nn.Module]) -> str:
    """What identifies weights: names, shapes, values."""
    sha = hashlib.sha256()
    for network in networks:
        for key, value in network.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                sha.update(f"{key}{tuple(value.shape)}".encode())
                sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
