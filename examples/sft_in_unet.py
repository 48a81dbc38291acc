"""Make somebody else's network listen to a segmenter: SFT layers in a small U-Net, which stays as it is.

    python examples/sft_in_unet.py

Hooks put an SFTLayer behind the convolutions of your choice. They start as the identity, so a trained
network keeps its quality, and learns from there. What comes out is a denoiser that takes a condition,
ready for SDB. The script trains one for a few steps on a synthetic picture and prints its error.
"""

import torch
from torch import nn

from segaware import SDB, ConditionEncoder, SFTLayer
from segaware.contracts import DenoiserInfo
from segaware.layers.sft import check_condition


class UNet(nn.Module):
    """Somebody else's network: nothing in it knows of segmentation."""

    def __init__(self, width=16):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.leave = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, image):  # even sides
        fine = self.enter(image)
        coarse = self.up(self.middle(self.down(fine)))
        return image - self.leave(torch.cat([fine, coarse], dim=1))


class Steering:
    """A hook with its layer and condition as attributes: a copy of the network takes them along, a closure's it would not."""

    def __init__(self, owner, layer):
        self.owner, self.layer = owner, layer

    def __call__(self, _, inputs, features):
        return self.layer(features, self.owner.shared)


class Steered(nn.Module):
    """Any denoising network, with an SFTLayer behind each layer named in ``places`` (name: channels)."""

    def __init__(self, network, places, num_classes):
        super().__init__()
        self.network, self.condition_channels = network, num_classes
        self.info = DenoiserInfo(channels=3, size_multiple=2)
        self.encoder = ConditionEncoder(num_classes)
        self.sft = nn.ModuleList(SFTLayer(channels, 16, identity=True) for channels in places.values())
        self.shared = None
        for name, layer in zip(places, self.sft, strict=True):
            # each layer brings the condition to the size of its own features
            network.get_submodule(name).register_forward_hook(Steering(self, layer))

    def forward(self, noisy, sigma=None, condition=None):
        condition = check_condition(condition, self.condition_channels, len(noisy), where="Steered")
        self.shared = self.encoder(condition, noisy.shape[-2:])  # resized and encoded once
        try:
            return self.network(noisy)
        finally:
            self.shared = None  # do not keep it alive


class Brightness(nn.Module):
    """A stand-in for a trained segmenter: dark, middle or bright, at a quarter of the size."""

    num_classes, stride, class_names = 3, 4, ("dark", "middle", "bright")

    def forward(self, image):
        level = nn.functional.avg_pool2d(image.mean(1, keepdim=True), 4, ceil_mode=True)
        return -20 * (level - torch.tensor([0.2, 0.5, 0.8]).reshape(1, 3, 1, 1)).square()


def main(steps=60):
    torch.manual_seed(0)
    block = SDB(Brightness(), Steered(UNet(), {"enter": 16, "middle": 32}, num_classes=3))
    clean = torch.nn.functional.interpolate(torch.rand(4, 3, 5, 5), (40, 40))
    optimiser = torch.optim.Adam(block.parameters(), 2e-3)
    errors = []
    for step in range(steps):
        noisy = clean + 0.2 * torch.randn(clean.shape)
        loss = (block(noisy) - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: mean squared error {loss.item():.4f} (noisy: 0.0400)")
    return block, errors


if __name__ == "__main__":
    main()
