import pytest
import torch
from losses.tester import LossTester
from torch import nn

from segaware.errors import InputError, ModelError
from segaware.losses.perceptual import PerceptualLoss, perceptual


class TestPerceptualLoss(LossTester):
    needs = ("clean",)

    def build(self, network):
        return PerceptualLoss(network, {"stem": 1.0, "head": 0.5})

    def test_value_and_weights(self, segmenter, noisy, clean):
        loss = PerceptualLoss(segmenter, {"stem": 2.0, "head": 0.5}, normalize=None)

        def both(layer):
            return layer(noisy), layer(clean)

        stem = perceptual(*both(segmenter.stem))
        head = perceptual(*both(segmenter))
        assert torch.isclose(loss(noisy, clean=clean), 2 * stem + 0.5 * head)

    def test_normalisation(self, segmenter, noisy, clean):
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        named = PerceptualLoss(segmenter, ["head"])
        given = PerceptualLoss(segmenter, ["head"], normalize=(mean, std))
        plain = PerceptualLoss(segmenter, ["head"], normalize=None)
        shift = torch.tensor(mean).reshape(1, 3, 1, 1), torch.tensor(std).reshape(1, 3, 1, 1)
        assert torch.equal(named(noisy, clean=clean), given(noisy, clean=clean))
        by_hand = plain((noisy - shift[0]) / shift[1], clean=(clean - shift[0]) / shift[1])
        assert torch.isclose(named(noisy, clean=clean), by_hand)

    def test_without_clean(self, loss, noisy):
        with pytest.raises(InputError, match="clean=..."):
            loss(noisy)


def test_by_hand():
    a = torch.zeros(2, 3, 4, 5)
    b = torch.zeros(2, 3, 4, 5)
    b[0, 1, 2, 3] = 2.0  # squared distance 4 in one image of two, over 4 x 5
    assert float(perceptual(a, b)) == pytest.approx(4 / 20 / 2)


def test_the_clean_side_carries_no_gradient():
    a, b = torch.rand(1, 2, 3, 3, requires_grad=True), torch.rand(1, 2, 3, 3, requires_grad=True)
    perceptual(a, b).backward()
    assert b.grad is None and a.grad.abs().sum() > 0


def test_relu_in_place_does_not_reach_back():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    noisy, clean = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    value = PerceptualLoss(network, ["0", "2"], normalize=None)(noisy, clean=clean)
    expected = perceptual(network[0](noisy), network[0](clean)) + perceptual(network(noisy), network(clean))
    assert torch.isclose(value, expected)


def test_the_rest_of_the_network_does_not_run():
    class Mine(nn.Module):
        def forward(self, features):
            raise AssertionError("ran past the last named layer")

    network = nn.Sequential(nn.Conv2d(3, 4, 1), Mine())
    assert PerceptualLoss(network, ["0"])(torch.rand(1, 3, 4, 4), clean=torch.rand(1, 3, 4, 4)) > 0
    assert not network[0]._forward_hooks  # nothing is left behind in the user's network


def test_names_of_the_papers_for_vgg():
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):  # half a gigabyte of weights that no test needs
        plain, normed = models.vgg16(), models.vgg16_bn()
    assert PerceptualLoss(plain, ["relu3_3", "conv1_2"]).layers == {"features.15": 1.0, "features.2": 1.0}
    assert list(PerceptualLoss(normed, ["relu3_3"]).layers) == ["features.22"]
    with pytest.raises(InputError, match="no layer 'relu3_4'"):
        PerceptualLoss(plain, ["relu3_4"])


def test_squeezenet_layers():
    models = pytest.importorskip("torchvision.models")
    loss = PerceptualLoss(models.squeezenet1_0(), {"features.3": 1.0, "features.5": 0.1})
    noisy = torch.rand(1, 3, 32, 32, requires_grad=True)
    loss(noisy, clean=torch.rand(1, 3, 32, 32)).backward()
    assert noisy.grad.abs().sum() > 0


def test_bad_layers(segmenter):
    with pytest.raises(InputError, match="did you mean 'stem'"):
        PerceptualLoss(segmenter, ["sten"])
    with pytest.raises(InputError, match="name at least one"):
        PerceptualLoss(segmenter, [])
    segmenter.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(ModelError, match="does not run unused"):
        PerceptualLoss(segmenter, ["stem", "unused"])(torch.rand(1, 3, 8, 8), clean=torch.rand(1, 3, 8, 8))
    with pytest.raises(InputError, match='"imagenet"'):
        PerceptualLoss(segmenter, ["stem"], normalize="caffe")
    with pytest.raises(ModelError, match="feature maps"):
        perceptual(torch.zeros(2, 3), torch.zeros(2, 3))
