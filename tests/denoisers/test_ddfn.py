import json

import pytest
import torch
from denoisers.tester import DenoiserTester
from torch import nn

from segaware import DDFN, ConditionEncoder, SFTLayer
from segaware.entries import load_entry, write_entry
from segaware.errors import InputError


class TestDDFN(DenoiserTester):
    cls = DDFN
    small = {"blocks": 2}
    variants = [{"channels": 1}, {"blocks": 1}, {"channels": 5, "identity": True}]
    reach = [{"blocks": 1}, {"blocks": 8}]
    counts = [
        ({}, 60_784), ({"condition_channels": 19}, 114_176), ({"condition_channels": 8}, 114_000),
        ({"condition_channels": 3}, 113_920),
    ]  # fmt: skip
    refused = [{"channels": 0}, {"blocks": 0}, {"condition_channels": 0}]


def conditioned(classes=4, **options):
    torch.manual_seed(0)
    return DDFN(condition_channels=classes, **{"blocks": 2, **options}).eval()


def test_receptive_field_is_55():
    assert DDFN().info.receptive_field == 55


def test_widths_and_biases_are_the_released_ones():
    model = DDFN()
    assert [block.squeeze.in_channels for block in model.blocks] == [32, 40, 48, 56, 64, 72, 80, 88]
    assert [sum(p.numel() for p in block.parameters()) for block in model.blocks] == [32 * c + 5_440 for c in range(32, 89, 8)]
    assert sum(p.numel() for p in model.stem.parameters()) == 1_616
    assert sum(p.numel() for p in model.reconstruct.parameters()) == 288
    without = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.bias is None]
    assert without == ["reconstruct"]


def test_initialisation_is_the_released_one():
    torch.manual_seed(0)
    model = DDFN()
    assert model.reconstruct.weight.std().item() == pytest.approx(0.001, rel=0.15)
    assert model.blocks[7].squeeze.weight.std().item() == pytest.approx((2 / 88) ** 0.5, rel=0.1)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_a_condition_leaves_the_plain_weights_as_they_are():
    torch.manual_seed(0)
    plain = DDFN(blocks=2).state_dict()
    steered = conditioned().state_dict()
    assert all(torch.equal(steered[key], value) for key, value in plain.items())


def test_there_is_no_skip_and_no_clamp():
    model = DDFN(blocks=1).eval()
    noisy = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert model(noisy).abs().max() < 0.1  # nothing of the input comes through by itself
        model.reconstruct.weight.mul_(1e4)
        assert model(noisy).abs().max() > 1


def test_sft_sits_before_each_block_s_convolutions_and_before_the_last():
    model = DDFN(condition_channels=19)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SFTLayer)}
    assert list(layers) == [*[f"blocks.{i}.sft" for i in range(8)], "sft"]
    assert sum(isinstance(m, ConditionEncoder) for m in model.modules()) == 1
    assert sum(p.numel() for m in layers.values() for p in m.parameters()) == 47_808


def test_what_is_passed_on_stays_unmodulated():
    model = conditioned()
    block = model.blocks[0]
    features, shared = torch.randn(1, 32, 5, 5), torch.randn(1, 16, 5, 5)
    out = block(features, shared)
    assert torch.equal(out[:, :32], features)
    assert not torch.equal(out[:, 32:], block(features, -shared)[:, 32:])


def test_zeroed_heads_make_it_the_plain_network():
    steered = conditioned(identity=True)
    plain = DDFN(blocks=2).eval()
    plain.load_state_dict(steered.state_dict(), strict=False)
    noisy = torch.rand(2, 3, 9, 12)
    with torch.no_grad():
        assert torch.equal(steered(noisy, condition=torch.randn(2, 4, 3, 3)), plain(noisy))
        assert not torch.equal(conditioned()(noisy, condition=torch.randn(2, 4, 3, 3)), plain(noisy))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (17, 23), (120, 120), (127, 190)])
@pytest.mark.parametrize("condition_size", [(1, 1), "quarter", "same"])
def test_condition_of_any_size(size, condition_size):
    model = conditioned(blocks=1)
    height, width = {"quarter": (-(-size[0] // 4), -(-size[1] // 4)), "same": size}.get(condition_size, condition_size)
    with torch.no_grad():
        denoised = model(torch.rand(1, 3, *size), condition=torch.randn(1, 4, height, width))
    assert denoised.shape == (1, 3, *size) and torch.isfinite(denoised).all()


def test_size_of_the_condition_is_changed_once():
    """Nine layers share one condition at full size; resizing in each would cost and differ."""
    from segaware.layers import sft

    sizes = []
    original = sft.resize_condition

    def watched(condition, size):
        sizes.append((tuple(condition.shape), tuple(size)))
        return original(condition, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "resize_condition", watched)
        conditioned()(torch.rand(1, 3, 8, 8), condition=torch.randn(1, 4, 2, 2))
    changed = [entry for entry in sizes if entry[0][2:] != entry[1]]
    assert changed == [((1, 4, 2, 2), (8, 8))]


def test_gradient_reaches_every_parameter_and_the_condition():
    model = conditioned()
    condition = torch.randn(2, 4, 4, 4, requires_grad=True)
    model(torch.rand(2, 3, 16, 16), condition=condition).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert condition.grad.any()


def test_images_of_a_batch_keep_their_own_condition():
    model = conditioned()
    noisy, condition = torch.rand(3, 3, 10, 9), torch.randn(3, 4, 3, 3)
    with torch.no_grad():
        together = model(noisy, condition=condition)
        torch.testing.assert_close(together[1:2], model(noisy[1:2], condition=condition[1:2]), rtol=1e-4, atol=1e-6)


def test_compiles_in_one_graph_with_a_condition():
    model = conditioned(blocks=1)
    noisy, condition = torch.rand(1, 3, 8, 8), torch.randn(1, 4, 2, 2)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(noisy, condition=condition), model(noisy, condition=condition))


def test_saves_and_loads_with_a_condition(tmp_path):
    model = conditioned()
    json.dumps(model.config)
    loaded = load_entry(write_entry(tmp_path / "entry", model))
    noisy, condition = torch.rand(1, 3, 8, 8), torch.randn(1, 4, 2, 2)
    with torch.no_grad():
        assert torch.equal(loaded(noisy, condition=condition), model(noisy, condition=condition))


def test_condition_is_taken_or_refused():
    noisy, condition = torch.rand(1, 3, 8, 8), torch.randn(1, 4, 2, 2)
    with pytest.raises(InputError, match="condition_channels=4"):
        DDFN(blocks=1)(noisy, condition=condition)
    model = conditioned()
    for wrong, repair in [
        (None, "pass condition=logits"),
        (condition[:, :3], "condition_channels=3"),
        (condition * float("nan"), "NaN"),
        (condition.expand(2, -1, -1, -1), "one for each image"),
    ]:
        with pytest.raises(InputError, match=repair):
            model(noisy, condition=wrong)
