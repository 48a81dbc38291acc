"""The running average of a network's weights: what is validated and saved where a recipe has ``ema``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = ["Average"]


class Average:
    """Exponential running average of a module's ``state_dict``; integers are copied.

    Args:
        module: whose weights are averaged; its present ones are the start.
        decay: share of the old average that each update keeps; 0 = no average, everything here does nothing.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.values: dict[str, Tensor] = {}
        if decay:
            self.values = {key: value.detach().clone() for key, value in module.state_dict().items()}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take up a saved average."""
        for key, value in values.items():
            self.values[key].copy_(value)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the module's weights in, after ``step`` steps before this one."""
        if not self.values:
            return
        # a short memory at first, or the random start would stay in it for long
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.values[key].lerp_(value, 1 - decay)
            else:
                self.values[key].copy_(value)

    @torch.no_grad()
    def take_buffers(self) -> None:
        """Copy what is no parameter: statistics that were measured anew, and would be remembered wrongly for long."""
        learned = {id(parameter) for parameter in self.module.parameters()}
        for key, value in self.module.state_dict(keep_vars=True).items():
            if id(value) not in learned and key in self.values:
                self.values[key].copy_(value)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Within: the module holds the average."""
        if not self.values:
            yield
            return
        own = {key: value.detach().clone() for key, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.values)
        try:
            yield
        finally:
            self.module.load_state_dict(own)
