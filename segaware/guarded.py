"""What a model's files say, looked at before memory is taken: they may come from anybody.

Sizes are compared first: the network that ``config.json`` describes is built without memory (on
torch's meta device), no further than the tensors that ``model.safetensors`` really holds, and a file
is not read beyond what a config or a header can be.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules import module as torch_module

from segaware.errors import InputError, ModelError, WeightsError
from segaware.registry import build

__all__ = ["build_within", "check_arguments", "compare", "read_json", "stored_tensors"]

_LARGEST_CONFIG = 4 << 20
_LARGEST_HEADER = 16 << 20
_LONGEST_NAME = 300
#: No network has so many of anything; a list of a thousand million widths is made before the first layer is.
_LARGEST_NUMBER = 1 << 20
#: How a tensor of the network may be stored, by whether it holds floating-point numbers.
_KINDS = {True: ("F64", "F32", "F16", "BF16"), False: ("I64", "I32", "I16", "I8", "U8", "BOOL")}
_BAD = (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError, AttributeError)
#: What asks a library to fetch or open something else.
_ASKING = ("hf-hub:", "hf_hub:", "local-dir:", "local_dir:", "://")

#: Of each tensor its kind in the file ("F32", ...) and its shape.
Stored = dict[str, tuple[str, tuple[int, ...]]]


def read_json(file: Path) -> Any:
    """A small JSON file.

    Raises:
        WeightsError: missing, no file, too large, or no JSON.
    """
    try:
        if not file.is_file():
            raise WeightsError(f"{file.parent}: no readable {file.name} (no such file); a model folder holds config.json and model.safetensors")
        if file.stat().st_size > _LARGEST_CONFIG:
            raise WeightsError(f"{file}: {file.stat().st_size:,} bytes, more than a config has; fetch or save the model again")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise WeightsError(
            f"{file.parent}: no readable {file.name} ({error.strerror or error}); a model folder holds config.json and model.safetensors"
        ) from error
    except UnicodeDecodeError as error:
        raise WeightsError(f"{file}: not valid JSON ({error}); fetch or save the model again") from error
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: not valid JSON ({error}); fetch or save the model again") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def stored_tensors(file: Path) -> Stored:
    """The header of a safetensors file; no tensor is read.

    Raises:
        WeightsError: missing, no file, damaged, or with a header that does not describe the file.
    """
    if not file.is_file():
        raise WeightsError(f"{file.parent}: no {file.name}; a model folder holds config.json and model.safetensors")
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
        if length > min(_LARGEST_HEADER, file.stat().st_size):
            raise ValueError(f"a header of {length:,} bytes")
        with safe_open(file, framework="pt") as tensors:
            found: Stored = {}
            for key in tensors.keys():  # noqa: SIM118  # no mapping
                part = tensors.get_slice(key)
                found[key] = (str(part.get_dtype()), tuple(part.get_shape()))
            return found
    except _BAD as error:
        raise WeightsError(f"{file}: damaged or not a safetensors file ({_short(error)}); fetch or save the model again") from error


def compare(model: nn.Module, found: Stored, what: str) -> None:
    """Refuse stored tensors that are not those of ``model``: keys, shapes, kinds of numbers.

    Raises:
        WeightsError: with three of each kind of difference.
    """
    state = model.state_dict()
    # batch normalisation's counter of batches means nothing after training and may be left out
    missing = sorted(k for k in state.keys() - found.keys() if not k.endswith("num_batches_tracked"))
    extra = sorted(found.keys() - state.keys())
    both = sorted(state.keys() & found.keys())
    shapes = [k for k in both if tuple(state[k].shape) != found[k][1]]
    kinds = [k for k in both if found[k][0] not in _KINDS[state[k].is_floating_point()]]
    differences = (("missing", missing), ("unexpected", extra), ("of another shape", shapes), ("of another kind of number", kinds))
    parts = [
        f"{len(keys)} {label} ({', '.join(key[:80] for key in keys[:3])}{', ...' if len(keys) > 3 else ''})" for label, keys in differences if keys
    ]
    if parts:
        raise WeightsError(f"{what}: {'; '.join(parts)}. The file belongs to another network or other arguments: check its config.json")


def build_within(architecture: str, arguments: dict[str, Any], found: Stored, where: str) -> nn.Module:
    """The network that a config describes, if it is the one whose tensors are stored.

    Args:
        found: of :func:`stored_tensors`.
        where: the folder, in messages.

    Raises:
        WeightsError: arguments that make no network, or a network of another size.
        ModelError: an unknown architecture or arguments that it does not take.
    """
    try:
        with _bounded(found, where), torch.device("meta"):  # shapes alone
            outline: nn.Module | None = _built(architecture, arguments, where)
    except ModelError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        outline = None  # an architecture that looks at its values cannot be built there
    if outline is not None:
        compare(outline, found, f"{where}/model.safetensors for {architecture}")
    with _bounded(found, where), torch.random.fork_rng(devices=[]):  # initial weights are drawn, but not at the caller's expense
        return _built(architecture, arguments, where)


def _built(architecture: str, arguments: dict[str, Any], where: str) -> nn.Module:
    try:
        return build(architecture, arguments)
    except InputError as error:
        raise WeightsError(f"{where}: its config.json describes no network ({_short(error)}); save the model again") from error


def check_arguments(value: Any, where: str, key: str = "arguments", depth: int = 0) -> None:
    """Refuse arguments of a config that ask for other weights, from a file or the network: a saved model has its own beside it.

    Raises:
        WeightsError: such arguments, or names longer and numbers larger than any.
    """
    if depth > 40:
        raise WeightsError(f"{where}: the arguments of its config.json are nested too deeply; save the model again")
    if isinstance(value, dict):
        for name, inner in value.items():
            check_arguments(inner, where, str(name), depth + 1)
    elif isinstance(value, list):
        for inner in value:
            check_arguments(inner, where, key, depth + 1)
    elif isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise WeightsError(f'{where}: a number beyond {_LARGEST_NUMBER:,} in its config.json ("{key[:80]}"); fetch or save the model again')
    elif value not in (None, False) and (key.endswith("weights") or key.startswith("pretrained")):
        raise WeightsError(f'{where}: its config.json asks for other weights ("{key[:80]}": {_short(repr(value))}); take that out')
    elif isinstance(value, str) and len(value) > _LONGEST_NAME:
        raise WeightsError(f'{where}: a name of {len(value):,} characters in its config.json ("{key[:80]}"); fetch or save the model again')
    elif isinstance(value, str) and any(part in value.lower() for part in _ASKING):
        raise WeightsError(f'{where}: its config.json asks for other files ("{key[:80]}": {_short(repr(value))}); take that out')


@contextlib.contextmanager
def _bounded(found: Stored, where: str) -> Iterator[None]:
    """Within: building a network is broken off when it grows far beyond what is stored.

    Some room is left: backbones are built with the classifier that is then taken off.
    """
    tensors, modules = 2 * len(found) + 200, 8 * len(found) + 1000
    numbers = 4 * sum(math.prod(shape) for _, shape in found.values()) + (1 << 26)
    seen = {"tensors": 0, "modules": 0, "numbers": 0}
    thread = threading.get_ident()

    def stop() -> None:
        raise WeightsError(f"{where}: its config.json describes a larger network than its model.safetensors holds; fetch or save the model again")

    def parameter(_: nn.Module, name: str, value: Any) -> None:
        if threading.get_ident() == thread and value is not None:
            seen["tensors"] += 1
            seen["numbers"] += value.numel() if isinstance(value, torch.Tensor) else 0
            if seen["tensors"] > tensors or seen["numbers"] > numbers:
                stop()

    def child(_: nn.Module, name: str, value: Any) -> None:
        if threading.get_ident() == thread:
            seen["modules"] += 1
            if seen["modules"] > modules:
                stop()

    hooks = [
        torch_module.register_module_parameter_registration_hook(parameter),
        torch_module.register_module_buffer_registration_hook(parameter),
        torch_module.register_module_module_registration_hook(child),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _short(error: object) -> str:
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return text if len(text) < 200 else f"{text[:200]}..."

