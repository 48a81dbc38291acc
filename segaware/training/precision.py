"""Which precision a training has on this machine."""

from __future__ import annotations

import torch

from segaware.errors import TrainingError

__all__ = ["LOWER", "computes_bf16", "precision_here"]

#: Types of autocast by the names of recipes; None = there is none.
LOWER: dict[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_here(precision: str, device: torch.device) -> str:
    """What a recipe's ``precision`` comes to on ``device``: ``"auto"`` is ``"bf16"`` or ``"float32"``.

    Raises:
        TrainingError: "fp16" without CUDA.
    """
    if precision == "fp16" and device.type != "cuda":
        raise TrainingError(f'precision "fp16" needs CUDA, but this trains on {device.type}; use "bf16" or "auto"')
    if precision != "auto":
        return precision
    return "bf16" if computes_bf16(device) else "float32"


def computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here, and not merely possible."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and probe is not None and bool(probe())
