import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from segaware import metrics
from segaware.errors import InputError
from segaware.luma import luma
from segaware.metrics import PRESETS, Convention, convention, psnr, ssim

#: The same SSIM in scikit-image's words.
SKIMAGE = {
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
    "uniform": {},
}


def pair(batch=3, channels=3, height=13, width=17):
    reference = torch.rand(batch, channels, height, width)
    return reference + 0.1 * torch.randn_like(reference), reference


def array(image):
    return image.double().permute(1, 2, 0).numpy()


def theirs(estimate, reference, window, data_range=1.0):
    return [
        structural_similarity(array(b), array(a), channel_axis=2, data_range=data_range, **SKIMAGE[window])
        for a, b in zip(estimate, reference, strict=True)
    ]


def test_psnr_equals_scikit_image():
    estimate, reference = pair()
    expected = [
        peak_signal_noise_ratio(b.double().numpy(), a.double().numpy(), data_range=1.0)
        for a, b in zip(estimate, reference, strict=True)
    ]
    assert psnr(estimate, reference).tolist() == pytest.approx(expected, abs=1e-6)


def test_psnr_equals_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image")
    estimate, reference = (images.double() for images in pair())
    expected = functional.peak_signal_noise_ratio(
        estimate, reference, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    assert torch.allclose(psnr(estimate, reference), expected, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 60, 1 << 22])
def test_chunks_do_not_show(monkeypatch, chunk):
    estimate, reference = pair()
    whole = psnr(estimate, reference), ssim(estimate, reference)
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    monkeypatch.setattr(metrics, "_STRIP", chunk)
    assert torch.allclose(psnr(estimate, reference), whole[0], atol=1e-9)
    assert torch.allclose(ssim(estimate, reference), whole[1], atol=1e-12)


@pytest.mark.parametrize("scale", [255.0, 65535.0])
@pytest.mark.parametrize("name", PRESETS)
def test_the_scale_does_not_matter(name, scale):
    estimate, reference = (images.double() for images in pair(height=24, width=20))
    for measure in (PRESETS[name].psnr, PRESETS[name].ssim):
        assert torch.allclose(
            measure(estimate, reference), measure(scale * estimate, scale * reference, data_range=scale), atol=1e-9
        )


def test_integers_do_not_wrap_around():
    a, b = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert psnr(a, b, data_range=255).item() == 0
    c = np.array([[3, 200]], dtype=np.uint8)[None, None]
    assert psnr(torch.from_numpy(c), b[:, :, :1], data_range=255).item() == pytest.approx(
        peak_signal_noise_ratio(b[0, 0, :1].numpy(), c[0, 0], data_range=255)
    )


