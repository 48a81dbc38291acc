"""Arithmetic as exact as a number says: float32 on a GPU too."""

from __future__ import annotations

import contextlib

import torch

__all__ = ["full_float32"]


def full_float32() -> contextlib.AbstractContextManager[None]:
    """Convolutions of float32 without TF32, whose ten bits cuDNN takes by default; other settings stay."""
    same = {"benchmark": torch.backends.cudnn.benchmark, "deterministic": torch.backends.cudnn.deterministic}
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False, **same)
