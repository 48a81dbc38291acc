"""The running statistics of batch normalisation, measured anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["batch_norms", "measure"]


def batch_norms(model: nn.Module) -> list[Any]:
    """The layers that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[tuple[Tensor | None, ...]]) -> list[Tensor]:
    """Replace running statistics, which lag behind the weights, by the mean over batches; gives them, to be changed in place.

    The model runs in training mode, and stays in it.
    """
    norms = batch_norms(model)
    if not norms:
        return []
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a plain mean over all batches
    model.train()
    for batch in batches:
        model(*batch)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    return [statistic for module in norms for statistic in (module.running_mean, module.running_var)]
