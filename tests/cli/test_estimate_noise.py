import json

import numpy as np
import pytest
from click.testing import CliRunner

from segaware import image_io
from segaware.cli.main import main
from segaware.image_io import Image


@pytest.fixture
def noisy(tmp_path):
    noise = np.random.default_rng(0).normal(120, 20, (64, 64, 3))
    return image_io.write(tmp_path / "noisy.png", Image(noise.clip(0, 255).round().astype(np.uint8)))


@pytest.fixture
def flat(tmp_path):
    return image_io.write(tmp_path / "flat.png", Image(np.full((64, 64, 3), 120, np.uint8)))


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_levels_in_eight_bit_units(noisy, flat):
    result = run("estimate-noise", noisy, flat)
    first, second = result.stdout.splitlines()
    assert result.exit_code == 0 and second == f"{flat}: 0.0 (looks clean)"
    assert 19 < float(first.removeprefix(f"{noisy}: ")) < 21


def test_json_and_failures(noisy, tmp_path):
    result = run("estimate-noise", noisy, tmp_path / "none.png", "--json", "--method", "wavelet")
    (record,) = json.loads(result.stdout)
    assert result.exit_code == 1 and "1 of 2 images failed" in result.stderr
    assert record["looks_clean"] is False and 19 < record["sigma"] < 21


def test_sigma_auto(noisy, flat, shipped, tmp_path):
    result = run("denoise", noisy, "-o", tmp_path / "out.png", "-m", "ffdnet", "--sigma", "auto", "--json")
    (record,) = json.loads(result.stdout)["files"]
    assert record["status"] == "done" and 19 < record["sigma"] < 21
    result = run("denoise", flat, "-o", tmp_path / "out2.png", "-m", "ffdnet", "--sigma", "auto")
    assert result.exit_code == 0 and "noise level 0.0, which looks clean" in result.stderr


@pytest.mark.parametrize(("model", "sigma", "words"), [("segaware-blind", "auto", "blind"), ("ffdnet", "much", "nor auto")])
def test_refused(noisy, shipped, tmp_path, model, sigma, words):
    result = run("denoise", noisy, "-o", tmp_path / "out.png", "-m", model, "--sigma", sigma)
    assert result.exit_code == 2 and words in result.stderr and not (tmp_path / "out.png").exists()
