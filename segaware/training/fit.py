"""The training loop: one for every method. What differs between methods is the wrapper handed in."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from segaware.entries import write_entry
from segaware.errors import TrainingError
from segaware.inference.memory import keep_pages
from segaware.metrics import psnr
from segaware.noise import add_gaussian
from segaware.training import checkpoint
from segaware.training.data import Batch, Patches, as_float, check_readable, open_images
from segaware.training.muon import Muon, inner_matrices
from segaware.training.recipe import Recipe
from segaware.wrapper import SegAwareWrapper, WrapperOutput

__all__ = ["FitResult", "fit"]

#: Fields of a recipe that a resumed run may change: they decide when things are written, not what.
_FREE = ("log_every", "validate_every", "checkpoint_every", "checkpoint_seconds", "validation_sigmas", "validation_crop", "workers")

#: Batches over which batch normalisation is measured before its statistics are fixed.
_MEASURED = 50


@dataclass(frozen=True)
class FitResult:
    """What a training left.

    Args:
        step: steps done.
        model: folder of the trained denoiser, an entry for ``from_pretrained`` where the denoiser
            has a ``config``; else holding only its state dict.
        psnr: last validation, dB by noise level (8-bit units); empty without validation images.
        seconds: spent in this call.
    """

    step: int
    model: Path
    psnr: dict[str, float]
    seconds: float


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
    ``checkpoint-STEP/`` (the last one) and, at the end, ``model/``.

    With ``accelerate launch`` n processes share a step: the batch is n times as large. Networks
    without batch normalisation learn the same as in one process with that batch; batch
    statistics are those of each process's own part. A ``"trapezoid"`` run may be resumed with
    other ``steps`` and ``cooldown`` as long as its fall has not begun.

    Args:
        wrapper: the denoiser with its awareness terms.
        data: a folder of clean images, a list of files, or a sequence of images (see
            :class:`segaware.training.data.Patches`).
        recipe: see :class:`Recipe`.
        out: folder of this run alone.
        validation: like ``data``, held-out images; PSNR is that of the averaged weights if there are.
        resume: False refuses an ``out`` that holds a checkpoint.
        progress: show a progress bar on stderr.
        accelerator: an ``accelerate.Accelerator`` of your own; None makes one.

    Raises:
        TrainingError: accelerate is missing, no images, another recipe than that of the
            checkpoint, a loss that is not finite (with step and term), a folder that cannot be written.
    """
    run = _Run(wrapper, data, recipe, Path(out), validation, resume, accelerator)
    with keep_pages():
        return run.go(progress)


