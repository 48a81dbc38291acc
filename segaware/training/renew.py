"""Make a trained network fit to be trained further: channels of one scale, and no dead ones.

A high rate of learning leaves two things behind that later training cannot mend. Scales drift apart,
for a ReLU passes any factor on and the next layer takes it back: the middle of a DnCNN trained so gave
20,000 where its ends gave 1, and Adam's steps, which know no scale, were a large part of some weights. And channels
die: their ReLU lets nothing through any more, so no gradient reaches them; of the 1,216 of that DnCNN a fifth.

Neither is a matter of what the network computes, which stays the same here. The scales of channels are
set as at a start (each of unit spread before its ReLU, rows of convolutions before a normalisation as Kaiming's
initialisation has them, factors moved into the next layer). A dead channel gets new weights on its way
in and zeros on its way out, as in ReDo (Sokar et al., "The Dormant Neuron Phenomenon in Deep
Reinforcement Learning", ICML 2023, algorithm 1); there a threshold on the mean activation makes a
channel dormant, here only one that is never active on the images given is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from torch import Tensor, nn

from segaware.errors import TrainingError
from segaware.inference.precision import full_float32

__all__ = ["renew"]

#: Batches that tell the statistics of the new channels, taken as one, and whether what is computed stayed.
_TOGETHER = 8
#: Of the largest correction that the network makes, with fixed statistics: far above float32's rounding.
_SAME = 1e-3
#: With those of the batch, whose variance differs from batch to batch and stands beside eps no more quite as it did.
_NEARLY = 1e-2


class _Moments:
    """Mean, variance and largest value of each channel over all that a layer is given or gives; on the CPU, for not every device has doubles."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares, self.peak = 0, torch.zeros(()), torch.zeros(()), torch.tensor(-math.inf)

    def given(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._add(args[0])

    def gives(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._add(output)

    def _add(self, x: Tensor) -> None:
        x = x if x.dtype == torch.float64 else x.float()
        var, mean = (_exact(part) for part in torch.var_mean(x, (0, 2, 3), correction=0))
        new = x.numel() // x.shape[1]
        gap, self.count = mean - self.mean, self.count + new
        # Chan, Golub and LeVeque: squares about the mean of both parts
        self.squares = self.squares + var * new + gap.square() * (new * (self.count - new) / self.count)
        self.mean = self.mean + gap * (new / self.count)
        self.peak = torch.maximum(self.peak, _exact(x.amax((0, 2, 3))))

    @property
    def var(self) -> Tensor:
        return self.squares / self.count


def _exact(x: Tensor) -> Tensor:
    return x.cpu().double()


def _as(like: Tensor, x: Tensor) -> Tensor:
    return x.to(like.dtype).to(like.device)


@dataclass
class _Link:
    """A convolution, the normalisation after it if there is one, a ReLU and the convolution that reads it."""

    source: nn.Conv2d
    norm: nn.BatchNorm2d | None
    relu: nn.ReLU
    reader: nn.Conv2d
    before_norm: _Moments = field(default_factory=_Moments)
    before_relu: _Moments = field(default_factory=_Moments)


@torch.no_grad()
def renew(network: nn.Module, batches: Sequence[tuple[Tensor | None, ...]], generator: torch.Generator) -> int:
    """Set the scales of a network's channels anew and begin its dead ones; what it computes does not change.

    Looked at are the chains Conv2d - (BatchNorm2d) - ReLU - Conv2d inside ``nn.Sequential``, as in
    DnCNN and FFDNet. A channel is dead if its ReLU lets nothing through on ``batches``. New weights are
    Kaiming's normal ones; their normalisation gets the statistics of the first eight batches, the
    scale of its neighbours and no shift. The statistics of the normalisations in these chains are those of ``batches``
    afterwards.

    Args:
        network: as it is to be called: statistics in use (of the batch, or fixed) are taken as they are. Dropout and
            the like are silent meanwhile.
        batches: arguments of the network, e.g. ``(noisy,)`` or ``(noisy, sigma)``.
        generator: on the CPU; of the new weights.

    Returns:
        How many channels began anew.

    Raises:
        TrainingError: there is no such chain, or the network does more with its layers than the chain says, so that
            it would compute something else (by more than a thousandth of its largest correction; by a hundredth where
            statistics of the batch are in use); it is then as it was.
    """
    links = list(_links(network))
    if not links:
        raise TrainingError("renew: the denoiser has no chain of Conv2d, BatchNorm2d, ReLU and Conv2d in an nn.Sequential; leave renew out")
    saved = {key: value.clone() for key, value in network.state_dict().items()}
    with _silent(network), full_float32():
        looked_at = batches[:_TOGETHER]
        before = [network(*batch) for batch in looked_at]
        # not at the ReLU itself: one module may serve in several places
        hooks = [(link.norm or link.source).register_forward_hook(link.before_relu.gives) for link in links]
        hooks += [link.norm.register_forward_pre_hook(link.before_norm.given) for link in links if link.norm is not None]
        with _hooked(hooks):
            for batch in batches:
                network(*batch)
        for link in links:
            _rescale(link)
        born = _begin_dead(network, links, looked_at, generator)
        worst = max(_change(network(*batch), old, batch[0]) for batch, old in zip(looked_at, before, strict=True))
    moving = any(link.norm is not None and link.norm.training for link in links)
    if not worst <= (_NEARLY if moving else _SAME):
        network.load_state_dict(saved)
        raise TrainingError(
            f"renew: the denoiser would compute something else (by {worst:.1%} of its largest correction): its layers serve"
            " elsewhere too; leave renew out"
        )
    return born


def _change(now: Tensor, before: Tensor, noisy: Tensor | None) -> float:
    correction = before - noisy if noisy is not None and noisy.shape == before.shape else before
    return float((now - before).abs().max() / correction.abs().max().clamp(min=1e-3))


def _begin_dead(
    network: nn.Module, links: list[_Link], batches: Sequence[tuple[Tensor | None, ...]], generator: torch.Generator
) -> int:
    hooks, born = [], 0
    for link in links:
        dead = torch.nonzero(link.before_relu.peak <= 0).flatten().to(link.source.weight.device)
        if len(dead):
            born += len(dead)
            _draw(link.source, dead, generator)
            link.reader.weight[:, dead] = 0
            if link.norm is not None:
                hooks.append(link.norm.register_forward_pre_hook(_normalise(dead)))
    if hooks:
        with _hooked(hooks):  # from the first layer on, each sees what the new ones before it give
            network(*_joined(batches))
    return born


def _links(network: nn.Module) -> Iterator[_Link]:
    for chain in network.modules():
        if not isinstance(chain, nn.Sequential):
            continue
        layers = list(chain)
        for i, source in enumerate(layers):
            rest = layers[i + 1 :]
            norm = rest[0] if rest and isinstance(rest[0], nn.BatchNorm2d) and rest[0].affine else None
            relu, reader = (rest[norm is not None :] + [None, None])[:2]
            if _plain(source) and isinstance(relu, nn.ReLU) and _plain(reader):
                yield _Link(source, norm, relu, reader)


def _plain(layer: object) -> TypeGuard[nn.Conv2d]:
    return isinstance(layer, nn.Conv2d) and layer.groups == 1


def _spread(weight: Tensor) -> float:
    """Of Kaiming's normal initialisation."""
    return math.sqrt(2 / weight[0].numel())


def _rescale(link: _Link) -> None:
    """Unit spread before the ReLU; the factor goes into the reader."""
    source, norm = link.source, link.norm
    spread = link.before_relu.var.sqrt()
    spread = torch.where(spread > 1e-12, spread, 1.0)
    if norm is None:
        grow = 1 / spread
    else:
        length = _exact(source.weight.flatten(1)).norm(dim=1)
        grow = torch.where(length > 1e-12, math.sqrt(2) / length, 1.0)
        mean, var = link.before_norm.mean, link.before_norm.var
        fixed = norm.running_mean is not None and norm.running_var is not None and not norm.training
        held_mean, held_var = (_exact(norm.running_mean), _exact(norm.running_var)) if fixed else (mean, var)  # type: ignore[arg-type]
        if not fixed:  # there eps takes a part that differs from batch to batch, which a factor would change
            grow = torch.where(var > 100 * norm.eps, grow, 1.0)
        slope = _exact(norm.weight) / (held_var + norm.eps).sqrt()
        norm.bias.copy_(_as(norm.bias, (slope * (mean - held_mean) + _exact(norm.bias)) / spread))
        norm.weight.copy_(_as(norm.weight, slope / (grow * spread) * (var * grow**2 + norm.eps).sqrt()))
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(_as(norm.running_mean, mean * grow))
            norm.running_var.copy_(_as(norm.running_var, var * grow**2))
    source.weight *= _as(source.weight, grow)[:, None, None, None]
    if source.bias is not None:
        source.bias *= _as(source.bias, grow)
    link.reader.weight *= _as(link.reader.weight, spread)[None, :, None, None]


def _draw(source: nn.Conv2d, dead: Tensor, generator: torch.Generator) -> None:
    weight = source.weight
    new = torch.randn((len(dead), *weight.shape[1:]), generator=generator) * _spread(weight)
    weight[dead] = new.to(weight)
    if source.bias is not None:
        source.bias[dead] = 0


def _normalise(dead: Tensor) -> Callable[..., None]:
    """A hook that fits a normalisation's entries for the channels ``dead`` to what comes in."""

    def hook(norm: nn.BatchNorm2d, args: tuple[Tensor, ...]) -> None:
        seen = args[0][:, dead].float()
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean[dead] = seen.mean((0, 2, 3)).to(norm.running_mean)
            norm.running_var[dead] = seen.var((0, 2, 3)).to(norm.running_var)
        alive = torch.ones_like(norm.weight, dtype=torch.bool)
        alive[dead] = False
        norm.weight[dead] = norm.weight[alive].abs().median() if alive.any() else 1.0
        norm.bias[dead] = 0

    return hook


def _joined(batches: Sequence[tuple[Tensor | None, ...]]) -> list[Tensor | None]:
    return [None if parts[0] is None else torch.cat(parts) for parts in zip(*batches, strict=True)]  # type: ignore[arg-type]


@contextlib.contextmanager
def _hooked(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _silent(network: nn.Module) -> Iterator[None]:
    """All but the normalisations as in evaluation: two calls give the same."""
    talking = [m for m in network.modules() if m.training and not isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in talking:
        module.training = False
    try:
        yield
    finally:
        for module in talking:
            module.training = True
