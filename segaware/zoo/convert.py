"""Other people's checkpoints as segaware models: pure maps from state dict to state dict, one a layout.

Weights keep the terms of those who trained them: convert files that you obtained; none are shipped.

========================  ==========================================================================
layout                    keys
========================  ==========================================================================
numbered stack            ``PREFIX.0.weight``, ... of one ``nn.Sequential``: U-SAID's release
                          (``dncnn.``), KAIR's DnCNN and FFDNet (``model.``), with batch
                          normalisation or with it merged; the network predicts the noise (DnCNN)
                          or the image (FFDNet), as those do
deepinv's DnCNN           ``in_conv``, ``conv_list.0``, ..., ``out_conv``; predicts minus the noise
HRNet, official or timm   as :func:`segaware.segmenters.hrnet.convert_hrnet` knows it
SDABN's stages            :mod:`segaware.zoo.sdabn_layout`: its denoiser, and cascades
Liu's Caffe blobs         :mod:`segaware.zoo.liu_layout`: arrays in an ``.npz`` file
========================  ==========================================================================

A stack says nothing of dilation: KAIR's IRCNN looks like a DnCNN of depth 7 and is no such thing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from segaware.entries import CONFIG, WEIGHTS, write_entry
from segaware.errors import InputError, WeightsError, closest
from segaware.registry import build
from segaware.zoo.conversion import Conversion, State, compare, in_order
from segaware.zoo.foreign_file import open_checkpoint, unwrap
from segaware.zoo.liu_layout import caffe_liu
from segaware.zoo.sdabn_layout import official_ddfn, official_hrnet, official_sdabn, stages

__all__ = ["CONVERTERS", "Conversion", "convert_file", "deepinv_dncnn", "stack_dncnn", "stack_ffdnet"]

_LAYER = re.compile(r"(?:(?P<prefix>.*)\.)?(?P<index>\d{1,4})\.(?P<name>[a-z_]+)")
_NORM = ("weight", "bias", "running_mean", "running_var")
_EPS = 1e-5  # of our batch normalisation
def convert_file(
    file: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    architecture: str,
    folder: str | os.PathLike[str],
    *,
    bn_eps: float | None = None,
    overwrite: bool = False,
) -> tuple[nn.Module, Conversion]:
    """Convert a checkpoint into a model folder that ``from_pretrained`` and ``--model`` take.

    Args:
        file: a torch file, opened with ``weights_only=True``, a safetensors file, or arrays in an
            ``.npz``; of an SDABN also the files of its stages, in the order S1, D1, S2, ...
        architecture: a name in ``CONVERTERS``.
        bn_eps: epsilon of the batch normalisation that the file was trained with; None = as the
            layout's authors had it (KAIR 1e-4, others 1e-5).
        overwrite: replace a model that is in ``folder``.

    Returns:
        The network in eval mode, and what was found.

    Raises:
        InputError: an architecture without a converter, a folder that holds a model already, or ``bn_eps`` for
            a network without batch normalisation.
        WeightsError: a file that cannot be opened, or of another network: with what is missing and
            unexpected, and the likely cause.
    """
    if architecture not in CONVERTERS:
        raise InputError(f"no converter to {architecture!r}; {closest(architecture, CONVERTERS)}")
    files = [Path(file)] if isinstance(file, (str, os.PathLike)) else [Path(one) for one in file]
    folder = Path(folder)
    if len(files) != 1 and (architecture != "SDABN" or not files):
        raise InputError(f"{len(files)} files for one {architecture}; several are for the stages of an SDABN")
    there = [name for name in (CONFIG, WEIGHTS) if (folder / name).exists()]
    if there and not overwrite:
        raise InputError(f"{folder}: holds {there[0]} already; choose another folder, or allow it with --overwrite")
    states = [_read(one) for one in files]
    named = ", ".join(map(str, files))
    try:
        found = CONVERTERS[architecture](states[0] if len(states) == 1 else stages(states), bn_eps)
        if bn_eps is not None and architecture not in _SHIFTING:
            found = _shifted(found, bn_eps, architecture)
        model = _load(architecture, found)
    except WeightsError as error:
        raise WeightsError(f"{named}: {error}") from error
    origin = {
        "file": ", ".join(one.name for one in files),
        "sha256": ", ".join(hashlib.sha256(one.read_bytes()).hexdigest() for one in files),
        "layout": found.layout,
        "terms": "those of the original file",
    }
    write_entry(folder, model, {"converted_from": origin})
    return model, found


#: Whose converters take the epsilon in themselves.
_SHIFTING = ("DnCNN", "LiuDenoiser")


def _shifted(found: Conversion, bn_eps: float, architecture: str) -> Conversion:
    """Variances that give with our epsilon what those of the file gave with theirs."""
    variances = [key for key in found.state if key.endswith("running_var")]
    if not variances:
        raise InputError(f"{architecture} has no batch normalisation here; leave bn_eps out")
    moved = {key: found.state[key].double() + (bn_eps - _EPS) for key in variances}
    if any(bool((value <= -_EPS).any()) for value in moved.values()):
        raise WeightsError("a running_var is negative; the file is damaged, or bn_eps is wrong")
    return dataclasses.replace(found, state={**found.state, **moved})


def _read(file: Path) -> State:
    content = open_checkpoint(file)
    try:
        state = unwrap(content)
        _check_numbers(state)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error
    return state


def stack_dncnn(state: Mapping[str, Tensor], bn_eps: float | None = None) -> Conversion:
    """DnCNN from a numbered stack, with batch normalisation (any convolution biases) or with it merged.

    A bias before a normalisation goes into its running mean; one without goes into a normalisation
    that does nothing else. Another epsilon goes into the running variance. All exact.
    """
    prefix, layers, stack = _stack(state, "DnCNN")
    first, last = stack[0], stack[-1]
    norm = any("running_var" in layer for layer in layers.values())
    if bn_eps is not None and not norm:
        raise InputError("this file's batch normalisation is merged already, or was never there; leave bn_eps out")
    zhang = prefix in ("model", "dncnn") and "bias" in layers[first]  # KAIR, and its author's DnCNN before it
    eps = bn_eps if bn_eps is not None else (1e-4 if zhang else _EPS)
    channels = _check_shapes([layers[i]["weight"] for i in stack], "DnCNN", lambda out: out)
    biased = [i for i in (first, last) if "bias" in layers[i]]
    result: State = {}
    for number, index in enumerate(stack):
        weight, bias = layers[index]["weight"], layers[index].get("bias")
        own = 0 if number == 0 else 3 * number - 1
        result[f"body.{own}.weight"] = weight
        if index in (first, last):
            if biased:
                result[f"body.{own}.bias"] = bias if bias is not None else torch.zeros(weight.shape[0])
            continue
        ours = layers[index + 1] if norm else _silent_norm(weight.shape[0], bias)
        mean, variance = ours["running_mean"], ours["running_var"]
        if norm:
            mean = mean if bias is None else mean.double() - bias.double()
            variance = variance.double() + (eps - _EPS)
            if not bool((variance > -_EPS).all()):
                raise WeightsError(f"{_key(prefix, index + 1)}running_var is negative; the file is damaged, or bn_eps is wrong")
        for name, value in zip(_NORM, (ours["weight"], ours["bias"], mean, variance), strict=True):
            result[f"body.{own + 1}.{name}"] = value
    arguments = {"channels": channels, "depth": len(stack), "width": layers[first]["weight"].shape[0]}
    if biased:
        arguments["bias"] = True
    origin = "KAIR" if prefix == "model" else "U-SAID" if prefix == "dncnn" else "plain"
    layout = f"{origin} stack, {'with batch normalisation' if norm else 'normalisation merged'}"
    return Conversion(layout, arguments, result, _used(layers))


def stack_ffdnet(state: Mapping[str, Tensor], bn_eps: float | None = None) -> Conversion:
    """FFDNet from a numbered stack with batch normalisation merged, as KAIR's released ones."""
    prefix, layers, stack = _stack(state, "FFDNet")
    if any("running_var" in layer for layer in layers.values()):
        raise WeightsError("holds batch normalisation, which FFDNet has not; merge it into the convolutions first")
    channels = _check_shapes([layers[i]["weight"] for i in stack], "FFDNet", lambda out: out + 1) // 4
    result: State = {}
    for number, index in enumerate(stack):
        weight = layers[index]["weight"]
        result[f"body.{2 * number}.weight"] = weight
        result[f"body.{2 * number}.bias"] = layers[index].get("bias", torch.zeros(weight.shape[0]))
    arguments = {"channels": channels, "depth": len(stack), "width": layers[stack[0]]["weight"].shape[0]}
    return Conversion(f"{'KAIR' if prefix == 'model' else 'plain'} stack", arguments, result, _used(layers))


