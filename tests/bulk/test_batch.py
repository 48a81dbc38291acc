"""``DenoiseBatch`` as the plain callable that it is; with real Ray it is tried in test_ray.py."""

import io
import pickle
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import segaware
from segaware import DnCNN
from segaware.bulk import DenoiseBatch, batch, model_hash
from segaware.entries import write_entry
from segaware.errors import ImageError, InputError, WeightsError


@pytest.fixture(autouse=True)
def zoo(shipped, monkeypatch):
    monkeypatch.setattr(batch, "_ENGINES", {})
    return shipped


def picture(height=20, width=24, channels=3, dtype=np.uint8, seed=0):
    random = np.random.default_rng(seed)
    shape = (height, width, channels) if channels else (height, width)
    if np.dtype(dtype).kind == "f":
        return random.random(shape).astype(dtype)
    return random.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def column(*items):
    found = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        found[i] = item
    return found


def file_of(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form, **options)
    return buffer.getvalue()


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [3, 1, None])
def test_ragged_images_are_denoised_as_alone(dtype, channels):
    images = column(*(picture(20 + i, 30 - i, channels, dtype, i) for i in range(3)))
    made = DenoiseBatch()({"image": images, "label": np.arange(3)})
    assert made["image"].dtype == object and (made["label"] == np.arange(3)).all()
    for noisy, clean in zip(images, made["image"], strict=True):
        expected = segaware.denoise(noisy)
        assert clean.dtype == expected.dtype and np.array_equal(clean, expected)