class _Run:
    """The state of one call of :func:`fit`."""

    def __init__(self, wrapper: SegAwareWrapper, data: Any, recipe: Recipe, out: Path, validation: Any, resume: bool, accelerator: Any) -> None:
        self.recipe, self.out, self.wrapper = recipe, out, wrapper
        self.accelerator = accelerator or _accelerator(recipe)
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        channels = wrapper.info.channels
        images = open_images(data, channels)
        check_readable(images)
        self.validation = None if validation is None else open_images(validation, channels)
        self.patches = Patches(images, recipe, self.accelerator.process_index, self.accelerator.num_processes)

        self.format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        wrapper.to(self.device).to(memory_format=self.format)
        self.optimizer = _optimizer(wrapper, recipe)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and _computes_bf16(self.device))
        self.average: dict[str, Tensor] = {}
        self.step = 0
        self.last_psnr: dict[str, float] = {}
        self.norms: dict[str, float] = {}
        self._start(resume)
        if recipe.ema and not self.average:
            self.average = {k: v.detach().clone() for k, v in wrapper.state_dict().items()}
        self.model, self.stepper = self.accelerator.prepare(wrapper, self.optimizer)

    def _start(self, resume: bool) -> None:
        """Resume from a checkpoint, or begin the folder."""
        found = checkpoint.latest(self.out)
        if found is not None:
            if not resume:
                raise TrainingError(f"{self.out}: holds a checkpoint ({found.name}); resume it, or choose another folder")
            tensors, optimizer, record = checkpoint.load(found)
            _same_recipe(record["recipe"], self.recipe, record["step"], self.out)
            try:
                self.wrapper.load_state_dict(tensors["model"])
            except (RuntimeError, KeyError) as error:
                raise TrainingError(f"{found}: is of another network ({str(error)[:200]}); choose another folder") from error
            checkpoint.restore_optimizer(self.optimizer, optimizer)
            self.average = {k: v.to(self.device) for k, v in tensors.get("ema", {}).items()}
            self.step, self.last_psnr = record["step"], record["psnr"]
        if self.main:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                (self.out / "recipe.json").write_text(json.dumps(self.recipe.to_dict(), indent=2) + "\n")
                _cut_log(self.out / "log.jsonl", self.step)
            except OSError as error:
                raise TrainingError(f"{self.out}: cannot be written ({error.strerror}); choose another folder") from error

    def go(self, progress: bool) -> FitResult:
        recipe, start = self.recipe, time.monotonic()
        loader = DataLoader(self.patches, batch_size=None, sampler=range(self.step, recipe.steps), num_workers=recipe.workers)  # type: ignore[arg-type]
        saved, window, window_step = start, start, self.step
        bar = tqdm(total=recipe.steps, initial=self.step, unit="step", disable=not (progress and self.main), mininterval=2)
        with bar, (self.out / "log.jsonl").open("a") if self.main else contextlib.nullcontext() as log:
            for batch in loader:
                if recipe.fixed_norm_steps and self.step == max(0, recipe.steps - recipe.fixed_norm_steps):
                    self.measure_batch_norm()
                output = self.train_step(batch)
                self.step += 1
                bar.update()
                if self.step % recipe.log_every == 0 and log is not None:
                    now = time.monotonic()
                    row = self.row(output) | {"seconds_per_step": round((now - window) / (self.step - window_step), 4)}
                    window, window_step = now, self.step
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                if self.validation is not None and (self.step % recipe.validate_every == 0 or self.step == recipe.steps):
                    self.last_psnr = self.validate()
                    bar.set_postfix_str(" ".join(f"{k}: {v:.2f} dB" for k, v in self.last_psnr.items()))
                    if log is not None:
                        log.write(json.dumps({"step": self.step, "psnr": self.last_psnr}) + "\n")
                        log.flush()
                if self.step % recipe.checkpoint_every == 0 or time.monotonic() - saved > recipe.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
        self.save()
        return FitResult(self.step, self.finish(), self.last_psnr, time.monotonic() - start)

    def train_step(self, batch: Batch) -> WrapperOutput:
        """One step of the optimiser; what ``go`` repeats."""
        recipe = self.recipe
        # dropout and the like: a function of the step, so that a resumed run draws the same
        torch.manual_seed((recipe.seed * 1_000_003 + self.step) * 65_537 + self.accelerator.process_index)
        self.wrapper.train()
        if self.step >= recipe.steps - recipe.fixed_norm_steps:
            for module in _batch_norms(self.wrapper):
                module.eval()
        rate = recipe.rate(self.step)
        for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = base * rate
        noisy, clean = (t.to(self.device, memory_format=self.format, non_blocking=True) for t in (batch.noisy, batch.clean))
        sigma = batch.sigma.to(self.device) if self.wrapper.takes_sigma else None
        labels = None if batch.labels is None else batch.labels.to(self.device)
        lower = self.bf16 and self.step < recipe.steps - recipe.float32_steps
        with torch.autocast(self.device.type, torch.bfloat16) if lower else contextlib.nullcontext():
            output: WrapperOutput = self.model(noisy, sigma, clean=clean, labels=labels)
        self._check_finite(output)
        if (self.step + 1) % recipe.log_every == 0:
            self.norms = _gradient_norms(output)
        self.accelerator.backward(output.loss)
        if recipe.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.wrapper.parameters(), recipe.clip_norm)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        if recipe.ema:
            self._update_average()
        return output

    @torch.no_grad()
    def measure_batch_norm(self) -> None:
        """Replace running statistics, which lag behind the weights, by those of the coming batches."""
        norms = _batch_norms(self.wrapper)
        momenta = [module.momentum for module in norms]
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # a plain mean over all batches
        self.wrapper.train()
        for step in range(self.step, min(self.step + _MEASURED, self.recipe.steps)) if norms else ():
            batch = self.patches[step]
            noisy = batch.noisy.to(self.device, memory_format=self.format)
            self.wrapper(noisy, batch.sigma.to(self.device) if self.wrapper.takes_sigma else None)
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum

    def row(self, output: WrapperOutput) -> dict[str, Any]:
        """One line of the log."""
        terms = {
            name: {"value": float(value.detach()), "weight": output.weights[name], "gradient": self.norms[name]}
            for name, value in output.terms.items()
        }
        return {"step": self.step, "loss": float(output.loss.detach()), "rate": self.recipe.rate(self.step - 1), "terms": terms}

    def _check_finite(self, output: WrapperOutput) -> None:
        if torch.isfinite(output.loss.detach()):
            return
        bad = [name for name, value in output.terms.items() if not torch.isfinite(value.detach()).all()]
        where = checkpoint.latest(self.out)
        raise TrainingError(
            f"step {self.step}: the loss is not finite; term {', '.join(bad) or 'sum of all'} went wrong. Lower learning_rate,"
            f" set clip_norm, or use float32; {f'the last good state is {where.name}' if where else 'nothing was saved yet'}"
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        # a short memory at first, or the random start would stay in it for long
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        for key, value in self.wrapper.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)
            else:
                self.average[key].copy_(value)

    @contextlib.contextmanager
    def averaged(self) -> Any:
        """Within: the wrapper holds the averaged weights."""
        own = {k: v.clone() for k, v in self.wrapper.state_dict().items()}
        if self.average:
            self.wrapper.load_state_dict(self.average)
        try:
            yield
        finally:
            self.wrapper.load_state_dict(own)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean PSNR of the held-out images by noise level, clamped, in float32; noise seeded by image."""
        side, result = self.recipe.validation_crop, {}
        images = () if self.validation is None else self.validation
        with self.averaged():
            self.wrapper.eval()
            for level in self.recipe.validation_sigmas:
                values = []
                for i, item in enumerate(images):
                    clean = as_float(item[0] if isinstance(item, (tuple, list)) else item)
                    top, left = (max(0, (n - side) // 2) for n in clean.shape[1:])
                    clean = clean[None, :, top : top + side, left : left + side].to(self.device)
                    noisy = add_gaussian(clean, level / 255, generator=torch.Generator().manual_seed(i))
                    sigma = level / 255 if self.wrapper.takes_sigma else None
                    values.append(psnr(self.wrapper(noisy.to(memory_format=self.format), sigma), clean, clamp=True))
                result[f"{level:g}"] = round(float(torch.cat(values).mean()), 4)
        return result

    def save(self) -> None:
        if self.main:
            record = {"recipe": self.recipe.to_dict(), "psnr": self.last_psnr}
            tensors = {"model": self.wrapper.state_dict(), "ema": self.average}
            checkpoint.save(self.out, self.step, tensors, self.optimizer.state_dict(), record)
        self.accelerator.wait_for_everyone()

    def finish(self) -> Path:
        """Write the trained denoiser."""
        folder = self.out / "model"
        if self.main:
            with self.averaged():
                self.wrapper.eval()
                _write_model(folder, self.wrapper.denoiser, {"recipe": self.recipe.to_dict(), "validation_psnr": self.last_psnr})
        self.accelerator.wait_for_everyone()
        return folder


def _accelerator(recipe: Recipe) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise TrainingError("segaware.training.fit needs accelerate: pip install 'segaware[train]'") from error
    # bfloat16 needs no scaler, and fit switches it off for the last steps, so autocast is fit's own
    return Accelerator(mixed_precision="fp16" if recipe.precision == "fp16" else "no")


def _computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here, and not merely possible."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and probe is not None and bool(probe())


def _optimizer(wrapper: SegAwareWrapper, recipe: Recipe) -> torch.optim.Optimizer:
    params = [p for p in wrapper.parameters() if p.requires_grad]
    if not params:
        raise TrainingError("the denoiser has no trainable parameters; set requires_grad_(True) on those to train")
    if recipe.optimizer == "muon":
        matrices = inner_matrices(wrapper, wrapper.info.channels)
        chosen = {id(p) for p in matrices}
        rate = recipe.matrix_learning_rate or 2 * recipe.learning_rate
        others = [p for p in params if id(p) not in chosen]
        return Muon(matrices, others, lr=rate, other_lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(params, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _batch_norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]


def _gradient_norms(output: WrapperOutput) -> dict[str, float]:
    """Norm of each weighted term's gradient at the denoised image: a term that does nothing is seen at once."""
    norms = {}
    for name, value in output.terms.items():
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value * output.weights[name], output.denoised, retain_graph=True, allow_unused=True)
        norms[name] = 0.0 if gradient is None else float(gradient.float().norm())
    return norms


