"""Awareness losses: a pure function and a thin module a file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

#: Losses that take one frozen segmenter and need no labels, by short name, for command lines.
LABEL_FREE = {
    "entropy": "segaware.losses.entropy:EntropySegAwareLoss",
    "guarded-entropy": "segaware.losses.guarded_entropy:GuardedEntropyLoss",
    "pseudo-label": "segaware.losses.pseudo_label:PseudoLabelLoss",
    "consistency": "segaware.losses.consistency:ConsistencyLoss",
    "jacobian": "segaware.losses.jacobian:JacobianLoss",
    "fisher": "segaware.losses.fisher:FisherLoss",
    "sensitivity": "segaware.losses.sensitivity:SensitivityLoss",
    "d2sm": "segaware.losses.d2sm:D2SMLoss",
}


def label_free(name: str) -> type[nn.Module]:
    """The class behind a name of :data:`LABEL_FREE`, imported when asked for."""
    module, _, cls = LABEL_FREE[name].partition(":")
    return getattr(importlib.import_module(module), cls)
