"""Muon (Jordan et al. 2024): momentum whose matrix for each layer is made orthogonal before the step.

For the inner convolutions of a denoiser, each seen as a matrix ``(out, in * k * k)``. torch has a
Muon for true matrices only; here a convolution is one too, layers of one shape are
orthogonalised together, and what is no matrix (biases, norms, and the first and last layer, which
touch the image) is stepped by Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from segaware.training.precision import computes_bf16

__all__ = ["Muon", "inner_matrices"]

#: Of a matrix of norm 1, what is as good as zero, and squared not yet subnormal. The momentum of weights
#: without a gradient (beside a dead channel) fades into subnormal numbers, and processors multiply
#: those so slowly that the iteration took thirty times as long, more than the network itself.
_NOTHING = 1e-12


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix ``(N, m, n)`` near 1 by a Newton-Schulz iteration.

    In bfloat16 where that is computed; in float32 where it is only emulated, which takes more than twice as long.
    The quintic's coefficients (Jordan et al.) trade exactness for speed: values end up in about [0.7, 1.2].
    """
    x = matrices.bfloat16() if computes_bf16(matrices.device) else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = functional.hardshrink(x, _NOTHING)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices)


def inner_matrices(model: nn.Module, channels: int | None) -> list[nn.Parameter]:
    """The weights that are stepped as matrices: all of two axes or more but those that touch the image.

    A weight touches the image if one of its first two axes is no longer than 4 * channels + 1 (a
    2 x 2 fold of the image and a noise map).
    """
    narrow = 4 * (channels or 3) + 1
    return [p for p in model.parameters() if p.requires_grad and p.ndim >= 2 and min(p.shape[:2]) > narrow]


class Muon(Optimizer):
    """Orthogonalised momentum for ``matrices``, Adam for ``others``, one learning rate schedule for both.

    Args:
        matrices: weights of two axes or more; further axes are folded into the second.
        others: everything else.
        lr: learning rate of the matrices. Updates are scaled to the size Adam's would have
            (0.2 * sqrt(longer side), Liu et al. 2025), so that rates known from Adam carry over.
        other_lr: learning rate of the others.
        momentum: of the matrices (Nesterov).
        betas: of Adam.
        weight_decay: decoupled, for the matrices only.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float = 2e-3,
        other_lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        groups = [
            {"params": list(matrices), "lr": lr, "matrix": True},
            {"params": list(others), "lr": other_lr, "matrix": False},
        ]
        defaults = {"momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["matrix"]:
                self._step_matrices(group, params)
            else:
                self._step_adam(group, params)
        return loss

    def _step_matrices(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        alike: dict[tuple[torch.Size, torch.device], list[nn.Parameter]] = {}
        for p in params:
            alike.setdefault((p.shape, p.device), []).append(p)
        for (shape, _), same in alike.items():
            updates = []
            for p in same:
                grad = p.grad.reshape(shape[0], -1)  # type: ignore[union-attr]
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(grad, memory_format=torch.contiguous_format)
                state["momentum"].lerp_(grad, 1 - group["momentum"])
                updates.append(grad.lerp(state["momentum"], group["momentum"]))
            steps = orthogonalize(torch.stack(updates))
            steps *= 0.2 * max(steps.shape[-2:]) ** 0.5
            for p, update in zip(same, steps, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.reshape(shape), alpha=-group["lr"])

    def _step_adam(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        beta1, beta2 = group["betas"]
        for p in params:
            state = self.state[p]
            if not state:
                state["count"] = torch.zeros(())
                state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
            state["count"] += 1
            count = float(state["count"])
            state["mean"].lerp_(p.grad, 1 - beta1)
            state["square"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            root = (state["square"] / (1 - beta2**count)).sqrt_().add_(1e-8)
            p.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - beta1**count))