def test_integers_have_the_ssim_of_floats():
    images = torch.randint(0, 256, (2, 1, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(ssim(*images, data_range=255), ssim(*images.float(), data_range=255))


def test_equal_images_are_infinitely_good_and_one_is_one_value():
    _, reference = pair()
    assert psnr(reference, reference).tolist() == [float("inf")] * 3
    for window in metrics.WINDOWS:
        assert ssim(reference, reference, window=window).tolist() == pytest.approx([1] * 3, abs=1e-12)


def test_clamp_counts_what_a_file_would_hold():
    reference = torch.tensor([[[[0.0, 1.0]]]])
    estimate = torch.tensor([[[[-1.0, 2.0]]]])
    assert psnr(estimate, reference).item() == pytest.approx(0)
    assert psnr(estimate, reference, clamp=True).item() == float("inf")


def test_round_8bit_counts_what_a_file_would_hold():
    estimate, reference = (images.clamp(0, 1) for images in pair())
    files = ((images.double() * 255).round().to(torch.uint8) for images in (estimate, reference))
    assert torch.allclose(psnr(estimate, reference, round_8bit=True), psnr(*files, data_range=255), atol=1e-9)
    assert psnr(reference + 0.4 / 255, reference.mul(255).round() / 255, round_8bit=True).isfinite().all()
    level = torch.full((1, 3, 8, 8), 100 / 255)
    assert psnr(level + 0.4 / 255, level, round_8bit=True).item() == float("inf")


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_border_is_left_out(measure):
    estimate, reference = pair(height=21, width=19)
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    expected = measure(estimate[inner], reference[inner])
    assert torch.allclose(measure(estimate, reference, border=3), expected, atol=1e-12)
    estimate[:, :, 0] = 9
    assert not torch.allclose(measure(estimate, reference), measure(estimate, reference, border=1), atol=0.01)


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize("color", ["gray", "y"])
def test_color_compares_one_plane(measure, color):
    estimate, reference = (images.double() for images in pair())
    planes = (luma(images, color, data_range=1.0) for images in (estimate, reference))
    assert torch.allclose(measure(estimate, reference, color=color), measure(*planes), atol=1e-12)


def test_luma_planes_are_those_of_the_standards():
    colors = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).double().reshape(5, 3, 1, 1)
    assert luma(colors, "gray", data_range=1.0).flatten().tolist() == pytest.approx([1, 0, 0.299, 0.587, 0.114])
    studio = luma(255 * colors, "y", data_range=255.0).flatten().tolist()
    assert studio == pytest.approx([235, 16, 81.481, 144.553, 40.966], abs=1e-3)
    assert torch.equal(luma(colors[:, :1], "y", data_range=1.0), colors[:, :1])


@pytest.mark.parametrize("window", metrics.WINDOWS)
@pytest.mark.parametrize("size", [(11, 11), (13, 40), (37, 23)])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_equals_scikit_image(window, size, channels):
    estimate, reference = pair(2, channels, *size)
    assert ssim(estimate, reference, window=window).tolist() == pytest.approx(
        theirs(estimate, reference, window), abs=1e-6
    )


def test_ssim_of_a_photograph():
    """Figures of MATLAB's convention and of scikit-image's defaults on a known picture; the windows tell apart."""
    data = pytest.importorskip("skimage.data")
    clean = torch.from_numpy(data.camera())[None, None].double()[:, :, :200, :200]
    noisy = clean + 25 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = {window: ssim(noisy, clean, window=window, data_range=255).item() for window in metrics.WINDOWS}
    for window, value in values.items():
        assert value == pytest.approx(theirs(noisy[:, :, :], clean, window, 255.0)[0], abs=1e-6)
    assert abs(values["gaussian"] - values["uniform"]) > 1e-3


def test_ssim_where_torchmetrics_means_the_same():
    """It pads and averages the whole map; the part where the window fits is ours."""
    functional = pytest.importorskip("torchmetrics.functional.image")
    estimate, reference = (images.double() for images in pair(2, 3, 32, 32))
    _, full = functional.structural_similarity_index_measure(
        estimate, reference, data_range=1.0, kernel_size=11, sigma=1.5, return_full_image=True
    )
    if full.shape[-1] != 32:
        pytest.skip("this version returns another map")
    expected = full[:, :, 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert torch.allclose(ssim(estimate, reference), expected, atol=1e-6)


@pytest.mark.parametrize("window", metrics.WINDOWS)
def test_ssim_has_the_gradient_of_its_values(window):
    estimate, reference = (images.double() for images in pair(1, 1, 12, 12))
    assert torch.autograd.gradcheck(
        lambda image: ssim(image, reference, window=window), estimate.requires_grad_(), atol=1e-6
    )


def test_ssim_can_be_climbed():
    estimate, reference = pair(1, 3, 24, 24)
    estimate.requires_grad_()
    before = ssim(estimate, reference)
    (gradient,) = torch.autograd.grad(before.sum(), estimate)
    assert gradient.isfinite().all()
    assert ssim(estimate + 0.5 * gradient / gradient.norm(), reference) > before


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(11, 30),
    width=st.integers(11, 30),
    window=st.sampled_from(sorted(metrics.WINDOWS)),
    color=st.sampled_from(metrics.COLORS),
)
def test_properties(seed, height, width, window, color):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 2, 3, height, width, generator=generator, dtype=torch.float64)
    options = {"window": window, "color": color}
    value = ssim(a, b, **options)
    assert (value.abs() <= 1).all()
    assert torch.allclose(value, ssim(b, a, **options), atol=1e-12)  # symmetric
    assert torch.allclose(value, ssim(a.flip(3), b.flip(3), **options), atol=1e-9)
    assert torch.allclose(value, ssim(a.mT, b.mT, **options), atol=1e-9)
    assert torch.allclose(value[1:], ssim(a[1:], b[1:], **options), atol=1e-12)  # each image by itself
    assert torch.allclose(psnr(a, b, color=color), psnr(b, a, color=color))
    closer = b + 0.5 * (a - b)
    assert torch.allclose(psnr(closer, b, color=color), psnr(a, b, color=color) + 20 * math.log10(2))
    assert (ssim(closer, b, **options) > value).all()


