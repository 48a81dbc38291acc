"""SFT put into a network that knows nothing of it."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

import segaware
from segaware.errors import InputError

SCRIPT = Path(__file__).parents[2] / "examples" / "sft_in_unet.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("sft_in_unet", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_starts_as_the_network_it_was_put_into(example):
    plain = example.UNet(4)
    noisy = torch.rand(2, 3, 12, 16)
    before = plain(noisy)
    steered = example.Steered(plain, {"enter": 4, "middle": 8}, num_classes=5)
    assert torch.equal(steered(noisy, condition=torch.randn(2, 5, 3, 4)), before)
    assert steered.shared is None
    with pytest.raises(InputError, match="Steered.*condition_channels=4"):
        steered(noisy, condition=torch.randn(2, 4, 3, 4))


def test_it_learns_to_listen(example):
    block, errors = example.main(steps=25)
    assert sum(errors[-5:]) < 0.7 * sum(errors[:5])
    layers = block.denoiser.sft
    assert all(layer.scale[2].weight.any() and layer.shift[2].weight.any() for layer in layers)
    noisy = torch.rand(1, 3, 16, 16)
    condition = torch.randn(1, 3, 4, 4)
    assert not torch.equal(block.denoiser(noisy, condition=condition), block.denoiser(noisy, condition=-condition))


def test_a_copy_is_steered_by_its_own_condition(example):
    """The library denoises with copies: hooks that point at the original would find no condition there."""
    block, _ = example.main(steps=2)
    image = torch.rand(3, 16, 16)
    assert torch.allclose(segaware.denoise(image, block), block.eval()(image[None])[0], atol=1e-5)
    twin = copy.deepcopy(block)
    with torch.no_grad():
        for layer in twin.denoiser.sft:
            layer.shift[2].weight.fill_(1.0)
    assert not torch.allclose(twin(image[None]), block(image[None]))