def test_images_of_one_size_stay_one_array():
    images = np.stack([picture(seed=i) for i in range(3)])
    made = DenoiseBatch()({"image": images})["image"]
    assert made.shape == images.shape and made.dtype == np.uint8
    assert np.array_equal(made[1], segaware.denoise(images[1]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("together", [True, False])
def test_read_only_arrays_are_taken_and_not_changed(dtype, together):
    images = np.stack([picture(dtype=dtype, seed=i) for i in range(2)])
    before = images.copy()
    images.setflags(write=False)
    given = {"image": images}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that it could write through
        made = DenoiseBatch(together=together)(given)
    assert given == {"image": images} and np.array_equal(images, before)
    assert not np.array_equal(made["image"], before)


def test_a_new_column_keeps_the_noisy_one():
    images = np.stack([picture()])
    made = DenoiseBatch(out="clean")({"image": images})
    assert made["image"] is images and np.array_equal(made["clean"][0], segaware.denoise(images[0]))


@pytest.mark.parametrize(("model", "options"), [("segaware-blind", {}), ("ffdnet", {"sigma": "auto"}), ("ffdnet", {"sigma": 0.1})])
def test_together_is_as_alone(model, options):
    images = column(picture(seed=0), picture(9, 7, seed=1), picture(seed=2), picture(dtype=np.uint16), picture(channels=1), picture(channels=1))
    alone, joined = (DenoiseBatch(model, together=t, **options)({"image": images}) for t in (False, True))
    for one, other in zip(alone["image"], joined["image"], strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert "sigma" not in alone or np.array_equal(alone["sigma"], joined["sigma"])


def test_together_runs_fewer_and_larger_pieces(monkeypatch):
    seen = []
    forward = DnCNN.forward
    monkeypatch.setattr(DnCNN, "forward", lambda self, noisy, sigma=None: seen.append(noisy.shape[0]) or forward(self, noisy, sigma))
    DenoiseBatch(together=True)({"image": np.stack([picture(seed=i) for i in range(5)])})
    assert seen == [5]


def test_sigma_is_given_estimated_or_refused():
    images = np.stack([picture(seed=i) for i in range(2)])
    fixed = DenoiseBatch("ffdnet", sigma=25 / 255)({"image": images})
    assert np.array_equal(fixed["image"][0], segaware.denoise(images[0], "ffdnet", sigma=25 / 255)) and "sigma" not in fixed
    auto = DenoiseBatch("ffdnet", sigma="auto")({"image": images})
    assert np.array_equal(auto["image"][1], segaware.denoise(images[1], "ffdnet", sigma="auto"))
    assert auto["sigma"].dtype == np.float32 and (auto["sigma"] > 0.05).all()
    assert np.isnan(DenoiseBatch("ffdnet", sigma="auto", errors="row")({"image": column(images[0], None)})["sigma"][1])
    with pytest.raises(InputError, match="sigma='auto'"):
        DenoiseBatch("ffdnet")({"image": images})
    for sigma in (0.1, "auto"):  # nor is that the fault of an image
        with pytest.raises(InputError, match="call it without"):
            DenoiseBatch("segaware-blind", sigma=sigma, errors="row")({"image": images})
    with pytest.raises(InputError, match="25/255|divide"):
        DenoiseBatch("ffdnet", sigma=25)({"image": images})
    with pytest.raises(InputError, match="drop or rename"):
        DenoiseBatch("ffdnet", sigma="auto")({"image": images, "sigma": [1, 2]})


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
def test_files_come_back_in_their_format(form):
    if form == "TIFF":
        pytest.importorskip("tifffile")
    options = {"lossless": True} if form == "WEBP" else {}
    data = file_of(picture(), form, **options)
    made = DenoiseBatch(column="bytes")({"bytes": column(data, data), "path": ["a", "b"]})["bytes"]
    assert Image.open(io.BytesIO(made[0])).format == form and made[0] == made[1]
    difference = np.abs(opened(made[0]).astype(int) - segaware.denoise(opened(data)).astype(int)).max()
    assert difference <= (25 if form == "JPEG" else 0)


def test_alpha_of_a_file_is_kept():
    pixels = picture(channels=4)
    made = DenoiseBatch(column="bytes")({"bytes": column(file_of(pixels))})["bytes"]
    assert np.array_equal(opened(made[0])[:, :, 3], pixels[:, :, 3]) and not np.array_equal(opened(made[0]), pixels)


def bad_images():
    nan = picture(dtype=np.float32)
    nan[3, 4] = np.nan
    return [nan, picture(dtype=np.float32) * 255, picture(channels=5, dtype=np.float32), picture()[None].astype(np.float32), picture().astype(np.int32)]


def test_a_bad_image_becomes_a_row_with_its_error():
    good = picture(dtype=np.float32)
    images = column(good, *bad_images(), None, "photo.png", np.zeros((0, 4, 3)), good)
    made = DenoiseBatch(errors="row", out="clean")({"image": images, "path": [f"{i}.png" for i in range(10)]})
    assert [bool(error) for error in made["error"]] == [False, *[True] * 8, False]
    assert all(error.startswith(f"{i}.png: ") for i, error in enumerate(made["error"]) if error)
    assert np.array_equal(made["clean"][0], made["clean"][9]) and made["clean"][0].size
    assert not any(len(made["clean"][i]) for i in range(1, 9))
    assert made["clean"][1].shape == (0, 0, 3) and made["clean"][1].dtype == np.float32


def test_an_estimate_that_fails_is_of_one_image_of_a_group(monkeypatch):
    images = np.stack([picture(seed=i) for i in range(3)])
    estimate = batch.estimate_picture

    def fails(pixels):
        if np.array_equal(pixels, images[1]):
            raise np.linalg.LinAlgError("did not converge")
        return estimate(pixels)

    monkeypatch.setattr(batch, "estimate_picture", fails)
    made = DenoiseBatch("ffdnet", sigma="auto", errors="row", together=True)({"image": images})
    assert made["error"][1].endswith("LinAlgError: did not converge") and [bool(error) for error in made["error"]] == [False, True, False]
    assert np.array_equal(made["image"][2], segaware.denoise(images[2], "ffdnet", sigma="auto"))


def test_a_group_that_fails_as_one_is_done_one_by_one(monkeypatch):
    tensor = batch.Engine.tensor

    def too_large(self, noisy, *given, **options):
        if noisy.ndim == 4 and noisy.shape[0] > 1:
            raise RuntimeError("CUDA error: out of memory")
        return tensor(self, noisy, *given, **options)

    monkeypatch.setattr(batch.Engine, "tensor", too_large)
    images = np.stack([picture(seed=i) for i in range(3)])
    made = DenoiseBatch(together=True)({"image": images})
    assert np.array_equal(made["image"][1], segaware.denoise(images[1]))


@pytest.mark.parametrize("data", [b"", b"no image", file_of(picture(40, 40))[:700], None])
def test_a_bad_file_becomes_a_row_with_its_error(data):
    good = file_of(picture())
    made = DenoiseBatch(column="bytes", errors="row")({"bytes": column(data, good), "path": ["x/bad.png", "y"]})
    assert made["error"][0].startswith("x/bad.png: ") and made["error"][1] == "" and made["bytes"][0] == b"" and made["bytes"][1]
    assert "segaware-" not in made["error"][0]  # no name of a temporary file


def test_errors_are_raised_with_the_name_of_the_image():
    with pytest.raises(ImageError, match="^b.png: the file is empty.*fetch"):
        DenoiseBatch(column="bytes")({"bytes": column(file_of(picture()), b""), "path": ["a.png", "b.png"]})
    with pytest.raises(InputError, match="^image 1 of the batch: .*divide"):
        DenoiseBatch()({"image": column(picture(), picture().astype(np.int32))})


def test_rows_that_failed_before_are_left_alone():
    images = np.stack([picture(), picture()])
    first = DenoiseBatch(out="a", errors="row")({"image": images, "error": ["lost on the way", ""]})
    second = DenoiseBatch(out="b", errors="row")(first)
    assert list(second["error"]) == ["lost on the way", ""] and not second["b"][0].size and second["b"][1].size


def test_an_empty_batch():
    made = DenoiseBatch(errors="row")({"image": np.empty(0, dtype=object)})
    assert len(made["image"]) == len(made["error"]) == 0


def test_it_is_pickled_without_its_network(zoo):
    denoise = DenoiseBatch(errors="row")
    images = {"image": np.stack([picture()])}
    expected = denoise(images)["image"]
    data = pickle.dumps(denoise)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert again._engine is None and np.array_equal(again(images)["image"], expected)
    assert again.engine() is denoise.engine()  # opened once a process, whoever sends an instance
    module = pickle.loads(pickle.dumps(DenoiseBatch(DnCNN(depth=3, width=4))))
    assert module(images)["image"].shape == (1, 20, 24, 3)


def test_nothing_is_opened_before_the_first_batch():
    denoise = DenoiseBatch("no-such-model", errors="row")  # nor is a lost model the fault of an image
    with pytest.raises(WeightsError, match="no-such-model"):
        denoise({"image": np.stack([picture()])})


def test_a_folder_whose_weights_were_replaced_is_read_again(tmp_path):
    images = {"image": np.stack([picture()])}
    results, hashes = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        write_entry(tmp_path / "mine", DnCNN(depth=3, width=4 + seed))
        results.append(DenoiseBatch(tmp_path / "mine")(images)["image"])
        hashes.append(model_hash(tmp_path / "mine"))
    assert not np.array_equal(*results) and hashes[0] != hashes[1]
    assert model_hash("ffdnet") != model_hash("segaware-blind")


def test_threads_are_those_that_ray_assigns(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    DenoiseBatch().engine()
    DenoiseBatch(threads=None).engine()
    assert set_to == []
    DenoiseBatch(threads=3).engine()
    context = types.SimpleNamespace(get_task_id=lambda: "1", get_assigned_resources=lambda: {"CPU": 2.0})
    ray = types.SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
    monkeypatch.setitem(sys.modules, "ray", ray)
    DenoiseBatch().engine()
    context.get_assigned_resources = lambda: {"CPU": 0.25, "GPU": 1.0}
    DenoiseBatch().engine()
    context.get_task_id = lambda: None  # the driver's threads are its own
    DenoiseBatch().engine()
    assert set_to == [3, 2, 1]


@pytest.mark.parametrize(
    ("options", "repair"),
    [
        ({"model": 3}, "a name, a folder or a denoiser"),
        ({"errors": "ignore"}, "'raise' or 'row'"),
        ({"threads": 0}, "positive number"),
        ({"threads": True}, "positive number"),
        ({"together": "often"}, "True or False"),
        ({"sigma": "some"}, "'auto'"),
    ],
)
def test_wrong_arguments_are_said_at_once(options, repair):
    with pytest.raises(InputError, match=repair):
        DenoiseBatch(**options)


@pytest.mark.parametrize(
    ("given", "repair"),
    [
        (np.zeros(3), "batch_format='numpy'"),
        ({"images": np.zeros(3)}, "did you mean 'images'"),
        ({"image": np.array([b"abc"])}, "dtype=object"),
    ],
)
def test_batches_of_another_kind_are_refused(given, repair):
    with pytest.raises(InputError, match=repair):
        DenoiseBatch(errors="row")(given)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floats_of_a_file_keep_their_depth(dtype, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).random((20, 24, 4)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    made = DenoiseBatch(column="bytes")({"bytes": column((tmp_path / "a.tif").read_bytes())})["bytes"]
    (tmp_path / "b.tif").write_bytes(made[0])
    after = tifffile.imread(tmp_path / "b.tif")
    assert after.dtype == dtype and np.array_equal(after[..., 3], pixels[..., 3]) and not np.array_equal(after, pixels)
