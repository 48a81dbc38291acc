"""Trained models by name: load one, list them all. Nothing is downloaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from segaware.entries import DEFAULT_MODEL, load_entry, locate, read_config, shipped_folder, shipped_names
from segaware.errors import InputError
from segaware.registry import build

__all__ = ["DEFAULT_MODEL", "ModelRecord", "from_pretrained", "list_models"]


def from_pretrained(
    source: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A trained network, in eval mode, its parameters trainable.

    Args:
        source: a shipped name (:func:`list_models`) or the folder of a model, which holds
            ``config.json`` and ``model.safetensors``.
        device: where to put it; None = the processor.
        dtype: of its parameters; None = float32.

    Raises:
        WeightsError: an unknown name, or a folder with a missing, damaged or foreign file.
        ModelError: an unknown architecture.
        InputError: a dtype that is no floating one.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(f"from_pretrained: dtype {dtype} is not a floating one; use torch.float32 or torch.bfloat16")
    return load_entry(locate(source)).to(device=device, dtype=dtype)


@dataclass(frozen=True)
class ModelRecord:
    """What is known of a shipped model without loading its weights.

    Args:
        kind: "denoiser" or "segmenter".
        takes_sigma: whether a denoiser must be told the noise level.
        parameters: of the architecture, trainable.
        size: bytes of the weights file.
        training_noise, training_data: what the weights know, in words; "" where not stated.
        measured: the config's own measured figures.
    """

    name: str
    architecture: str
    kind: str
    takes_sigma: bool
    parameters: int
    size: int
    training_noise: str = ""
    training_data: str = ""
    measured: dict[str, Any] = field(default_factory=dict)


def list_models() -> list[ModelRecord]:
    """All models that ship with the package, by name; reads no weights."""
    return [_record(name) for name in shipped_names()]


def _record(name: str) -> ModelRecord:
    folder = shipped_folder(name)
    config = read_config(folder)
    with torch.device("meta"):  # shapes alone
        model = build(config["architecture"], config["arguments"])
    info = getattr(model, "info", None)
    weights = folder / "model.safetensors"
    measured = config.get("measured")
    return ModelRecord(
        name=name,
        architecture=config["architecture"],
        kind="denoiser" if info is not None else "segmenter",
        takes_sigma=bool(getattr(info, "takes_sigma", False)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        size=weights.stat().st_size if weights.is_file() else 0,
        training_noise=str(config.get("training_noise") or ""),
        training_data=_words(config.get("training_data")),
        measured=measured if isinstance(measured, dict) else {},
    )


def _words(value: Any) -> str:
    """Training data is a sentence, or an object whose ``name`` is one."""
    return str(value.get("name", "")) if isinstance(value, dict) else str(value or "")
