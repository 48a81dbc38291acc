"""Checkpoints of SDABN's authors: the segmenter (official HRNet), the denoiser, and a cascade of both.

A training there saves the network of its stage alone, under ``model_weights``; the stages are S1, D1,
S2, D2, ... A cascade is made of one file a stage, in this order, or of one state dict that has them
under ``model1.``, ``model2.``, ..., ``model_train.``
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from segaware.errors import WeightsError
from segaware.zoo.conversion import Conversion, State, compare

__all__ = ["official_ddfn", "official_hrnet", "official_sdabn", "stages"]

#: Their names of the denoiser's parts, and ours. A block's are behind ``dfus_blockN.`` and ``blocks.N.``
_PARTS = {
    "msfeat.conv1.0": "stem.a", "msfeat.conv2.0": "stem.b", "msfeat.conv3.0": "stem.c", "msfeat.conv4.0": "stem.d",
}  # fmt: skip
_BLOCK = {"conv1.0": "squeeze", "feat1.0": "a", "feat15.0": "a2", "feat2.0": "b", "feat25.0": "b2", "feat.0": "fuse"}
_SFT = {f"{branch}.{index}": f"{branch}.{index}" for branch in ("scale", "shift") for index in (0, 2)}
_ENCODER = {f"segfeat.conv.{index}": f"encoder.body.{index}" for index in (0, 2, 4, 6, 8)}
_STAGE = re.compile(r"model(\d+|_train)\.(.+)")


def official_hrnet(state: Mapping[str, Tensor], bn_eps: float | None = None) -> Conversion:
    """HRNetSegmenter, default form, from the official segmentation network (timm's has no head)."""
    from segaware.segmenters.hrnet import convert_hrnet

    found = convert_hrnet(state)
    head = found.get("head.3.weight")
    if head is None:
        compare({"last_layer.0.weight", "last_layer.3.weight"}, set(state), state, "HRNetSegmenter")
    assert head is not None
    if head.ndim != 4:
        raise WeightsError(f"last_layer.3.weight has the shape {tuple(head.shape)}; a convolution has four; the file is damaged")
    return Conversion("official HRNet", {"num_classes": head.shape[0]}, found, len(found))


def official_ddfn(state: Mapping[str, Tensor], bn_eps: float | None = None) -> Conversion:
    """DDFN with a condition, the denoiser of SDABN's release; without its ``segfeat`` and ``sft``, the plain one."""
    number = 1 + max((int(key.split(".")[0][10:]) for key in state if re.match(r"dfus_block\d{1,3}\.", key)), default=7)
    conditioned = any(key.startswith("segfeat.") for key in state)
    names = dict(_PARTS)
    for index in range(number):
        names |= {f"dfus_block{index}.{theirs}": f"blocks.{index}.{ours}" for theirs, ours in _BLOCK.items()}
        if conditioned:
            names |= {f"dfus_block{index}.input_sft.{theirs}": f"blocks.{index}.sft.{ours}" for theirs, ours in _SFT.items()}
    if conditioned:
        names |= _ENCODER | {f"sft.{theirs}": f"sft.{ours}" for theirs, ours in _SFT.items()}
    keys = {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in names.items() for part in ("weight", "bias")}
    keys["convr.weight"] = "reconstruct.weight"  # alone without a bias
    compare(set(keys), set(state), state, "DDFN")
    arguments = {
        "channels": _first(state, "convr.weight", 0),
        "condition_channels": _first(state, "segfeat.conv.0.weight", 1) if conditioned else None,
        "blocks": number,
    }
    layout = f"SDABN's denoiser, {'with' if conditioned else 'without'} a condition"
    return Conversion(layout, arguments, {ours: state[theirs] for theirs, ours in keys.items()}, len(keys))


def official_sdabn(state: Mapping[str, Tensor], bn_eps: float | None = None) -> Conversion:
    """SDABN from the networks of its stages, as :func:`stages` or a whole training's state dict has them."""
    networks: dict[int, State] = {}
    last: State = {}
    for key, value in state.items():
        stage = _STAGE.fullmatch(key)
        if stage is None:
            compare({"model1.conv1.weight", "model2.convr.weight"}, {key}, state, "SDABN")
            continue
        network = last if stage[1] == "_train" else networks.setdefault(int(stage[1]), {})
        network[stage[2]] = value
    ordered = [networks[number] for number in sorted(networks)] + ([last] if last else [])
    if sorted(networks) != list(range(1, len(networks) + 1)) or len(ordered) < 2:
        raise WeightsError(
            f"not an SDABN: stages {', '.join(map(str, sorted(networks))) or 'none'}; give those of S1, D1, S2, ... without a gap, at least two"
        )
    made = []
    for number, network in enumerate(ordered, start=1):
        try:
            made.append(official_ddfn(network) if number % 2 == 0 else official_hrnet(network))
        except WeightsError as error:
            kind = "denoiser D" if number % 2 == 0 else "segmenter S"
            raise WeightsError(f"stage {number} should be the {kind}{(number + 1) // 2} (order S1, D1, S2, D2, ...): {error}") from error
    described = [
        {"architecture": "DDFN" if number % 2 else "HRNetSegmenter", "arguments": found.arguments}
        for number, found in enumerate(made)
    ]
    pairs = len(made) // 2
    blocks = [{"segmenter": described[2 * i], "denoiser": described[2 * i + 1], "condition": "logits"} for i in range(pairs)]
    places = [f"stage{i + 1}.{part}." for i in range(pairs) for part in ("segmenter", "denoiser")] + ["closing_segmenter."]
    result = {place + key: value for place, found in zip(places, made, strict=False) for key, value in found.state.items()}
    closing = {"closing_segmenter": described[-1]} if len(made) % 2 else {}
    names = " ".join(f"{'D' if number % 2 else 'S'}{number // 2 + 1}" for number in range(len(made)))
    return Conversion(f"SDABN's stages {names}", {"blocks": blocks, **closing}, result, sum(found.used for found in made))


def stages(networks: Sequence[Mapping[str, Tensor]]) -> State:
    """The state dicts of the stages' files, S1 first, as the one that :func:`official_sdabn` takes."""
    return {f"model{number}.{key}": value for number, state in enumerate(networks, start=1) for key, value in state.items()}


def _first(state: Mapping[str, Tensor], key: str, axis: int) -> int:
    if state[key].ndim != 4:
        raise WeightsError(f"{key} has shape {tuple(state[key].shape)}, but a convolution has four axes; this is another network")
    return state[key].shape[axis]
