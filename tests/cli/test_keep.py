"""``segaware denoise --keep``."""

import numpy as np
from click.testing import CliRunner

import segaware
from segaware import image_io
from segaware.cli.main import main
from segaware.image_io import Image


def test_a_share_of_the_noise_is_given_back(shipped, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    source = image_io.write(tmp_path / "a.png", Image(pixels))

    def run(*options):
        return CliRunner().invoke(main, ["denoise", str(source), "-o", str(tmp_path / "b.png"), "--overwrite", *options])

    assert run("--keep", "0.25").exit_code == 0
    kept = image_io.read(tmp_path / "b.png").pixels
    assert np.array_equal(kept, segaware.denoise(source, "segaware-blind", keep=0.25).pixels)
    assert not np.array_equal(kept, segaware.denoise(source, "segaware-blind").pixels)
    for bad in ("1", "-0.1", "nan", "people"):
        refused = run("--keep", bad)
        assert refused.exit_code == 2 and "0.03" in refused.stderr
    refused = run("--keep", "machine")
    assert refused.exit_code == 2 and "states no shares" in refused.stderr and "Traceback" not in refused.stderr
