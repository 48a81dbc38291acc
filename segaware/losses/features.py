"""A network, or a part of one, as a source of features: what the losses that compare features accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from segaware.errors import InputError, ModelError

__all__ = ["Features", "as_list", "as_module"]

#: From images in [0, 1] to a feature tensor or a list of them.
Features = Callable[[Tensor], Tensor | Sequence[Tensor]]


class _Method(nn.Module):
    """A module's method (or a plain function) as a module, so that it can be frozen and moved."""

    def __init__(self, function: Features) -> None:
        super().__init__()
        owner = getattr(function, "__self__", None)
        self.owner = owner if isinstance(owner, nn.Module) else None
        self.function = function

    def forward(self, images: Tensor) -> Tensor | Sequence[Tensor]:
        return self.function(images)


def as_module(features: Features, *, where: str) -> nn.Module:
    """``features`` as a module; InputError if it cannot be called."""
    if not callable(features):
        raise InputError(f"{where}: features is {type(features).__name__}; give a callable from images to tensors")
    return features if isinstance(features, nn.Module) else _Method(features)


def as_list(features: Tensor | Sequence[Tensor], *, where: str) -> list[Tensor]:
    """One feature tensor or several as a list; ModelError for anything else."""
    found = [features] if isinstance(features, Tensor) else list(features) if isinstance(features, (list, tuple)) else []
    if not found or not all(isinstance(f, Tensor) and f.is_floating_point() for f in found):
        raise ModelError(f"{where}: features gave {type(features).__name__}; return a float tensor or a list of float tensors")
    return found
