"""Scales are set anew and dead channels begun, and what the network computes stays."""

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
from segaware.training.renew import renew

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
    image = batches()[1][0]
    assert dead(net) == 5
    with torch.no_grad():
        expected = net(image)
        assert renew(net, batches(), draw()) == 5
        torch.testing.assert_close(net(image), expected, rtol=0, atol=1e-6)
    assert dead(net) == 0
    assert renew(net, batches(), draw(1)) == 0, "none is left"


def spreads(net: nn.Module) -> list[float]:
    """Standard deviation of each channel before each ReLU."""
    found, hooks = [], []
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            hooks.append(module.register_forward_pre_hook(lambda m, args: found.append(args[0].std((0, 2, 3)))))
    with torch.no_grad():
        net(torch.cat([batch[0] for batch in batches()]))
    for hook in hooks:
        hook.remove()
    return torch.cat(found).tolist()


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_scales_that_drifted_are_set_anew(norm, bias):
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=bias)]
    for i in range(3):
        layers += [nn.BatchNorm2d(8)] * norm + [nn.ReLU(), nn.Conv2d(8, 8 if i < 2 else 3, 3, padding=1, bias=bias)]
    net = nn.Sequential(*(copy.deepcopy(layer) for layer in layers)).double()
    image = torch.cat([batch[0] for batch in batches()]).double()
    for module in net:
        if isinstance(module, nn.BatchNorm2d):  # fixed statistics far from what comes in, negative scales among them
            module.running_mean.copy_(image.mean((0, 2, 3)) + 0.1 * torch.randn(8) * image.std((0, 2, 3)))
            module.running_var.copy_(image.var((0, 2, 3)) * 10 ** torch.empty(8).uniform_(-4, 0))
            nn.init.uniform_(module.weight, -40.0, 60.0)
            nn.init.normal_(module.bias)
        with torch.no_grad():
            image = module.eval()(image)
    seen = [(batch[0].double(),) for batch in batches()]
    image = seen[2][0]
    with torch.no_grad():
        expected = net(image)
        assert expected.abs().max() > 1e3 or not norm
        assert renew(net, seen, draw()) == 0
        torch.testing.assert_close(net(image), expected, rtol=1e-9, atol=1e-9)
    found = []
    for module in net:
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda m, args: found.append(args[0]))
    with torch.no_grad():
        net(torch.cat([batch[0] for batch in seen]))
    for values in found:
        torch.testing.assert_close(values.std((0, 2, 3)), torch.ones(8, dtype=torch.float64), rtol=1e-3, atol=0)
    if norm:
        scales = torch.cat([module.weight.abs() for module in net if isinstance(module, nn.BatchNorm2d)])
        torch.testing.assert_close(scales, torch.ones_like(scales), rtol=1e-3, atol=0)
        rows = net[3].weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(rows, torch.full_like(rows, 2**0.5), rtol=1e-6, atol=0)


def test_the_new_channels_are_drawn_and_normalised_as_stated():
    net = partly_dead().eval()
    seen = {}
    renew(net, batches(), draw())
    hook = net.body[6].register_forward_hook(lambda m, args, out: seen.update(out=out.clone()))  # the ReLU writes into it
    with torch.no_grad():
        net(torch.cat([batch[0] for batch in batches()]))
    hook.remove()
    norm = net.body[6]
    for channel in (0, 7):
        assert norm.weight[channel] == norm.weight[1:7].abs().median() and norm.bias[channel] == 0
        values = seen["out"][:, channel] / norm.weight[channel]
        assert values.mean().abs() < 1e-4 and abs(values.var() - 1) < 1e-3
    assert abs(norm.weight[0] - 1) < 1e-3
    wide = nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 3, 3))
    with torch.no_grad():
        wide[0].bias[:32] = -1e4
    renew(wide, [(torch.rand(1, 64, 8, 8),)], draw())
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
    renew(net, batches(), draw())
    assert gradient()[2] > 0


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_batch_statistics_serve_as_well(scale):
    """Also where a variance is small beside the normalisation's eps, which then takes a part in what is computed."""
    net = partly_dead().train()
    with torch.no_grad():
        net.body[2].weight *= scale
    image = batches()[0][0]
    with torch.no_grad():
        expected = net(image)
        assert renew(net, batches(), draw()) == 5
        torch.testing.assert_close(net(image), expected, rtol=0, atol=1e-4)
    assert dead(net) == 0


