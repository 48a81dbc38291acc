"""A hash of a network: two that hash the same do the same."""

from __future__ import annotations

import hashlib
import itertools
import os

import torch
from torch import Tensor, nn

from segaware.pretrained import load_pretrained

__all__ = ["hash_module", "model_hash"]

#: Attributes that use changes: an adapter notes the stride of what it has seen.
_RUN_TIME = ("training", "_looked", "_stride")


def hash_module(module: nn.Module) -> str:
    """A hash of a network's code, settings and weights, 64 hexadecimal digits."""
    state = hashlib.sha256(f"{type(module).__module__}.{type(module).__qualname__}\n{module!r}".encode())
    for holder in (*module.modules(), getattr(module, "_call", None)):  # options that no repr shows
        plain = {k: v for k, v in vars(holder).items() if isinstance(v, (bool, int, float, str, tuple))} if holder else {}
        state.update(repr(sorted((k, v) for k, v in plain.items() if k not in _RUN_TIME)).encode())
    state.update(repr(getattr(module, "config", None)).encode())
    # not the state dict: normalisation constants are buffers that it leaves out
    for key, value in itertools.chain(module.named_parameters(), module.named_buffers()):
        if isinstance(value, Tensor):
            state.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def model_hash(model: str | os.PathLike[str]) -> str:
    """:func:`hash_module` of a trained model by name, folder or repository, its weights as they are stored.

    Raises:
        WeightsError: no such model, or it cannot be fetched or read.
    """
    return hash_module(load_pretrained(model))
