import numpy as np
import pytest
import torch

from segaware import FFDNet, denoise
from segaware.errors import InputError
from segaware.inference.noise_level import CLEAN_LOOKING, estimate_noise, estimate_picture


def picture(height=96, width=96, low=0.0, high=1.0):
    """A scene of soft shades and edges, dark to bright."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    shades = torch.stack([x, y, ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1).float() * 0.6 + 0.2 * x])
    return (low + (high - low) * shades)[None]


def noisy(level, image=None, seed=1):
    image = picture() if image is None else image
    return image + level / 255 * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))


def eight_bit(image):
    return image.clamp(0, 1).mul(255).round() / 255


@pytest.mark.parametrize("method", ["patch", "wavelet"])
@pytest.mark.parametrize("level", [2, 5, 15, 25, 55])
def test_float_noise(method, level):
    assert float(estimate_noise(noisy(level), method=method)) * 255 == pytest.approx(level, rel=0.06)


@pytest.mark.parametrize("level", [5, 25, 55])
def test_clipping_is_corrected(level):
    image = eight_bit(noisy(level))
    raw, corrected = (float(estimate_noise(image, clipped=clipped)) * 255 for clipped in (False, None))
    assert corrected == pytest.approx(level, rel=0.1)
    if level > 20:
        assert raw < 0.97 * level and abs(corrected - level) < 0.6 * abs(raw - level)


def test_away_from_black_and_white_the_correction_does_nothing():
    image = noisy(10, picture(low=0.4, high=0.6))
    assert torch.allclose(estimate_noise(image, clipped=True), estimate_noise(image, clipped=False), rtol=0.01)


def test_uint8_pixels_read_as_their_tensor():
    image = eight_bit(noisy(25))
    pixels = image[0].permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    pixels.flags.writeable = False
    assert estimate_picture(pixels) == pytest.approx(float(estimate_noise(image)), rel=1e-5)
    assert estimate_picture(pixels / 255) == pytest.approx(estimate_picture(pixels), rel=1e-5)


def test_each_image_of_a_batch_by_itself():
    batch = torch.cat([noisy(5), noisy(40)])
    alone = torch.cat([estimate_noise(image[None]) for image in batch])
    assert torch.allclose(estimate_noise(batch), alone) and alone.shape == (2,)


@pytest.mark.parametrize("channels", [1, 3, 7])
def test_any_channels(channels):
    image = noisy(20, torch.full((1, channels, 64, 64), 0.5))
    assert float(estimate_noise(image)) * 255 == pytest.approx(20, rel=0.05)


def test_a_gray_picture_in_colour_reads_as_gray():
    gray = noisy(20)[:, :1]
    assert torch.allclose(estimate_noise(gray.expand(-1, 3, -1, -1)), estimate_noise(gray))


def test_a_large_image_is_sampled():
    image = noisy(20, torch.full((1, 1, 700, 700), 0.5))
    assert float(estimate_noise(image)) * 255 == pytest.approx(20, rel=0.05)


def test_clean_looks_clean_and_flat_is_zero():
    assert float(estimate_noise(picture())) < CLEAN_LOOKING
    for value in (0.0, 0.5, 1.0):
        assert float(estimate_noise(torch.full((1, 3, 64, 64), value))) < 1e-4


@pytest.mark.parametrize("shape", [(2, 2), (2, 9), (7, 500), (23, 23), (32, 32)])
def test_small_images_use_the_wavelet(shape):
    image = noisy(20, torch.full((1, 3, *shape), 0.5))
    level = estimate_noise(image)
    assert torch.equal(level, estimate_noise(image, method="wavelet"))
    if min(shape) > 20:
        assert float(level) * 255 == pytest.approx(20, rel=0.1)
    with pytest.raises(InputError, match="wavelet"):
        estimate_noise(image, method="patch")


@pytest.mark.parametrize("side", [33, 40, 64])
def test_patches_begin_where_there_are_enough(side):
    levels = [float(estimate_noise(noisy(20, torch.full((1, 1, side, side), 0.5), seed), method="patch")) * 255 for seed in range(8)]
    assert sum(levels) / 8 == pytest.approx(20, rel=0.1)


SEPIA = [[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]]


@pytest.mark.parametrize("eight", [True, False])
@pytest.mark.parametrize(
    ("mix", "level"),
    [
        ([[1, 0, 0], [0.8, 0, 0], [0.5, 0, 0]], 20 * ((1 + 0.64 + 0.25) / 3) ** 0.5),
        (SEPIA, 20 * (sum(v * v for row in SEPIA for v in row) / 3) ** 0.5),
        ([[0, 0, 0], [1, 0, 0], [0, 0, 0]], 20 / 3**0.5),  # one channel of a microscope
        ([[1, 0, 0], [1, 0, 0], [0, 0, 0]], 20 * (2 / 3) ** 0.5),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 0]], 20 * (2 / 3) ** 0.5),
        ([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]], 20 * (2.5 / 3) ** 0.5),
    ],
)
def test_channels_made_of_others(mix, level, eight):
    """Three of them in one covariance leave directions without noise, once taken for the level: 0.3, "looks clean"."""
    image = torch.einsum("oc,bchw->bohw", torch.tensor(mix, dtype=torch.float32), noisy(20, picture(low=0.3, high=0.55)))
    image = eight_bit(image) if eight else image
    assert float(estimate_noise(image)) * 255 == pytest.approx(level, rel=0.06)
    pixels = image[0].permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    assert estimate_picture(pixels) * 255 == pytest.approx(level, rel=0.06)


def test_gray_in_colour_but_for_a_level_here_and_there():
    gray = eight_bit(noisy(25, picture(low=0.3, high=0.6)))[:, :1].repeat(1, 3, 1, 1)
    gray[:, 1] += (torch.rand(gray[:, 1].shape, generator=torch.Generator().manual_seed(0)) < 0.1) / 255
    assert float(estimate_noise(gray)) * 255 == pytest.approx(25, rel=0.06)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("eight", [True, False])
def test_black_borders_take_nothing_away(share, eight):
    image = noisy(25, picture(160, 160))
    image = eight_bit(image) if eight else image
    bar = int(160 * share / 2)
    image[:, :, :bar] = image[:, :, 160 - bar :] = 0
    assert float(estimate_noise(image, clipped=eight)) * 255 == pytest.approx(25, rel=0.07)


def test_dark_patches_of_few_photons_are_no_border():
    """Empty by chance here and there: leaving those out would make the rest louder than it is."""
    generator = torch.Generator().manual_seed(0)
    image = torch.poisson(torch.full((1, 1, 300, 300), 0.02), generator=generator) / 30
    assert float(estimate_noise(image)) == pytest.approx(0.02**0.5 / 30, rel=0.15)


def test_dots_on_black_are_all_there_is():
    image = torch.zeros(1, 3, 200, 200)
    for y, x in torch.randint(2, 198, (50, 2), generator=torch.Generator().manual_seed(0)).tolist():
        image[..., y : y + 2, x : x + 2] = 1.0
    assert float(estimate_noise(image)) * 255 < 30  # once 55, with the black left out


@pytest.mark.parametrize("side", [130, 160])
def test_a_live_square_on_black(side):
    image = torch.zeros(1, 3, 200, 200)
    image[..., 20 : 20 + side, 30 : 30 + side] = noisy(25, picture(side, side, 0.3, 0.6))
    assert float(estimate_noise(image)) * 255 == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("level", [0.3, 0.5, 2])
def test_little_noise_of_floats_is_each_channel_s_own(level):
    """Rounding to 8 bits makes channels alike within half a step; floats are not rounded."""
    flat = torch.full((1, 3, 200, 200), 0.5)
    assert float(estimate_noise(noisy(level, flat))) * 255 == pytest.approx(level, rel=0.06)


def test_beyond_the_scale_of_the_table():
    shades = picture(low=0.3, high=0.6)
    levels = [float(estimate_noise(noisy(level, shades).clamp(0, 1))) * 255 for level in (150, 200)]
    assert 120 < levels[0] < levels[1] - 10 and levels[1] > 160  # once 153 at most


def test_half_precision_and_no_gradient():
    image = noisy(20).bfloat16().requires_grad_()
    level = estimate_noise(image)
    assert level.dtype == torch.float32 and not level.requires_grad


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (torch.rand(1, 3, 1, 9), {}),
        (torch.rand(3, 9, 9), {}),
        (torch.full((1, 1, 9, 9), torch.nan), {}),
        (torch.full((1, 1, 9, 9), 90.0), {}),
        (torch.rand(1, 1, 9, 9), {"method": "fourier"}),
    ],
)
def test_bad_input(images, options):
    with pytest.raises(InputError):
        estimate_noise(images, **options)


@pytest.mark.parametrize("pixels", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.int32), np.zeros((0, 9, 3), np.uint8)])
def test_bad_pixels(pixels):
    with pytest.raises(InputError):
        estimate_picture(pixels)


def test_auto_in_denoise():
    model = FFDNet(depth=2, width=12).eval()
    torch.nn.init.normal_(model.body[0].weight)
    batch = torch.cat([noisy(5), noisy(40)])
    assert torch.equal(denoise(batch, model, sigma="auto"), denoise(batch, model, sigma=estimate_noise(batch)))
    pixels = eight_bit(batch[1]).permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    expected = denoise(pixels, model, sigma=estimate_picture(pixels))
    assert np.array_equal(denoise(pixels, model, sigma="auto"), expected)
    assert not np.array_equal(expected, denoise(pixels, model, sigma=5 / 255))
    with pytest.raises(InputError, match="'auto'"):
        denoise(batch, model, sigma="much")


def test_a_blind_model_refuses_auto():
    from segaware import DnCNN

    with pytest.raises(InputError, match="blind"):
        denoise(noisy(5), DnCNN(depth=2, width=4), sigma="auto")
    with pytest.raises(InputError, match="blind"):
        denoise(np.zeros((8, 8, 3), np.uint8), DnCNN(depth=2, width=4), sigma="auto")
