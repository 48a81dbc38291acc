import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segaware.errors import InputError
from segaware.noise import add_gaussian, add_poisson, add_poisson_gaussian, blind_sigma

LARGE = (2, 3, 256, 256)  # 393,216 samples: the mean is known to sigma / 627, the deviation to 0.11 %


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gaussian_has_the_stated_deviation_and_no_mean():
    clean = torch.full(LARGE, 0.5)
    noise = add_gaussian(clean, 25 / 255, generator=generator()) - clean
    assert float(noise.mean()) == pytest.approx(0, abs=5 * 25 / 255 / 627)
    assert float(noise.std()) == pytest.approx(25 / 255, rel=0.006)
    kurtosis = float((noise / noise.std()).pow(4).mean())
    assert kurtosis == pytest.approx(3, abs=0.05)


def test_gaussian_is_neither_clipped_nor_rounded():
    noisy = add_gaussian(torch.zeros(1, 3, 64, 64), 0.2, generator=generator())
    assert float((noisy < 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert len((noisy * 255).round().sub(noisy * 255).abs().lt(1e-4).nonzero()) < 0.01 * noisy.numel()


def test_noise_is_independent_between_pixels_and_channels():
    noise = add_gaussian(torch.zeros(1, 2, 256, 256), 1.0, generator=generator())
    for other in (noise.roll(1, -1), noise.roll(1, -2), noise.flip(1)):
        assert abs(float((noise * other).mean())) < 0.015


@pytest.mark.parametrize("make", [
    lambda clean, g: add_gaussian(clean, 0.1, generator=g),
    lambda clean, g: add_poisson(clean, generator=g),
    lambda clean, g: add_poisson_gaussian(clean, 0.1, peak=30, generator=g),
    lambda clean, g: blind_sigma(4, generator=g),
])  # fmt: skip
def test_a_generator_decides_everything(make):
    clean = torch.rand(1, 3, 16, 16, generator=generator(5))
    first = make(clean, generator(1))
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(first, make(clean, generator(1)))
    assert not torch.equal(first, make(clean, generator(2)))


def test_noise_does_not_hang_on_the_image():
    dark, bright = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    difference = add_gaussian(bright, 0.1, generator=generator()) - add_gaussian(dark, 0.1, generator=generator())
    assert torch.allclose(difference, bright, atol=1e-6)


def test_sigma_per_image_and_per_pixel():
    clean = torch.zeros(2, 3, 128, 128)
    noisy = add_gaussian(clean, torch.tensor([0.05, 0.2]), generator=generator())
    assert noisy[0].std() == pytest.approx(0.05, rel=0.02) and noisy[1].std() == pytest.approx(0.2, rel=0.02)
    level = torch.zeros(2, 1, 128, 128)
    level[..., 64:] = 0.3
    noisy = add_gaussian(clean, level, generator=generator())
    assert not noisy[..., :64].any() and noisy[..., 64:].std() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    clean = torch.rand(1, 3, 8, 8).to(dtype)
    for noisy in (add_gaussian(clean, 0.1), add_poisson(clean), add_poisson_gaussian(clean, 0.1)):
        assert noisy.dtype == dtype and noisy.shape == clean.shape


def test_images_are_left_alone():
    clean = torch.rand(1, 3, 8, 8)
    before = clean.clone()
    add_poisson_gaussian(clean, 0.1)
    assert torch.equal(clean, before)


@pytest.mark.parametrize("intensity", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("peak", [10.0, 255.0])
def test_poisson_has_variance_intensity_over_peak(intensity, peak):
    clean = torch.full(LARGE, intensity)
    noisy = add_poisson(clean, peak=peak, generator=generator())
    assert float(noisy.mean()) == pytest.approx(intensity, rel=0.01)
    assert float(noisy.var()) == pytest.approx(intensity / peak, rel=0.02)
    assert torch.allclose(noisy * peak, (noisy * peak).round(), atol=1e-3)  # photons are counted


def test_poisson_of_half_precision_counts_in_single():
    noisy = add_poisson(torch.full((1, 1, 64, 64), 0.9, dtype=torch.float16), peak=1e5, generator=torch.Generator().manual_seed(0))
    assert noisy.dtype == torch.float16 and float(noisy.float().mean()) == pytest.approx(0.9, rel=0.01)  # 90,000 is no half


def test_photons_far_beyond_white_get_read_noise_as_well():
    few = add_poisson_gaussian(torch.full((1, 3, 64, 64), 0.9), 0.1, peak=0.3, generator=torch.Generator().manual_seed(0))
    assert few.max() > 8 and torch.isfinite(few).all()


def test_poisson_takes_negative_pixels_as_no_light():
    assert not add_poisson(torch.full((1, 1, 8, 8), -0.2)).any()


def test_poisson_gaussian_adds_both_variances():
    clean = torch.full(LARGE, 0.4)
    noisy = add_poisson_gaussian(clean, 0.1, peak=50, generator=generator())
    assert float(noisy.var()) == pytest.approx(0.4 / 50 + 0.01, rel=0.02)


def test_blind_sigma_is_uniform_up_to_55():
    sigma = blind_sigma(20_000, generator=generator())
    assert sigma.shape == (20_000,)
    top = 55 / 255
    assert 0 <= float(sigma.min()) < 0.01 * top and 0.99 * top < float(sigma.max()) <= top
    assert float(sigma.mean()) == pytest.approx(top / 2, rel=0.02)
    assert float(sigma.std()) == pytest.approx(top / 12**0.5, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(low=st.floats(-0.5, 1.5), high=st.floats(-0.5, 1.5))
def test_blind_sigma_stays_in_its_range(low, high):
    if 0 <= low <= high <= 1:
        sigma = blind_sigma(8, low=low, high=high)
        assert float(sigma.min()) >= low - 1e-6 and float(sigma.max()) <= high + 1e-6
    else:
        with pytest.raises(InputError, match="divide 8-bit values by 255"):
            blind_sigma(8, low=low, high=high)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_any_shape_is_kept(batch, channels, height, width, sigma):
    clean = torch.full((batch, channels, height, width), 0.5)
    noisy = add_poisson_gaussian(clean, sigma, generator=generator())
    assert noisy.shape == clean.shape and torch.isfinite(noisy).all()


@pytest.mark.parametrize(
    ("call", "repair"),
    [
        (lambda: add_gaussian(torch.zeros(1, 3, 4, 4), 25), "25/255"),
        (lambda: add_gaussian(torch.zeros(1, 3, 4, 4), -0.1), r"\[0, 1\]"),
        (lambda: add_gaussian(torch.zeros(3, 4, 4), 0.1), r"images\[None\]"),
        (lambda: add_gaussian(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 0.1), "/ 255"),
        (lambda: add_poisson(torch.zeros(1, 3, 4, 4), peak=0), "positive"),
        (lambda: add_poisson(torch.zeros(1, 3, 4, 4), peak=float("nan")), "positive"),
        (lambda: add_poisson(torch.zeros(1, 3, 4, 4), peak=float("inf")), "positive and finite"),
        (lambda: add_poisson(torch.full((1, 3, 4, 4), torch.inf)), "infinite"),
        (lambda: add_poisson(torch.full((1, 3, 4, 4), torch.nan)), "NaN"),
        (lambda: add_poisson(torch.full((1, 3, 4, 4), 200.0)), "divide by 255"),
        (lambda: add_gaussian(torch.full((1, 3, 4, 4), 200.0), 0.1), "divide by 255"),
        (lambda: blind_sigma(2, high=55), "divide 8-bit values by 255"),
    ],
)
def test_bad_arguments_are_told_the_repair(call, repair):
    with pytest.raises(InputError, match=repair):
        call()