def test_presets_are_those_of_the_papers():
    estimate, reference = pair(height=24, width=24)
    assert torch.equal(PRESETS["usaid"].psnr(estimate, reference), psnr(estimate, reference, clamp=True))
    assert torch.equal(
        PRESETS["usaid"].ssim(estimate, reference), ssim(estimate, reference, clamp=True, window="uniform")
    )
    assert torch.equal(PRESETS["sdabn"].psnr(estimate, reference), psnr(estimate, reference, border=1))
    files = ((images.double().clamp(0, 1) * 255).round()[:, :, 3:-3, 3:-3] for images in (estimate, reference))
    expected = [10 * math.log10(255**2 / float((a - b).square().mean())) for a, b in zip(*files, strict=True)]
    assert PRESETS["liu"].psnr(estimate, reference).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("wrong", [{"color": "grey"}, {"window": "box"}, {"border": -1}, {"border": 1.5}])
def test_conventions_that_do_not_exist(wrong):
    with pytest.raises(InputError, match="convention: "):
        Convention(**wrong)


def test_conventions_say_what_they_are():
    texts = {name: found.describe() for name, found in PRESETS.items()}
    assert len(set(texts.values())) == len(texts)
    assert "uniform" in texts["usaid"] and "3-pixel border" in texts["liu"] and "not clamped" in texts["sdabn"]
    assert "Y plane" in Convention(color="y").describe()
    assert convention("liu") is PRESETS["liu"]
    with pytest.raises(InputError, match="'usaid'"):
        convention("usaid2")


IMAGE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize(
    ("estimate", "reference", "options", "repair"),
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5), {}, "equal sizes"),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), {}, r"image\[None\]"),
        (IMAGE.byte(), IMAGE.byte(), {}, "data_range=255"),
        (IMAGE, IMAGE, {"data_range": 0}, "positive"),
        (IMAGE, IMAGE, {"border": -1}, "0 or more"),
        (IMAGE, IMAGE, {"border": 2.0}, "number of pixels"),
        (IMAGE, IMAGE, {"border": None}, "number of pixels"),
        (IMAGE, IMAGE, {"border": float("nan")}, "number of pixels"),
        (IMAGE.numpy(), IMAGE, {}, "expected tensors, got ndarray"),
        (IMAGE, IMAGE, {"border": 8}, r"at least (17|27) x"),
        (IMAGE, IMAGE, {"color": "grey"}, "'gray'"),
        (IMAGE[:, :2], IMAGE[:, :2], {"color": "y"}, "RGB"),
    ],
)
def test_refusals(measure, estimate, reference, options, repair):
    with pytest.raises(InputError, match=repair):
        measure(estimate, reference, **options)


@pytest.mark.parametrize(
    ("estimate", "reference", "options", "repair"),
    [
        ((IMAGE + 90).byte(), IMAGE + 0.3, {"data_range": 255}, "uint8 and torch.float32, which have other scales"),
        (IMAGE + 0.3, (IMAGE + 90).byte(), {"data_range": 255}, "which have other scales"),
        (IMAGE, IMAGE + 200, {}, "values up to 200 with data_range 1; .* 255 for 8-bit"),
    ],
)
def test_scales_that_do_not_fit(estimate, reference, options, repair):
    with pytest.raises(InputError, match=repair):
        psnr(estimate, reference, **options)


def test_scales_that_fit():
    image = torch.rand(1, 3, 64, 64) * 255
    assert 50 < float(psnr(image, image.round().byte(), data_range=255)) < 60
    hot = torch.rand(1, 3, 64, 64)
    hot[0, 0, 0, 0] = 9.0  # one pixel says nothing
    assert float(psnr(hot, hot + 0.1)) == pytest.approx(20, abs=1e-3)
    assert psnr(hot, hot + 0.1, border=np.int64(1)).shape == (1,) and Convention(border=np.int64(2)).border == 2


def test_ssim_refuses_what_its_window_does_not_fit():
    with pytest.raises(InputError, match="11 x 11"):
        ssim(IMAGE[:, :, :10], IMAGE[:, :, :10])
    assert ssim(IMAGE[:, :, :10], IMAGE[:, :, :10], window="uniform").item() == 1
    with pytest.raises(InputError, match="'gaussian'"):
        ssim(IMAGE, IMAGE, window="gauss")
