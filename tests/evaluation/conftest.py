"""Small sets of images, tiny denoisers and a judge that a test can predict."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segaware.contracts import DenoiserInfo


def picture(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    """Smooth random colours with an edge."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / 40.0
    planes = [128 + 90 * np.sin(random.uniform(1, 4) * rows + random.uniform(1, 4) * columns + k) for k in range(3)]
    image = np.stack(planes, axis=2)
    image[:, width // 2 :] += 30
    return image.clip(0, 255).astype(np.uint8)


class Shrink(nn.Module):
    """Draws each pixel to the mean of its 3 x 3 neighbours by a share: a denoiser with one number for weights."""

    def __init__(self, share: float = 0.8, takes_sigma: bool = False) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))
        self.info = DenoiserInfo(channels=None, takes_sigma=takes_sigma, receptive_field=3)
        self.told: list[float] = []

    def forward(self, noisy, sigma=None):
        if sigma is not None:
            self.told.append(float(torch.as_tensor(sigma).flatten()[0]))
        padded = nn.functional.pad(noisy, (1, 1, 1, 1), mode="replicate")
        return noisy + self.share * (nn.functional.avg_pool2d(padded, 3, 1) - noisy)


class Thirds(nn.Module):
    """A judge of three classes: the brightest channel. Stride 4, as the shipped one."""

    num_classes, stride, class_names = 3, 4, ("red", "green", "blue")

    def forward(self, image):
        return nn.functional.avg_pool2d(image, 4, ceil_mode=True) * 10


@pytest.fixture
def folder(tmp_path):
    """Six colour images, two of them in a folder of their own."""
    root = tmp_path / "clean"
    (root / "more").mkdir(parents=True)
    for index in range(6):
        where = root / "more" if index > 3 else root
        Image.fromarray(picture(index)).save(where / f"im{index}.png")
    return root


@pytest.fixture
def labelled(tmp_path):
    """Five frames in SegNet's layout with labels of three classes, 255 in one corner."""
    root = tmp_path / "set"
    (root / "val").mkdir(parents=True)
    (root / "valannot").mkdir()
    for index in range(5):
        pixels = picture(10 + index)
        labels = pixels.argmax(2).astype(np.uint8)
        labels[:4, :4] = 255
        Image.fromarray(pixels).save(root / "val" / f"f{index}.png")
        Image.fromarray(labels).save(root / "valannot" / f"f{index}.png")
    return root


@pytest.fixture
def shrink():
    return Shrink


@pytest.fixture
def thirds():
    return Thirds()
