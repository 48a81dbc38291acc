"""NIQE: its own arithmetic, and other people's on the same parameters.

LIVE's parameters are not part of the repository: give their .npz or .mat file in SEGAWARE_NIQE_LIVE, or
the tests that need them are skipped.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from segaware.errors import EvaluationError, ImageError, InputError, WeightsError
from segaware.niqe import NIQE
from segaware.niqe_features import BLOCK, _fit, _halve, _moments, _table, niqe_features

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "niqe-live" / "niqe_pris_params.npz"
LIVE = Path(os.environ.get("SEGAWARE_NIQE_LIVE") or BESIDE)
needs_live = pytest.mark.skipif(not LIVE.is_file(), reason="LIVE's parameters are not here (SEGAWARE_NIQE_LIVE)")


def live(**options):
    return NIQE.from_file(LIVE, name="live", **options)


def photograph(name, size=None):
    data = pytest.importorskip("skimage.data")
    pixels = torch.from_numpy(np.array(getattr(data, name)())).double()
    image = pixels[None, None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)[None]
    return image if size is None else image[:, :, : size[0], : size[1]]


def noisy(image, sigma, seed=0):
    return image + sigma * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texture(batch=1, channels=3, height=192, width=200, seed=0):
    """Something with edges at all scales, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(batch, channels, height, width)
    for scale in (1, 2, 4, 8, 16, 32):
        coarse = torch.randn(batch, channels, -(-height // scale), -(-width // scale), generator=generator)
        total += scale * coarse.repeat_interleave(scale, 2).repeat_interleave(scale, 3)[:, :, :height, :width]
    return ((total - total.amin()) / (total.amax() - total.amin())).double()


# ------------------------------------------------------------------------------------------------ the metric


def test_shape_type_and_independence_of_the_batch():
    metric, images = NIQE.shipped(), texture(3)
    values = metric(images.float(), data_range=1)
    assert values.shape == (3,) and values.dtype == torch.float64 and values.isfinite().all()
    alone = torch.cat([metric(image[None].float(), data_range=1) for image in images])
    assert torch.allclose(values, alone, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_distance_by_hand(seed):
    """Mittal et al. 2013, eq. 10, from the blocks' features, with the parameters that ship."""
    metric, image = NIQE.shipped(), texture(1, 1, 400, 400, seed)
    rows = niqe_features((image * 255)[:, 0])[0][0].numpy()
    usable = rows[np.isfinite(rows).all(1)]
    both = (np.cov(usable, rowvar=False) + metric.covariance.numpy()) / 2
    apart = np.nanmean(rows, axis=0) - metric.mean.numpy()
    assert metric(image, data_range=1).item() == pytest.approx(np.sqrt(apart @ np.linalg.pinv(both) @ apart), rel=1e-6)
    assert metric(noisy(image, 0.1), data_range=1).item() != pytest.approx(metric(image, data_range=1).item(), rel=0.01)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_pixels_that_are_no_numbers_are_refused(bad):
    image = texture()
    image[0, 0, 30, 30] = bad
    with pytest.raises(InputError, match="1 of"):
        NIQE.shipped()(image, data_range=1)


@pytest.mark.parametrize("scale", [255.0, 65535.0, 0.5])
@pytest.mark.parametrize("options", [{}, {"luma": "y"}, {"round_luma": True}])
def test_the_scale_does_not_matter(scale, options):
    metric, images = NIQE.shipped(**options), texture()
    expected = metric(images, data_range=1)
    assert torch.allclose(metric(scale * images, data_range=scale), expected, atol=1e-6)
    assert not torch.allclose(metric(images, data_range=255), expected, atol=0.1)  # and is not guessed


def test_data_range_must_be_said():
    with pytest.raises(TypeError, match="data_range"):
        NIQE.shipped()(texture())


@pytest.mark.parametrize("name", ["camera", "chelsea"])
def test_noise_and_blur_make_it_worse(name):
    metric, clean = NIQE.shipped(), photograph(name, (288, 384))
    values = [metric(noisy(clean, sigma).clamp(0, 255), data_range=255).item() for sigma in (0, 5, 15, 25, 50)]
    assert values == sorted(values) and values[-1] > 2 * values[0]
    blurred = torch.nn.functional.avg_pool2d(clean, 5, stride=1, padding=2, count_include_pad=False)
    assert metric(blurred, data_range=255) > values[0] + 0.5


def test_gray_is_colour_of_equal_channels():
    gray, metric = texture(channels=1), NIQE.shipped()
    assert torch.allclose(metric(gray, data_range=1), metric(gray.expand(-1, 3, -1, -1), data_range=1), atol=1e-6)


def test_only_whole_blocks_are_seen():
    image, metric = texture(height=230, width=290), NIQE.shipped()
    assert torch.equal(metric(image, data_range=1), metric(image[:, :, :192, :288], data_range=1))


def test_flat_images_are_nan_and_spoil_no_others():
    images = torch.cat([texture(), torch.full((1, 3, 192, 200), 0.7)])
    values = NIQE.shipped()(images, data_range=1)
    assert values[0].isfinite() and values[1].isnan()


def test_flat_areas_do_not_depend_on_rounding_errors():
    """Where a picture is flat, pixel minus mean is 1e-14 of either sign, which must not count."""
    image = (texture() * 255).round()
    image[:, :, 40:90, 30:120] = 237
    metric = NIQE.shipped()
    moved = metric(image + 1e-12 * torch.randn_like(image), data_range=255)
    assert torch.allclose(moved, metric(image, data_range=255), atol=1e-6)


def test_no_gradient_and_the_input_stays():
    images = texture().requires_grad_()
    before = images.detach().clone()
    assert not NIQE.shipped()(images, data_range=1).requires_grad
    assert torch.equal(images.detach(), before)


@pytest.mark.parametrize(
    ("images", "options", "repair"),
    [
        (torch.zeros(1, 3, 95, 400), {"data_range": 1}, "hold 0 blocks.*at least 96 x 192 or 192 x 96"),
        (torch.zeros(1, 3, 191, 191), {"data_range": 1}, "hold 1 blocks"),
        (torch.zeros(3, 200, 200), {"data_range": 1}, r"images\[None\]"),
        (torch.zeros(1, 4, 200, 200), {"data_range": 1}, "without alpha"),
        (torch.zeros(1, 3, 200, 200, dtype=torch.uint8), {"data_range": 255}, "float"),
        (torch.zeros(1, 3, 200, 200), {"data_range": 0}, "positive"),
    ],
)
def test_refusals(images, options, repair):
    with pytest.raises(InputError, match=repair):
        NIQE.shipped()(images, **options)


# -------------------------------------------------------------------------------------------------- the parts


def test_features_are_those_of_the_definition():
    """One block, the plain way: every formula as it is printed."""
    plane = texture(channels=1, height=BLOCK, width=BLOCK)[0, 0] * 255
    found, sharpness = niqe_features(plane[None], at_least=1)
    ax = np.arange(-3, 4)
    kernel = np.exp(-(ax[:, None] ** 2 + ax**2) / (2 * (7 / 6) ** 2))
    kernel /= kernel.sum()
    ndimage = pytest.importorskip("scipy.ndimage")
    pixels = plane.numpy()
    mean = ndimage.convolve(pixels, kernel, mode="nearest")
    deviation = np.sqrt(np.abs(ndimage.convolve(pixels**2, kernel, mode="nearest") - mean**2))
    assert sharpness.item() == pytest.approx(deviation.mean())
    normal = (pixels - mean) / (deviation + 1)
    special = pytest.importorskip("scipy.special")
    shapes = np.arange(200, 10001) / 1000
    table = special.gamma(2 / shapes) ** 2 / (special.gamma(1 / shapes) * special.gamma(3 / shapes))

    def fit(values):
        left, right = (np.sqrt((values[side] ** 2).mean()) for side in (values < 0, values > 0))
        skew = left / right
        wanted = np.abs(values).mean() ** 2 / (values**2).mean() * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
        alpha = shapes[np.argmin((table - wanted) ** 2)]
        scale = np.sqrt(special.gamma(1 / alpha) / special.gamma(3 / alpha))
        return alpha, left * scale, right * scale

    alpha, left, right = fit(normal)
    expected = [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        alpha, left, right = fit(normal * np.roll(normal, shift, (0, 1)))
        expected += [alpha, (right - left) * special.gamma(2 / alpha) / special.gamma(1 / alpha), left, right]
    assert found[0, 0, :18].tolist() == pytest.approx(expected, abs=1e-9)


def test_the_second_scale_sees_the_halved_block():
    plane = texture(channels=1)[0, :, :, :192] * 255
    found, _ = niqe_features(plane)
    other, _ = niqe_features(_halve(plane), at_least=1)  # one block of 96 there, four of 48 here
    assert found.shape == (1, 4, 36) and other.shape == (1, 1, 36)
    assert found[0, :, 18:].mean(0)[0].item() == pytest.approx(other[0, 0, 0].item(), rel=0.2)


def test_halving_keeps_ramps_and_shifts_nothing():
    ramp = torch.arange(32, dtype=torch.float64).expand(1, 32, 32).contiguous()
    half = _halve(ramp)
    assert half.shape == (1, 16, 16)
    assert torch.allclose(half[0, 5, 2:-2], torch.arange(16).double()[2:-2] * 2 + 0.5)
    assert torch.allclose(_halve(ramp.mT.contiguous()), half.mT)


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_the_fit_finds_the_distribution_it_is_given(shape):
    """|x|^shape of a generalised Gaussian is Gamma(1 / shape) distributed; the right side is drawn twice as wide."""
    generator = np.random.default_rng(0)
    side = generator.choice([-1.0, 2.0], size=400_000, p=[1 / 3, 2 / 3])
    values = side * generator.gamma(1 / shape, 1.0, side.size) ** (1 / shape)
    alpha, left, right = _fit(_moments(torch.from_numpy(values)[None]))
    assert alpha.item() == pytest.approx(shape, rel=0.03)
    assert left.item() == pytest.approx(1, rel=0.05) and right.item() == pytest.approx(2, rel=0.05)


def test_the_table_is_sorted_and_a_one_sided_block_is_nan():
    _, borders = _table(torch.device("cpu"))
    assert (borders.diff() > 0).all()
    alpha, left, right = _fit(_moments(torch.rand(1, 100).double() + 0.1))
    assert alpha.item() == 0.2 and left.isnan() and right.isfinite()


def test_strips_and_groups_do_not_show():
    planes = texture(3, 1, 300, 200)[:, 0] * 255
    whole, sharpness = niqe_features(planes)
    for index, plane in enumerate(planes):
        features, own = niqe_features(plane[None])
        assert torch.allclose(features[0], whole[index]) and torch.allclose(own[0], sharpness[index])
    assert whole.shape == (3, 6, 36)


# ------------------------------------------------------------------------------------------------- parameters


def test_shipped_parameters_are_a_distribution():
    metric = NIQE.shipped()
    assert metric.name == "bsds500" and "bsds500" in metric.describe() and "not rounded" in metric.describe()
    assert torch.allclose(metric.covariance, metric.covariance.T)
    assert torch.linalg.eigvalsh(metric.covariance).min() > 0


def write_images(folder, count=3, size=(290, 300)):
    folder.mkdir(exist_ok=True)
    for index in range(count):
        pixels = (texture(1, 3, *size, seed=index)[0] * 255).byte().permute(1, 2, 0).numpy()
        PILImage.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_fit_takes_the_sharp_blocks_and_survives_a_file(tmp_path):
    folder = write_images(tmp_path / "pristine", count=9)
    PILImage.fromarray(np.full((192, 192, 3), 50, np.uint8)).save(folder / "flat.png")
    metric = NIQE.fit(folder)
    assert metric.name == "pristine"
    kept = []
    for index in range(9):
        pixels = torch.from_numpy(np.array(PILImage.open(folder / f"{index}.png"))).permute(2, 0, 1)[None].double()
        features, deviation = niqe_features(metric._plane(pixels, 255.0))
        kept.append(features[deviation > 0.75 * deviation.max()])
    blocks = torch.cat(kept).numpy()
    assert len(blocks) < 81  # some are left out
    assert np.allclose(metric.mean, blocks.mean(0)) and np.allclose(metric.covariance, np.cov(blocks.T))
    again = NIQE.from_file(metric.save(tmp_path / "own.npz"))
    assert again.name == "pristine"
    image = texture(seed=3)
    assert torch.equal(metric(image, data_range=1), again(image, data_range=1))
    assert metric(image, data_range=1) < NIQE.shipped()(image, data_range=1)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["own.npz"]


def test_fit_takes_paths_too(tmp_path):
    folder = write_images(tmp_path / "few", count=6)
    paths = sorted(folder.iterdir())
    assert torch.equal(NIQE.fit(paths, name="mine").mean, NIQE.fit(str(folder)).mean)


@pytest.mark.parametrize(
    ("build", "error", "repair"),
    [
        (lambda folder: folder / "nowhere", EvaluationError, "no folder"),
        (lambda folder: folder, EvaluationError, "no images"),
        (lambda folder: write_images(folder, 1), EvaluationError, "more than 36; give more or larger"),
        (lambda folder: write_images(folder, 1, (300, 90)), InputError, r"0\.png.*96 x 96 pixels are needed"),
        (lambda folder: (folder / "a.png").write_bytes(b"no image") and folder, ImageError, r"a\.png"),
    ],
)
def test_fit_refuses(tmp_path, build, error, repair):
    with pytest.raises(error, match=repair):
        NIQE.fit(build(tmp_path))


NAMES = [("mean", "covariance"), ("mu_pris_param", "cov_pris_param"), ("mu_prisparam", "cov_prisparam")]


@pytest.mark.parametrize("names", [*NAMES, ("Mean", "Covariance")])
@pytest.mark.parametrize("ending", ["npz", "mat"])
def test_files_of_others(tmp_path, names, ending):
    shipped, path = NIQE.shipped(), tmp_path / f"theirs.{ending}"
    arrays = {names[0]: shipped.mean.numpy()[None], names[1]: shipped.covariance.numpy()}
    if ending == "npz":
        np.savez(path, **arrays)
    else:
        pytest.importorskip("scipy.io").savemat(path, arrays)
    metric = NIQE.from_file(path, luma="y")
    assert metric.name == "theirs" and metric.luma == "y"
    assert torch.equal(metric.mean, shipped.mean) and torch.equal(metric.covariance, shipped.covariance)


def test_files_that_are_refused(tmp_path):
    def refuse(name, repair, data=None, **arrays):
        path = tmp_path / name
        if arrays:
            np.savez(path, **arrays)
        elif data is not None:
            path.write_bytes(data)
        with pytest.raises(WeightsError, match=repair):
            NIQE.from_file(path)

    refuse("none.npz", "no such file")
    refuse("a.pt", "ending '.pt'", b"x")
    refuse("a.npz", "fetch it again", b"PK\x03\x04 cut off")
    refuse("a.mat", "fetch it again", b"not matlab")
    refuse("b.npz", "holds other.*mean and covariance", other=np.zeros(3))
    refuse("c.npz", "36 features", mean=np.zeros(18), covariance=np.eye(18))
    refuse("d.npz", "NaN", mean=np.full(36, np.nan), covariance=np.eye(36))
    refuse("e.npz", "no arrays of numbers", mean=np.array(["x"] * 36), covariance=np.eye(36))
    refuse("f.npz", "fetch it again", mean=np.array([{}] * 36), covariance=np.eye(36))  # pickled objects


def test_arguments_that_are_refused(tmp_path):
    with pytest.raises(InputError, match="'gray'"):
        NIQE.shipped(luma="grey")
    with pytest.raises(InputError, match="own.npz"):
        NIQE.shipped().save(tmp_path / "own.mat")
    with pytest.raises(EvaluationError, match="cannot be written"):
        NIQE.shipped().save(tmp_path / "no" / "own.npz")


# ------------------------------------------------------------------------------------------- other people's


@pytest.fixture(scope="module")
def deepinv_niqe(tmp_path_factory):
    deepinv = pytest.importorskip("deepinv")
    path = tmp_path_factory.mktemp("live") / "live.pt"
    metric = live()
    torch.save({"mu": metric.mean, "cov": metric.covariance}, path)
    return deepinv.loss.metric.NIQE(weights_path=str(path), dtype=torch.float64)


@needs_live
@pytest.mark.parametrize("name", ["camera", "coffee", "chelsea"])
@pytest.mark.parametrize("sigma", [0, 25])
def test_equals_deepinv_on_the_same_plane(name, sigma, deepinv_niqe):
    metric = live()
    plane = metric._plane(noisy(photograph(name), sigma), 255.0)[:, None]
    assert metric(plane, data_range=255).item() == pytest.approx(deepinv_niqe(plane).item(), abs=1e-3)


#: BasicSR's figures, on the Y plane rounded to integers. Rounding makes flat areas, in which ports count
#: the signs of rounding errors: deepinv and BasicSR differ there by 0.009, and we count none.
SANITY = {
    "astronaut": (3.0916, 0.03),
    "camera": (3.0962, 1e-3),
    "coffee": (4.1153, 1e-3),
    "chelsea": (2.6255, 1e-3),
    "rocket": (6.9709, 3e-3),
}


@needs_live
@pytest.mark.parametrize("name", SANITY)
def test_sanity_numbers(name):
    value, tolerance = SANITY[name]
    metric = live(luma="y", round_luma=True)
    assert metric(photograph(name), data_range=255).item() == pytest.approx(value, abs=tolerance)


@needs_live
def test_parameters_are_part_of_the_name():
    image = photograph("chelsea", (288, 384))
    assert abs(live()(image, data_range=255) - NIQE.shipped()(image, data_range=255)) > 0.05
    assert "live" in live().describe()
