import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import nn

from segaware import SegAwareWrapper, image_io
from segaware.errors import InputError
from segaware.image_io import Image
from segaware.inference.engine import Engine, denoise


def array(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def half(pixels):
    return np.round(pixels / 255 / 2 * 255).astype(int)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 1), (7, 9, 3), (7, 9, 4), (1, 1, 3), (1, 500, 3)])
def test_arrays(halve, shape):
    pixels = array(*shape)
    clean = denoise(pixels, halve())
    assert clean.dtype == np.uint8 and clean.shape == shape
    assert np.abs(clean.astype(int) - half(pixels)).max() <= 1
    floats = denoise((pixels / 255), halve(), tile=4)
    assert floats.dtype == np.float32 and np.allclose(floats, pixels / 510, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 1), (7, 9, 3)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_arrays(halve, shape, order):
    pixels = np.random.default_rng(0).integers(0, 1 << 16, shape, dtype=np.uint16)
    clean = denoise(pixels.astype(f"{order}u2"), halve(), tile=4)
    assert clean.dtype == np.uint16 and clean.shape == shape
    assert np.abs(clean.astype(int) - pixels / 2).max() <= 0.5
    network = halve()
    network.forward = lambda noisy: noisy
    assert np.array_equal(denoise(pixels, network), pixels)  # there and back changes no bit
    network.forward = lambda noisy: noisy * 3 - 1
    assert denoise(np.array([[0, 32768, 65535]], np.uint16), network).tolist() == [[0, 32769, 65535]]


def test_16_bit_gray_of_pillow(halve):
    pixels = np.array([[0, 1000, 65534]], np.uint16)
    clean = denoise(PILImage.fromarray(pixels), halve())
    assert clean.mode == "I;16" and np.array(clean).tolist() == [[0, 500, 32767]]


def test_8_bit_results_are_clamped_and_rounded(halve):
    network = halve()
    network.forward = lambda noisy: noisy * 3 - 1
    assert denoise(np.array([[[0], [128], [255]]], np.uint8), network)[:, :, 0].tolist() == [[0, 129, 255]]
    assert denoise(np.array([[[0.0], [1.0]]]), network)[:, :, 0].tolist() == [[-1, 2]]


def test_the_source_stays_and_may_be_read_only(halve):
    pixels = array(8, 8, 3)
    kept = pixels.copy()
    pixels.flags.writeable = False
    denoise(pixels, halve(), tile=4)
    denoise(pixels[:, ::-1], halve())  # negative strides
    assert np.array_equal(pixels, kept)


@pytest.mark.parametrize("tile", ["whole", 8])
def test_a_gray_picture_through_a_colour_model(network, level, tile):
    gray = array(20, 30)
    clean = denoise(gray / 255, network, sigma=level, tile=tile)
    noisy = torch.from_numpy(gray / 255).float().expand(1, 3, -1, -1)
    expected = denoise(noisy, network, sigma=level).mean(1)[0]
    assert clean.shape == gray.shape and np.allclose(clean, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("inputs", "form"), [(3, "auto"), (4, "map"), (1, "auto")])
def test_pictures_of_either_kind_through_a_wrapped_network(inputs, form):
    """It states no channels; its first convolution tells."""
    channels = 1 if inputs == 1 else 3
    model = SegAwareWrapper(nn.Conv2d(inputs, channels, 3, padding=1), (), takes_sigma=form)
    sigma = 0.1 if form == "map" else None
    for shape in ((9, 8), (9, 8, 3)):
        picture = np.random.default_rng(0).random(shape, dtype=np.float32)
        assert denoise(picture, model, sigma=sigma).shape == shape


@pytest.mark.parametrize("takes_sigma", [False, True])
def test_a_colour_picture_through_a_gray_model(halve, takes_sigma):
    network = halve(channels=1, takes_sigma=takes_sigma)
    pixels = array(6, 5, 3)
    clean = denoise(pixels / 255, network, sigma=0.1 if takes_sigma else None)
    assert np.allclose(clean, pixels / 510, atol=1e-6)
    shape, sigma = network.calls[0]
    assert shape == (3, 1, 6, 5) and (sigma is None or len(sigma) == 3)


def test_paths_and_images_keep_their_alpha(halve, tmp_path):
    image = Image(array(6, 7, 3), array(6, 7, seed=1), icc_profile=b"profile")
    image_io.write(tmp_path / "a.png", image)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png")):
        clean = denoise(source, halve(channels=3))
        assert isinstance(clean, Image) and np.array_equal(clean.alpha, image.alpha) and clean.icc_profile == b"profile"
        assert np.abs(clean.pixels.astype(int) - half(image.pixels)).max() <= 1
    clean.save(tmp_path / "b.png")
    assert np.array_equal(image_io.read(tmp_path / "b.png").pixels, clean.pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pillow_images(halve, mode):
    channels = len(mode)
    picture = PILImage.fromarray(array(6, 7, channels)[:, :, 0] if channels == 1 else array(6, 7, channels))
    clean = denoise(picture, halve(channels=3))
    assert isinstance(clean, PILImage.Image) and clean.mode == mode and clean.size == picture.size
    if mode.endswith("A"):
        assert np.array_equal(np.array(clean)[..., -1], np.array(picture)[..., -1])


@pytest.mark.parametrize(
    ("picture", "repair"),
    [
        (np.zeros((4, 4, 3), np.int32), "divide by its largest"),
        (np.zeros((4, 4, 3), bool), "divide by its largest"),
        (np.full((4, 4, 3), 128.0), "divide by 255"),
        (np.full((4, 4, 3), np.nan), "nan_to_num"),
        (np.zeros((2, 4, 4, 3)), "one image at a time"),
        (np.zeros((0, 4, 3)), "one image at a time"),
        (np.zeros((4, 4, 4)), r"\[:, :, :3\]"),
        (np.zeros((3, 8, 9)), "channels seem to be first"),
        (np.zeros((4, 4, 2)), "another model"),
        ("no/such/file.png", "check the name"),
    ],
)
def test_bad_pictures(halve, picture, repair):
    with pytest.raises(InputError, match=repair):
        denoise(picture, halve(channels=3))


def test_one_engine_for_many(halve):
    network = halve()
    with Engine(network) as engine:
        for shape in ((4, 5, 3), (6, 4)):
            assert engine(array(*shape)).shape == shape
    assert len(network.calls) == 2
