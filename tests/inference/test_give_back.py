"""Giving noise back: off by default, exact, by the model's own table, and refused with reasons."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segaware import DnCNN, FFDNet, denoise, image_io
from segaware.entries import load_entry, write_entry
from segaware.errors import InputError, ModelError, WeightsError
from segaware.inference.engine import Engine
from segaware.inference.give_back import shares
from segaware.inference.noise_level import estimate_noise

TABLE = ((15.0, 0.0), (25.0, 0.02), (50.0, 0.06))


@pytest.fixture
def net():
    return DnCNN(depth=3, width=4).eval()


def with_table(net):
    net.info = type(net.info)(**{**vars(net.info), "keep": TABLE})
    return net


def test_it_is_a_blend(net):
    noisy = torch.rand(2, 3, 20, 30)
    plain = denoise(noisy, net)
    assert torch.equal(denoise(noisy, net, keep=0), plain)
    torch.testing.assert_close(denoise(noisy, net, keep=0.25), plain + 0.25 * (noisy - plain))
    torch.testing.assert_close(denoise(noisy, net, keep=0.25, tile=8), denoise(noisy, net, keep=0.25), rtol=0, atol=1e-5)


def test_pictures_keep_too(net):
    noisy = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    plain = denoise(noisy / np.float32(255), net)
    kept = denoise(noisy, net, keep=0.5)  # gray through a colour network, rounded
    assert np.abs(kept - 255 * np.clip((plain + noisy / 255) / 2, 0, 1)).max() < 0.51


def test_shares_are_interpolated():
    level = torch.tensor([0.0, 15.0, 20.0, 25.0, 37.5, 50.0, 90.0]) / 255
    torch.testing.assert_close(shares(TABLE, level), torch.tensor([0.0, 0.0, 0.01, 0.02, 0.04, 0.06, 0.06]))
    torch.testing.assert_close(shares([(25.0, 0.03)], level), torch.full((7,), 0.03))


def test_machine_takes_the_table_at_the_told_level():
    net = with_table(FFDNet(depth=3, width=4).eval())
    noisy = torch.rand(2, 3, 16, 16)
    told = torch.tensor([25 / 255, 50 / 255])
    plain, kept = denoise(noisy, net, sigma=told), denoise(noisy, net, sigma=told, keep="machine")
    share = torch.tensor([0.02, 0.06]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(kept, plain + share * (noisy - plain))
    levels = torch.full((2, 1, 16, 16), 25 / 255)  # a map gives a map of shares
    levels[..., :8] = 50 / 255
    plain, kept = denoise(noisy, net, sigma=levels), denoise(noisy, net, sigma=levels, keep="machine", tile=8)
    share = torch.where(levels == levels[0, 0, 0, 0], 0.06, 0.02)
    torch.testing.assert_close(kept, plain + share * (noisy - plain), rtol=0, atol=1e-5)


def test_machine_estimates_for_blind_models(net):
    noisy = 0.5 + 30 / 255 * torch.randn(1, 3, 64, 64)
    share = shares(TABLE, estimate_noise(noisy))
    assert 0.02 < float(share) < 0.04
    plain, kept = denoise(noisy, net), denoise(noisy, with_table(net), keep="machine")
    torch.testing.assert_close(kept, plain + share * (noisy - plain))


def test_the_table_lies_in_the_config(tmp_path, net):
    write_entry(tmp_path / "m", net, {"keep": {"50": 0.06, "15": 0.0, "25": 0.02}})
    assert load_entry(tmp_path / "m").info.keep == TABLE
    assert Engine(tmp_path / "m", keep="machine").keep == "machine"
    config = json.loads((tmp_path / "m/config.json").read_text())
    for bad in ({"25": 1.5}, {"x": 0.1}, [0.1], {"300": 0.1}):
        (tmp_path / "m/config.json").write_text(json.dumps({**config, "keep": bad}))
        with pytest.raises(WeightsError, match='"keep"'):
            load_entry(tmp_path / "m")


def test_the_default_hands_clean_images_back_and_leaves_noisy_ones_alone():
    images = Path(__file__).parents[2] / "docs" / "images"
    clean, noisy = images / "sample-clean.png", images / "sample-noisy.png"
    error = np.mean((denoise(clean, keep="machine").pixels.astype(float) - image_io.read(clean).pixels) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 50
    assert np.array_equal(denoise(noisy, keep="machine").pixels, denoise(noisy).pixels)


def test_the_plain_one_gives_back_what_its_study_found():
    images = Path(__file__).parents[2] / "docs" / "images"
    clean, noisy = (torch.from_numpy(image_io.read(images / f"sample-{what}.png").pixels / np.float32(255)) for what in ("clean", "noisy"))
    clean, noisy = (image.permute(2, 0, 1) for image in (clean, noisy))
    handed = denoise(clean, "liu-blind", keep="machine")
    assert -10 * torch.log10((handed - clean).square().mean()) >= 50
    plain, kept = denoise(noisy, "liu-blind"), denoise(noisy, "liu-blind", keep="machine")
    share = ((kept - plain) * (noisy - plain)).sum() / (noisy - plain).square().sum()
    assert 0.03 < share < 0.041, "4 % at sigma 25; the level is estimated"
    torch.testing.assert_close(kept, plain + share * (noisy - plain))


def test_refusals(net):
    with pytest.raises(ModelError, match="states no shares"):
        denoise(torch.rand(3, 8, 8), net, keep="machine")
    for bad in (1, -0.1, float("nan"), "people", True):
        with pytest.raises(InputError, match="keep"):
            denoise(torch.rand(3, 8, 8), net, keep=bad)
