"""A network, or a part of one, as a source of features: what the losses that compare features accept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from segaware.errors import InputError, ModelError

__all__ = ["Features", "as_list", "as_module"]

#: From images in [0, 1] to a feature tensor or a list of them.
Features = Callable[[Tensor], Tensor | Sequence[Tensor]]


class _Method(nn.Module):
    """A module's method (or a plain function) as a module, so that it can be frozen and moved."""

    def __init__(self, function: Features, where: str) -> None:
        super().__init__()
        whole: Any = function
        while isinstance(whole, functools.partial):
            whole = whole.func
        owner = whole if isinstance(whole, nn.Module) else getattr(whole, "__self__", None)
        self.owner = owner if isinstance(owner, nn.Module) else None
        self.function = function
        if self.owner is None:
            _refuse_learners(whole, where)

    def forward(self, images: Tensor) -> Tensor | Sequence[Tensor]:
        return self.function(images)


def as_module(features: Features, *, where: str) -> nn.Module:
    """``features`` as a module; InputError if it cannot be called, or is a function around a network that can learn."""
    if not callable(features):
        raise InputError(f"{where}: features is {type(features).__name__}; give a callable from images to tensors")
    return features if isinstance(features, nn.Module) else _Method(features, where)


def _refuse_learners(function: Any, where: str) -> None:
    """A network that a function merely mentions is not found and frozen, and would learn the easy way out, unseen."""
    code = getattr(function, "__code__", None)
    held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _filled(cell)]
    held += [function.__globals__.get(name) for name in code.co_names] if code is not None else []
    for network in held:
        if isinstance(network, nn.Module) and (network.training or any(p.requires_grad for p in network.parameters())):
            raise InputError(
                f"{where}: features is a function around a {type(network).__name__} that can still learn; freeze it with"
                " .requires_grad_(False).eval(), or give its own method (or functools.partial of that), which is frozen here"
            )


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # of a variable that has no value yet
        return False
    return True


def as_list(features: Tensor | Sequence[Tensor], *, where: str) -> list[Tensor]:
    """One feature tensor or several as a list; ModelError for anything else."""
    found = [features] if isinstance(features, Tensor) else list(features) if isinstance(features, (list, tuple)) else []
    if not found or not all(isinstance(f, Tensor) and f.is_floating_point() for f in found):
        raise ModelError(f"{where}: features gave {type(features).__name__}; return a float tensor or a list of float tensors")
    return found
