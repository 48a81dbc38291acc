"""FFDNet (Zhang, Zuo, Zhang, "FFDNet: Toward a Fast and Flexible Solution for CNN-Based Image
Denoising", TIP 2018), colour form: 12 convolutions of 96 channels at half resolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaware.checks import check_images, sigma_map
from segaware.contracts import DenoiserInfo, Sigma
from segaware.errors import InputError
from segaware.layers.sizes import crop, multiple_of, pad_edges
from segaware.pretrained import Pretrained

__all__ = ["FFDNet"]


class FFDNet(nn.Module, Pretrained):
    """Denoise at a noise level that is told, on pixels folded 2 x 2 into channels.

    The image is unshuffled to half resolution and four times the channels, a noise-level map is
    appended, twelve 3 x 3 convolutions with bias and ReLU follow, and the result is shuffled
    back. No batch normalisation, no skip. 852,108 parameters in the default form.

    Args:
        channels: image channels.
        depth: number of convolutions, at least 2. The receptive field is 4 * depth + 2.
        width: channels inside.

    Shape: ``(B, channels, H, W)`` in [0, 1] plus noise, and ``sigma`` on the [0, 1] scale as float,
        ``(B,)`` or ``(B, 1, H, W)`` -> the clean estimate, same shape, not clamped; any H, W
        from 1 x 1 (odd sides are padded by one replicated row or column inside).

    Raises:
        InputError: another number of channels, an integer tensor, no sigma, or one over 1.

    Source: FFDNet sec. III; 96 channels and 12 layers for colour (sec. IV-A). Released weights of
        the authors have batch normalisation merged, which is this form. A map of sigma is taken
        at every second pixel, as the map of a constant level would be. The initialisation is ours.
    """

    def __init__(self, channels: int = 3, depth: int = 12, width: int = 96) -> None:
        super().__init__()
        if channels < 1 or depth < 2 or width < 1:
            raise InputError(f"FFDNet: channels {channels}, depth {depth}, width {width}; need at least 1, 2 and 1")
        self.config = {"channels": channels, "depth": depth, "width": width}
        self.info = DenoiserInfo(channels=channels, takes_sigma=True, size_multiple=2, receptive_field=4 * depth + 2)

        layers: list[nn.Module] = [nn.Conv2d(4 * channels + 1, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(width, 4 * channels, 3, padding=1))
        self.body = nn.Sequential(*layers)
        self._carried = min(4 * channels, width)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        # A plain stack without skips learns slowly from random weights, for it must first learn to
        # pass the image on. So it starts as the identity: the folded pixels ride on the first
        # channels, lifted by 1 to survive the ReLUs, and the other channels start as random rotations.
        convs = [module for module in self.body if isinstance(module, nn.Conv2d)]
        carried = self._carried
        for i, conv in enumerate(convs):
            bias = conv.bias
            assert bias is not None
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(bias)
            centre = conv.weight[:, :, 1, 1]
            nn.init.orthogonal_(centre, gain=2.0**0.5)
            last = i == len(convs) - 1
            if last:
                centre.mul_(0.05)
                centre[:, :carried] = 0
            else:
                centre[:carried] = 0
            centre[range(carried), range(carried)] = 1
            if i == 0 or last:
                bias[:carried] = -1 if last else 1

    def hold_identity(self) -> None:
        """From now on training leaves the channels that carry the image as they are.

        The other channels then learn the noise alone, as in a network with a skip from input to
        output, and much faster: every step on the carrying weights would disturb the image itself.
        The network stays a plain FFDNet; what is given up is an eighth of its width. Works on
        gradients, so use it without weight decay, on a fresh network or one trained so.
        """
        convs = [module for module in self.body if isinstance(module, nn.Conv2d)]
        for conv in convs:
            lanes = (slice(None), slice(self._carried)) if conv is convs[-1] else slice(self._carried)
            for parameter in (conv.weight,) if conv is convs[-1] else (conv.weight, conv.bias):
                assert parameter is not None
                parameter.register_hook(lambda gradient, lanes=lanes: _zeroed(gradient, lanes))

    def forward(self, noisy: Tensor, sigma: Sigma | None = None) -> Tensor:
        check_images(noisy, channels=self.info.channels, where="FFDNet")
        level = sigma_map(sigma, noisy, where="FFDNet")
        height, width = noisy.shape[2:]
        padded = pad_edges(noisy, multiple_of(height, 2), multiple_of(width, 2))
        folded = F.pixel_unshuffle(padded, 2)  # (B, 4C, H/2, W/2)
        level = level[:, :, ::2, ::2].expand(-1, -1, folded.shape[2], folded.shape[3])
        clean = F.pixel_shuffle(self.body(torch.cat([folded, level.to(folded)], dim=1)), 2)
        return crop(clean, height, width)


def _zeroed(gradient: Tensor, lanes: slice | tuple[slice, slice]) -> Tensor:
    gradient = gradient.clone()
    gradient[lanes] = 0
    return gradient
