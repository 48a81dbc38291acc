"""Liu's denoiser from Caffe: its blobs as arrays in one ``.npz`` file, under ``LAYER/INDEX``.

Written where Caffe is, in three lines::

    net = caffe.Net("deploy_denoise.prototxt", "denoise.caffemodel", caffe.TEST)
    blobs = {f"{name}/{i}": blob.data for name, blobs in net.params.items() for i, blob in enumerate(blobs)}
    numpy.savez("liu.npz", **blobs)

==================================================  =========================================================
layers (N = 1, 2, 3)                                blobs
==================================================  =========================================================
``conv0``, ``convN``, ``concat_reduction``          0: weight (out, in, k, k), 1: bias
``residual_N_branch2a``, ``...2b``, ``...2c``       0: weight
``upsample_r2``, ``upsample``                       0: weight (in, out, 4, 4), 1: bias
``convN_bn``, ``residual_N_bn_branch2a`` (b, c)     0: sum of means, 1: of variances, 2: what to divide both by
``convN_Scale``, ``residual_N_scale_branch2a``      0: scale, 1: shift
==================================================  =========================================================

The network there sees blue first, from 0 to 255, less a mean colour; ours sees RGB in [0, 1]. The
first and the last convolution take that in, and nothing else changes. The released denoiser was trained with
whole numbers (``BGR_MEAN``); one from the joint training of a segmenter saw 104.008, 116.669 and 122.675, a third of
a grey level off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from segaware.errors import WeightsError
from segaware.zoo.conversion import Conversion, State, compare

__all__ = ["BGR_MEAN", "caffe_liu"]

#: What was subtracted from blue, green and red when the denoiser was trained.
BGR_MEAN = (104.0, 117.0, 123.0)


def caffe_liu(state: Mapping[str, Tensor], bn_eps: float | None = None) -> Conversion:
    """LiuDenoiser, three scales, from the released network's blobs."""
    result: State = {}
    used: set[str] = set()

    def take(layer: str, index: int) -> Tensor:
        used.add(f"{layer}/{index}")
        return state.get(f"{layer}/{index}", torch.zeros(0)).float()

    def conv(layer: str, ours: str, bias: bool = True) -> None:
        result[f"{ours}.weight"] = take(layer, 0)
        if bias:
            result[f"{ours}.bias"] = take(layer, 1).flatten()

    def norm(statistics: str, affine: str, ours: str) -> None:
        count = take(statistics, 2).flatten()
        share = 1 / count[0] if count.numel() and float(count[0]) else 0.0
        variance = take(statistics, 1).flatten() * share
        result[f"{ours}.running_mean"] = take(statistics, 0).flatten() * share
        result[f"{ours}.running_var"] = variance if bn_eps is None else variance + (bn_eps - 1e-5)
        result[f"{ours}.weight"], result[f"{ours}.bias"] = take(affine, 0).flatten(), take(affine, 1).flatten()

    conv("conv0", "stem")
    for number, ours in ((1, "encoders.0"), (2, "encoders.1"), (3, "decoders.0")):
        conv(f"conv{number}", f"{ours}.conv.0")
        norm(f"conv{number}_bn", f"conv{number}_Scale", f"{ours}.conv.1")
        for branch, index in (("2a", 0), ("2b", 3), ("2c", 6)):
            conv(f"residual_{number}_branch{branch}", f"{ours}.residual.{index}", bias=False)
            norm(
                f"residual_{number}_bn_branch{branch}", f"residual_{number}_scale_branch{branch}", f"{ours}.residual.{index + 1}"
            )
    conv("upsample_r2", "ups.0")
    conv("upsample", "ups.1")
    conv("concat_reduction", "output")
    compare(used, set(state), state, "LiuDenoiser (Caffe blobs as LAYER/INDEX)")

    first, last = result["stem.weight"], result["output.weight"]
    if first.ndim != 4 or last.ndim != 4 or first.shape[1] != 3 or last.shape[0] != 3:
        raise WeightsError(f"conv0/0 and concat_reduction/0 have shapes {tuple(first.shape)} and {tuple(last.shape)}; the released network is of colour images")
    result["stem.weight"] = first.flip(1) * 255
    result["output.weight"] = last.flip(0) / 255
    result["output.bias"] = result["output.bias"].flip(0) / 255
    widths = [result[f"{ours}.conv.0.weight"].shape[0] for ours in ("encoders.0", "decoders.0")]
    arguments: dict[str, Any] = {
        "encoder_width": widths[0], "decoder_width": widths[1], "mean": [value / 255 for value in reversed(BGR_MEAN)],
    }  # fmt: skip
    return Conversion("Liu's Caffe blobs", arguments, result, len(used))
