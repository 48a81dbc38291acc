"""State of a training on disk: one folder a checkpoint, complete or absent, and no pickle.

``state.safetensors`` holds every tensor (weights, running average, optimiser), ``state.json`` the
rest. The folder is filled under another name and renamed; the one before is removed after that.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from segaware.errors import TrainingError

__all__ = ["latest", "load", "restore_optimizer", "save"]

_PREFIX = "checkpoint-"


def _found(out: Path) -> list[tuple[int, Path]]:
    folders = [p for p in out.glob(f"{_PREFIX}*") if p.name[len(_PREFIX) :].isdigit()]
    return sorted((int(p.name[len(_PREFIX) :]), p) for p in folders)


def latest(out: str | os.PathLike[str]) -> Path | None:
    """The newest complete checkpoint below ``out``, or None."""
    found = _found(Path(out))
    return found[-1][1] if found else None


def save(out: str | os.PathLike[str], step: int, tensors: dict[str, dict[str, Tensor]], optimizer: dict[str, Any], record: dict[str, Any]) -> Path:
    """Write ``checkpoint-STEP`` and drop the older ones.

    Args:
        tensors: groups of named tensors ("model", "ema").
        optimizer: a ``state_dict`` of any torch optimiser.
        record: what is JSON-able (step, recipe, best value).

    Raises:
        TrainingError: the folder cannot be written; the checkpoint before is still there.
    """
    out = Path(out)
    flat = {f"{group}.{key}": value for group, named in tensors.items() for key, value in named.items()}
    numbers: dict[str, Any] = {}
    for index, values in optimizer["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                flat[f"optimizer.{index}.{key}"] = value
            else:
                numbers[f"{index}.{key}"] = value
    flat = {key: value.detach().cpu().contiguous().clone() for key, value in flat.items()}
    partial, final = out / f".{_PREFIX}{step}.partial", out / f"{_PREFIX}{step}"
    try:
        for stale in out.glob(f".{_PREFIX}*.partial"):  # of a run that was killed while saving
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(flat, partial / "state.safetensors")
        state = {**record, "step": step, "optimizer": {"numbers": numbers, "groups": optimizer["param_groups"]}}
        (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        for file in partial.iterdir():  # on the disk before it gets its name: a power cut must not empty it
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        if final.exists():  # a folder cannot be replaced in one go
            os.replace(final, out / f".{_PREFIX}{step}.old.partial")
        os.replace(partial, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(f"{final}: checkpoint cannot be written ({error}); free space or choose another folder, then resume") from error
    for old in [p for _, p in _found(out) if p != final] + list(out.glob(f".{_PREFIX}*.partial")):
        shutil.rmtree(old, ignore_errors=True)
    return final


def load(folder: str | os.PathLike[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]]:
    """The three arguments that :func:`save` was given; ``record`` includes ``step``.

    Raises:
        TrainingError: a missing or damaged file.
    """
    folder = Path(folder)
    try:
        flat = load_file(folder / "state.safetensors")
        record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise TrainingError(f"{folder}: damaged checkpoint ({error}); remove it to start again") from error
    tensors: dict[str, dict[str, Tensor]] = {}
    saved = record.pop("optimizer", None)
    if saved is None or "step" not in record:
        raise TrainingError(f"{folder}: of another kind of training; choose another folder")
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        group, _, rest = key.partition(".")
        if group == "optimizer":
            index, _, name = rest.partition(".")
            state.setdefault(int(index), {})[name] = value
        else:
            tensors.setdefault(group, {})[rest] = value
    for key, number in saved["numbers"].items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = number
    return tensors, {"state": state, "param_groups": saved["groups"]}, record


def differences(there: dict[str, Tensor], here: dict[str, Tensor]) -> str:
    """The first tensor that only one has, or in another shape."""
    for key in sorted(there.keys() ^ here.keys()):
        return f"{key} is {'not ' * (key not in there)}in it, but {'not ' * (key not in here)}in the denoiser"
    shapes = ((key, *(tuple(one[key].shape) for one in (there, here))) for key in there)
    return next((f"{key} has shape {then}, in the denoiser {now}" for key, then, now in shapes if then != now), "")


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load what :func:`load` gave, in the memory format of the weights: a step goes as fast as before.

    Raises:
        ValueError: groups or weights of another network.
    """
    for group, current in zip(saved["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
        for key, value in current.items():  # JSON turns tuples into lists
            if isinstance(value, tuple):
                group[key] = tuple(group[key])
    optimizer.load_state_dict(saved)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)
