"""The training loop: one for every method. What differs between methods is the wrapper handed in."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from segaware.errors import TrainingError
from segaware.inference.memory import keep_pages
from segaware.training import checkpoint
from segaware.training.agreed import agreed
from segaware.training.average import Average
from segaware.training.batch_norm import batch_norms, measure
from segaware.training.data import Batch, Patches, check_readable, open_images
from segaware.training.log import Log, not_finite
from segaware.training.optimizer import make_optimizer
from segaware.training.precision import LOWER, precision_here
from segaware.training.recipe import Recipe
from segaware.training.renew import renew
from segaware.training.trained import write_trained
from segaware.training.validation import Validation
from segaware.wrapper import SegAwareWrapper, WrapperOutput

__all__ = ["FitResult", "fit"]

#: Batches over which batch normalisation is measured before its statistics are fixed.
_MEASURED = 50


@dataclass(frozen=True)
class FitResult:
    """What a training left.

    Args:
        step: steps done.
        model: folder of the trained denoiser, an entry for ``from_pretrained``; one whose class has no ``config``, or is
            neither of segaware nor registered, is given to it again, ``denoiser=network``.
        psnr: last validation, dB by noise level (8-bit units; ``"poisson"`` where there is no
            other noise); empty without validation images.
        seconds: spent in this call.
        precision: what ``"auto"`` came to here: ``"bf16"``, ``"fp16"`` or ``"float32"`` (but for ``float32_steps``).
        device: kind of the device, ``"cpu"``, ``"cuda"``, ...
    """

    step: int
    model: Path
    psnr: dict[str, float]
    seconds: float
    precision: str = "float32"
    device: str = "cpu"


def fit(
    wrapper: SegAwareWrapper,
    data: Any,
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    validation: Any = None,
    resume: bool = True,
    progress: bool = True,
    accelerator: Any = None,
) -> FitResult:
    """Train the denoiser inside ``wrapper``; killed at any moment, the same call goes on where it was.

    Every step is a function of (recipe, step), so a resumed run equals one that was never
    interrupted, bit for bit on one machine. Writes to ``out``: ``recipe.json``, ``log.jsonl``
    (every term of the loss, its weight and the norm of its gradient at the denoised image),
    ``checkpoint-STEP/`` (the last one) and, at the end, ``model/``, whose weights the wrapper then
    holds as well. The caller's random numbers are left alone.

    With ``torchrun`` or ``accelerate launch`` n processes share a step: the batch is n times as
    large. Networks without batch normalisation learn the same as in one process with that batch;
    batch statistics are those of each process's own part, and the first process's running ones are
    kept. A ``"trapezoid"`` run may be resumed with other ``steps`` and ``cooldown`` as long as its
    fall has not begun. More in ``docs/training.md``.

    Args:
        wrapper: the denoiser with its awareness terms.
        data: a folder of clean images, a list of files, or a sequence of images (see
            :class:`segaware.training.data.Patches`).
        recipe: see :class:`Recipe`.
        out: folder of this run alone.
        validation: like ``data``, held-out images; PSNR is that of the averaged weights if there are.
        resume: False refuses an ``out`` that holds a checkpoint.
        progress: show a progress bar on stderr.
        accelerator: an ``accelerate.Accelerator`` of your own, without mixed precision (the recipe
            has that); None makes one.

    Raises:
        TrainingError: accelerate is missing, no images or unreadable ones, a size among the held-out
            images that the network cannot take, another recipe or setting than that of the
            checkpoint, a loss or gradient that is not finite (with step and term), a folder that
            cannot be written.
    """
    run = _Run(wrapper, data, recipe, Path(out), validation, resume, accelerator)
    devices = [run.device] if run.device.type == "cuda" else []
    with keep_pages(), torch.random.fork_rng(devices=devices):
        return run.go(progress)


class _Run:
    """The state of one call of :func:`fit`."""

    def __init__(self, wrapper: SegAwareWrapper, data: Any, recipe: Recipe, out: Path, validation: Any, resume: bool, accelerator: Any) -> None:
        self.recipe, self.out, self.wrapper = recipe, out, wrapper
        self.accelerator = accelerator or _accelerator()
        if self.accelerator.mixed_precision != "no":
            raise TrainingError(
                f'the accelerator has mixed_precision="{self.accelerator.mixed_precision}"; make it with "no" and set the recipe\'s precision'
            )
        if self.accelerator.gradient_accumulation_steps != 1:
            raise TrainingError(
                f"the accelerator has gradient_accumulation_steps={self.accelerator.gradient_accumulation_steps}, and every step here is one"
                " of the optimiser; make it with 1 (or unset ACCELERATE_GRADIENT_ACCUMULATION_STEPS), and set the recipe's batch_size"
            )
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.precision = precision_here(recipe.precision, self.device)
        self.lower = LOWER[self.precision]
        if recipe.noise == "poisson" and wrapper.takes_sigma:
            raise TrainingError('the denoiser takes sigma, but noise="poisson" has none; use "poisson-gaussian", or a blind denoiser')
        channels = wrapper.likely_channels
        images = open_images(data, channels)
        check_readable(images)
        held_out = None if validation is None else open_images(validation, channels)
        if self.main and held_out is not None:
            check_readable(held_out)
        self.patches = Patches(images, recipe, self.accelerator.process_index, self.accelerator.num_processes)
        self.setting = {"processes": self.accelerator.num_processes, "images": len(images), "terms": wrapper.term_weights,
                        "losses": wrapper.term_kinds, "called": wrapper.adapter}  # fmt: skip

        self.format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        wrapper.to(self.device).to(memory_format=self.format)
        self.validation = None if held_out is None else Validation(held_out, recipe, wrapper, self.device, self.format)
        self.optimizer = make_optimizer(wrapper, recipe)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        # fit's own, for accelerate's could not be switched off for the last steps; bfloat16 needs none
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.lower == torch.float16)
        self.step, self.saved = 0, -1
        self.last_psnr: dict[str, float] = {}
        self.norms: dict[str, float] = {}
        self.norm = 0.0
        average = self._resume(resume)
        if self.accelerator.num_processes > 1:
            steps = self.accelerator.gather(torch.tensor([self.step], device=self.device)).tolist()
            if len(set(steps)) > 1:
                raise TrainingError(f"{self.out}: the processes found different checkpoints (steps {steps}); give a folder that all of them see")
        if self.main:
            self._begin()
        self.model = self.accelerator.prepare(wrapper)  # on all processes the first one's weights, from here on
        self.average = Average(wrapper, recipe.ema)
        self.average.load(average)

    def _resume(self, resume: bool) -> dict[str, Tensor]:
        """Load the checkpoint, if there is one; gives the running average."""
        found = checkpoint.latest(self.out)
        if found is None:
            return {}
        if not resume:
            raise TrainingError(f"{self.out}: holds a checkpoint ({found.name}); resume it, or choose another folder")
        tensors, optimizer, record = checkpoint.load(found)
        if not {"recipe", "step", "psnr"} <= record.keys():
            raise TrainingError(f"{found}: of another kind of training; choose another folder")
        _same(record, self.setting, self.recipe, record["step"], self.out)
        differ = checkpoint.differences(tensors["model"], self.wrapper.state_dict())
        if differ:  # before a tensor that fits is copied: the network stays the caller's
            raise TrainingError(f"{found}: is of another network ({differ}); choose another folder")
        try:
            self.wrapper.load_state_dict(tensors["model"])
            self.wrapper.load_awareness_state(tensors.get("awareness", {}))
            checkpoint.restore_optimizer(self.optimizer, optimizer)
        except (RuntimeError, KeyError, ValueError) as error:
            raise TrainingError(f"{found}: is of another network ({str(error)[:200]}); choose another folder") from error
        if record.get("scaler"):
            self.scaler.load_state_dict(record["scaler"])
        self.step, self.last_psnr = record["step"], record["psnr"]
        self.saved = self.step
        return tensors.get("ema", {})

    def _begin(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "recipe.json").write_text(json.dumps(self.recipe.to_dict(), indent=2) + "\n")
        except OSError as error:
            raise TrainingError(f"{self.out}: cannot be written ({error.strerror}); choose another folder") from error

    def go(self, progress: bool) -> FitResult:
        recipe, start = self.recipe, time.monotonic()
        loader = DataLoader(self.patches, batch_size=None, sampler=range(self.step, recipe.steps), num_workers=recipe.workers)  # type: ignore[arg-type]
        if self.validation is not None:
            with agreed(self.accelerator):
                if self.main:
                    self.validation.rehearse()
        saved, window, window_step = start, start, self.step
        bar = tqdm(total=recipe.steps, initial=self.step, unit="step", disable=not (progress and self.main), mininterval=2)
        log = Log(self.out / "log.jsonl", self.step) if self.main else None
        with bar, contextlib.closing(log) if log else contextlib.nullcontext():
            for batch in loader:
                fix_at = max(0, recipe.steps - recipe.fixed_norm_steps)
                if recipe.measure_norm and recipe.fixed_norm_steps and self.step == fix_at:
                    self.measure_batch_norm()
                if recipe.renew and self.step == 0:
                    self.renew()
                output = self.train_step(batch)
                self.step += 1
                bar.update()
                if self.step % recipe.log_every == 0 and log is not None:
                    now = time.monotonic()
                    row = self.row(output) | {"seconds_per_step": round((now - window) / (self.step - window_step), 4)}
                    window, window_step = now, self.step
                    log.write(row)
                if self.validation is not None and (self.step % recipe.validate_every == 0 or self.step == recipe.steps):
                    self.last_psnr = self.validate()
                    bar.set_postfix_str(" ".join(f"{k}: {v:.2f} dB" for k, v in self.last_psnr.items()))
                    if log is not None:
                        log.write({"step": self.step, "psnr": self.last_psnr})
                late = self.main and time.monotonic() - saved > recipe.checkpoint_seconds
                if self.step % recipe.checkpoint_every == 0 or late:
                    self.save()
                    saved = time.monotonic()
        self.save()
        return FitResult(self.step, self.finish(), self.last_psnr, time.monotonic() - start, self.precision, self.device.type)

    def train_step(self, batch: Batch) -> WrapperOutput:
        """One step of the optimiser; what ``go`` repeats."""
        recipe = self.recipe
        rate = recipe.rate(self.step)
        for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = base * rate
        output = self._forward(batch)
        if not torch.isfinite(output.loss.detach()):
            bad = [name for name, value in output.terms.items() if not torch.isfinite(value.detach()).all()]
            raise not_finite("loss", self.step + 1, bad, checkpoint.latest(self.out))
        if (self.step + 1) % recipe.log_every == 0:
            self.norms = output.gradient_norms()
        self.accelerator.backward(self.scaler.scale(output.loss))
        self.scaler.unscale_(self.optimizer)
        self.norm = float(nn.utils.clip_grad_norm_(self.wrapper.parameters(), recipe.clip_norm or math.inf))
        # weights must not take it in, or the next checkpoint would; a scaler leaves such steps out by itself
        if not math.isfinite(self.norm) and not self.scaler.is_enabled():
            bad = [name for name, norm in self._forward(batch).gradient_norms().items() if not math.isfinite(norm)]
            raise not_finite("gradient", self.step + 1, bad, checkpoint.latest(self.out))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1e-3:  # from 65,536 it halves at each such step
            raise not_finite("gradient of many steps", self.step + 1, [], checkpoint.latest(self.out))
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.step)
        return output

    def _forward(self, batch: Batch) -> WrapperOutput:
        recipe = self.recipe
        self._ready()
        noisy, clean = (t.to(self.device, memory_format=self.format, non_blocking=True) for t in (batch.noisy, batch.clean))
        sigma = batch.sigma.to(self.device) if self.wrapper.takes_sigma else None
        labels = None if batch.labels is None else batch.labels.to(self.device)
        lower = self.lower if self.step < recipe.steps - recipe.float32_steps else None
        with contextlib.nullcontext() if lower is None else torch.autocast(self.device.type, lower):
            return self.model(noisy, sigma, clean=clean, labels=labels)

    def _ready(self) -> None:
        """As this step has it: the seed, training mode, and statistics of the batch or fixed ones."""
        self._seed()
        self.wrapper.train()
        if self.step >= self.recipe.steps - self.recipe.fixed_norm_steps:
            for module in batch_norms(self.wrapper):
                module.eval()

    def _seed(self) -> None:
        # dropout and the like: a function of the step, so that a resumed run draws the same
        torch.manual_seed(((self.recipe.seed * 1_000_003 + self.step) * 65_537 + self.accelerator.process_index) % 2**63)

    def _coming(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What the denoiser is given in the next steps."""
        for step in range(self.step, min(self.step + _MEASURED, self.recipe.steps)):
            batch = self.patches[step]
            sigma = batch.sigma.to(self.device) if self.wrapper.takes_sigma else None
            yield batch.noisy.to(self.device, memory_format=self.format), sigma

    def measure_batch_norm(self) -> None:
        """Fix the running statistics of the coming batches, over all processes."""
        self._seed()
        for statistic in measure(self.wrapper, self._coming()):
            statistic.copy_(self.accelerator.reduce(statistic, reduction="mean"))
        self.average.take_buffers()

    @torch.no_grad()
    def renew(self) -> None:
        """Scales set anew and dead channels begun, by the coming batches; the other processes take the first one's over."""
        self._ready()
        with agreed(self.accelerator):
            renew(self.wrapper, list(self._coming()), torch.Generator().manual_seed(self.recipe.seed))
        self._take_over()
        self.average.take_buffers()

    @torch.no_grad()
    def _take_over(self) -> None:
        """What the first process has, on all."""
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            for tensor in (*self.wrapper.parameters(), *self.wrapper.buffers()):
                tensor.copy_(broadcast(tensor))

    def row(self, output: WrapperOutput) -> dict[str, Any]:
        """One line of the log."""
        terms = {
            name: {"value": float(value.detach()), "weight": output.weights[name], "gradient": self.norms[name]}
            for name, value in output.terms.items()
        }
        return {"step": self.step, "loss": float(output.loss.detach()), "rate": self.recipe.rate(self.step - 1),
                "gradient": self.norm if math.isfinite(self.norm) else None, "terms": terms}  # fmt: skip

    def validate(self) -> dict[str, float]:
        """PSNR of the averaged weights. The first process measures, for its weights are those that are saved; the others wait."""
        found: list[dict[str, float]] = [{}]
        if self.main and self.validation is not None:
            with self.average.inside():
                found = [self.validation.psnr()]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(found)
        return found[0]

    def save(self) -> None:
        if self.main and self.step != self.saved:
            record = {
                "recipe": self.recipe.to_dict(), "setting": self.setting, "psnr": self.last_psnr, "scaler": self.scaler.state_dict(),
            }  # fmt: skip
            tensors = {"model": self.wrapper.state_dict(), "ema": self.average.values, "awareness": self.wrapper.awareness_state()}
            checkpoint.save(self.out, self.step, tensors, self.optimizer.state_dict(), record)
        self.saved = self.step

    def finish(self) -> Path:
        """Leave the trained denoiser in the wrapper, and write it."""
        folder = self.out / "model"
        if self.average.values:
            self.wrapper.load_state_dict(self.average.values)
        self._take_over()  # statistics of a process's own batches among them
        self.wrapper.eval()
        if self.main:
            write_trained(folder, self.wrapper, self.recipe, self.setting["images"], self.last_psnr)
        self.accelerator.wait_for_everyone()
        return folder


def _accelerator() -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise TrainingError("segaware.training.fit needs accelerate: pip install 'segaware[train]'") from error
    # A launcher's processes on a machine without accelerators find each other only when told so:
    # else each would train the whole for itself, into one folder.
    alone = "LOCAL_RANK" not in os.environ or torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())
    # precision is fit's own business, since it changes for the last steps
    return Accelerator(mixed_precision="no", cpu=not alone)


def _same(saved: dict[str, Any], setting: dict[str, Any], recipe: Recipe, step: int, out: Path) -> None:
    changes = recipe.changes(saved["recipe"], step)
    then = saved.get("setting", {})
    changes |= {key: (then[key], now) for key, now in setting.items() if key in then and then[key] != now}
    if changes:
        words = ", ".join(f"{key} {before} -> {after}" for key, (before, after) in changes.items())
        raise TrainingError(f"{out}: was trained with another recipe or setting ({words}); give the same to resume, or another folder")
