"""The watch on awareness terms that take over."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segaware import SegAwareWrapper
from segaware.errors import TrainingError
from segaware.training.guard import stop_if_dominated
from segaware.wrapper import WrapperOutput


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


def steps(weight, count, rate=1e-2, around=lambda wrapper: wrapper):
    wrapper = SegAwareWrapper(Shift(), (weight, Brighter()))
    handle = stop_if_dominated(wrapper, steps=20)
    model = around(wrapper)
    optimiser = torch.optim.Adam(wrapper.parameters(), lr=rate)
    clean = torch.full((1, 3, 8, 8), 0.5)
    for _ in range(count):
        output = model(clean + 0.01 * torch.randn_like(clean), clean=clean)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
    handle.remove()
    return count


def test_a_dominating_weight_stops_with_the_weight_to_try():
    with pytest.raises(TrainingError, match="brighter .* instead of 5e\\+03") as caught:
        steps(5e3, 200)
    advised = float(str(caught.value).split("brighter ")[-1].split()[0])
    assert 5 < advised < 9  # where its gradient is a tenth of fidelity's: 6.7
    assert "for 20 steps" in str(caught.value)


def test_a_moderate_weight_passes():
    assert steps(1.0, 60) == 60


def test_distributed_data_parallel_is_watched_as_well(tmp_path):
    """The watch sits on the wrapper inside, and asks for gradients before those of the reducer run."""
    dist.init_process_group("gloo", init_method=(tmp_path / "meet").as_uri(), rank=0, world_size=1)
    try:
        assert steps(1.0, 60, around=DistributedDataParallel) == 60
        with pytest.raises(TrainingError, match="brighter .* instead of 5e\\+03"):
            steps(5e3, 200, around=DistributedDataParallel)
    finally:
        dist.destroy_process_group()


def test_what_is_not_the_weights_fault_goes_on():
    """A rate that is far too high drives fidelity up as well, but awareness is a thousandth of it."""
    assert steps(1e-3, 60, rate=5.0) == 60


def test_looking_and_lone_fidelity_are_not_watched():
    wrapper = SegAwareWrapper(Shift(), ())
    stop_if_dominated(wrapper, steps=4)
    (look,) = wrapper._forward_hooks.values()
    clean = torch.rand(1, 3, 8, 8)
    for level in range(1, 30):
        wrapper(clean + 0.1 * level, clean=clean)
        wrapper(clean)
    assert look.count == 0


@pytest.mark.parametrize("batch", [1, 4])
def test_a_noisy_fidelity_that_does_not_rise_is_no_fault(batch):
    """Heavy-tailed like batches of blind noise: some 200 steps among thousands are low by luck."""
    assert watched(jumpy(20_000, batch)) is None


def test_a_rise_is_seen_through_the_noise():
    values = jumpy(3_000, 4)
    values[1_000:] *= 2
    assert 1_000 < watched(values) < 1_600


def test_broken_in_the_first_steps():
    """A denoiser that was good, a weight that ruins it before there is anything to compare with."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(()))

        def forward(self, noisy):
            return 0.5 + self.by * 0.1 * (noisy - 0.5)  # the truth is 0.5: a tenth of the noise remains

    class Loud(nn.Module):
        name = "loud"

        def forward(self, denoised):
            return -(denoised - 0.5).abs().mean().clamp(max=10.0)  # saturates: no gradient any more

    wrapper = SegAwareWrapper(Scale(), (1e5, Loud()))
    stop_if_dominated(wrapper, steps=20)
    optimiser, clean = torch.optim.Adam(wrapper.parameters(), lr=50.0), torch.full((1, 3, 8, 8), 0.5)
    with pytest.raises(TrainingError, match="worse than the noisy ones for 20 steps .* dominates") as caught:
        for _ in range(30):
            optimiser.zero_grad()
            wrapper(clean + 0.1 * torch.randn_like(clean), clean=clean).loss.backward()
            optimiser.step()
    assert float(str(caught.value).split("loud ")[-1].split()[0]) < 1e3


def jumpy(count, batch):
    source = torch.Generator().manual_seed(batch)
    level = torch.rand(count, batch, generator=source) ** 1.2
    return (level * (0.6 * torch.randn(count, batch, generator=source)).exp()).mean(1)


def test_a_rise_from_a_good_start():
    assert 60 <= watched([5.0] * 50 + [7.0] * 400, steps=40) <= 100


def watched(values, steps=200):
    """The step at which the watch raises for these values of fidelity, under an awareness as strong as it; or None."""
    wrapper = SegAwareWrapper(Shift(), (1.0, Brighter()))
    stop_if_dominated(wrapper, steps=steps)
    (look,) = wrapper._forward_hooks.values()
    denoised = torch.zeros(1, 3, 2, 2, requires_grad=True) * 1.0
    mean = denoised.mean()  # 0: what is added to it is the value
    for step, value in enumerate(list(values)):
        terms = {"fidelity": mean + float(value), "brighter": -mean}
        try:
            look(wrapper, (torch.ones(1),), {"clean": torch.zeros(1)}, WrapperOutput(mean, denoised, terms, {"fidelity": 1.0, "brighter": 1.0}))
        except TrainingError:
            return step
    return None


def test_options():
    for options in ({"steps": 3}, {"worse": 1.0}):
        with pytest.raises(TrainingError, match="at least 4 steps"):
            stop_if_dominated(SegAwareWrapper(Shift(), ()), **options)


def test_terms_that_cannot_be_seen_are_an_error():
    class Told(SegAwareWrapper):
        def forward(self, noisy, clean=None):
            output = super().forward(noisy, clean=clean)
            return {"loss": output.loss} if clean is not None else output

    wrapper = Told(Shift(), (1.0, Brighter()))
    stop_if_dominated(wrapper)
    images = torch.rand(1, 3, 8, 8)
    wrapper(images)
    with pytest.raises(TrainingError, match="Told returns a dict in training"):
        wrapper(images, clean=images)


def test_gradients_that_float16_would_lose():
    """1e-9 of a mean of 300,000 values, through a step in half precision; and one that is too large to be scaled up."""
    denoised = torch.rand(1, 3, 320, 320, requires_grad=True)
    small = (denoised.half().float() * 1.0).sum() * 1e-9
    output = WrapperOutput(small, denoised, {"fidelity": small, "big": (denoised.half() * 60000.0).float().sum()}, {"fidelity": 1.0, "big": 1.0})
    norms = output.gradient_norms()
    assert norms["fidelity"] == pytest.approx(1e-9 * denoised.numel() ** 0.5, rel=0.01)
    assert norms["big"] == pytest.approx(60000 * denoised.numel() ** 0.5, rel=0.01)
