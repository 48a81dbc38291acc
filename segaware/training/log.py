"""What a training says of itself: one JSON object a line, and the words when its numbers go bad."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segaware.errors import TrainingError
from segaware.wrapper import WrapperOutput

__all__ = ["Log", "gradient_norms", "not_finite"]


class Log:
    """``log.jsonl`` of a run, cut back to ``step``: what came after the checkpoint is done again.

    Raises:
        TrainingError: a file that cannot be written.
    """

    def __init__(self, file: Path, step: int) -> None:
        self.file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.exists():
                partial = file.with_suffix(".partial")
                partial.write_text("".join(_until(file, step)), encoding="utf-8")
                os.replace(partial, file)
            self._open = file.open("a", encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"{file}: cannot be written ({error.strerror}); choose another folder") from error

    def write(self, row: dict[str, Any]) -> None:
        try:
            self._open.write(json.dumps(row) + "\n")
            self._open.flush()
        except OSError as error:
            raise TrainingError(f"{self.file}: cannot be written ({error.strerror}); free space, then resume") from error

    def close(self) -> None:
        try:
            self._open.close()
        except OSError:  # what could not be flushed has been reported
            pass


def _until(file: Path, step: int) -> list[str]:
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # a line cut short by a kill
            continue
    return kept


def gradient_norms(output: WrapperOutput) -> dict[str, float]:
    """Norm of each weighted term's gradient at the denoised image: a term that does nothing is seen at once."""
    return {name: _norm(value, output.weights[name], output.denoised) for name, value in output.terms.items()}


def _norm(value: Tensor, weight: float, at: Tensor) -> float:
    """Multiplied by a large number on the way, and by smaller ones where that is too much: float16 loses gradients of 1e-8."""
    if not value.requires_grad:
        return 0.0
    for scale in (2.0**16, 2.0**8, 1.0):
        (gradient,) = torch.autograd.grad(value * (weight * scale), at, retain_graph=True, allow_unused=True)
        norm = 0.0 if gradient is None else float(gradient.float().norm()) / scale
        if math.isfinite(norm):
            break
    return norm


def not_finite(what: str, step: int, terms: list[str], last: Path | None) -> TrainingError:
    """The error for a loss or gradient that is NaN or infinite at ``step`` (1 is the first, as in the log)."""
    blame = f"term {', '.join(terms)} went wrong" if terms else "no single term, but the sum or the network itself"
    kept = f"the last good state is {last.name}" if last else "nothing was saved yet"
    return TrainingError(
        f"step {step}: the {what} is not finite; {blame}. Lower learning_rate, set clip_norm, or use float32; {kept}"
    )
