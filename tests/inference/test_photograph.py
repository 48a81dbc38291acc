"""A 24-megapixel photograph from file to file, in less than 2 GiB."""

import subprocess
import sys

import numpy as np
import pytest
from peak_memory import DEFINE_PEAK

from segaware import DnCNN, image_io
from segaware.entries import write_entry

pytest.importorskip("resource")  # not on Windows


@pytest.mark.slow
@pytest.mark.parametrize("width", [8, 64], ids=["tiny", "layers as wide as DnCNN's"])
def test_memory_of_a_large_photograph(tmp_path, width):
    write_entry(tmp_path / "model", DnCNN(depth=3, width=width))
    rows, columns = np.mgrid[0:4000, 0:6000]
    pixels = np.stack([rows // 16, columns // 24, (rows * columns) % 251], axis=2).astype(np.uint8)
    image_io.write(tmp_path / "photo.jpg", image_io.Image(pixels))
    code = f"""{DEFINE_PEAK}
from segaware.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(peak())
"""
    arguments = [
        "denoise",
        tmp_path / "photo.jpg",
        "-o",
        tmp_path / "clean.jpg",
        "-m",
        tmp_path / "model",
        "--device",
        "cpu",
    ]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    peak = int(result.stdout.split()[-1]) / 2**20
    assert peak < 2, f"{peak:.2f} GiB"
    assert image_io.read(tmp_path / "clean.jpg").pixels.shape == (4000, 6000, 3)
