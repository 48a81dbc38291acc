import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.tester import LossTester
from torch import nn

from segaware.errors import InputError, ModelError
from segaware.losses.consistency import ConsistencyLoss, consistency, feature_distance


class TestByPrediction(LossTester):
    needs = ("clean",)

    def build(self, network):
        return ConsistencyLoss(network, temperature=2.0)

    def test_zero_and_flat_at_the_clean_image(self, loss, clean):
        denoised = clean.clone().requires_grad_()
        value = loss(denoised, clean=clean)
        value.backward()
        assert value.abs() < 1e-6 and denoised.grad.abs().max() < 1e-6

    def test_it_is_the_function_with_its_temperature(self, segmenter, loss, noisy, clean):
        expected = consistency(segmenter(noisy), segmenter(clean), temperature=2.0)
        assert torch.equal(loss(noisy, clean=clean), expected)
        assert not torch.isclose(expected, consistency(segmenter(noisy), segmenter(clean)), rtol=1e-3)

    def test_a_constant_image_does_not_please_it(self, loss, clean):
        assert loss(clean.mean((2, 3), keepdim=True).expand_as(clean), clean=clean) > 1e-4

    def test_two_passes_and_no_more(self, loss, segmenter, noisy, clean):
        seen = []
        segmenter.register_forward_hook(lambda *args: seen.append(torch.is_grad_enabled()))
        loss(noisy, clean=clean)
        assert sorted(seen) == [False, True]

    def test_without_clean(self, loss, noisy):
        with pytest.raises(InputError, match="clean=..."):
            loss(noisy)


class TestByFeatures(LossTester):
    needs = ("clean",)

    def build(self, network):
        return ConsistencyLoss(features=_Levels(network) if isinstance(network, nn.Module) else 7)

    def test_no_module_is_refused(self):
        with pytest.raises(InputError, match="callable"):
            self.build(None)

    def test_value(self, loss, segmenter, noisy, clean):
        levels = zip(_Levels(segmenter)(noisy), _Levels(segmenter)(clean), strict=True)
        assert torch.isclose(loss(noisy, clean=clean), torch.stack([F.mse_loss(a, b) for a, b in levels]).mean())

    def test_a_method_is_frozen_with_its_owner(self, segmenter, noisy, clean):
        loss = ConsistencyLoss(features=segmenter.forward)
        assert not any(p.requires_grad for p in segmenter.parameters())
        segmenter.train()
        assert torch.equal(loss(noisy, clean=clean), loss(noisy, clean=clean))
        loss.double()
        assert segmenter.head.weight.dtype == torch.float64

    def test_a_plain_function(self, noisy, clean):
        loss = ConsistencyLoss(features=lambda image: F.avg_pool2d(image, 2))
        assert loss(noisy, clean=clean) > 0

    def test_what_is_no_feature(self, noisy, clean):
        with pytest.raises(ModelError, match="float tensor"):
            ConsistencyLoss(features=lambda image: {"out": image})(noisy, clean=clean)


class _Levels(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        stem = self.network.norm(self.network.stem(image))
        return [stem, self.network.head(torch.tanh(stem))]


def test_by_hand():
    clean, found = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert float(consistency(found.log(), clean.log())) == pytest.approx(expected, rel=1e-5)


def test_against_torch_with_temperature():
    found, clean = torch.randn(2, 6, 3, 4), torch.randn(2, 6, 3, 4)
    expected = F.kl_div((found / 3).log_softmax(1), (clean / 3).softmax(1), reduction="sum") / (2 * 3 * 4)
    assert torch.isclose(consistency(found, clean, temperature=3.0), expected, rtol=1e-5)


def test_the_clean_side_carries_no_gradient():
    found, clean = torch.randn(1, 3, 2, 2, requires_grad=True), torch.randn(1, 3, 2, 2, requires_grad=True)
    consistency(found, clean).backward()
    assert clean.grad is None and found.grad.abs().sum() > 0
    features, target = torch.rand(1, 2, 3, 3, requires_grad=True), torch.rand(1, 2, 3, 3, requires_grad=True)
    feature_distance(features, target).backward()
    assert target.grad is None and features.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_logits_stay_finite(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype).requires_grad_()
    value = consistency(logits, -logits.detach())
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and logits.grad.isfinite().all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(2, 12), st.integers(1, 7), st.integers(1, 7), st.floats(0.1, 10))
def test_never_negative(batch, classes, height, width, temperature):
    found, clean = 5 * torch.randn(2, batch, classes, height, width)
    assert consistency(found, clean, temperature=temperature) >= -1e-6


def test_shapes_that_differ():
    with pytest.raises(ModelError, match="one size gives one shape"):
        consistency(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
    with pytest.raises(ModelError, match="one size gives one shape"):
        feature_distance(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))


@pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan])
def test_temperature_out_of_range(temperature):
    with pytest.raises(InputError, match="positive"):
        ConsistencyLoss(temperature=temperature)


def test_segmenter_and_features_both(segmenter):
    with pytest.raises(InputError, match="give one"):
        ConsistencyLoss(segmenter, features=lambda image: image)


def test_networks_behind_functions(segmenter):
    """What belongs to a network is found and frozen; a network that a function only mentions cannot be."""
    segmenter.train()
    ConsistencyLoss(features=functools.partial(functools.partial(segmenter.forward)))
    assert not segmenter.training and not any(p.requires_grad for p in segmenter.parameters())
    ConsistencyLoss(features=lambda image: [image, segmenter(image)])  # frozen already
    for switch in (segmenter.train, segmenter.requires_grad_):
        switch()
        with pytest.raises(InputError, match=r"around a TinySegmenter that can still learn; freeze it with .requires_grad_\(False\).eval\(\)"):
            ConsistencyLoss(features=lambda image: segmenter(image))
        segmenter.requires_grad_(False).eval()
