"""The multi-scale denoiser of Liu et al. ("When Image Denoising Meets High-Level Vision Tasks",
IJCAI 2018, and "Connecting Image Denoising and High-Level Vision Tasks via Deep Learning", TIP 2020).

The wiring is the released network's, which differs from the papers' text: the first convolution,
both transposed convolutions and the last one have neither batch normalisation nor ReLU. The
released network shrinks its image by six pixels and takes only sides that are multiples of four;
here it keeps every size (three pixels of padding outside, transposed outputs cropped to their skips).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.checks import check_images, no_sigma
from segaware.contracts import DenoiserInfo, Sigma
from segaware.errors import InputError
from segaware.layers.sizes import crop
from segaware.pretrained import Pretrained

__all__ = ["LiuDenoiser"]

#: Subtracted before and never added back (the skip carries it). The padding is zero after it: mean
#: colour, as in the release, whose three Caffe means (0.41, 0.46, 0.48) are one number here so that
#: gray and multi-band images are taken alike.
MEAN = 0.45


class _Module(nn.Module):
    """Conv-BN-ReLU, then a bottleneck residual block whose ReLU comes after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, momentum: float) -> None:
        super().__init__()
        inner = outputs // 4

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels, momentum=momentum)

        self.conv = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), norm(outputs), nn.ReLU(inplace=True)
        )
        self.residual = nn.Sequential(
            nn.Conv2d(outputs, inner, 1, bias=False), norm(inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False), norm(inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False), norm(outputs),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        features = self.conv(features)
        return F.relu(features + self.residual(features))


class LiuDenoiser(nn.Module, Pretrained):
    """Encode at halved scales, decode with skips, and add the result to the noisy image.

    1,033,443 parameters in the default form. Blind: it is told no noise level.

    Args:
        channels: image channels.
        scales: full resolution plus (scales - 1) halvings; 2, 3 or 4 in the paper's Table I.
        encoder_width: channels of the encoder at every halved scale (a multiple of 4).
        decoder_width: channels of the decoders, which sit at every halved scale but the coarsest.
        global_skip: add the noisy image to the output (Table I has both).
        momentum: of batch normalisation; the release's moving average is PyTorch's 0.001, and corrected for
            its start, which PyTorch's is not: after 1,000 steps over a third of every running variance is
            still the initial 1. Trainings so short need ``Recipe(fixed_norm_steps=...)``.
        mean: what is subtracted, by channel; None = 0.45 of each. For weights trained so by others.

    Shape: ``(B, channels, H, W)`` in [0, 1] plus noise -> same, the clean estimate, not clamped;
        any H, W from 1 x 1. Tiles must start at multiples of ``2 ** (scales - 1)``.

    Raises:
        InputError: scales below 2, widths that are no multiples of 4, wrong channels, or a sigma.

    Source: the released training net (biases 0.2 before the encoders' batch normalisation
        included). Table I's parameter counts cannot be reproduced by any wiring tried; ours give
        598,627 / 1,033,443 / 2,220,803 at three scales (paper: 592k / 1,026k / 2,198k).
    """

    mean: Tensor | None

    def __init__(
        self,
        channels: int = 3,
        scales: int = 3,
        encoder_width: int = 128,
        decoder_width: int = 256,
        global_skip: bool = True,
        momentum: float = 0.001,
        *,
        mean: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if scales < 2 or channels < 1:
            raise InputError(f"LiuDenoiser: {scales} scales, {channels} channels; need at least 2 scales and 1 channel")
        if mean is not None and len(mean) != channels:
            raise InputError(f"LiuDenoiser: {len(mean)} means for {channels} channels; give one a channel")
        if encoder_width < 4 or decoder_width < 4 or encoder_width % 4 or decoder_width % 4:
            raise InputError(f"LiuDenoiser: widths {encoder_width} and {decoder_width} must be positive multiples of 4")
        self.config = {
            "channels": channels, "scales": scales, "encoder_width": encoder_width,
            "decoder_width": decoder_width, "global_skip": global_skip, "momentum": momentum,
            **({} if mean is None else {"mean": list(mean)}),
        }  # fmt: skip
        levels = None if mean is None else torch.tensor([float(value) for value in mean]).reshape(1, channels, 1, 1)
        self.register_buffer("mean", levels, persistent=False)
        self.global_skip = global_skip
        self.info = DenoiserInfo(
            channels=channels, size_multiple=2 ** (scales - 1), receptive_field=12 * 2 ** (scales - 1) - 9
        )

        stem = 64
        self.stem = nn.Conv2d(channels, stem, 5)
        widths = [stem] + [encoder_width] * (scales - 1)
        self.encoders = nn.ModuleList(
            _Module(widths[i], widths[i + 1], stride=2, momentum=momentum) for i in range(scales - 1)
        )
        self.ups, self.decoders = nn.ModuleList(), nn.ModuleList()
        below = encoder_width
        for _ in range(scales - 2):  # from coarse to fine; a quarter of the channels goes up
            self.ups.append(nn.ConvTranspose2d(below, below // 4, 4, stride=2, padding=1))
            self.decoders.append(_Module(encoder_width + below // 4, decoder_width, stride=1, momentum=momentum))
            below = decoder_width
        self.ups.append(nn.ConvTranspose2d(below, below // 4, 4, stride=2, padding=1))
        self.output = nn.Conv2d(stem + below // 4, channels, 3)
        self._init_weights()

    def _init_weights(self) -> None:
        # Caffe's "xavier": uniform within sqrt(3 / fan_in), where fan_in is the size of a blob over
        # its first axis (for a transposed convolution: outputs * k * k). Biases 0.2, transposed 0.
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                bound = (3.0 / module.weight[0].numel()) ** 0.5
                nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    nn.init.constant_(module.bias, 0.0 if isinstance(module, nn.ConvTranspose2d) else 0.2)
        # Ours: the estimate starts small, so that the network starts near what the skip gives.
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)
        with torch.no_grad():
            self.output.weight.mul_(0.1)

    def forward(self, noisy: Tensor, sigma: Sigma | None = None) -> Tensor:
        check_images(noisy, channels=self.info.channels, where="LiuDenoiser")
        no_sigma(sigma, "LiuDenoiser")
        mean = MEAN if self.mean is None else self.mean
        features = self.stem(F.pad(noisy - mean, (3, 3, 3, 3)))  # (B, 64, H + 2, W + 2)
        skips = [features]
        for encoder in self.encoders:
            features = encoder(features)
            skips.append(features)
        skips.pop()
        for up, decoder in zip(self.ups[:-1], self.decoders, strict=True):
            features = decoder(_join(skips.pop(), up(features)))
        estimate = self.output(_join(skips.pop(), self.ups[-1](features)))  # (B, C, H, W)
        return noisy + estimate if self.global_skip else estimate + mean


def _join(skip: Tensor, raised: Tensor) -> Tensor:
    return torch.cat([skip, crop(raised, skip.shape[2], skip.shape[3])], dim=1)
