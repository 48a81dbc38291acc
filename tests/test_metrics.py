import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from segaware import metrics
from segaware.errors import InputError
from segaware.metrics import psnr


def pair(batch=3, channels=3, height=13, width=17):
    reference = torch.rand(batch, channels, height, width)
    return reference + 0.1 * torch.randn_like(reference), reference


def test_equals_scikit_image():
    estimate, reference = pair()
    expected = [
        peak_signal_noise_ratio(b.double().numpy(), a.double().numpy(), data_range=1.0)
        for a, b in zip(estimate, reference, strict=True)
    ]
    assert psnr(estimate, reference).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 60, 1 << 22])
def test_chunks_do_not_show(monkeypatch, chunk):
    estimate, reference = pair()
    whole = psnr(estimate, reference)
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    assert torch.allclose(psnr(estimate, reference), whole, atol=1e-9)


def test_the_scale_does_not_matter():
    estimate, reference = (images.double() for images in pair())
    assert torch.allclose(psnr(estimate, reference), psnr(255 * estimate, 255 * reference, data_range=255))


def test_integers_do_not_wrap_around():
    a, b = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert psnr(a, b, data_range=255).item() == 0
    c = np.array([[3, 200]], dtype=np.uint8)[None, None]
    assert psnr(torch.from_numpy(c), b[:, :, :1], data_range=255).item() == pytest.approx(
        peak_signal_noise_ratio(b[0, 0, :1].numpy(), c[0, 0], data_range=255)
    )


def test_equal_images_are_infinitely_good_and_one_is_one_value():
    _, reference = pair()
    assert psnr(reference, reference).tolist() == [float("inf")] * 3


def test_clamp_counts_what_a_file_would_hold():
    reference = torch.tensor([[[[0.0, 1.0]]]])
    estimate = torch.tensor([[[[-1.0, 2.0]]]])
    assert psnr(estimate, reference).item() == pytest.approx(0)
    assert psnr(estimate, reference, clamp=True).item() == float("inf")


@pytest.mark.parametrize(
    ("estimate", "reference", "options", "repair"),
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5), {}, "equal sizes"),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), {}, r"image\[None\]"),
        (torch.zeros(1, 3, 4, 4).byte(), torch.zeros(1, 3, 4, 4).byte(), {}, "data_range=255"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), {"data_range": 0}, "positive"),
    ],
)
def test_refusals(estimate, reference, options, repair):
    with pytest.raises(InputError, match=repair):
        psnr(estimate, reference, **options)
