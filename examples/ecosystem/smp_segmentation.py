"""Train a segmenter of segmentation_models_pytorch on denoised input: one transform in the data set.

    python examples/ecosystem/smp_segmentation.py --steps 40

Generated noisy images of discs with their masks; the data loader denoises, its masks pass untouched.
Prints the loss and the mean IoU on images that took no part. Needs nothing beyond segaware.
"""

import argparse

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from segaware import Denoise
from segaware.task_metrics import confusion_matrix, mean_iou, predict_labels


class Discs(Dataset):
    """A bright disc on a dark ground, sigma 50, and its mask."""

    def __init__(self, count: int, transform: v2.Transform, seed: int = 0) -> None:
        self.count, self.transform, self.seed = count, transform, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(1000 * self.seed + index)
        centre = 20 + 24 * torch.rand(2, generator=draw)
        rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        mask = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 14**2).long()
        image = 0.35 + 0.25 * mask.expand(3, -1, -1) + 50 / 255 * torch.randn(3, 64, 64, generator=draw)
        return self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))


def main(model: str, steps: int, workers: int = 0) -> tuple[list[float], float]:
    torch.manual_seed(0)
    transform = v2.Compose([Denoise(model), v2.RandomHorizontalFlip()])
    network = smp.Unet("resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(64, 32, 16), classes=2)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    loader = DataLoader(Discs(4 * steps, transform), batch_size=4, num_workers=workers)
    losses = []
    for image, mask in loader:
        loss = torch.nn.functional.cross_entropy(network(image), mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    network.eval()
    with torch.no_grad():
        images, masks = next(iter(DataLoader(Discs(8, Denoise(model), seed=1), batch_size=8)))
        score = float(mean_iou(confusion_matrix(predict_labels(network(images)), masks, 2).sum(0)))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, mean IoU {score:.3f}")
    return losses, score


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="segaware-blind")
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--workers", type=int, default=0)
    main(**vars(arguments.parse_args()))
