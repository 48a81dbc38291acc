"""Networks that are built of networks: parts as modules or as descriptions, so that the whole can be saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from segaware.contracts import DenoiserInfo
from segaware.errors import ModelError
from segaware.registry import build, name_of

__all__ = ["Part", "described", "info_of", "make"]

#: A network, or what :func:`segaware.registry.build` makes one of:
#: ``{"architecture": "DDFN", "arguments": {"condition_channels": 19}}``.
Part = nn.Module | Mapping[str, Any]


def make(part: Part, where: str) -> nn.Module:
    """The module, built where it is a description.

    Raises:
        ModelError: neither, or an architecture or arguments that do not exist.
    """
    if isinstance(part, nn.Module):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("architecture"), str):
        return build(part["architecture"], dict(part.get("arguments") or {}))
    raise ModelError(f'{where} is a {type(part).__name__}; give a module, or {{"architecture": name, "arguments": {{...}}}}')


def described(parts: Mapping[str, nn.Module], **more: Any) -> dict[str, Any] | None:
    """The parts as descriptions; None where one has no ``config`` to be built from."""
    found: dict[str, Any] = {}
    for key, module in parts.items():
        config = getattr(module, "config", None)
        if not isinstance(config, dict):
            return None
        found[key] = {"architecture": name_of(module), "arguments": config}
    return {**found, **more}


def info_of(denoiser: nn.Module, where: str) -> DenoiserInfo:
    """What a denoiser says of itself.

    Raises:
        ModelError: it says nothing.
    """
    info = getattr(denoiser, "info", None)
    if not isinstance(info, DenoiserInfo):
        raise ModelError(f"{where}: {type(denoiser).__name__} is no denoiser of the contract (no 'info'); wrap it: SegAwareWrapper(network, ())")
    return info
