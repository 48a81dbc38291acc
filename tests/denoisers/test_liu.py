import pytest
import torch
import torch.nn.functional as F
from denoisers.tester import DenoiserTester
from torch import nn

from segaware import LiuDenoiser
from segaware.denoisers.liu import MEAN

TINY = {"encoder_width": 4, "decoder_width": 4}


class TestLiuDenoiser(DenoiserTester):
    cls = LiuDenoiser
    small = {"encoder_width": 8, "decoder_width": 12}
    variants = [{"channels": 1}, {"scales": 2}, {"scales": 4}, {"global_skip": False}, {"momentum": 0.1}]
    reach = [{**TINY, "scales": scales} for scales in (2, 3, 4)]
    counts = [
        ({"scales": scales, "encoder_width": encoder, "decoder_width": decoder}, count)
        for scales, encoder, decoder, count in [
            (2, 128, 128, 164_931), (2, 128, 256, 164_931), (2, 256, 256, 489_155),
            (3, 128, 128, 598_627), (3, 128, 256, 1_033_443), (3, 256, 256, 2_220_803),
            (4, 128, 128, 1_032_323), (4, 128, 256, 1_974_819), (4, 256, 256, 3_952_451),
        ]
    ] + [({}, 1_033_443)]  # fmt: skip
    refused = [{"scales": 1}, {"channels": 0}, {"encoder_width": 6}, {"decoder_width": 0}]


def test_receptive_field_of_the_default_form():
    assert LiuDenoiser().info.receptive_field == 39 and LiuDenoiser().info.size_multiple == 4


def test_bare_layers_are_bare():
    """No batch normalisation or ReLU after the first, the transposed and the last convolution: 12 norms remain."""
    model = LiuDenoiser()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 12 and all(m.momentum == 0.001 for m in norms)
    assert type(model.stem) is nn.Conv2d and type(model.output) is nn.Conv2d
    assert all(type(up) is nn.ConvTranspose2d for up in model.ups)


def test_biases_are_the_released_ones():
    model = LiuDenoiser()
    for module in model.modules():
        if isinstance(module, nn.ConvTranspose2d):
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            assert torch.all(module.bias == (0.0 if module is model.output else 0.2))  # ours starts near the skip
    assert sum(m.bias.numel() for m in model.modules() if hasattr(m, "stride") and m.bias is not None) == 675


def test_initialisation_is_caffes():
    model = LiuDenoiser()
    for weight, bound in ((model.stem.weight, (3 / 75) ** 0.5), (model.ups[-1].weight, (3 / (64 * 16)) ** 0.5)):
        assert bound * 0.98 < float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.03)


def released_form(model: LiuDenoiser, image: torch.Tensor) -> torch.Tensor:
    """The wiring as released, written out: sides lose six pixels and must be multiples of four."""
    first = model.stem(image)
    half = model.encoders[0](first)
    quarter = model.encoders[1](half)
    half = model.decoders[0](torch.cat([half, model.ups[0](quarter)], 1))
    return model.output(torch.cat([first, model.ups[1](half)], 1)) + image[:, :, 3:-3, 3:-3]


@pytest.mark.parametrize("side", [14, 18])
def test_equals_the_released_form_on_padded_images(side):
    """Where the padded side is a multiple of four, both nets are one and the same."""
    model = LiuDenoiser(encoder_width=8, decoder_width=12).eval()
    image = torch.rand(1, 3, side, side)
    released = released_form(model, F.pad(image - MEAN, (3, 3, 3, 3))) + MEAN
    torch.testing.assert_close(model(image), released, rtol=1e-5, atol=1e-5)


def test_without_the_global_skip_the_mean_comes_back():
    model = LiuDenoiser(encoder_width=4, decoder_width=4, global_skip=False).eval()
    nn.init.zeros_(model.output.weight)
    nn.init.zeros_(model.output.bias)
    assert torch.allclose(model(torch.rand(1, 3, 6, 6)), torch.tensor(MEAN))
