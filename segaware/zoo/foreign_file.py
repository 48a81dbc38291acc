"""Open a checkpoint that somebody else wrote, without running what it may carry, and unpack its tensors."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segaware.errors import WeightsError

__all__ = ["open_checkpoint", "unwrap"]

#: Under which key trainings keep the weights; of several the first one here is taken.
CONTAINERS = (
    "params_ema", "ema_state_dict", "params", "state_dict", "model_state_dict", "model_weights", "model", "net", "weights",
)  # fmt: skip
#: What DataParallel and torch.compile put before every key.
PREFIXES = ("module.", "_orig_mod.")


def open_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What a safetensors or torch file, or the arrays of an ``.npz`` file, hold, on the processor.

    Torch files, the old format included, are opened with ``weights_only=True``: tensors, containers
    and numbers, and nothing that could run.

    Raises:
        WeightsError: missing, empty, damaged, no checkpoint, or one that holds objects.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; check the name")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: the file is empty (0 bytes); fetch it again")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: damaged or not a safetensors file ({error}); fetch it again") from error
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
        except Exception as error:  # damage shows in many ways
            raise WeightsError(f"{path}: damaged, or not arrays of numbers ({error}); write it again with numpy.savez") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0]
        if _is_torch(path):
            raise WeightsError(
                f"{path}: holds more than tensors, which could run code when opened, so it is not opened."
                " Ask its author for a state dict, or save one where you trust the file:"
                " torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        raise WeightsError(f"{path}: no checkpoint ({first}); give a .pth, .pt, .safetensors or .npz file") from error
    except Exception as error:  # torch's readers fail on damage in many ways
        words = str(error).strip().splitlines()
        raise WeightsError(
            f"{path}: damaged or no checkpoint ({words[0] if words else type(error).__name__}); fetch it again"
        ) from error


def _is_torch(path: Path) -> bool:
    """Whether it looks like a torch file: a zip archive, or a pickle of protocol 2 and later."""
    if zipfile.is_zipfile(path):
        return True
    with open(path, "rb") as file:
        head = file.read(2)
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= pickle.HIGHEST_PROTOCOL


def unwrap(content: Any) -> dict[str, Tensor]:
    """The state dict inside: containers opened, prefixes of wrappers taken off, tensors alone.

    Raises:
        WeightsError: nothing there that looks like a state dict.
    """
    for _ in range(8):  # containers in containers, but not for ever
        if not isinstance(content, Mapping):
            raise WeightsError(f"holds a {type(content).__name__}, no state dict; save model.state_dict()")
        inner = next((k for k in CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(repr(key) for key in list(content)[:6]) or "nothing"
        raise WeightsError(
            f"holds no tensors by name, but {keys}; known containers are {', '.join(CONTAINERS)}:"
            " save the state dict of one network alone"
        )
    prefix: str | None = ""
    while prefix is not None:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is not None:
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return state
