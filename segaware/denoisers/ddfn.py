"""DDFN (Chen et al., "Deep Boosting for Image Denoising", ECCV 2018, and "Real-World Image Denoising
with Deep Boosting", TPAMI 2020): dilated dense fusion, in the wider RGB form that SDABN builds on.
With a condition its features are steered by what a segmenter says (SFT).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.checks import check_images, no_sigma
from segaware.contracts import DenoiserInfo, Sigma
from segaware.errors import InputError
from segaware.layers.sft import ConditionEncoder, SFTLayer, check_condition
from segaware.pretrained import Pretrained

__all__ = ["DDFN"]

STEM = 32  # channels of the first stage: four convolutions of 8
GROWTH = 8  # channels that each block adds
CONDITION = 16  # channels of the encoded condition


def _conv(inputs: int, outputs: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)


class _Stem(nn.Module):
    """Multi-scale features: two dilations, each followed by the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = STEM // 4
        self.a, self.b = _conv(channels, width), _conv(channels, width, 2)
        self.c, self.d = _conv(width, width), _conv(width, width, 2)

    def forward(self, images: Tensor) -> Tensor:
        a, b = F.relu(self.a(images)), F.relu(self.b(images))
        return torch.cat([a, b, F.relu(self.c(b)), F.relu(self.d(a))], dim=1)  # (B, 32, H, W)


class _Fusion(nn.Module):
    """Squeeze, two paths of two dilations each, fuse to 8 channels that are appended to the input.

    SFT modulates what the convolutions see; what is passed on beside them stays as it is.
    """

    def __init__(self, inputs: int, sft: SFTLayer | None) -> None:
        super().__init__()
        self.sft = sft
        self.squeeze = nn.Conv2d(inputs, 32, 1)
        self.a, self.a2 = _conv(32, 8), _conv(8, 4, 2)
        self.b, self.b2 = _conv(32, 8, 2), _conv(8, 4)
        self.fuse = nn.Conv2d(24, GROWTH, 1)

    def forward(self, features: Tensor, condition: Tensor | None) -> Tensor:
        steered = features if self.sft is None or condition is None else self.sft(features, condition)
        squeezed = F.relu(self.squeeze(steered))
        a, b = F.relu(self.a(squeezed)), F.relu(self.b(squeezed))
        inner = torch.cat([a, F.relu(self.a2(a)), b, F.relu(self.b2(b))], dim=1)  # (B, 24, H, W)
        return torch.cat([features, F.relu(self.fuse(inner))], dim=1)  # (B, inputs + 8, H, W)


class DDFN(nn.Module, Pretrained):
    """Dense blocks of dilated convolutions at full resolution; the clean image comes out directly.

    A multi-scale stem to 32 channels, ``blocks`` fusion blocks that add 8 channels each, a 1 x 1
    convolution to the image without bias. No normalisation and no skip from input to output.
    60,784 parameters in the default form; with a condition of 19 classes 114,176, of 8 classes
    114,000. Blind: it is told no noise level.

    Args:
        channels: image channels.
        condition_channels: channels of the condition, a segmenter's number of classes. None = a
            plain denoiser without one. A number puts a :class:`ConditionEncoder`, and an
            :class:`SFTLayer` before each block's convolutions and before the last one.
        blocks: number of fusion blocks. The receptive field is 6 * blocks + 7.
        identity: the SFT layers begin as the identity; the release's do not.

    Shape: ``(B, channels, H, W)`` in [0, 1] plus noise (within a cascade: plus the estimate so far),
        and with ``condition_channels`` a condition ``(B, K, h, w)`` of any h, w -> the clean
        estimate, same shape as the image, not clamped; any H, W from 1 x 1.

    Raises:
        InputError: another number of channels, an integer tensor, a sigma; a condition that is
            missing, not asked for, not finite or of another class count.

    Source: SDABN's released code: in blocks 32/8/4 where the original (gray, TensorFlow) has
        24/6/3, a stem of 8, 8, 8, 8 where it has 8, 8, 6, 6. Kaiming weights, zero biases, last
        convolution N(0, 0.001), SFT by PyTorch's default.
    """

    def __init__(
        self, channels: int = 3, condition_channels: int | None = None, *, blocks: int = 8, identity: bool = False
    ) -> None:
        super().__init__()
        if channels < 1 or blocks < 1 or (condition_channels is not None and condition_channels < 1):
            raise InputError(
                f"DDFN: channels {channels}, condition_channels {condition_channels}, blocks {blocks};"
                " need at least 1 (condition_channels may be None: no condition)"
            )
        self.config = {
            "channels": channels, "condition_channels": condition_channels, "blocks": blocks, "identity": identity,
        }  # fmt: skip
        self.condition_channels = condition_channels
        self.info = DenoiserInfo(channels=channels, receptive_field=6 * blocks + 7)

        widths = [STEM + GROWTH * i for i in range(blocks + 1)]
        self.stem = _Stem(channels)
        self.blocks = nn.ModuleList(_Fusion(width, None) for width in widths[:-1])
        self.reconstruct = nn.Conv2d(widths[-1], channels, 1, bias=False)
        self._init_weights()

        self.encoder: ConditionEncoder | None = None
        self.sft: SFTLayer | None = None
        if condition_channels is not None:
            self.encoder = ConditionEncoder(condition_channels, CONDITION)
            for width, block in zip(widths[:-1], self.blocks, strict=True):
                block.sft = SFTLayer(width, CONDITION, identity=identity)
            self.sft = SFTLayer(widths[-1], CONDITION, identity=identity)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.reconstruct.weight, 0.0, 0.001)

    def forward(self, noisy: Tensor, sigma: Sigma | None = None, condition: Tensor | None = None) -> Tensor:
        check_images(noisy, channels=self.info.channels, where="DDFN")
        no_sigma(sigma, "DDFN")
        shared: Tensor | None = None
        if self.encoder is not None:
            condition = check_condition(condition, self.encoder.num_classes, noisy.shape[0], where="DDFN")
            shared = self.encoder(condition, (noisy.shape[-2], noisy.shape[-1]))  # (B, 16, H, W)
        elif condition is not None:
            raise InputError(
                f"DDFN: built without a condition, but one was given; build it with condition_channels={condition.shape[1]}"
            )
        features = self.stem(noisy)
        for block in self.blocks:
            features = block(features, shared)
        if self.sft is not None and shared is not None:
            features = self.sft(features, shared)
        return self.reconstruct(features)
