import copy

import pytest
import torch
from torch import nn

from segaware.inference.folding import fold_batch_norm


def count(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_every_batch_norm_goes_and_the_function_stays(network, level):
    noisy = torch.rand(1, 3, 24, 24)
    folded = copy.deepcopy(network)
    assert fold_batch_norm(folded) == count(network)
    assert count(folded) == 0
    with torch.no_grad():
        assert torch.allclose(folded(noisy, level), network(noisy, level), rtol=0, atol=1e-5)


def shared():
    conv = nn.Conv2d(2, 2, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(2), conv)


def hooked():
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    network[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return network


def normed():
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    nn.utils.parametrizations.weight_norm(network[0])
    return network


class Skips(nn.Sequential):
    def forward(self, images):
        return self[1](images) + self[0](images)


@pytest.mark.parametrize(
    "make",
    [
        shared,
        hooked,
        normed,
        lambda: Skips(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)),
    ],
    ids=["shared", "hooked", "parametrised", "own forward", "no statistics", "not adjacent"],
)
def test_left_alone(make):
    network = make().eval()
    images = torch.rand(1, 2, 5, 5)
    before = network(images)
    assert fold_batch_norm(network) == 0
    assert torch.equal(network(images), before)


def test_training_mode_is_left_alone():
    assert fold_batch_norm(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).train()) == 0
