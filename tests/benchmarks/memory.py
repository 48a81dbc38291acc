"""Peak memory of ``segaware denoise`` from file to file, for pictures of many megapixels.

    python tests/benchmarks/memory.py                                 # 24 and 100 megapixels, the default model
    python tests/benchmarks/memory.py --tiny --megapixels 100         # everything but the network: two narrow layers
    python tests/benchmarks/memory.py --model liu-blind --kinds tif16 --megapixels 24

Each picture is made row by row, each run is a process of its own. Printed are seconds and the most
memory that was resident.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from segaware import DnCNN, image_io
from segaware.entries import write_entry

sys.path.insert(0, str(Path(__file__).parents[1]))
from peak_memory import DEFINE_PEAK

KINDS = {
    "png8": ("png", np.uint8), "png16": ("png", np.uint16), "tif8": ("tif", np.uint8), "tif16": ("tif", np.uint16),
    "tif32": ("tif", np.float32), "jpg": ("jpg", np.uint8), "webp": ("webp", np.uint8),
}  # fmt: skip
CODE = f"""{DEFINE_PEAK}
from segaware.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(peak())
"""


def make(path: Path, megapixels: float, dtype: type) -> None:
    """A noisy picture of 4 to 3."""
    height = round(math.sqrt(megapixels * 1e6 * 3 / 4))
    width = round(megapixels * 1e6 / height)
    rng = np.random.default_rng(0)
    top = 1.0 if np.dtype(dtype).kind == "f" else float(np.iinfo(dtype).max)
    slope = np.linspace(0.2, 0.8, width, dtype=np.float32)[:, None]
    noise = rng.normal(0, 25 / 255, (64, width, 3)).astype(np.float32)
    head = image_io.Head(height, width, 3, dtype=np.dtype(dtype))
    with image_io.Target(path, head) as target:
        for start in range(0, height, 64):
            rows = (slope + np.roll(noise, start, axis=1)).clip(0, 1) * top
            target.write(rows[: height - start].astype(dtype))


def measure(source: Path, target: Path, model: str) -> tuple[float, float]:
    """Seconds and GiB."""
    start = time.monotonic()
    arguments = ["denoise", source, "-o", target, "-m", model, "--device", "cpu", "--overwrite"]
    done = subprocess.run([sys.executable, "-c", CODE, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{source}: failed with {done.returncode}")
    return time.monotonic() - start, int(done.stdout.split()[-1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[24, 100])
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=["png8", "png16", "tif16", "jpg"])
    parser.add_argument("--model", default="dncnn-blind")
    parser.add_argument("--tiny", action="store_true", help="a network of two narrow layers instead of --model")
    options = parser.parse_args()
    print("| picture | megapixels | seconds | GiB resident at most |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        model = str(write_entry(here / "tiny", DnCNN(depth=2, width=4))) if options.tiny else options.model
        for megapixels in options.megapixels:
            for kind in options.kinds:
                ending, dtype = KINDS[kind]
                source, target = here / f"a.{ending}", here / f"b.{ending}"
                make(source, megapixels, dtype)
                seconds, peak = measure(source, target, model)
                print(f"| {kind} | {megapixels:g} | {seconds:.0f} | {peak:.2f} |", flush=True)
                source.unlink(), target.unlink()


if __name__ == "__main__":
    main()
