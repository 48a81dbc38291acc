"""Write the sample photographs of the README, clean and noisy.

    python docs/make_sample.py            (scikit-image comes with the extra "test")

The picture before | after is made from them by

    segaware denoise docs/images/sample-noisy.png -o out/sample-denoised.png --overwrite \\
        --compare docs/images/sample-compare.jpg

The photograph is "Chelsea the cat" by Stefan van der Walt, CC0, as scikit-image ships it. The noisy
one is the clean one plus Gaussian noise of sigma 25 (of 255) drawn with seed 0, clipped and rounded
to 8 bits because a file must be. Clipping is a small departure from the noise that the shipped
weights know; figures in papers, and ours, are measured on noise that is not clipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data

from segaware.noise import add_gaussian

FOLDER = Path(__file__).parent / "images"
SIGMA = 25  # of 255
SEED = 0


def main() -> None:
    photo = data.chelsea()  # (300, 451, 3) uint8
    clean = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    noisy = add_gaussian(clean, SIGMA / 255, generator=torch.Generator().manual_seed(SEED))
    pixels = (noisy.clamp(0, 1) * 255).round().byte()[0].permute(1, 2, 0).numpy()
    FOLDER.mkdir(exist_ok=True)
    for name, array in (("clean", photo), ("noisy", pixels)):
        Image.fromarray(array).save(FOLDER / f"sample-{name}.png", optimize=True)
    error = np.mean((photo.astype(np.float64) - pixels) ** 2)
    print(f"PSNR of the noisy file: {10 * np.log10(255**2 / error):.2f} dB")


if __name__ == "__main__":
    main()