def deepinv_dncnn(state: Mapping[str, Tensor], bn_eps: float | None = None) -> Conversion:
    """DnCNN from deepinv's, which has no normalisation and adds what its last convolution says."""
    if bn_eps is not None:
        raise InputError("deepinv's DnCNN has no batch normalisation; leave bn_eps out")
    prefix = next(key for key in state if key.endswith("in_conv.weight")).removesuffix("in_conv.weight")
    inner = sum(key.startswith(f"{prefix}conv_list.") and key.endswith(".weight") for key in state)
    names = ["in_conv", *(f"conv_list.{i}" for i in range(inner)), "out_conv"]
    parts = ("weight", "bias") if f"{prefix}in_conv.bias" in state else ("weight",)
    compare({f"{prefix}{name}.{part}" for name in names for part in parts}, set(state), state, "DnCNN")
    sign = {"out_conv": -1}
    stack = {
        f"x.{2 * number}.{part}": state[f"{prefix}{name}.{part}"] * sign.get(name, 1)
        for number, name in enumerate(names)
        for part in parts
    }
    found = stack_dncnn(stack)
    return Conversion("deepinv", found.arguments, found.state, len(stack))


def _dncnn(state: Mapping[str, Tensor], bn_eps: float | None) -> Conversion:
    layout = deepinv_dncnn if any(key.endswith("in_conv.weight") for key in state) else stack_dncnn
    return layout(state, bn_eps)


