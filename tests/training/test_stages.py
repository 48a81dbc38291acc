import json

import pytest
import torch

from segaware.errors import TrainingError
from segaware.training.stages import RECIPES, Crops, StageRecipe, _coloured
from segaware.training.variants import order

SMALL = StageRecipe(10, 3, (12, 12), "adam", 1e-3)


def frames(count=2, height=30, width=40):
    """Labels are the image's red channel, so that the two can be compared after any cut."""
    image = torch.randint(0, 200, (count, 3, height, width), dtype=torch.uint8)
    return [(i, i[0]) for i in image]


def test_recipes_are_the_released_ones():
    d, s = (RECIPES["cityscapes"][part] for part in ("denoiser", "segmenter"))
    assert (d.steps, d.batch_size, d.crop, d.optimizer, d.weight_decay) == (92_000, 64, (192, 192), "adam", 1e-4)
    assert d.rate(0) == pytest.approx(1e-3) and d.rate(46_000) == pytest.approx(9e-4 * 0.5**1.5 + 1e-4)
    assert (s.steps, s.batch_size, s.crop, s.optimizer, s.momentum) == (35_816, 40, (512, 1024), "sgd", 0.9)
    assert s.rate(0) == pytest.approx(0.03) and s.rate(35_815) < 1e-5
    assert s.class_weights is not None and len(s.class_weights) == 19 and s.class_weights[11:13] == (0.9843, 1.1116)
    assert RECIPES["outdoorseg"]["segmenter"].symmetry == "all" and RECIPES["cityscapes"]["segmenter"].symmetry == "mirror"


def test_recipes_are_data():
    for parts in RECIPES.values():
        for recipe in parts.values():
            assert StageRecipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_order():
    assert [e.name for e in order(2)] == ["S0", "S1", "D1", "S2", "D2"]
    assert [e.name for e in order(1, clean=False, closing=True)] == ["S1", "D1", "S2"]
    assert [(e.part, e.stage) for e in order(1)] == [("segmenter", 0), ("segmenter", 1), ("denoiser", 1)]
    with pytest.raises(TrainingError, match="at least 1"):
        order(0)


def test_what_a_step_sees_depends_on_seed_stage_and_step_alone():
    data = frames()
    crops = Crops(data, SMALL, 3)
    noisy, clean, labels = crops[4]
    assert noisy.shape == clean.shape == (3, 3, 12, 12) and labels.shape == (3, 12, 12) and labels.dtype == torch.long
    again = Crops(data, SMALL, 3)[4]
    assert all(torch.equal(a, b) for a, b in zip((noisy, clean, labels), again, strict=True))
    for other in (Crops(data, SMALL, 3)[5], Crops(data, SMALL, 4)[4], Crops(data, SMALL.change(seed=1), 3)[4]):
        assert not torch.equal(noisy - clean, other[0] - other[1])


@pytest.mark.parametrize("symmetry", ["none", "mirror", "all"])
def test_image_and_labels_are_cut_alike(symmetry):
    for step in range(6):
        _, clean, labels = Crops(frames(), SMALL.change(symmetry=symmetry), 0)[step]
        assert torch.equal((clean[:, 0] * 255).round().long(), labels)


def test_scaling_keeps_image_and_labels_together():
    ramp = torch.arange(40, dtype=torch.uint8).expand(3, 30, 40).contiguous() * 5
    recipe = SMALL.change(scales=(0.5, 2.0), symmetry="none")
    for step in range(6):
        _, clean, labels = Crops([(ramp, ramp[0])], recipe, 0)[step]
        assert (clean[:, 0] * 255 - labels).abs().max() <= 10


def test_small_images_are_extended_with_void():
    noisy, clean, labels = Crops(frames(height=8, width=9), SMALL.change(symmetry="none"), 0)[0]
    assert clean.shape == (3, 3, 12, 12) and (labels[:, 8:] == 255).all() and (labels[:, :, 9:] == 255).all()
    assert (labels[:, :8, :9] != 255).all() and torch.equal(clean[:, :, 8:, :9], clean[:, :, 7:8, :9].expand(-1, -1, 4, -1))


def test_noise_comes_after_scaling_and_is_not_clipped():
    gray = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    recipe = SMALL.change(crop=(60, 60), scales=(2.0, 2.0), sigma=50.0)
    noisy, clean, _ = Crops([(gray, gray[0])], recipe, 0)[0]
    assert (noisy - clean).std().item() == pytest.approx(50 / 255, rel=0.03) and noisy.min() < 0
    noisy, clean, _ = Crops([(gray, gray[0])], recipe.change(noise="poisson", peak=255.0), 0)[0]
    assert (noisy - clean).std().item() == pytest.approx((128 / 255 / 255) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"optimizer": "adamm"}, "did you mean 'adam'"),
        ({"noise": "salt"}, "known: gaussian, poisson"),
        ({"crop": (12, 16), "symmetry": "all"}, "square crop"),
        ({"sigma": 0.2}, "8-bit units"),
        ({"scales": (2.0, 1.0)}, "lowest, highest"),
        ({"class_weights": "rare"}, "frequency"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"ema": 1.0}, "0.999"),
        ({"steps": 1e3}, "whole number"),
        ({"clip_norm": 0.0}, "clip_norm 0 must be over 0"),
        ({"weight_decay": -1.0}, "weight_decay -1"),
        ({"peak": 0.0}, "peak 0"),
        ({"step": 3}, "did you mean 'steps'"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(TrainingError, match=message):
        SMALL.change(**values)


def test_colours_change_the_clean_image_and_nothing_else():
    """Each factor by hand; the noise and the labels stay those of the same step without colours."""
    data = frames()
    plain, coloured = (Crops(data, SMALL.change(colours=colours, sigma=10), 0) for colours in (0.0, 0.5))
    differ = 0
    for step in range(4):
        (_, clean, labels), (noisy, other, same) = plain[step], coloured[step]
        assert torch.equal(labels, same) and other.min() >= 0 and other.max() <= 1
        assert 0.02 < float((noisy - other).std()) < 0.06  # noise comes after
        differ += not torch.allclose(clean, other)
    assert differ == 4
    image = torch.rand(3, 4, 5)
    one = torch.tensor(1.0)
    torch.testing.assert_close(_coloured(image, one, one, one), image)
    torch.testing.assert_close(_coloured(image, one / 2, one, one), image / 2)
    torch.testing.assert_close(_coloured(image, one, one * 0, one), image.mean().expand(3, 4, 5))
    torch.testing.assert_close(_coloured(image, one, one, one * 0), image.mean(0, keepdim=True).expand(3, 4, 5))
    with pytest.raises(TrainingError, match="colours 1.5"):
        SMALL.change(colours=1.5)
