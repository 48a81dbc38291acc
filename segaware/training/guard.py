"""Stop a training whose awareness term has taken over, and say which weight would do."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from segaware.errors import TrainingError
from segaware.training.log import gradient_norms
from segaware.wrapper import SegAwareWrapper, WrapperOutput

__all__ = ["stop_if_dominated"]

#: The share of fidelity's gradient that the advice aims at.
SHARE = 0.1


def stop_if_dominated(wrapper: SegAwareWrapper, *, steps: int = 200, worse: float = 1.25) -> RemovableHandle:
    """Watch every training step of ``wrapper``; raise once awareness has driven fidelity up for ``steps`` steps.

    The loss of fidelity is averaged over quarters of ``steps``. When four quarters in a row lie
    above ``worse`` times the lowest one so far, the gradients at the denoised image are looked at:
    if those of the awareness terms together are at least half as large as fidelity's, their weight
    is to blame. (Otherwise it is not, e.g. a learning rate that is too high, and the training goes
    on.) Costs nothing until then. A resumed training starts to watch anew.

    Args:
        wrapper: to be handed to ``fit``.
        steps: for how long fidelity must have been worse, at least 4.
        worse: how much worse, as a factor over 1.

    Returns:
        A handle; its ``remove()`` ends the watch.

    Raises:
        TrainingError: at the call, options that make no sense; in training, as said, with the weights to try.
    """
    if steps < 4 or not worse > 1:
        raise TrainingError(f"stop_if_dominated: steps {steps}, worse {worse:g}; at least 4 steps, and a factor over 1")
    return wrapper.register_forward_hook(_Watch(steps // 4, worse))


class _Watch:
    def __init__(self, quarter: int, worse: float) -> None:
        self.quarter, self.worse = quarter, worse
        self.sum, self.count = 0.0, 0
        self.lowest, self.above = float("inf"), 0

    def __call__(self, wrapper: Any, _inputs: Any, output: Any) -> None:
        if not isinstance(output, WrapperOutput) or len(output.terms) < 2 or not torch.is_grad_enabled():
            return
        self.sum += float(output.terms["fidelity"].detach())
        self.count += 1
        if self.count % self.quarter:
            return
        mean, self.sum = self.sum / self.quarter, 0.0
        self.above = self.above + 1 if mean > self.worse * self.lowest else 0
        if self.above >= 4:
            self._blame(output, mean)
        self.lowest = min(self.lowest, mean)

    def _blame(self, output: WrapperOutput, mean: float) -> None:
        norms = gradient_norms(output)
        fidelity = norms.pop("fidelity")
        total = sum(norms.values())
        if total < 0.5 * fidelity:
            return
        advice = ", ".join(
            f"{name} {output.weights[name] * SHARE * fidelity / total:.3g} instead of {output.weights[name]:.3g}" for name in norms
        )
        raise TrainingError(
            f"fidelity has been worse for {4 * self.quarter} steps ({mean:.3g}, before {self.lowest:.3g}) and awareness dominates: its"
            f" gradient is {total / max(fidelity, 1e-12):.2g} times fidelity's. Lower its weight, to start with: {advice}"
        )
