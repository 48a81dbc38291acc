import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segaware import ConditionEncoder, SFTLayer
from segaware.errors import InputError
from segaware.layers.sft import check_condition, resize_condition


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("classes", "parameters"), [(19, 5_584), (8, 5_408), (11, 16 * 11 + 5_280)])
def test_encoder_has_the_released_parameters(classes, parameters):
    assert count(ConditionEncoder(classes)) == parameters


@pytest.mark.parametrize("channels", [32, 40, 96])
def test_layer_has_the_released_parameters(channels):
    assert count(SFTLayer(channels, 16)) == 1_088 + 66 * channels


def test_the_nine_of_a_denoiser():
    assert sum(count(SFTLayer(c, 16)) for c in range(32, 97, 8)) == 47_808


def test_layer_by_hand():
    layer = SFTLayer(5, 3, hidden=7)
    features, condition = torch.randn(2, 5, 4, 6), torch.randn(2, 3, 4, 6)

    def branch(part):
        hidden = torch.einsum("oi,bihw->bohw", part[0].weight[:, :, 0, 0], condition) + part[0].bias[:, None, None]
        hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
        return torch.einsum("oi,bihw->bohw", part[2].weight[:, :, 0, 0], hidden) + part[2].bias[:, None, None]

    expected = features * (branch(layer.scale) + 1) + branch(layer.shift)
    torch.testing.assert_close(layer(features, condition), expected)


def test_encoder_by_hand():
    """Five 1 x 1 convolutions; LeakyReLU 0.1 after the first four and nothing after the last."""
    encoder = ConditionEncoder(3)
    x = condition = torch.randn(1, 3, 2, 2)
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in convolutions] == [
        (3, 16, (1, 1)), (16, 32, (1, 1)), (32, 64, (1, 1)), (64, 32, (1, 1)), (32, 16, (1, 1)),
    ]  # fmt: skip
    for i, conv in enumerate(convolutions):
        x = F.conv2d(x, conv.weight, conv.bias)
        x = F.leaky_relu(x, 0.1) if i < 4 else x
    torch.testing.assert_close(encoder(condition), x)


def test_zeroed_heads_are_the_identity():
    features, condition = torch.randn(1, 6, 5, 5), 100 * torch.randn(1, 16, 5, 5)
    layer = SFTLayer(6, 16, identity=True)
    assert torch.equal(layer(features, condition), features)
    assert not torch.equal(SFTLayer(6, 16)(features, condition), features)
    layer(features, condition).square().sum().backward()
    assert layer.scale[2].weight.grad.any() and layer.shift[2].bias.grad.any()  # it can leave the identity


def test_the_release_starts_near_but_not_at_the_identity():
    layer = SFTLayer(64, 16)
    with torch.no_grad():
        condition = ConditionEncoder(19)(torch.randn(1, 19, 32, 32))
        for part in (layer.scale(condition), layer.shift(condition)):
            assert 0.05 < part.abs().mean() < 0.2


def test_size_is_changed_before_encoding():
    encoder = ConditionEncoder(4)
    logits = torch.randn(2, 4, 3, 5)
    whole = F.interpolate(logits, (12, 19), mode="bilinear", align_corners=False)
    torch.testing.assert_close(encoder(logits, (12, 19)), encoder(whole))
    assert encoder(logits).shape == (2, 16, 3, 5)


def test_layer_takes_a_condition_of_another_size():
    layer = SFTLayer(4, 3)
    features, condition = torch.randn(1, 4, 8, 6), torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(layer(features, condition), layer(features, resize_condition(condition, (8, 6))))


def test_resize():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resize_condition(x, (4, 4)) is x
    assert torch.equal(resize_condition(x, (2, 2)), F.avg_pool2d(x, 2))  # nothing is skipped when it shrinks
    assert resize_condition(x, (2, 9)).shape == (1, 1, 2, 9)
    assert torch.equal(resize_condition(x[..., :1, :1], (3, 5)), torch.zeros(1, 1, 3, 5))  # a classifier's answer


def test_works_under_bf16_autocast():
    layer = SFTLayer(4, 3)
    features, condition = torch.randn(1, 4, 3, 3), torch.randn(1, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(features, condition)
    torch.testing.assert_close(rounded.float(), layer(features, condition), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("make", [lambda: SFTLayer(4, 3, 8, identity=True), lambda: ConditionEncoder(4, 6)])
def test_config_rebuilds_it(make):
    module = make()
    twin = type(module)(**json.loads(json.dumps(module.config)))
    twin.load_state_dict(module.state_dict())


@pytest.mark.parametrize("make", [lambda: SFTLayer(0, 3), lambda: SFTLayer(3, 0), lambda: SFTLayer(3, 3, 0), lambda: ConditionEncoder(0)])
def test_constructors_refuse(make):
    with pytest.raises(InputError, match="at least 1"):
        make()


def test_wrong_channels_are_told_the_repair():
    with pytest.raises(InputError, match="what the ConditionEncoder gives"):
        SFTLayer(4, 16)(torch.rand(1, 4, 2, 2), torch.rand(1, 19, 2, 2))
    with pytest.raises(InputError, match="built for 19 classes"):
        ConditionEncoder(19)(torch.rand(1, 8, 2, 2))


NAN = torch.zeros(2, 4, 3, 3)
NAN[0, 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("condition", "repair"),
    [
        (None, "pass condition=logits"),
        ([[1]], "expected float logits"),
        (torch.zeros(2, 4, 3, 3, dtype=torch.long), "one_hot"),
        (torch.zeros(2, 3, 3), "one_hot"),
        (torch.zeros(2, 8, 3, 3), "condition_channels=8"),
        (torch.zeros(1, 4, 3, 3), "one for each image"),
        (torch.zeros(2, 4, 0, 3), "at least one position"),
        (NAN, "1 of 72 values are NaN"),
        (NAN.nan_to_num() - float("inf"), "infinite"),
    ],
    ids=str,
)
def test_bad_conditions(condition, repair):
    with pytest.raises(InputError, match=f"Net.*{repair}"):
        check_condition(condition, 4, 2, where="Net")