def _same_recipe(saved: dict[str, Any], recipe: Recipe, step: int, out: Path) -> None:
    now, free = recipe.to_dict(), set(_FREE)
    if recipe.schedule == saved.get("schedule") == "trapezoid":
        # up to its fall the rate is constant, so until then the end is still open
        lasts = ("cooldown", "float32_steps", "fixed_norm_steps")
        if all(step <= r["steps"] - r[name] or r[name] >= r["steps"] for r in (now, saved) for name in lasts):
            free |= {"steps", "cooldown", "fixed_norm_steps", "float32_steps"}
    other = [k for k in now if k not in free and saved.get(k, now[k]) != now[k]]
    if other:
        changes = ", ".join(f"{k} {saved.get(k)} -> {now[k]}" for k in other)
        raise TrainingError(f"{out}: was trained with another recipe ({changes}); give the same values to resume, or another folder")


def _cut_log(file: Path, step: int) -> None:
    """Drop the lines after the checkpoint: those steps are done again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):  # a line cut short by a kill
            continue
    partial = file.with_suffix(".partial")
    partial.write_text("".join(kept))
    os.replace(partial, file)


def _write_model(folder: Path, denoiser: nn.Module, record: dict[str, Any]) -> None:
    if isinstance(getattr(denoiser, "config", None), dict):
        write_entry(folder, denoiser, record)
        return
    from safetensors.torch import save_model

    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(denoiser, str(folder / "model.safetensors"))
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror}); the last checkpoint is complete") from error
