"""Training a cascade stage after stage (Algorithm 1 of SDABN): S1, D1, S2, D2, ...

Each stage trains one network; all before it are fixed, in eval mode, without gradient. S1 starts from
the same network trained on clean images (S0), S_i from S_{i-1}, every D_i from scratch. Each stage has
a folder of its own, which knows what it was trained with and after: nothing is taken up by mistake.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from segaware.cascade import SDABN, SDB
from segaware.entries import load_entry, read_config, write_entry
from segaware.errors import TrainingError
from segaware.inference.folding import fold_batch_norm
from segaware.inference.memory import keep_pages
from segaware.metrics import psnr
from segaware.noise import add_gaussian, add_poisson
from segaware.training import checkpoint
from segaware.training.average import Average
from segaware.training.log import Log, not_finite
from segaware.training.stages import IGNORE, Crops, Entry, StageRecipe, order

__all__ = ["train_cascade"]

#: Fields of a recipe that a resumed stage may change: they decide when things are written, not what.
_FREE = ("log_every", "checkpoint_seconds", "workers")

Frames = Sequence[tuple[Tensor, Tensor]]


def train_cascade(
    segmenter: Callable[[], nn.Module],
    denoiser: Callable[[], nn.Module],
    frames: Frames,
    recipes: Mapping[str, StageRecipe],
    out: str | os.PathLike[str],
    *,
    stages: int = 3,
    closing: bool = False,
    start: nn.Module | None = None,
    condition: str = "logits",
    validation: Frames = (),
    until: str | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> SDABN | None:
    """Train the stages of a cascade in order; killed at any moment, the same call goes on where it was.

    Args:
        segmenter, denoiser: make a fresh network each time, with ``config`` to be saved by.
        frames: (uint8 image ``(3, H, W)``, uint8 labels ``(H, W)``, 255 = not counted) pairs.
        recipes: ``"segmenter"`` and ``"denoiser"``, and for single stages their name ("S2").
        out: folder of this training alone; each stage in one of its name, the cascade in ``model``.
        stages: blocks. ``closing`` adds a segmenter after the last.
        start: what S1 starts from; None = S0, trained here on the clean images first.
        condition: see :class:`segaware.cascade.SDB`.
        validation: pairs that each finished stage is measured on (mean IoU in percent, or PSNR in dB).
        until: name of the last stage to train now.
        device: where to train.
        progress: show a bar on stderr.

    Returns:
        The cascade, also saved in ``out/model``; None where ``until`` ended it before.

    Raises:
        TrainingError: a stage that was trained with another recipe, after other networks or in
            another place of the order; labels that are no class; a loss that is not finite. All
            name the stage.
    """
    entries = order(stages, clean=start is None, closing=closing)
    names = [entry.name for entry in entries]
    if until is not None and until not in names:
        raise TrainingError(f"until={until!r}: no such stage; there are {', '.join(names)}")
    if unknown := sorted(set(recipes) - {"segmenter", "denoiser", *names}):
        raise TrainingError(f"recipes: no stage {', '.join(unknown)}; there are segmenter, denoiser, {', '.join(names)}")
    out, device = Path(out), torch.device(device)
    previous, blocks = start, list[SDB]()
    done: dict[str, nn.Module] = {}
    with keep_pages():
        for entry in entries:
            torch.manual_seed(recipes[entry.part].seed * 1000 + names.index(entry.name))
            network = segmenter() if entry.part == "segmenter" else denoiser()
            if entry.part == "segmenter" and previous is not None:
                try:
                    network.load_state_dict(previous.state_dict())
                except RuntimeError as error:
                    raise TrainingError(f"stage {entry.name}: cannot start from those weights ({str(error)[:200]}); build both alike") from error
            recipe = recipes.get(entry.name, recipes[entry.part])
            stage = _Stage(entry, network, blocks, previous, recipe, out / entry.name, condition, device)
            done[entry.name] = network = stage.train(frames, validation, progress)
            if entry.part == "segmenter":
                previous = network
            else:
                assert previous is not None
                blocks.append(SDB(previous, network, condition=condition))
            if entry.name == until and entry is not entries[-1]:
                return None
    cascade = SDABN(blocks, done[f"S{stages + 1}"] if closing else None).cpu().eval()
    measured = {name: read_config(out / name / "model").get("measured") for name in names}
    write_entry(out / "model", cascade, {"training_noise": _words(recipes["denoiser"]), "measured": measured})
    return cascade


class _Stage:
    """The training of one network, after those before it."""

    def __init__(
        self, entry: Entry, network: nn.Module, blocks: Sequence[SDB], segmenter: nn.Module | None,
        recipe: StageRecipe, folder: Path, condition: str, device: torch.device,
    ) -> None:  # fmt: skip
        self.entry, self.network, self.recipe, self.folder, self.device = entry, network, recipe, folder, device
        before: list[nn.Module] = [*blocks]
        self.eyes: nn.Module | None = None
        if entry.part == "denoiser":
            assert segmenter is not None
            before.append(segmenter)
            self.block = SDB(segmenter, network, condition=condition)
            self.eyes = _fixed(segmenter, device)
        self.cascade = _fixed(SDABN(blocks), device) if blocks else None
        self.setting = {
            "stage": entry.name, "recipe": recipe.to_dict(), "condition": condition,
            "network": [type(network).__name__, getattr(network, "config", None)],
            "start": None if segmenter is None or self.eyes is not None else _digest([segmenter]), "before": _digest(before),
        }  # fmt: skip

    def train(self, frames: Frames, validation: Frames, progress: bool) -> nn.Module:
        """The trained network, on the CPU in eval mode; from its folder where it is finished."""
        finished = self.folder / "model"
        if (finished / "config.json").exists():
            self._same(read_config(finished).get("setting"), "finished")
            return load_entry(finished)
        try:
            self._loop(frames, progress)
        except OSError as error:
            raise TrainingError(f"{self.folder}: cannot be written ({error.strerror}); free space, then resume") from error
        self.network.eval()
        measured = self._measure(validation) if len(validation) else None
        record = {"setting": self.setting, "measured": measured, "training_noise": _words(self.recipe)}
        write_entry(finished, self.network.cpu(), record)
        return self.network

    def _loop(self, frames: Frames, progress: bool) -> None:
        recipe, network = self.recipe, self.network
        network.to(self.device).to(memory_format=torch.channels_last)
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(network.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay)
        else:
            optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
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

        crops = Crops(frames, recipe, _number(self.entry))
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
                    group["lr"] = recipe.rate(step)
                noisy, clean = (x.to(self.device, memory_format=torch.channels_last, non_blocking=True) for x in (noisy, clean))
                with self._arithmetic():
                    loss = self._loss(noisy, clean, labels.to(self.device, non_blocking=True), weights)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if recipe.clip_norm is not None:
                    nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
                optimizer.step()
                average.update(step)
                step += 1
                bar.update()
                if step % recipe.log_every == 0 or step == recipe.steps:
                    value = float(loss.detach())  # here alone: looking at it makes a GPU wait
                    if not torch.isfinite(loss.detach()):
                        raise not_finite(f"loss of stage {self.entry.name}", step, [], checkpoint.latest(self.folder))
                    log.write({"step": step, "loss": value, "rate": recipe.rate(step - 1)})
                    if time.monotonic() - saved > recipe.checkpoint_seconds and step < recipe.steps:
                        save()
                        saved = time.monotonic()
        if average.values:
            network.load_state_dict(average.values)

    def _loss(self, noisy: Tensor, clean: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        seen, total = self._seen(noisy, clean)
        if self.eyes is None:
            logits = F.interpolate(self.network(seen).float(), labels.shape[-2:], mode="bilinear", align_corners=False)
            counted = (labels != IGNORE) if weights is None else F.pad(weights, (0, 1))[labels.clamp(max=len(weights))]
            # not the mean: of a batch that is all void it would be NaN
            return F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="sum") / counted.sum().clamp(min=1e-6)
        with torch.no_grad():
            said = self.eyes(seen)
        image = self.block.clean(total, said)
        # summed, as released: with a mean, the same weight decay would be thousands of times as strong
        inner = (..., slice(1, -1), slice(1, -1))
        return (image.float()[inner] - clean[inner]).square().sum() / (2 * len(clean))

    def _seen(self, noisy: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """What this stage's segmenter sees, and what its denoiser is given."""
        if self.entry.stage == 0:
            return clean, clean
        if self.cascade is None:
            return noisy, noisy
        with torch.no_grad():
            image = self.cascade(noisy)
        return image, image + noisy

    @torch.no_grad()
    def _measure(self, frames: Frames) -> dict[str, float]:
        """Mean IoU (percent, one matrix for the set) or mean PSNR (dB, one pixel border, as released) on whole images."""
        values: list[Tensor] = []
        classes = getattr(self.network, "num_classes", 1)
        matrix = torch.zeros(classes * classes, dtype=torch.int64)
        for i, (image, labels) in enumerate(frames):
            clean = image[None].float() / 255
            generator = torch.Generator().manual_seed(i)
            noisy = _noisy(clean, self.recipe, generator).to(self.device, memory_format=torch.channels_last)
            seen, total = self._seen(noisy, clean.to(self.device))
            if self.eyes is None:
                logits = F.interpolate(self.network(seen).float(), labels.shape, mode="bilinear", align_corners=False)
                guess, valid = logits[0].argmax(0).cpu(), labels < classes
                matrix += torch.bincount(labels[valid].long() * classes + guess[valid], minlength=classes * classes)
            else:
                values.append(psnr(self.block.clean(total, self.eyes(seen)).float(), clean.to(self.device), border=1))
        if values:
            return {"psnr": round(float(torch.cat(values).mean()), 3)}
        square = matrix.reshape(classes, classes)
        union = square.sum(0) + square.sum(1) - square.diag()
        return {"miou": round(100 * float((square.diag() / union)[union > 0].mean()), 2)}

    def _class_weights(self, frames: Frames) -> Tensor | None:
        if self.entry.part == "denoiser":
            return None
        classes = int(getattr(self.network, "num_classes", 0))
        counts = torch.zeros(256, dtype=torch.int64)
        for i, (_, labels) in enumerate(frames):
            here = torch.bincount(labels.flatten().long(), minlength=256)
            if here[classes:IGNORE].any():
                raise TrainingError(
                    f"stage {self.entry.name}: labels of frame {i} hold {classes + int(here[classes:IGNORE].nonzero()[0])},"
                    f" but the segmenter has {classes} classes (0-{classes - 1}); map what is not counted to {IGNORE}"
                )
            counts += here
        wish = self.recipe.class_weights
        if wish is None:
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
            ("before", "after other networks"),
        ):  # fmt: skip
            if saved.get(key) != mine[key]:
                raise TrainingError(f"{where} {what}; remove the folder to train it anew, or choose another")


def _fixed(network: nn.Module, device: torch.device) -> nn.Module:
    """A copy for running only: eval mode, no gradient, folded, channels last."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    fold_batch_norm(network)
    return network.to(device).to(memory_format=torch.channels_last)


def _number(entry: Entry) -> int:
    return 2 * entry.stage + (entry.part == "denoiser")


def _noisy(clean: Tensor, recipe: StageRecipe, generator: torch.Generator) -> Tensor:
    if recipe.noise == "poisson":
        return add_poisson(clean, peak=recipe.peak, generator=generator)
    return add_gaussian(clean, recipe.sigma / 255, generator=generator)


def _words(recipe: StageRecipe) -> str:
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
