"""Architectures by name: a dictionary that one can read. Targets are strings, imported when asked for."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from segaware.errors import InputError, ModelError, SegawareError, closest

__all__ = ["ARCHITECTURES", "build", "is_registered", "name_of", "register"]

ARCHITECTURES: dict[str, str] = {
    "DnCNN": "segaware.denoisers.dncnn:DnCNN",
    "FFDNet": "segaware.denoisers.ffdnet:FFDNet",
    "LiuDenoiser": "segaware.denoisers.liu:LiuDenoiser",
    "DDFN": "segaware.denoisers.ddfn:DDFN",
    "FPNSegmenter": "segaware.segmenters.fpn:FPNSegmenter",
    "DeepLabSegmenter": "segaware.segmenters.deeplab:DeepLabSegmenter",
    "SMPSegmenter": "segaware.segmenters.smp:SMPSegmenter",
    "HRNetSegmenter": "segaware.segmenters.hrnet:HRNetSegmenter",
    "SDB": "segaware.cascade:SDB",
    "SDABN": "segaware.cascade:SDABN",
    "IgnoreCondition": "segaware.cascade:IgnoreCondition",
    "DenoiserCascade": "segaware.baselines:DenoiserCascade",
    "ImageCondition": "segaware.baselines:ImageCondition",
    "LabelCondition": "segaware.baselines:LabelCondition",
}


#: How constructors, torch's included, fail on arguments of the wrong kind or size.
_REFUSALS = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError, AssertionError, MemoryError)


def register(name: str, target: str) -> None:
    """Add an architecture of your own, ``"package.module:Class"``; a name is taken once.

    The class must keep its constructor's arguments, JSON-able, in ``config``.
    """
    if name in ARCHITECTURES and ARCHITECTURES[name] != target:
        raise InputError(f"architecture {name!r} is taken by {ARCHITECTURES[name]}; choose another name")
    ARCHITECTURES[name] = target


def name_of(module: nn.Module) -> str:
    """The name that builds a module again: the one that its class is registered under, else that of the class."""
    target = _target(module)
    return next((name for name, known in ARCHITECTURES.items() if known == target), target.rpartition(":")[2].rpartition(".")[2])


def is_registered(module: nn.Module) -> bool:
    """Whether the very class of a module is one that :func:`build` makes."""
    return _target(module) in ARCHITECTURES.values()


def _target(module: nn.Module) -> str:
    kind = type(getattr(module, "_orig_mod", module))  # torch.compile's wrapping aside
    return f"{kind.__module__}:{kind.__qualname__}"


def build(architecture: str, arguments: dict[str, Any] | None = None) -> nn.Module:
    """A fresh network with random weights; never downloads.

    Raises:
        ModelError: an unknown name, or arguments that the constructor does not take.
    """
    if architecture not in ARCHITECTURES:
        raise ModelError(f"unknown architecture {architecture!r}; {closest(architecture, ARCHITECTURES)}")
    module, _, cls = ARCHITECTURES[architecture].partition(":")
    factory = getattr(importlib.import_module(module), cls)
    try:
        return factory(**(arguments or {}))
    except SegawareError:
        raise
    except _REFUSALS as error:
        given = repr(arguments)
        given = given if len(given) < 300 else f"{given[:300]}..."
        raise ModelError(f"{architecture} does not take {given}: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from error
