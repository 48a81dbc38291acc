import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segaware.checks import check_finite, check_images, check_range, no_sigma, sigma_map
from segaware.errors import InputError

IMAGES = torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((1, 3, 4, 4)), r"got ndarray; torch\.as_tensor"),
        ((torch.zeros(3, 4, 4), torch.zeros(3, 5, 5)), "different sizes go one by one"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.long), r"got torch\.int64; convert with images\.float\(\) / 255"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.bool), r"got torch\.bool"),
        (torch.zeros(3, 4, 4), r"\(3, 4, 4\); add a batch axis with images\[None\]"),
        (torch.zeros(4, 4), "reshape"),
        (torch.zeros(1, 1, 3, 4, 4), "reshape"),
        (torch.zeros(1, 3, 0, 4), "at least one pixel"),
        (torch.zeros(1, 1, 4, 4), r"expand\(-1, 3, -1, -1\)"),
        (torch.zeros(1, 4, 4, 4), r"images\[:, :3\]"),
        (torch.zeros(1, 9, 9, 3), r"images\.permute\(0, 3, 1, 2\)"),
        (torch.zeros(1, 2, 4, 4), "channels=2"),
    ],
    ids=str,
)
def test_check_images_names_place_and_repair(images, said):
    with pytest.raises(InputError, match=f"^frames: .*{said}"):
        check_images(images, channels=3, where="frames")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_check_images_lets_good_ones_pass(dtype):
    check_images(torch.zeros(1, 3, 1, 1, dtype=dtype), channels=3)
    check_images(torch.zeros(1, 7, 1, 1, dtype=dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_check_finite_counts_what_is_wrong(bad):
    images = IMAGES.clone()
    check_finite(images)
    images[0, 0, 0, :2] = bad
    with pytest.raises(InputError, match=r"2 of 120 values.*nan_to_num"):
        check_finite(images)


def test_check_range_sees_the_255_scale():
    check_range(IMAGES + 3.0)
    check_range(IMAGES - 1.5)
    for images in (IMAGES + 200, IMAGES - 255, IMAGES + 40000):
        with pytest.raises(InputError, match="divide by 255"):
            check_range(images)


def test_spikes_of_few_photons_are_no_other_scale():
    few = torch.full((1, 3, 64, 64), 0.5)
    few[0, 0, 0, :4] = 10.0
    check_range(few, spikes=True)
    for images, spikes in ((few, False), (few * 255, True)):
        with pytest.raises(InputError, match="divide by 255"):
            check_range(images, spikes=spikes)


def test_no_sigma():
    no_sigma(None, "net")
    for sigma in (0.1, 0.0, torch.tensor(0.1)):
        with pytest.raises(InputError, match="net: .*blind"):
            no_sigma(sigma, "net")


@pytest.mark.parametrize(
    ("sigma", "size"),
    [
        (0.1, (1, 1)),
        (torch.tensor(0.1), (1, 1)),
        (torch.tensor([0.1]), (1, 1)),
        (torch.tensor([0.1, 0.1]), (1, 1)),
        (torch.full((1, 1, 1, 1), 0.1), (1, 1)),
        (torch.full((1, 1, 4, 5), 0.1), (4, 5)),
        (torch.full((2, 1, 4, 5), 0.1), (4, 5)),
    ],
    ids=str,
)
def test_sigma_map_takes_every_form(sigma, size):
    level = sigma_map(sigma, IMAGES, where="net")
    assert level.shape == (2, 1, *size)
    assert torch.allclose(level, torch.tensor(0.1))


@pytest.mark.parametrize("sigma", [torch.full((3,), 0.1), torch.full((2, 3, 4, 5), 0.1), torch.full((2, 1, 5, 4), 0.1)])
def test_sigma_map_refuses_wrong_shapes(sigma):
    with pytest.raises(InputError, match=r"does not fit.*\(2,\) or \(2, 1, 4, 5\)"):
        sigma_map(sigma, IMAGES, where="net")


@settings(max_examples=30, deadline=None)
@given(st.floats(width=32))
def test_sigma_map_takes_exactly_the_unit_interval(value):
    if 0 <= value <= 1:
        assert float(sigma_map(value, IMAGES, where="net").amax()) == pytest.approx(value, rel=1e-6)
    else:
        with pytest.raises(InputError, match="outside"):
            sigma_map(value, IMAGES, where="net")


def test_sigma_in_8_bit_units_is_told_the_division():
    with pytest.raises(InputError, match="sigma=25/255"):
        sigma_map(25, IMAGES, where="net")
    with pytest.raises(InputError, match="needs the noise level"):
        sigma_map(None, IMAGES, where="net")
