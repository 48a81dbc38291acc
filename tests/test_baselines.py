"""What the cascade is measured against: denoisers in turns, a condition from the image, one from the labels."""

import pytest
import torch

from segaware import DDFN, DnCNN, FFDNet, denoise, from_pretrained
from segaware.baselines import DenoiserCascade, ImageCondition, LabelCondition
from segaware.entries import write_entry
from segaware.errors import InputError, ModelError


@pytest.fixture
def noisy():
    return torch.rand(2, 3, 12, 17) * 1.4 - 0.2


def lively(**options):
    net = DDFN(blocks=1, **options)
    with torch.no_grad():
        net.reconstruct.weight.mul_(300)
    return net


@torch.no_grad()
def test_denoisers_in_turns_by_hand(noisy, tmp_path):
    net = DenoiserCascade([lively(), lively(), lively()]).eval()
    first = net.denoisers[0](noisy)
    second = net.denoisers[1](first + noisy)
    third = net.denoisers[2](second + noisy)
    assert torch.equal(net(noisy), third) and torch.equal(net.first(2)(noisy), second) and len(net) == 3
    assert net.info.receptive_field == 3 * (6 + 6) + 1
    again = from_pretrained(write_entry(tmp_path / "net", net))
    assert torch.equal(again(noisy), third)
    torch.testing.assert_close(denoise(noisy, net, tile=8), third, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_noise_level_goes_to_those_that_take_one(noisy):
    blind, told = DnCNN(depth=2, width=4).eval(), FFDNet(depth=2, width=8).eval()
    net = DenoiserCascade([blind, told])
    assert net.info.takes_sigma and net.info.receptive_field is None
    assert torch.equal(net(noisy, 0.1), told(blind(noisy) + noisy, 0.1))


@torch.no_grad()
def test_the_image_as_condition(noisy, tmp_path):
    net = ImageCondition(lively(condition_channels=3)).eval()
    assert torch.equal(net(noisy), net.denoiser(noisy, condition=noisy))
    assert torch.equal(from_pretrained(write_entry(tmp_path / "net", net))(noisy), net(noisy))
    assert sum(p.numel() for p in ImageCondition(DDFN(condition_channels=3)).parameters()) == 113_920


@torch.no_grad()
def test_the_labels_as_condition(noisy, tmp_path):
    net = LabelCondition(lively(condition_channels=4)).eval()
    labels = torch.randint(0, 4, (2, 12, 17), dtype=torch.uint8)
    labels[0, :3] = 255
    told = net.told(labels)
    assert told.shape == (2, 4, 12, 17) and torch.equal(told.sum(1) == 0, labels == 255)
    assert torch.equal(told.argmax(1)[labels != 255], labels[labels != 255].long())
    assert torch.equal(net(noisy, labels=labels), net.denoiser(noisy, condition=told))
    assert not torch.equal(net(noisy, labels=labels), net(noisy, labels=labels.clamp(max=3) ^ 1))
    again = from_pretrained(write_entry(tmp_path / "net", net))
    assert torch.equal(again(noisy, labels=labels), net(noisy, labels=labels))


def test_bad_input(noisy):
    oracle = LabelCondition(lively(condition_channels=4))
    with pytest.raises(InputError, match="needs the true labels"):
        oracle(noisy)
    with pytest.raises(InputError, match=r"labels hold 4, but there are 4 classes \(0-3\); map what has no class to 255"):
        oracle(noisy, labels=torch.full((2, 12, 17), 4))
    with pytest.raises(InputError, match="give integers"):
        oracle(noisy, labels=torch.zeros(2, 12, 17))
    with pytest.raises(InputError, match="build the denoiser with condition_channels=3"):
        ImageCondition(lively(condition_channels=4))
    for make in (LabelCondition, ImageCondition):
        with pytest.raises(ModelError, match="takes no condition"):
            make(lively())
    with pytest.raises(InputError, match="at least one"):
        DenoiserCascade([])
    with pytest.raises(InputError, match="give a list"):
        DenoiserCascade(lively())
    with pytest.raises(InputError, match="stage 2 takes 1 image channels, stage 1 takes 3"):
        DenoiserCascade([lively(), lively(channels=1)])
    with pytest.raises(ModelError, match="stage 1.* no denoiser of the contract"):
        DenoiserCascade([torch.nn.Conv2d(3, 3, 1)])
    with pytest.raises(InputError, match="blind"):
        DenoiserCascade([lively()])(noisy, 0.1)
    with pytest.raises(InputError, match="give 1 to 1"):
        DenoiserCascade([lively()]).first(2)
