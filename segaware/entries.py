"""A trained model on disk: a folder with ``config.json`` and ``model.safetensors``.

``config.json`` holds at least ``architecture`` (a name of :mod:`segaware.registry`) and
``arguments`` (of its constructor); everything else (recipe, measured figures, training data and
its terms) is there for people. Shipped entries live in ``segaware/weights/NAME/``.
Weights may be stored as float16; they are loaded as float32.
"""

from __future__ import annotations

import dataclasses
import json
import os
import reprlib
import secrets
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from segaware.contracts import DenoiserInfo
from segaware.errors import WeightsError, closest
from segaware.guarded import build_within, check_arguments, compare, read_json, stored_tensors
from segaware.registry import name_of

__all__ = ["CONFIG", "DEFAULT_MODEL", "WEIGHTS", "build_for", "fill", "load_entry", "locate", "read_config", "shipped_folder", "shipped_names", "write_entry"]

#: What ``denoise`` uses when no model is named.
DEFAULT_MODEL = "segaware-blind"

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_SHIPPED = Path(__file__).parent / "weights"


def shipped_names() -> list[str]:
    """Names of the models that come with the package, sorted."""
    return sorted(p.parent.name for p in _SHIPPED.glob(f"*/{CONFIG}"))


def shipped_folder(name: str) -> Path:
    """The folder of a shipped model; WeightsError with the nearest names if there is none."""
    if name not in shipped_names():
        raise WeightsError(f"unknown model {name!r}; {closest(name, shipped_names())}")
    return _SHIPPED / name


def locate(source: str | os.PathLike[str]) -> Path:
    """The folder of a model given by a shipped name or by its folder; a shipped name comes first.

    Raises:
        WeightsError: neither, with what may have been meant.
    """
    if isinstance(source, str) and source in shipped_names():
        return _SHIPPED / source
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise WeightsError(f"{source}: a file; give the model's folder, which holds {CONFIG} and {WEIGHTS}")
    if len(folder.parts) > 1:
        raise WeightsError(
            f"{source}: no such folder; a model of the Hub is fetched first, by segaware.from_pretrained or 'segaware download';"
            f" shipped: {', '.join(shipped_names()) or 'none'}"
        )
    return shipped_folder(str(source))


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The parsed ``config.json`` of an entry.

    Raises:
        WeightsError: no such file, not JSON, without architecture and arguments, or with arguments that
            ask for files elsewhere.
    """
    file = Path(folder) / CONFIG
    config = read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str) or not isinstance(config.get("arguments"), dict):
        raise WeightsError(f'{file}: needs "architecture" (a name) and "arguments" (an object); save the model again')
    check_arguments([config["architecture"], config["arguments"]], str(folder))
    return config


def load_entry(folder: str | os.PathLike[str]) -> nn.Module:
    """Build the network of an entry and fill it, strictly: every key, every shape, float32, eval mode.

    ``model.info.training_noise`` and ``keep`` are set from the config where the model has ``info``.

    Raises:
        WeightsError: a missing or damaged file, or tensors that are not this network's.
        ModelError: an unknown architecture or arguments it does not take.
    """
    config = read_config(folder)
    model = build_for(folder, config["architecture"], config["arguments"])
    fill(model, folder, config["architecture"])
    if hasattr(model, "info"):
        model.info = informed(model.info, config, folder)  # type: ignore[arg-type, assignment]
    return model.eval()


def informed(info: DenoiserInfo, config: dict[str, Any], folder: str | os.PathLike[str]) -> DenoiserInfo:
    """``info`` with what a config says of the training: its noise, and the shares that machines want given back.

    Raises:
        WeightsError: shares that make no table.
    """
    if not (config.get("training_noise") or config.get("keep")):
        return info
    noise = str(config.get("training_noise") or info.training_noise)
    return dataclasses.replace(info, training_noise=noise, keep=_keep_table(config.get("keep") or {}, f"{folder}"))


def build_for(folder: str | os.PathLike[str], architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """The network of an entry with random weights, once it is known to be that of the weights beside it.

    Raises:
        WeightsError: a missing or damaged file, arguments that make no network or another one.
        ModelError: an unknown architecture or arguments it does not take.
    """
    return build_within(architecture, arguments, stored_tensors(Path(folder) / WEIGHTS), str(folder))


def _keep_table(record: Any, where: str) -> tuple[tuple[float, float], ...]:
    """``{"15": 0.02, ...}`` of a config as sorted pairs of noise level and share."""
    try:
        pairs = tuple(sorted((float(sigma), float(share)) for sigma, share in record.items()))
    except (AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f'{where}: "keep" of its {CONFIG} must be an object {{sigma in 8-bit units: share}}, not {reprlib.repr(record)}') from error
    if not all(0 <= sigma <= 255 and 0 <= share < 1 for sigma, share in pairs):
        raise WeightsError(f'{where}: "keep" of its {CONFIG} is {reprlib.repr(record)}; sigmas lie in [0, 255], shares in [0, 1)')
    return pairs


def fill(model: nn.Module, folder: str | os.PathLike[str], name: str) -> None:
    """Load the weights of an entry into a network that is there already, strictly, stored as they may be.

    Args:
        name: of the network, in the message where the tensors are not its own.

    Raises:
        WeightsError: a missing or damaged file, or tensors that are not this network's.
    """
    file = Path(folder) / WEIGHTS
    found = stored_tensors(file)
    compare(model, found, f"{file} for {name}")
    try:
        with safe_open(file, framework="pt") as tensors:
            state = {key: tensors.get_tensor(key) for key in found}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file}: damaged or not a safetensors file ({error}); fetch or save the model again") from error
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    model.load_state_dict(state, strict=False)


def _stored(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``value`` in ``dtype``, unless it would overflow there (variances of a backbone can, in float16)."""
    if not value.is_floating_point():
        return value
    small = value.to(dtype)
    return small if torch.equal(torch.isfinite(small), torch.isfinite(value)) else value


def write_entry(
    folder: str | os.PathLike[str], model: nn.Module, config: dict[str, Any] | None = None, *, dtype: torch.dtype = torch.float32
) -> Path:
    """Save a network with ``config`` (its own name and arguments are filled in) as an entry.

    Each file is written beside its place and renamed, so that a crash leaves the old one.

    Raises:
        WeightsError: a model without ``config`` (constructor arguments), or a folder that cannot be written.
    """
    arguments = getattr(model, "config", None)
    if not isinstance(arguments, dict):
        raise WeightsError(f"{type(model).__name__} has no 'config' dictionary of constructor arguments; save its state_dict yourself")
    record = {"architecture": name_of(model), "arguments": arguments, **(config or {})}
    state: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            tensor = _stored(value.detach(), dtype).cpu().contiguous()
            if tensor.numel() and tensor.untyped_storage().data_ptr() in taken:
                tensor = tensor.clone()  # a part that stands in two places is stored in both
            taken.add(tensor.untyped_storage().data_ptr())
            state[key.replace("_orig_mod.", "")] = tensor  # of what torch.compile has wrapped
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in ((WEIGHTS, save(state)), (CONFIG, (json.dumps(record, indent=2) + "\n").encode())):
            partial = folder / f".{name}.{secrets.token_hex(4)}.partial"
            try:
                partial.write_bytes(data)
                os.replace(partial, folder / name)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be written ({error.strerror})") from error
    return folder
