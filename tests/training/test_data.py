"""Patches: a function of (seed, step), whatever the number of processes; noise as the recipe says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from segaware.errors import InputError, TrainingError
from segaware.training import Recipe, data
from segaware.training.data import ImageFiles, Patches, check_readable, image_files, open_images

RECIPE = Recipe(steps=10, batch_size=4, patch_size=16)


def images(count=5, side=40):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, side, side + 3 * i, generator=generator) for i in range(count)]


def test_step_and_seed_decide():
    one, other = Patches(images(), RECIPE), Patches(images(), RECIPE)
    for name in ("noisy", "clean", "sigma"):
        assert torch.equal(getattr(one[7], name), getattr(other[7], name))
        assert not torch.equal(getattr(one[7], name), getattr(one[8], name))
    reseeded = Patches(images(), dataclasses.replace(RECIPE, seed=1))
    assert not torch.equal(one[7].clean, reseeded[7].clean)


def test_two_processes_share_the_batch_of_one():
    whole = Patches(images(), dataclasses.replace(RECIPE, batch_size=8))[3]
    parts = [Patches(images(), RECIPE, process=i, processes=2)[3] for i in range(2)]
    for name in ("noisy", "clean", "sigma"):
        taken_in_turns = torch.stack([getattr(part, name) for part in parts], dim=1).flatten(0, 1)
        assert torch.equal(getattr(whole, name), taken_in_turns)
    for part in parts:  # each meets low and high noise, which batch normalisation would tell
        assert part.sigma.min() < 14 / 255 and part.sigma.max() > 41 / 255


def test_blind_sigma_is_uniform_and_the_noise_has_it():
    recipe = dataclasses.replace(RECIPE, batch_size=16, patch_size=32)
    batches = [Patches(images(side=32), recipe)[step] for step in range(10)]
    sigma = torch.cat([batch.sigma for batch in batches]) * 255
    assert 0 <= sigma.min() < 4 and 51 < sigma.max() <= 55
    assert sigma.mean().item() == pytest.approx(27.5, abs=1)
    assert sigma.std().item() == pytest.approx(55 / 12**0.5, abs=1.5)
    for batch in batches:
        measured = (batch.noisy - batch.clean).flatten(1).std(dim=1)
        assert torch.allclose(measured, batch.sigma, rtol=0.1, atol=1e-3)
        assert torch.all(batch.sigma.diff() > 0)  # stratified: one from each sixteenth
    assert min(batch.noisy.min() for batch in batches) < 0  # unclipped


@pytest.mark.parametrize("kind", ["poisson", "poisson-gaussian"])
def test_other_noise(kind):
    recipe = dataclasses.replace(RECIPE, noise=kind, peak=20.0, sigma=(10.0, 10.0), patch_size=32, flips=False)
    flat = [torch.full((3, 40, 40), 0.5)]
    residual = torch.cat([Patches(flat, recipe)[s].noisy - 0.5 for s in range(8)])
    expected = 0.5 / 20 + (0 if kind == "poisson" else (10 / 255) ** 2)
    assert residual.var().item() == pytest.approx(expected, rel=0.03)
    assert residual.mean().item() == pytest.approx(0, abs=5e-3)


def test_all_eight_turns_and_labels_turn_along():
    image = torch.arange(3 * 16 * 16).reshape(3, 16, 16) / 768
    labels = (image[0] * 768).long()  # the label of a pixel is its own number in channel 0
    patches = Patches([(image, labels)], dataclasses.replace(RECIPE, steps=40))
    seen = set()
    for step in range(40):
        batch = patches[step]
        assert torch.equal((batch.clean[:, 0] * 768).round().long(), batch.labels)
        seen |= {tuple(labels[0, :2].tolist()) + tuple(labels[1, :1].tolist()) for labels in batch.labels}
    assert len(seen) == 8
    batch = Patches([image], dataclasses.replace(RECIPE, flips=False))[0]
    assert torch.equal(batch.clean[0], image)


def test_small_images_are_extended_and_their_labels_ignored():
    batch = Patches([(torch.rand(3, 5, 40), torch.ones(5, 40, dtype=torch.long))], dataclasses.replace(RECIPE, flips=False))[0]
    assert batch.clean.shape == (4, 3, 16, 16)
    assert torch.all(batch.labels[:, :5] == 1) and torch.all(batch.labels[:, 5:] == 255)


def test_labels_that_do_not_fit():
    with pytest.raises(InputError, match=r"give \(H, W\) or one class"):
        Patches([(torch.rand(3, 20, 20), torch.zeros(20, 21))], RECIPE)[0]
    with pytest.raises(InputError, match="with all, or with none"):
        Patches([(torch.rand(3, 20, 20), 7), torch.rand(3, 20, 20)], RECIPE)[0]
    as_arrays = Patches([(torch.rand(3, 20, 20), np.ones((20, 20), dtype=np.uint8))], RECIPE)[0]
    assert as_arrays.labels.shape == (4, 16, 16)


def test_bad_files_are_named_before_the_start(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "thin.png")
    Image.fromarray(np.zeros((9, 9, 4), np.uint8)).save(tmp_path / "alpha.png")
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "thin.png").read_bytes()[:60])
    with pytest.raises(TrainingError, match="2 of 4") as caught:
        check_readable(open_images(tmp_path, 3))
    assert "cut.png" in str(caught.value) and "deep.png" in str(caught.value) and "thin.png" not in str(caught.value)
    good = open_images([tmp_path / "thin.png", tmp_path / "alpha.png"], 3)
    check_readable(good)
    assert Patches(good, RECIPE)[0].clean.shape == (4, 3, 16, 16)


def test_class_labels_pass():
    assert Patches([(torch.rand(3, 20, 20), 7)], RECIPE)[0].labels.tolist() == [7, 7, 7, 7]


def test_files(tmp_path):
    (tmp_path / "deep").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "deep/b.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    files = image_files(tmp_path)
    assert [f.name for f in files] == ["a.png", "b.png"]
    read = ImageFiles(files)
    assert torch.equal(read[1], torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(read[0], torch.from_numpy(pixels[..., 0]).expand(3, -1, -1))
    with pytest.raises(TrainingError, match="channels=3"):
        ImageFiles(files, channels=1)[1]
    assert len(open_images(tmp_path, 3)) == len(open_images([str(f) for f in files], 3)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adan"}, "did you mean"),
        ({"sigma": (0.0, 0.2)}, "8-bit units"),
        ({"sigma": (50.0, 10.0)}, "lowest, highest"),
        ({"steps": 0}, "at least 1"),
        ({"ema": 1.0}, "ema"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"matrix_learning_rate": -1.0}, "matrix_learning_rate"),
        ({"steps": 1e5}, "whole number"),
        ({"seed": -1}, "seed"),
        ({"sigma": 25.0}, r"\(25.0, 25.0\)"),
        ({"validation_sigmas": (0.1,)}, "8-bit units"),
        ({"peak": 0.0}, "peak"),
    ],
)
def test_senseless_recipes(change, message):
    with pytest.raises(TrainingError, match=message):
        dataclasses.replace(RECIPE, **change)


def test_recipes_survive_json():
    recipe = Recipe(milestones=(3, 4), sigma=(5.0, 6.0))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(TrainingError, match="did you mean 'learning_rate'"):
        Recipe.from_dict({"learning_rat": 1.0})


def test_rates():
    cosine = Recipe(steps=100)
    assert cosine.rate(0) == 1 and cosine.rate(50) == pytest.approx(0.5) and cosine.rate(99) < 1e-3
    stairs = Recipe(steps=100, schedule="multistep", milestones=(10, 40))
    assert [stairs.rate(s) for s in (9, 10, 39, 40)] == pytest.approx([1, 0.1, 0.1, 0.01])
    trapezoid = Recipe(steps=100, schedule="trapezoid", cooldown=20, warmup=10)
    assert [trapezoid.rate(s) for s in (0, 9, 50, 80, 90, 99)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0.05])


def test_no_more_is_read_ahead_than_is_kept(tmp_path, monkeypatch):
    for index in range(5):
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(tmp_path / f"{index}.png")
    read = []
    plain = data.image_io.read
    monkeypatch.setattr(data.image_io, "read", lambda path, **options: read.append(path.name) or plain(path, **options))
    monkeypatch.setattr(data, "_CACHE_BYTES", 2 * 192 + 1)
    images = data.ImageFiles(data.image_files(tmp_path))
    images.read_all()
    assert read == ["0.png", "1.png", "2.png"] and images[4].float().mean() == 4


def test_a_gray_image_among_colours_is_named():
    images = [torch.rand(3, 20, 20), torch.rand(1, 20, 20)]
    patches = Patches(images, Recipe(steps=20, batch_size=4, patch_size=8))
    with pytest.raises(InputError, match="training image 1: 1 channels, the first has 3"):
        [patches[step] for step in range(20)]
