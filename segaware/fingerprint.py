"""A hash of a network: two that hash the same do the same."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import types
from typing import Any

import torch
from torch import Tensor, nn

from segaware.pretrained import load_pretrained

__all__ = ["hash_module", "model_hash"]

#: Attributes that use changes (an adapter notes the stride of what it has seen), and what torch keeps for itself.
_RUN_TIME = {"training", "_looked", "_stride", *vars(nn.Module())}
_TORCHS = ("torch", "torchvision")
#: Of a class: what differs where the code does not, or from process to process.
_ASIDE = ("__module__", "__doc__", "__annotations__", "__annotate__", "__firstlineno__", "__static_attributes__")


def hash_module(module: nn.Module) -> str:
    """A hash of a network's code, settings and weights, 64 hexadecimal digits.

    Of the code: that of its classes and of functions among its attributes, not of functions that those call. Of the
    settings: numbers, texts, types, tensors and functions among the attributes, also in lists and dictionaries.
    """
    state = hashlib.sha256(f"{type(module).__module__}.{type(module).__qualname__}\n{module!r}".encode())
    for holder in (*module.modules(), getattr(module, "_call", None)):  # options that no repr shows
        plain = {k: _told(v) for k, v in vars(holder).items() if k not in _RUN_TIME} if holder else {}
        state.update(repr(sorted((k, v) for k, v in plain.items() if v)).encode())
    state.update(repr(getattr(module, "config", None)).encode())
    for each in sorted({kind for part in module.modules() for kind in type(part).__mro__}, key=lambda kind: (kind.__module__, kind.__qualname__)):
        if each.__module__.partition(".")[0] not in (*_TORCHS, "builtins", "abc", "typing"):
            state.update(repr([(k, told) for k, v in sorted(vars(each).items()) if k not in _ASIDE and (told := _told(v))]).encode())
    # not the state dict: normalisation constants are buffers that it leaves out
    for key, value in itertools.chain(module.named_parameters(), module.named_buffers()):
        if isinstance(value, Tensor):
            state.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _told(value: Any) -> str:
    """What an attribute says of a network, the same in every process; "" of what says nothing that can be written down."""
    if isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, type(None))):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_told, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{k!r}: {_told(v)}" for k, v in value.items() if isinstance(k, (str, int, float)))) + "}"
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return hashlib.sha256(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest() if value.numel() else "empty"
    if isinstance(value, property):
        return _told(value.fget)
    if isinstance(value, (staticmethod, classmethod)):
        return _told(value.__func__)
    if isinstance(value, functools.partial):
        return f"{_told(value.func)} {_told(value.args)} {_told(value.keywords)}"
    code = getattr(value, "__code__", None)
    if isinstance(code, types.CodeType):
        given = [value.__defaults__, value.__kwdefaults__, *_held(value)]
        return _code(code) + "".join(map(_told, given))
    return getattr(value, "__qualname__", "") if isinstance(value, (type, types.BuiltinFunctionType)) else ""


def _held(function: Any) -> list[Any]:
    """Values that a function closes over; not functions, which may be itself."""
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # of a variable that has no value yet
            found.append(cell.cell_contents)
    return [value for value in found if not callable(value)]


def _code(code: types.CodeType) -> str:
    """Of a function: what it does, wherever it stands."""
    consts = [_code(c) if isinstance(c, types.CodeType) else repr(sorted(map(repr, c))) if isinstance(c, frozenset) else repr(c) for c in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, consts)).encode()).hexdigest()


def model_hash(model: str | os.PathLike[str]) -> str:
    """:func:`hash_module` of a trained model by name, folder or repository, its weights as they are stored.

    Raises:
        WeightsError: no such model, or it cannot be fetched or read.
    """
    return hash_module(load_pretrained(model))
