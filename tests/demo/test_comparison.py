import math

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from segaware import DnCNN, FFDNet, image_io
from segaware.demo import comparison
from segaware.demo.comparison import compare, display, figures, read_upload
from segaware.demo.maps import change_picture, class_picture, entropy_picture, legend, view
from segaware.demo.page import gallery, result_name
from segaware.errors import ImageError, InputError
from segaware.inference.engine import Engine


class Judge:
    """Three classes by brightness."""

    class_names = ("dark", "middle", "<bright>")

    def __call__(self, image):
        bright = image.mean(0)
        return 20 * torch.stack([0.3 - bright, torch.zeros_like(bright), bright - 0.6])


@pytest.fixture
def engine():
    return Engine(DnCNN(depth=3, width=4))


@pytest.fixture
def image():
    random = np.random.default_rng(0)
    return image_io.Image(random.integers(0, 256, (40, 56, 3), dtype=np.uint8))


def test_noise_is_added_and_the_rest_follows(engine, image):
    said = []
    done = compare(image, engine, Judge(), added=25, report=lambda share, what: said.append(share))
    assert list(done.pictures) == list(done.views) == ["Noisy", "Denoised", "Clean"]
    assert np.std(done.noisy - done.clean) * 255 == pytest.approx(25, rel=0.05)
    assert done.denoised == pytest.approx(engine(done.noisy), abs=1e-6)
    assert done.result.pixels.dtype == np.uint8 and done.sigma is None
    assert said == sorted(said) and said[-1] == 1
    again = compare(image, engine, None, added=25)
    assert np.array_equal(again.noisy, done.noisy) and not again.views
    assert not np.array_equal(compare(image, engine, None, added=25, seed=1).noisy, done.noisy)


def test_without_added_noise_there_is_no_clean_image(engine, image):
    done = compare(image, engine, Judge())
    assert list(done.views) == ["Noisy", "Denoised"] and done.clean is None
    assert np.array_equal(done.result.pixels, engine(image.pixels))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_the_result_is_of_the_type_that_came_with_its_alpha(engine, dtype):
    top = 1 if dtype == np.float32 else 65535
    pixels = (np.random.default_rng(0).random((12, 10, 1)) * top).astype(dtype)
    alpha = np.full((12, 10), top, dtype)
    done = compare(image_io.Image(pixels, alpha), engine, None, added=10)
    assert done.result.pixels.dtype == dtype and done.result.pixels.shape == pixels.shape
    assert done.result.alpha is alpha


def test_the_noise_level(image):
    told = Engine(FFDNet(depth=3, width=4))
    assert compare(image, told, None, sigma=30).sigma == 30
    auto = compare(image, told, None)
    assert auto.sigma == auto.estimated > 0
    with pytest.raises(InputError, match="from 0 to 255"):
        compare(image, told, None, sigma=300)
    with pytest.raises(InputError, match="noise to add"):
        compare(image, told, None, added=math.nan)
    with pytest.raises(InputError, match="give the level"):
        compare(image_io.Image(np.zeros((1, 1, 3), np.uint8)), told, None)


def test_large_images_are_segmented_in_the_middle(engine, image, monkeypatch):
    monkeypatch.setattr(comparison, "SEGMENTED", 32)
    done = compare(image, engine, Judge())
    assert done.views["Noisy"].classes.shape == (32, 32) and done.window == (slice(4, 36), slice(12, 44))


def test_uploads(tmp_path, monkeypatch):
    file = tmp_path / "photo.png"
    PILImage.new("RGB", (30, 20), (9, 200, 30)).save(file)
    assert read_upload(file).pixels.shape == (20, 30, 3)
    with pytest.raises(ImageError, match="drop one"):
        read_upload(None)
    monkeypatch.setattr(comparison, "LARGEST", 500)
    with pytest.raises(ImageError, match="segaware denoise photo.png") as error:
        read_upload(file)
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ImageError, match="^bad.png: not an image"):
        read_upload(tmp_path / "bad.png")


def test_300_megapixels_are_refused_before_they_are_read(tmp_path):
    file = tmp_path / "huge.png"
    PILImage.new("1", (20_000, 15_000)).save(file)
    with pytest.raises(ImageError, match="^huge.png: .*pixels"):
        read_upload(file)


def test_what_is_displayed():
    assert display(np.full((5, 7, 1), 2.0, np.float32)).tolist() == np.full((5, 7, 3), 255).tolist()
    assert display(np.zeros((10, 3200, 3), np.float32)).shape == (5, 1600, 3)


def test_figures_and_pictures(engine, image):
    done = compare(image, engine, Judge(), added=25)
    text = figures(done)
    assert "PSNR" in text and "class of clean" in text and "100.0 %" not in text
    assert gallery(done).count("<figure>") == 9 and "changed from clean" in gallery(done)
    shown = legend(done.views)
    assert "&lt;bright&gt;" in shown and "<bright>" not in shown
    bare = compare(image, engine, None)
    assert gallery(bare) == "" and "PSNR" not in figures(bare)
    clean = compare(image, Engine(DnCNN(depth=3, width=4)), None, added=1e-9)
    assert "nan" not in figures(clean)


def test_maps():
    scores = torch.zeros(3, 2, 4)
    scores[1, 0] = 50
    seen = view(scores, ("a", "b", "c"))
    assert seen.classes.tolist() == [[1] * 4, [0] * 4]
    assert seen.entropy[0].max() < 1e-6 and seen.entropy[1].min() > 0.999 and seen.unsure == pytest.approx(0.5)
    picture = entropy_picture(seen)
    assert picture[0, 0].tolist() == [68, 1, 84] and picture[1, 0].tolist() == [253, 231, 37]
    assert len(np.unique(class_picture(seen).reshape(-1, 3), axis=0)) == 2
    other = view(scores.flip(1), ("a", "b", "c"))
    assert other.agrees(seen) == 0 and seen.agrees(seen) == 1
    changed = change_picture(other, seen, np.zeros((2, 4, 3), np.uint8))
    assert (changed == [230, 97, 1]).all()
    with pytest.raises(InputError, match="2 to 256"):
        view(scores[:1], ("a",))


def test_names_of_results(image):
    from pathlib import Path

    assert result_name(Path("a/b.jpeg"), image) == "b-denoised.png"
    assert result_name(Path("c.tif"), image.with_pixels(image.pixels.astype(np.float32))) == "c-denoised.tif"
