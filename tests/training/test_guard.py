"""The watch on awareness terms that take over."""

import pytest
import torch
from torch import nn

from segaware import SegAwareWrapper
from segaware.errors import TrainingError
from segaware.training.guard import stop_if_dominated


class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.zeros(()))

    def forward(self, noisy):
        return noisy + self.by


class Brighter(nn.Module):
    """Rewards brightness, whatever is true."""

    name = "brighter"

    def forward(self, denoised):
        return -denoised.mean()


def steps(weight, count, rate=1e-2):
    wrapper = SegAwareWrapper(Shift(), (weight, Brighter()))
    handle = stop_if_dominated(wrapper, steps=20)
    optimiser = torch.optim.Adam(wrapper.parameters(), lr=rate)
    clean = torch.full((1, 3, 8, 8), 0.5)
    for _ in range(count):
        output = wrapper(clean + 0.01 * torch.randn_like(clean), clean=clean)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
    handle.remove()
    return count


def test_a_dominating_weight_stops_with_the_weight_to_try():
    with pytest.raises(TrainingError, match="brighter .* instead of 5e\\+03") as caught:
        steps(5e3, 200)
    advised = float(str(caught.value).split("brighter ")[-1].split()[0])
    assert 1 < advised < 2500
    assert "worse for 20 steps" in str(caught.value)


def test_a_moderate_weight_passes():
    assert steps(1.0, 60) == 60


def test_what_is_not_the_weights_fault_goes_on():
    """A rate that is far too high drives fidelity up as well, but awareness is a thousandth of it."""
    assert steps(1e-3, 60, rate=5.0) == 60


def test_looking_and_lone_fidelity_are_not_watched():
    wrapper = SegAwareWrapper(Shift(), ())
    stop_if_dominated(wrapper, steps=4)
    clean = torch.rand(1, 3, 8, 8)
    for level in range(1, 30):
        wrapper(clean + 0.1 * level, clean=clean)
        wrapper(clean)


def test_options():
    for options in ({"steps": 3}, {"worse": 1.0}):
        with pytest.raises(TrainingError, match="at least 4 steps"):
            stop_if_dominated(SegAwareWrapper(Shift(), ()), **options)
