"""Begin dead channels anew: those whose ReLU lets nothing through, so that no gradient reaches them.

A high rate of learning kills channels, and a killed one stays dead: of the 1,216 of a DnCNN trained
so, a fifth. They cost time and do nothing. As ReDo does (Sokar et al., "The Dormant Neuron Phenomenon
in Deep Reinforcement Learning", ICML 2023, algorithm 1), such a channel gets new weights on its way in and zeros on
its way out: what the network computes stays as it was, and it can learn again. There, a threshold on
the mean activation makes a channel dormant; here only one that is never active on the images given.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

__all__ = ["revive"]


@dataclass
class _Link:
    """A convolution, the normalisation after it if there is one, a ReLU and the convolution that reads it."""

    source: nn.Conv2d
    norm: nn.BatchNorm2d | None
    relu: nn.ReLU
    reader: nn.Conv2d


@torch.no_grad()
def revive(network: nn.Module, batches: Sequence[tuple[Tensor | None, ...]], generator: torch.Generator) -> int:
    """Give every dead channel of a network new weights; what it computes does not change.

    Looked at are the chains Conv2d - (BatchNorm2d) - ReLU - Conv2d inside ``nn.Sequential``, as in
    DnCNN and FFDNet. A channel is dead if it is zero at every pixel of ``batches``. Its weights are
    drawn as Kaiming's normal initialisation draws them, its normalisation gets the statistics of the
    first of ``batches``, the median of its neighbours' scales and no shift; the weights that read it become zero.

    Args:
        network: as it is to be called: the statistics that are in use (train or eval) decide.
        batches: arguments of the network, e.g. ``(noisy,)`` or ``(noisy, sigma)``.
        generator: on the CPU; of the new weights.

    Returns:
        How many channels began anew.
    """
    links = list(_links(network))
    peaks = [torch.full((link.source.out_channels,), -math.inf, device=link.source.weight.device) for link in links]

    with _hooked([link.relu.register_forward_hook(_highest(peak)) for link, peak in zip(links, peaks, strict=True)]):
        for batch in batches:
            network(*batch)

    hooks, born = [], 0
    for link, peak in zip(links, peaks, strict=True):
        dead = torch.nonzero(peak <= 0).flatten()
        if not len(dead):
            continue
        born += len(dead)
        _draw(link.source, dead, generator)
        link.reader.weight[:, dead] = 0
        if link.norm is not None:
            hooks.append(link.norm.register_forward_pre_hook(_normalise(dead)))
    if born:
        with _hooked(hooks):  # from the first layer on, each sees what the new ones before it give
            network(*batches[0])
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


def _draw(source: nn.Conv2d, dead: Tensor, generator: torch.Generator) -> None:
    weight = source.weight
    spread = math.sqrt(2 / weight[0].numel())
    new = torch.randn((len(dead), *weight.shape[1:]), generator=generator) * spread
    weight[dead] = new.to(weight)
    if source.bias is not None:
        source.bias[dead] = 0


def _highest(peak: Tensor) -> Callable[..., None]:
    """A hook that keeps the largest output of each channel in ``peak``."""

    def hook(relu: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        torch.maximum(peak, out.amax((0, 2, 3)).to(peak), out=peak)

    return hook


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


@contextlib.contextmanager
def _hooked(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