def test_one_relu_that_serves_everywhere():
    torch.manual_seed(0)
    relu = nn.ReLU(inplace=True)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), relu, nn.Conv2d(8, 4, 3, padding=1), relu, nn.Conv2d(4, 3, 3, padding=1))
    with torch.no_grad():
        net[2].bias[1] = -1e4
        expected = net(batches()[0][0])
        assert dead(net) == 1
        assert renew(net, batches(), draw()) == 1
        torch.testing.assert_close(net(batches()[0][0]), expected, rtol=0, atol=1e-6)
    assert dead(net) == 0


def test_dropout_is_silent_meanwhile():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Dropout(0.5), nn.ReLU(), nn.Conv2d(8, 3, 3)).train()
    with torch.no_grad():
        net[0].bias[0] = -1e4
    assert renew(net, batches(), draw()) == 1
    assert net.training and net[3].training


def test_a_share_of_the_correction_is_no_rounding():
    """Half a per cent of what the denoiser takes away, through a layer that serves elsewhere too."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))

        def forward(self, x):
            return x - 0.1 * (self.body(x) + 0.001 * self.body[0](x)[:, :3])

    torch.manual_seed(0)
    with pytest.raises(TrainingError, match="by 0.* of its largest correction.*serve elsewhere"):
        renew(Shared(), batches(), draw())


def test_networks_it_cannot_look_into_are_refused():
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            return self.second((self.first(x) - 100).relu())

    for net in (Opaque(), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False), nn.ReLU(), nn.Conv2d(3, 3, 1))):
        before = copy.deepcopy(net.eval().state_dict())
        with pytest.raises(TrainingError, match="no chain .* leave renew out"):
            renew(net, batches(), draw())
        assert same(net.state_dict(), before)


def test_layers_that_serve_elsewhere_too_stay_as_they_were():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))

        def forward(self, x):
            return self.body(x) + self.body[0](x)[:, :3]

    torch.manual_seed(0)
    net = Shared()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(TrainingError, match="serve elsewhere"):
        renew(net, batches(), draw())
    assert same(net.state_dict(), before)


def test_all_channels_of_a_layer_dead():
    net = partly_dead().eval()
    kill(net.body[6], *range(8))
    renew(net, batches(), draw())
    assert dead(net) == 0 and torch.isfinite(net(batches()[0][0])).all()


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_in_a_training_resumed_or_not(tmp_path, monkeypatch, ema):
    recipe = dataclasses.replace(SMALL, fixed_norm_steps=12, measure_norm=False, renew=True, learning_rate=1e-6, ema=ema)
    net = partly_dead()
    fit(SegAwareWrapper(net, ()), images(), recipe, tmp_path / "whole", progress=False)
    assert dead(net) == 0
    # the scales do not come back with the running average
    assert all(0.3 < spread < 3 for spread in spreads(net))

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
    assert same(*(load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "again")))


def test_a_denoiser_that_takes_sigma(tmp_path):
    torch.manual_seed(0)
    net = FFDNet(depth=4, width=8)
    relu = next(i for i, m in enumerate(net.body) if isinstance(m, nn.ReLU))
    with torch.no_grad():
        net.body[relu - 1].bias[0] = -1e4
    fit(SegAwareWrapper(net, ()), images(), dataclasses.replace(SMALL, steps=2, renew=True, learning_rate=1e-6), tmp_path, progress=False)
    assert net.body[relu - 1].bias[0].abs() < 1


def test_it_computes_in_full_float32():
    """What TF32 rounds on a GPU would be taken for another network."""
    seen = []

    class Seeing(nn.Conv2d):
        def forward(self, x):
            seen.append(torch.backends.cudnn.allow_tf32)
            return super().forward(x)

    before = torch.backends.cudnn.allow_tf32
    renew(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Seeing(4, 3, 1)), batches(), draw())
    assert seen and not any(seen) and torch.backends.cudnn.allow_tf32 == before
