"""Stop a training whose awareness term has taken over, and say which weight would do."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from segaware.errors import TrainingError
from segaware.wrapper import SegAwareWrapper, WrapperOutput, fidelity

__all__ = ["stop_if_dominated"]

#: The share of fidelity's gradient that the advice aims at.
SHARE = 0.1
#: Standard errors. Simulated with heavy-tailed losses, batches of 1 and 4: no false alarm in 40 trainings of 100,000 steps
#: (without this test, one in each), and a rise to twice the loss seen in batches of 4 always.
SURE = 6.0


def stop_if_dominated(wrapper: SegAwareWrapper, *, steps: int = 200, worse: float = 1.25) -> RemovableHandle:
    """Watch every training step of ``wrapper``; raise once awareness has driven fidelity up for ``steps`` steps.

    Fidelity is worse when four quarters of ``steps`` in a row lie above ``worse`` times the lowest
    mean of ``steps`` so far, and their own mean above it by more than six standard errors (fidelity
    jumps with the noise level of each batch, and among thousands of steps some window is low by
    luck); or when, over ``steps``, the denoised images are further from the clean ones than the
    noisy are, and four times further, measured so, than in the first step. Then the gradients at
    the denoised image are looked at (in the second case those of the first step): if those of the
    awareness terms together are at least half as large as fidelity's, their weight is to blame.
    (Otherwise it is not, e.g. a learning rate that is too high, and the training goes on.) A
    resumed training starts to watch anew.

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
    return wrapper.register_forward_hook(_Watch(steps // 4, worse), with_kwargs=True)


class _Watch:
    def __init__(self, quarter: int, worse: float) -> None:
        self.quarter, self.worse = quarter, worse
        self.values: deque[float] = deque(maxlen=4 * quarter)
        self.noise: deque[float] = deque(maxlen=4 * quarter)  # fidelity of the noisy images
        self.count = self.above = 0
        self.lowest, self.error = math.inf, 0.0  # of a mean over up to ``steps``, and its squared standard error
        self.first = math.inf  # of the first step: fidelity as a share of the noise
        self.norms: dict[str, float] = {}  # its gradients

    def __call__(self, wrapper: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if isinstance(output, torch.Tensor) or not torch.is_grad_enabled():
            return
        if not isinstance(output, WrapperOutput):
            raise TrainingError(
                f"stop_if_dominated: {type(wrapper).__name__} returns a {type(output).__name__} in training, where terms cannot be seen;"
                " watch the SegAwareWrapper itself, or return its WrapperOutput"
            )
        if len(output.terms) < 2:
            return
        noisy = inputs[0] if inputs else named["noisy"]
        self.values.append(float(output.terms["fidelity"].detach()))
        self.noise.append(float(fidelity(noisy.detach(), named["clean"].detach())))
        self.count += 1
        if self.count == 1:
            self.first, self.norms = self.values[0] / max(self.noise[0], 1e-12), output.gradient_norms()
        if self.count % self.quarter:
            return
        values = list(self.values)
        mean = fmean(values)
        error = fmean((value - mean) ** 2 for value in values) / len(values)
        steps = 4 * self.quarter
        self.above = self.above + 1 if fmean(values[-self.quarter :]) > self.worse * self.lowest else 0
        if self.above >= 4 and mean - self.lowest > SURE * math.sqrt(error + self.error):
            self._blame(output, output.gradient_norms(), f"fidelity has been worse for {steps} steps ({mean:.3g}, before {self.lowest:.3g})")
        noise = fmean(self.noise)
        if self.count >= steps and mean > max(1.0, 4 * self.first) * noise:  # broken in the first steps: nothing to compare with
            what = f"the denoised images have been worse than the noisy ones for {steps} steps ({mean:.3g}, noisy {noise:.3g})"
            self._blame(output, self.norms, what)
        if mean < self.lowest:
            self.lowest, self.error = mean, error

    def _blame(self, output: WrapperOutput, norms: dict[str, float], what: str) -> None:
        own, norms = norms["fidelity"], {name: norm for name, norm in norms.items() if name != "fidelity"}
        total = sum(norms.values())
        if total < 0.5 * own:
            return
        advice = ", ".join(
            f"{name} {output.weights[name] * SHARE * own / total:.3g} instead of {output.weights[name]:.3g}" for name in norms
        )
        raise TrainingError(
            f"{what} and awareness dominates: its gradient is {total / max(own, 1e-12):.2g} times fidelity's. Lower its weight, to start with: {advice}"
        )
