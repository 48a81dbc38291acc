import pytest
import torch
from denoisers.tester import DenoiserTester
from torch import nn

from segaware import DnCNN


class TestDnCNN(DenoiserTester):
    cls = DnCNN
    small = {"depth": 4, "width": 8}
    variants = [{"channels": 1}, {"depth": 2}, {"width": 1, "channels": 5}, {"bias": True}]
    reach = [{"depth": 2, "width": 2}, {"depth": 5, "width": 2}, {"depth": 20, "width": 2}]
    counts = [({}, 669_312), ({"channels": 1}, 667_008), ({"depth": 17}, 558_336)]
    refused = [{"channels": 0}, {"depth": 1}, {"width": 0}]


def test_no_convolution_has_a_bias():
    convolutions = [m for m in DnCNN().modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 20
    assert all(m.bias is None and m.padding == (1, 1) and m.kernel_size == (3, 3) for m in convolutions)


def test_batch_normalisation_sits_in_the_middle_layers():
    kinds = [type(m).__name__ for m in DnCNN().body]
    assert kinds == ["Conv2d", "ReLU", *["Conv2d", "BatchNorm2d", "ReLU"] * 18, "Conv2d"]


def test_initialisation_is_the_released_one():
    body = DnCNN().body
    weights = torch.cat([m.weight.flatten() for m in body if isinstance(m, nn.Conv2d) and m.in_channels == 64]).detach()
    assert float(weights.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.01)  # Kaiming, fan in
    scales = torch.cat([m.weight for m in body if isinstance(m, nn.BatchNorm2d)]).detach()
    assert float(scales.abs().max()) == pytest.approx(0.025)
    assert 0.4 < float((scales < 0).float().mean()) < 0.6
    # P(|N(0, 0.0589)| > 0.025) = 0.671 of them sit at the clip
    assert float((scales.abs() > 0.02499).float().mean()) == pytest.approx(0.671, abs=0.05)
    assert all(not m.bias.any() for m in body if isinstance(m, nn.BatchNorm2d))


def test_it_returns_the_clean_estimate():
    """The body predicts noise: with a body that is silent the image comes back as it was."""
    model = DnCNN(depth=3, width=4).eval()
    nn.init.zeros_(model.body[-1].weight)
    noisy = torch.rand(1, 3, 8, 8) * 3 - 1
    assert torch.equal(model(noisy), noisy)
