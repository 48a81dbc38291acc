"""Giving back a share of what a denoiser took away: ``denoised + keep * (noisy - denoised)``.

Denoisers take fine texture with the noise. People rarely miss it; segmenters that live by texture do,
and are served better by a picture with a few percent of the noise left in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segaware.errors import InputError, ModelError

__all__ = ["MACHINE", "check_keep", "shares", "table_of"]

#: The share that the model's own table states for the noise level.
MACHINE = "machine"


def check_keep(keep: float | str) -> float | str:
    """``keep`` if it is a share in [0, 1) or "machine".

    Raises:
        InputError: something else.
    """
    if keep == MACHINE:
        return MACHINE
    if isinstance(keep, (bool, str)) or not isinstance(keep, (int, float)) or not 0 <= keep < 1:
        raise InputError(f"keep {keep!r}: give a share of the noise in [0, 1), e.g. 0.03; 'machine' for the model's own; 0 for none")
    return float(keep)


def table_of(keep: Sequence[tuple[float, float]], name: str) -> tuple[tuple[float, float], ...]:
    """A model's table of (sigma in 8-bit units, share), sorted.

    Raises:
        ModelError: it has none.
    """
    if not keep:
        raise ModelError(
            f"{name} states no shares for keep='machine' (\"keep\" in its config.json, {{sigma: share}});"
            " give a number, e.g. keep=0.03, or take a model that has them"
        )
    return tuple(sorted((float(sigma), float(share)) for sigma, share in keep))


def shares(table: Sequence[tuple[float, float]], level: Tensor) -> Tensor:
    """The share for each ``level`` (any shape, [0, 1] scale): linear between the table's, constant beyond them."""
    sigmas, values = (torch.tensor(column, dtype=torch.float32, device=level.device) for column in zip(*table, strict=True))
    if len(sigmas) == 1:
        return torch.full_like(level, float(values[0]), dtype=torch.float32)
    at = level.float() * 255
    right = torch.searchsorted(sigmas, at.contiguous()).clamp(1, len(sigmas) - 1)
    left = right - 1
    part = ((at - sigmas[left]) / (sigmas[right] - sigmas[left])).clamp(0, 1)
    return torch.lerp(values[left], values[right], part)