#: By architecture: a map of a foreign state dict without wrappings, and the epsilon of its normalisation.
CONVERTERS: dict[str, Callable[[Mapping[str, Tensor], float | None], Conversion]] = {
    "DnCNN": _dncnn,
    "FFDNet": stack_ffdnet,
    "LiuDenoiser": caffe_liu,
    "DDFN": official_ddfn,
    "HRNetSegmenter": official_hrnet,
    "SDABN": official_sdabn,
}


def _stack(state: Mapping[str, Tensor], wanted: str) -> tuple[str, dict[int, State], list[int]]:
    """The prefix, the layers by number, and which of them are convolutions, all keys accounted for."""
    matches = {key: match for key in state if (match := _LAYER.fullmatch(key))}
    prefixes = [match["prefix"] or "" for match in matches.values()]
    if not prefixes:
        usual = {f"model.{index}.{part}" for index in (0, 2, 4) for part in ("weight", "bias")}
        compare(usual, set(state), state, wanted)
    prefix = max(sorted(set(prefixes)), key=prefixes.count)
    layers: dict[int, State] = {}
    for key, match in matches.items():
        if (match["prefix"] or "") == prefix and match["name"] != "num_batches_tracked":
            layers.setdefault(int(match["index"]), {})[match["name"]] = state[key]
    norm = any("running_var" in layer for layer in layers.values())
    last = max(layers)
    if norm:
        stack = [0, *range(2, last, 3), last]
    else:
        stack = [*range(0, last, 2), last]
    biased = {index for index in stack if "bias" in layers.get(index, {})}
    ends = {0, last}
    expected = {_key(prefix, index) + "weight" for index in stack}
    expected |= {_key(prefix, index) + "bias" for index in (stack if biased - ends else biased)}
    if norm:
        expected |= {f"{_key(prefix, index + 1)}{name}" for index in stack[1:-1] for name in _NORM}
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    compare(expected, set(state) - counters, state, wanted)
    for index, layer in layers.items():
        here = layer["weight"].shape[:1]
        if odd := [name for name, value in layer.items() if name != "weight" and value.shape != here]:
            raise WeightsError(f"{_key(prefix, index)}{odd[0]} has the shape {tuple(layer[odd[0]].shape)} beside {here[0]} channels; the file is damaged")
    return prefix, layers, stack


