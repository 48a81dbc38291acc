import copy

import pytest
import torch
from torch import nn

from segaware import HRNetSegmenter
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


# --- blocks that call their children in turn ------------------------------------------------------


def lively(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0), (module.weight.data, 0.5, 1.5), (module.bias.data, -0.2, 0.2)):
                tensor.uniform_(low, high)
    return network.eval()


def hrnet():
    return HRNetSegmenter(3, width=4, modules=(1, 2, 1), blocks=1, init="kaiming")


def torchvision_stages():
    from torchvision.models import resnet18, resnet50

    return nn.Sequential(resnet18().layer1, nn.Conv2d(64, 256, 1), resnet50().layer1[1:])


@pytest.mark.parametrize(("make", "images"), [(hrnet, (2, 3, 40, 56)), (torchvision_stages, (1, 64, 9, 9))], ids=["hrnet", "torchvision"])
def test_residual_blocks_are_folded(make, images):
    network, images = lively(make()), torch.rand(images)
    folded = copy.deepcopy(network)
    state = torch.get_rng_state()
    assert fold_batch_norm(folded) == count(network) >= 10 and count(folded) == 0
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        before, after = network(images), folded(images)
    assert (before - after).abs().max() < 1e-4 * before.abs().max()


def like_torchvision(forward):
    """A class that passes for torchvision's block, with another forward."""

    def __init__(self):
        nn.Module.__init__(self)
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    members = {"__init__": __init__, "forward": forward, "__module__": "torchvision.models.resnet"}
    return lively(type("BasicBlock", (nn.Module,), members)())


def test_a_block_that_would_change_gets_back_what_it_had():
    block = like_torchvision(lambda self, x: self.conv1(torch.relu(self.bn1(x))))
    images = torch.rand(1, 4, 6, 6)
    before = block(images)
    assert fold_batch_norm(block) == 0 and count(block) == 1 and torch.equal(block(images), before)
    good = like_torchvision(lambda self, x: x + self.bn1(self.conv1(x)))
    assert fold_batch_norm(good) == 1 and count(good) == 0


def test_a_block_that_cannot_be_tried_or_is_watched_stays():
    assert fold_batch_norm(like_torchvision(lambda self, x, more: self.bn1(self.conv1(x)) + more)) == 0
    watched = like_torchvision(lambda self, x: self.bn1(self.conv1(x)))
    calls = []
    watched.register_forward_hook(lambda *_: calls.append(1))
    assert fold_batch_norm(watched) == 0 and not calls


def test_others_with_such_names_are_left_alone():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    assert fold_batch_norm(Other().eval()) == 0
