"""Dead channels begin anew, and nothing else changes."""

from __future__ import annotations

import copy
import dataclasses
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from segaware import DnCNN, FFDNet, SegAwareWrapper
from segaware.errors import TrainingError
from segaware.training import Recipe, fit
from segaware.training.revive import revive

SMALL = Recipe(steps=12, batch_size=2, patch_size=16, checkpoint_every=5, precision="float32")


def images(count: int = 3) -> list[torch.Tensor]:
    return [torch.rand(3, 24, 24 + i, generator=draw(i)) for i in range(count)]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(count: int = 3) -> list[tuple[torch.Tensor]]:
    generator = draw(5)
    return [(torch.rand(2, 3, 20, 24, generator=generator),) for _ in range(count)]


def kill(norm: nn.Module, *channels: int) -> None:
    with torch.no_grad():
        for channel in channels:
            norm.weight[channel], norm.bias[channel] = 0.0, -1.0


def partly_dead(depth: int = 5) -> DnCNN:
    """Neighbouring layers with dead channels, one of them in both, and the layer before the last."""
    torch.manual_seed(3)
    net = DnCNN(depth=depth, width=8)
    for norm in (m for m in net.body if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.0)  # as a trained one, rather than the +-0.025 of the start
    kill(net.body[3], 0, 5)
    kill(net.body[6], 0, 7)
    kill(net.body[9], 2)
    return net


def dead(net: nn.Module) -> int:
    found, hooks = [], []
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            hooks.append(module.register_forward_hook(lambda m, args, out: found.append(out.amax((0, 2, 3)))))
    with torch.no_grad():
        net(torch.cat([batch[0] for batch in batches()]))
    for hook in hooks:
        hook.remove()
    return int((torch.cat(found) <= 0).sum())


def test_what_the_network_computes_stays_and_every_channel_fires():
    net = partly_dead().eval()
    before, image = copy.deepcopy(net), batches()[1][0]
    assert dead(net) == 5
    with torch.no_grad():
        expected = net(image)
        assert revive(net, batches(), draw()) == 5
        torch.testing.assert_close(net(image), expected, rtol=0, atol=1e-6)
    assert dead(net) == 0
    assert revive(net, batches(), draw(1)) == 0, "none is left"
    # channels that were alive keep what makes them
    keep = [i for i in range(8) if i not in (0, 5)]
    assert torch.equal(net.body[2].weight[keep], before.body[2].weight[keep])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(net.body[3], name)[keep], getattr(before.body[3], name)[keep])


def test_the_new_channels_are_drawn_and_normalised_as_stated():
    net = partly_dead().eval()
    seen = {}
    revive(net, batches(), draw())
    hook = net.body[6].register_forward_hook(lambda m, args, out: seen.update(out=out.clone()))  # the ReLU writes into it
    with torch.no_grad():
        net(batches()[0][0])
    hook.remove()
    norm = net.body[6]
    for channel in (0, 7):
        assert norm.weight[channel] == norm.weight[1:7].abs().median() and norm.bias[channel] == 0
        values = seen["out"][:, channel] / norm.weight[channel]
        assert values.mean().abs() < 1e-4 and abs(values.var() - 1) < 1e-3
    wide = nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 3, 3))
    with torch.no_grad():
        wide[0].bias[:32] = -1e4
    revive(wide, [(torch.rand(1, 64, 8, 8),)], draw())
    assert wide[0].weight[:32].std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    assert (wide[0].bias[:32] == 0).all() and (wide[2].weight[:, :32] == 0).all()


def test_a_gradient_reaches_them_again():
    net = partly_dead().eval()
    image = batches()[0][0]

    def gradient() -> torch.Tensor:
        net.zero_grad()
        (net(image) ** 2).sum().backward()
        return net.body[-1].weight.grad.abs().sum((0, 2, 3))

    assert gradient()[2] == 0
    revive(net, batches(), draw())
    assert gradient()[2] > 0


def test_batch_statistics_serve_as_well():
    net = partly_dead().train()
    assert revive(net, batches(), draw()) == 5
    assert dead(net) == 0


def test_networks_it_cannot_look_into_are_left_alone():
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            return self.second((self.first(x) - 100).relu())

    for net in (Opaque(), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False), nn.ReLU(), nn.Conv2d(3, 3, 1))):
        before = copy.deepcopy(net.state_dict())
        assert revive(net.eval(), batches(), draw()) == 0
        assert same(net.state_dict(), before)


def test_all_channels_of_a_layer_dead():
    net = partly_dead().eval()
    kill(net.body[6], *range(8))
    revive(net, batches(), draw())
    assert dead(net) == 0 and torch.isfinite(net(batches()[0][0])).all()


@pytest.mark.parametrize("at", [(0,), (5,), (0, 6)])
def test_in_a_training_resumed_or_not(tmp_path, monkeypatch, at):
    """At step 5 there is a checkpoint: what it goes on with begins anew then."""
    recipe = dataclasses.replace(SMALL, fixed_norm_steps=12, measure_norm=False, revive_at=at, learning_rate=1e-6, ema=0.5)
    net = partly_dead()
    fit(SegAwareWrapper(net, ()), images(), recipe, tmp_path / "whole", progress=False)
    assert dead(net.eval()) == 0

    whole = load_file(tmp_path / "whole/model/model.safetensors")
    plain = dataclasses.replace(recipe, revive_at=())
    fit(SegAwareWrapper(partly_dead(), ()), images(), plain, tmp_path / "plain", progress=False)
    assert not same(load_file(tmp_path / "plain/model/model.safetensors"), whole)

    class Stop(Exception):
        pass

    def until_eight(run, batch):
        if run.step == 8:
            raise Stop
        return step(run, batch)

    run = sys.modules["segaware.training.fit"]._Run
    step = run.train_step
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(run, "train_step", until_eight)
        fit(SegAwareWrapper(partly_dead(), ()), images(), recipe, tmp_path / "again", progress=False)
    fit(SegAwareWrapper(partly_dead(), ()), images(), recipe, tmp_path / "again", progress=False)
    assert same(load_file(tmp_path / "again/model/model.safetensors"), whole)


def test_a_denoiser_that_takes_sigma(tmp_path):
    torch.manual_seed(0)
    net = FFDNet(depth=4, width=8)
    relu = next(i for i, m in enumerate(net.body) if isinstance(m, nn.ReLU))
    with torch.no_grad():
        net.body[relu - 1].bias[0] = -1e4
    recipe = dataclasses.replace(SMALL, steps=2, revive_at=(1,), learning_rate=1e-6)
    fit(SegAwareWrapper(net, ()), images(), recipe, tmp_path, progress=False)
    assert net.body[relu - 1].bias[0].abs() < 1


@pytest.mark.parametrize("at", [(12,), (-1,), (0.5,)])
def test_steps_that_are_none(at):
    with pytest.raises(TrainingError, match="revive_at .* whole steps from 0 to 11"):
        dataclasses.replace(SMALL, revive_at=at)
