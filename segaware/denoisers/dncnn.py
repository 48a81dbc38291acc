"""DnCNN (Zhang et al., "Beyond a Gaussian Denoiser", TIP 2017), in the blind colour form CDnCNN-B
that U-SAID (Wang et al., IJCNN 2020) trains: 20 layers, 64 channels, no bias on any convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segaware.checks import check_images, no_sigma
from segaware.contracts import DenoiserInfo, Sigma
from segaware.errors import InputError
from segaware.pretrained import Pretrained

__all__ = ["DnCNN"]


class DnCNN(nn.Module, Pretrained):
    """Predict the noise with a plain stack of convolutions and take it away.

    Conv-ReLU, then (depth - 2) x Conv-BN-ReLU, then Conv; all 3 x 3, zero padded, without bias.
    669,312 parameters in the default form. Blind: it is told no noise level.

    Args:
        channels: image channels (3 colour, 1 gray, any number of bands).
        depth: number of convolutions, at least 2. The receptive field is 2 * depth + 1.
        width: channels inside.
        bias: give the first and the last convolution, which no normalisation follows, a bias. For
            weights trained so by others; a bias of the inner ones is in their normalisation.

    Shape: ``(B, channels, H, W)`` in [0, 1] plus noise -> same, the clean estimate, not clamped;
        any H, W from 1 x 1.

    Raises:
        InputError: another number of channels, an integer tensor, or a sigma.

    Source: DnCNN sec. III; layer table and initialisation as released with U-SAID. The release
        returns the noise and leaves the subtraction to the caller; here the module subtracts.
    """

    def __init__(self, channels: int = 3, depth: int = 20, width: int = 64, *, bias: bool = False) -> None:
        super().__init__()
        if channels < 1 or depth < 2 or width < 1:
            raise InputError(f"DnCNN: channels {channels}, depth {depth}, width {width}; need at least 1, 2 and 1")
        self.config = {"channels": channels, "depth": depth, "width": width, **({"bias": True} if bias else {})}
        self.info = DenoiserInfo(channels=channels, receptive_field=2 * depth + 1)

        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=bias), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(width, channels, 3, padding=1, bias=bias))
        self.body = nn.Sequential(*layers)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.body:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                # N(0, 2 / (9 * 64)) clipped to +-0.025, as released: half of the scales start negative.
                nn.init.normal_(module.weight, 0.0, (2.0 / (9.0 * 64.0)) ** 0.5)
                with torch.no_grad():
                    module.weight.clamp_(-0.025, 0.025)

    def forward(self, noisy: Tensor, sigma: Sigma | None = None) -> Tensor:
        check_images(noisy, channels=self.info.channels, where="DnCNN")
        no_sigma(sigma, "DnCNN")
        return noisy - self.body(noisy)
