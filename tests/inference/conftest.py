"""Small denoisers of every kind, with batch norm statistics that do something."""

import pytest
import torch
from torch import nn

from segaware import DnCNN, FFDNet, LiuDenoiser
from segaware.contracts import DenoiserInfo


def lively(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.2, 0.2),
            ):  # fmt: skip
                tensor.uniform_(low, high, generator=generator)
    return network


NETWORKS = {
    "dncnn": lambda: DnCNN(depth=5, width=8),
    "ffdnet": lambda: FFDNet(depth=4, width=8),
    "liu": lambda: LiuDenoiser(encoder_width=8, decoder_width=8),
    "liu4": lambda: LiuDenoiser(scales=4, encoder_width=8, decoder_width=8),
}


@pytest.fixture(params=sorted(NETWORKS))
def network(request) -> nn.Module:
    return lively(NETWORKS[request.param]()).eval()


@pytest.fixture
def level(network):
    return 0.1 if network.info.takes_sigma else None


class Halve(nn.Module):
    """Half of what comes, any number of channels; remembers what it was called with."""

    def __init__(self, channels=None, **info) -> None:
        super().__init__()
        self.info = DenoiserInfo(channels=channels, **{"receptive_field": 1, **info})
        self.calls = []

    def __deepcopy__(self, memo):
        return self  # so that a test sees the calls

    def forward(self, noisy, sigma=None):
        self.calls.append((tuple(noisy.shape), sigma))
        return noisy / 2


@pytest.fixture
def halve():
    return Halve
