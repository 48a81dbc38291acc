"""Fold batch normalisation into the convolution before it: same function, one pass less."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fold_batch_norm"]

#: Classes whose forward calls their children ``conv1``, ``bn1``, ``conv2``, ``bn2``, ... in turn, each norm
#: right after its convolution, by module and name (so that nothing is imported). A residual block, which
#: takes one tensor, is also tried before and after: its library may have changed it.
_IN_TURN = {
    ("timm.models.resnet", "BasicBlock"), ("timm.models.resnet", "Bottleneck"),
    ("torchvision.models.resnet", "BasicBlock"), ("torchvision.models.resnet", "Bottleneck"),
    ("segaware.segmenters.hrnet", "_Trunk"),
}  # fmt: skip


@torch.no_grad()
def fold_batch_norm(model: nn.Module) -> int:
    """Fold, in place, every BatchNorm2d that is known to follow a Conv2d directly.

    Those are neighbours in an ``nn.Sequential``, and the pairs ``conv1``, ``bn1``, ... of residual
    blocks of timm and torchvision (and of the HRNet built of them). For a copy that is only used in
    eval mode: the caller copies. Left alone are modules in training mode, without running
    statistics, used at several places, of a subclass, with hooks or with parametrisations: there
    the fold might change the function. A block that gives other values after the fold gets back
    what it had.

    Returns:
        How many were folded.
    """
    uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    folded = 0
    for parent in list(model.modules()):
        if type(parent) is not nn.Sequential and _hooked(parent):
            continue
        children = parent._modules
        pairs = [(one, other) for one, other in _pairs(parent) if _foldable(children[one], children[other], uses)]
        if not pairs:
            continue
        before = dict(children)
        example: torch.Tensor | None = None
        expected: torch.Tensor | None = None
        if _foreign(parent):
            try:
                example = _example(parent)
                expected = parent(example)
            except (RuntimeError, TypeError, ValueError):
                continue  # what cannot be tried stays as it is
        for name, following in pairs:
            conv, norm = parent._modules[name], parent._modules[following]
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            parent._modules[name] = fuse_conv_bn_eval(conv, norm)
            parent._modules[following] = nn.Identity()
        if expected is not None and not _close(parent(example), expected):
            parent._modules.update(before)
            continue
        folded += len(pairs)
    return folded


def _pairs(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a convolution and the norm after it, as far as the parent's class tells."""
    names = list(parent._modules)
    if type(parent) is nn.Sequential:
        yield from zip(names, names[1:], strict=False)
    elif (type(parent).__module__, type(parent).__name__) in _IN_TURN:
        for name in names:
            found = re.fullmatch(r"conv(\d)", name)
            if found and f"bn{found[1]}" in parent._modules:
                yield name, f"bn{found[1]}"


def _foldable(conv: nn.Module | None, norm: nn.Module | None, uses: Counter[int]) -> bool:
    if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return False
    if conv.training or norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    return uses[id(conv)] == 1 and uses[id(norm)] == 1 and not _hooked(conv) and not _hooked(norm)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))


def _foreign(parent: nn.Module) -> bool:
    """A block whose forward is another library's, to be tried."""
    return type(parent) is not nn.Sequential and not type(parent).__module__.startswith("segaware.")


def _example(block: nn.Module) -> torch.Tensor:
    """A small input for a block, without torch's generator: making a model ready leaves no trace in the caller's random state."""
    first = block._modules["conv1"]
    assert isinstance(first, nn.Conv2d)
    values = torch.linspace(-1, 1, first.in_channels * 49).mul(4321.0).sin().reshape(1, first.in_channels, 7, 7)
    return values.to(first.weight)


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-3 * expected.abs().max().clamp(min=1e-6))
