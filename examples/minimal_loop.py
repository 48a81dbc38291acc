"""The smallest aware training loop: a denoiser of your own, a folder of clean images, nothing else.

    python examples/minimal_loop.py FOLDER --steps 200

Prints the loss and its two terms; without FOLDER it trains on generated rectangles.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from segaware import SegAwareWrapper

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("folder", type=Path, nargs="?", help="clean images, 48 pixels a side at least")
arguments.add_argument("--steps", type=int, default=100)


class TinyDenoiser(nn.Module):
    """Any network from noisy images to clean ones will do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3, 3, padding=1))

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return noisy - self.body(noisy)


def read(file: Path) -> torch.Tensor:
    """(3, H, W) in [0, 1]"""
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) / 255


def patch(image: torch.Tensor, size: int = 48) -> torch.Tensor:
    top, left = (int(torch.randint(side - size + 1, ())) for side in image.shape[1:])
    return image[:, top : top + size, left : left + size]


def main(folder: Path | None, steps: int) -> nn.Module:
    torch.manual_seed(0)
    if folder and not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder")
    if folder:
        images = [read(f) for f in sorted(folder.iterdir()) if f.suffix.lower() in (".png", ".jpg", ".jpeg")]
    else:
        images = [torch.rand(3, 12, 12).repeat_interleave(8, 1).repeat_interleave(8, 2) for _ in range(8)]
    images = [image for image in images if min(image.shape[1:]) >= 48]
    if not images:
        raise SystemExit(f"{folder}: no PNG or JPEG images of 48 pixels a side at least")

    model = SegAwareWrapper(TinyDenoiser())  # fidelity + entropy of the segmenter that ships with segaware
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)  # the segmenter is not among them
    for step in range(1, steps + 1):
        clean = torch.stack([patch(images[int(torch.randint(len(images), ()))]) for _ in range(16)])
        noisy = clean + 25 / 255 * torch.randn_like(clean)
        output = model(noisy, clean=clean)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        if step % 20 == 0 or step == steps:
            terms = "  ".join(f"{name} {float(term.detach()):.3f}" for name, term in output.terms.items())
            print(f"step {step}  loss {float(output.loss.detach()):.3f}  {terms}")
    return model.denoiser


if __name__ == "__main__":
    main(**vars(arguments.parse_args()))
