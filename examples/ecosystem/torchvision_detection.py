"""Put a denoiser in front of a detector of torchvision; the detector is not touched.

    python examples/ecosystem/torchvision_detection.py --steps 30

Trains a small Faster R-CNN from nothing on noisy images of one bright box, denoised on the way in,
then detects. Images may differ in size. Prints the loss and the best box. Needs nothing beyond segaware.
"""

import argparse

import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from segaware import Denoise


class DenoisedDetector(nn.Module):
    """Called as the detector is: a list of images in [0, 1], and targets while training."""

    def __init__(self, detector: nn.Module, model: str = "segaware-blind", sigma: float | str | None = None) -> None:
        super().__init__()
        self.detector = detector
        self.denoise = Denoise(model, sigma=sigma)  # without parameters and without gradient

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None):
        return self.detector([self.denoise(image).clamp(0, 1) for image in images], targets)


def sample(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A bright box on a dark ground, sigma 35, and where it is."""
    draw = torch.Generator().manual_seed(seed)
    left, top, width, height = (int(n) for n in torch.randint(20, 40, (4,), generator=draw))
    image = torch.full((3, 96, 112), 0.25)
    image[:, top : top + height, left : left + width] = torch.tensor([0.8, 0.6, 0.3])[:, None, None]
    noisy = image + 35 / 255 * torch.randn(image.shape, generator=draw)
    box = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
    return noisy, {"boxes": box, "labels": torch.ones(1, dtype=torch.int64)}


def main(model: str, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    torch.manual_seed(0)
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=96, max_size=128
    )
    network = DenoisedDetector(detector, model)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        images, targets = zip(*(sample(2 * step + i) for i in range(2)), strict=True)
        loss = sum(network(list(images), list(targets)).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    network.eval()
    with torch.no_grad():
        (found,) = network([sample(10_000)[0]])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, {len(found['boxes'])} boxes, the best {found['boxes'][:1].round().tolist()}")
    return losses, found


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="segaware-blind")
    arguments.add_argument("--steps", type=int, default=30)
    main(**vars(arguments.parse_args()))
