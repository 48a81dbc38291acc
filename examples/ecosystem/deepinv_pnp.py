"""A segaware denoiser as a deepinv denoiser, ``(x, sigma)``, in its plug-and-play loop: inpainting.

    python examples/ecosystem/deepinv_pnp.py --model ffdnet --iterations 40

Half of the pixels of a generated image are missing; prints PSNR before and after. The loop steers
by sigma: take a model that is told the noise level, a blind one repairs little. Needs: pip install deepinv
"""

import argparse

import deepinv
import torch
from torch import Tensor

import segaware
from segaware.metrics import psnr


class ForDeepinv(deepinv.models.Denoiser):
    """deepinv tells every denoiser the noise level; a blind one finds it by itself."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: float | Tensor | None = None, **_: object) -> Tensor:
        if not self.denoiser.info.takes_sigma:
            return self.denoiser(x)
        return self.denoiser(x, sigma)


def picture(side: int = 64) -> Tensor:
    """(1, 3, side, side) in [0, 1]: smooth shades and an edge."""
    line = torch.linspace(0, 1, side)
    shades = torch.stack([line[:, None].expand(-1, side), line.expand(side, -1), (line[:, None] + line) / 2])
    shades[:, side // 4 : side // 2, side // 4 : side // 2] = torch.tensor([0.9, 0.2, 0.1])[:, None, None]
    return shades[None]


def main(model: str, iterations: int) -> tuple[float, float]:
    torch.manual_seed(0)
    clean = picture()
    physics = deepinv.physics.Inpainting(
        img_size=clean.shape[1:], mask=0.5, noise_model=deepinv.physics.GaussianNoise(0.02)
    )
    measured = physics(clean)
    denoiser = ForDeepinv(segaware.from_pretrained(model))
    solver = deepinv.optim.PGD(
        prior=deepinv.optim.prior.PnP(denoiser=denoiser),
        data_fidelity=deepinv.optim.data_fidelity.L2(),
        stepsize=1.0,
        sigma_denoiser=0.15,
        max_iter=iterations,
        early_stop=False,
    )
    with torch.no_grad():
        restored = solver(measured, physics)
    before, after = float(psnr(measured, clean)), float(psnr(restored, clean))
    print(f"PSNR {before:.2f} dB measured, {after:.2f} dB restored")
    return before, after


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="ffdnet")
    arguments.add_argument("--iterations", type=int, default=40)
    main(**vars(arguments.parse_args()))
