"""Fold batch normalisation into the convolution before it: same function, one pass less."""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fold_batch_norm"]


def fold_batch_norm(model: nn.Module) -> int:
    """Fold, in place, every BatchNorm2d that directly follows a Conv2d in an ``nn.Sequential``.

    For a copy that is only used in eval mode: the caller copies. Left alone are modules in
    training mode, without running statistics, used at several places, of a subclass, with hooks or
    with parametrisations: there the fold might change the function.

    Returns:
        How many were folded.
    """
    uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    folded = 0
    for parent in list(model.modules()):
        if type(parent) is not nn.Sequential:
            continue
        names = list(parent._modules)
        for name, following in zip(names, names[1:], strict=False):
            conv, norm = parent._modules[name], parent._modules[following]
            if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
                continue
            if conv.training or norm.training or norm.running_mean is None or norm.running_var is None:
                continue
            if uses[id(conv)] > 1 or uses[id(norm)] > 1 or _hooked(conv) or _hooked(norm):
                continue
            parent._modules[name] = fuse_conv_bn_eval(conv, norm)
            parent._modules[following] = nn.Identity()
            folded += 1
    return folded


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))
