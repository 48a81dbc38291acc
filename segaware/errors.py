"""Every error a user can meet, in one tree.

    SegawareError
    ├── InputError        an argument or tensor of the wrong kind, shape, range or unit
    │   └── ImageError    an image file that cannot be read, understood or written
    ├── ModelError        a network that breaks the contract of :mod:`segaware.contracts`
    │   └── WeightsError  a checkpoint that is missing, damaged or made for another network
    ├── TrainingError     a training run that cannot start, resume or go on
    └── EvaluationError   a measurement that cannot be made as asked

A message says what is wrong, where, and the repair. ``assert`` is for our own mistakes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "EvaluationError",
    "ImageError",
    "InputError",
    "ModelError",
    "SegawareError",
    "TrainingError",
    "WeightsError",
    "closest",
]


class SegawareError(Exception):
    """Root of the tree: ``except SegawareError`` catches all that the library raises on purpose."""


class InputError(SegawareError, ValueError):
    """An argument or tensor of the wrong kind, shape, range or unit."""


class ImageError(InputError):
    """An image file that cannot be read, understood or written."""


class ModelError(SegawareError):
    """A network that breaks the contract of :mod:`segaware.contracts`."""


class WeightsError(ModelError):
    """A checkpoint that is missing, damaged or made for another network."""


class TrainingError(SegawareError, RuntimeError):
    """A training run that cannot start, resume or go on."""


class EvaluationError(SegawareError, RuntimeError):
    """A measurement that cannot be made as asked."""


def closest(name: str, known: Iterable[str]) -> str:
    """The end of an "unknown name" message: what it may have meant, or all there is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(repr(n) for n in near)}?"
    return f"known: {', '.join(names) or 'none'}"