def _key(prefix: str, index: int) -> str:
    return f"{prefix}.{index}." if prefix else f"{index}."


def _used(layers: Mapping[int, State]) -> int:
    return sum(len(layer) for layer in layers.values())


def _silent_norm(width: int, bias: Tensor | None) -> State:
    """A batch normalisation that adds a bias and does nothing else."""
    return {
        "weight": torch.ones(width),
        "bias": torch.zeros(width) if bias is None else bias,
        "running_mean": torch.zeros(width),
        "running_var": torch.full((width,), 1.0 - _EPS),
    }


def _check_shapes(weights: list[Tensor], wanted: str, given: Callable[[int], int]) -> int:
    """Channels that the last convolution gives; WeightsError where the stack is no ``wanted``."""
    if len(weights) < 2:
        raise WeightsError(f"a single layer is no {wanted}; the file holds part of a network")
    for weight in weights:
        if weight.ndim != 4 or tuple(weight.shape[2:]) != (3, 3):
            raise WeightsError(f"a convolution of shape {tuple(weight.shape)}, but those of {wanted} are 3 x 3; this is another network")
    width, taken, out = weights[0].shape[0], weights[0].shape[1], weights[-1].shape[0]
    inner = {tuple(weight.shape[:2]) for weight in weights[1:-1]} | {(width, weights[-1].shape[1])}
    if inner != {(width, width)}:
        raise WeightsError(f"the inner convolutions are not all {width} channels wide, as those of {wanted} are; this is another network")
    if taken != given(out) or (wanted == "FFDNet" and out % 4):
        if taken == out + 1 and out % 4 == 0:
            cause = "it looks like an FFDNet: --arch FFDNet"
        elif taken == out + 1:
            cause = "it looks like an FDnCNN, which takes the noise level as a channel more; there is no converter for it"
        elif taken == out:
            cause = "it looks like a DnCNN: --arch DnCNN"
        else:
            cause = "this is another network"
        raise WeightsError(f"takes {taken} channels and gives {out}, which no {wanted} does; {cause}")
    return out


def _check_numbers(state: Mapping[str, Tensor]) -> None:
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        if not value.is_floating_point():
            raise WeightsError(f"{key} is {value.dtype}; quantised or packed weights cannot be converted, take the float ones")
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{key} holds NaN or infinite numbers; the training diverged or the file is damaged")


def _load(architecture: str, found: Conversion) -> nn.Module:
    """A network of the architecture with the tensors of the conversion, all of them."""
    model = build(architecture, found.arguments)
    own = model.state_dict()
    expected = {key for key in own if not key.endswith("num_batches_tracked")}
    given = {key for key in found.state if not key.endswith("num_batches_tracked")}
    compare(expected, given, found.state, architecture)
    for key in sorted(expected, key=in_order):
        if own[key].shape != found.state[key].shape:
            raise WeightsError(
                f"{key} has shape {tuple(found.state[key].shape)}, {architecture} needs {tuple(own[key].shape)};"
                " the file is of a wider, narrower or changed network"
            )
    model.load_state_dict({key: found.state[key].to(own[key].dtype) for key in expected}, strict=False)
    return model.eval()
