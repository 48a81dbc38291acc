"""What every converter gives, and how it refuses a checkpoint of another network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from segaware.errors import WeightsError

__all__ = ["Conversion", "State", "cause", "compare", "in_order"]

State = dict[str, Tensor]
#: What gives another network away: a part of a key, and whose it is.
_OTHERS = (
    ("m_head", "DRUNet or UNetRes (KAIR)"),
    ("residual_group", "SwinIR"),
    ("encoder_level1", "Restormer"),
    ("sca.", "NAFNet"),
    ("trans_block", "SCUNet"),
    ("layer1.0.conv1", "a ResNet"),
    ("toplayer", "an FPN segmenter"),
    ("exp_avg", "an optimizer: its state, no weights"),
)


@dataclass(frozen=True)
class Conversion:
    """What a map makes of a foreign state dict.

    Args:
        layout: the name of what was found, for people.
        arguments: of the architecture's constructor, read from keys and shapes.
        state: the tensors under segaware's keys.
        used: how many tensors of the file are in it.
    """

    layout: str
    arguments: dict[str, Any]
    state: State
    used: int


def compare(expected: set[str], found: set[str], state: Mapping[str, Tensor], wanted: str) -> None:
    """Refuse a state dict with missing or unexpected keys: three of each, and the likely cause."""
    missing, extra = sorted(expected - found, key=in_order), sorted(found - expected, key=in_order)
    if missing or extra:
        parts = [
            f"{len(keys)} {label} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for keys, label in ((missing, "missing"), (extra, "unexpected"))
            if keys
        ]
        raise WeightsError(f"not a {wanted}: {'; '.join(parts)}. {cause(state, bool(expected & found))}")


def in_order(key: str) -> list[tuple[int, int, str]]:
    """Layer 2 before layer 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in key.split(".")]


def cause(state: Mapping[str, Tensor], partly: bool) -> str:
    """What the keys give away of the network they are of."""
    for part, name in _OTHERS:
        if any(part in key for key in state):
            return f"Likely cause: it is {name}"
    if any(key.endswith("in_conv.weight") for key in state):
        return "Likely cause: it is deepinv's DnCNN, --arch DnCNN, or a changed one"
    if partly:
        return "Likely cause: a file that was cut or edited, or a network with further layers"
    return (
        "Likely cause: another network, or a layout that is not known."
        " A network of your own needs no conversion: SegAwareWrapper(network)"
    )
