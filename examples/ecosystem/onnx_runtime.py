"""Denoise without torch: export once, then run the file in ONNX Runtime on NumPy arrays.

    python examples/ecosystem/onnx_runtime.py --model ffdnet --sigma 25

Exports with open batch and size, denoises a generated image, prints how far it is from torch's
result. Needs: pip install "segaware[onnx]"
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import segaware
from segaware.export import export_onnx


class Denoiser:
    """What a program without torch needs: NumPy and this."""

    def __init__(self, file: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.takes_sigma = "sigma" in {entry.name for entry in self.session.get_inputs()}

    def __call__(self, image: np.ndarray, sigma: float | None = None) -> np.ndarray:
        """``(H, W, 3)`` uint8 -> the same; ``sigma`` in 8-bit units."""
        inputs = {"noisy": image.astype(np.float32).transpose(2, 0, 1)[None] / 255}
        if self.takes_sigma:
            inputs["sigma"] = np.array([sigma / 255], np.float32)
        (clean,) = self.session.run(["clean"], inputs)
        return (clean[0].transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8)


def main(model: str, sigma: float) -> int:
    network = segaware.from_pretrained(model)
    level = sigma if network.info.takes_sigma else None
    random = np.random.default_rng(0)
    clean = np.kron(random.uniform(60, 190, (6, 9, 3)), np.ones((8, 9, 1)))  # 48 x 81
    noisy = (clean + sigma * random.standard_normal(clean.shape)).clip(0, 255).round().astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "denoiser.onnx"
        export_onnx(network, file, dynamic=True)
        print(f"{file.name}: {file.stat().st_size / 2**20:.1f} MiB")
        result = Denoiser(file)(noisy, level)
    with torch.no_grad():
        expected = segaware.denoise(noisy, network, sigma=None if level is None else level / 255)
    difference = int(np.abs(result.astype(int) - expected.astype(int)).max())
    print(f"largest difference to torch: {difference} of 255")
    return difference


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="ffdnet")
    arguments.add_argument("--sigma", type=float, default=25.0)
    main(**vars(arguments.parse_args()))
