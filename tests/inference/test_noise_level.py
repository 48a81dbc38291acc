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


@pytest.mark.parametrize("shape", [(2, 2), (2, 9), (7, 500), (23, 23)])
def test_small_images_use_the_wavelet(shape):
    level = estimate_noise(noisy(20, torch.full((1, 3, *shape), 0.5)))
    assert 0 < float(level) < 0.5
    with pytest.raises(InputError, match="wavelet"):
        estimate_noise(torch.rand(1, 3, *shape[:1], 8), method="patch")


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
