"""examples/train_segmenter.py on a small folder in CamVid's layout."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segaware.entries import load_entry, read_config
from segaware.errors import InputError, TrainingError

SCRIPT = Path(__file__).parents[2] / "examples" / "train_segmenter.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_segmenter", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "camvid"
    for split, stems in (("train", ("0001TP_1", "0001TP_2", "0006R0_1")), ("val", ("0016E5_1",))):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for stem in stems:
            labels = np.kron(rng.integers(0, 12, (6, 8)), np.ones((8, 8))).astype(np.uint8)
            Image.fromarray(labels).save(root / f"{split}annot" / f"{stem}.png")
            image = (labels[..., None] * np.array([20, 7, 13])).astype(np.uint8)
            Image.fromarray(image).save(root / split / f"{stem}.webp", lossless=True)
    return root


def options(data, out, *more):
    base = ["--data", str(data), "--out", str(out), "--width", "8", "--crop", "32", "--batch", "1", "--epochs", "1"]
    return [*base, "--seed", "3", *more]


def test_it_trains_scores_and_saves(example, data, tmp_path):
    measured = example.main(options(data, tmp_path / "out"))
    assert 0 <= measured["camvid_val"]["miou"] <= 100
    assert measured["held_out"]["frames"] == "0006R0"
    config = read_config(tmp_path / "out")
    assert config["recipe"]["steps"] == 2  # two frames are left when the third is held out
    assert config["class_names"] == list(example.CLASSES) and config["training_data"]["terms"]
    net = load_entry(tmp_path / "out")
    assert net.class_names == example.CLASSES and net(torch.rand(1, 3, 48, 64)).shape == (1, 11, 12, 16)


@pytest.mark.parametrize(
    ("model", "architecture", "logits"),
    [("unet", "SMPSegmenter", (48, 64)), ("hrnet", "HRNetSegmenter", (12, 16)), ("deeplab", "DeepLabSegmenter", (12, 16))],
)
def test_judges_of_other_architectures(example, data, tmp_path, model, architecture, logits):
    # two a batch: DeepLab's pyramid looks at the whole image, and one value has no variance
    # float32: in bfloat16 oneDNN gives a convolution with a stride on 2 x 2 pixels NaN for a gradient now and then
    more = ["--model", model, "--judge", "--batch", "2", "--crop", "16", "--width", "4", "--float32"]
    measured = example.main(options(data, tmp_path / "out", *more))
    assert 0 <= measured["camvid_val"]["miou"] <= 100
    config = read_config(tmp_path / "out")
    assert config["architecture"] == architecture and config["judge"] is True and config["recipe"]["model"] == model
    assert ("backbone" in config["recipe"]) == (model == "deeplab")
    net = load_entry(tmp_path / "out")
    assert net.class_names == example.CLASSES
    with torch.no_grad():
        assert net(torch.rand(1, 3, 48, 64)).shape == (1, 11, *logits)


def test_classes_of_ones_own(example, data, tmp_path):
    for path in data.glob("*annot/*.png"):
        Image.fromarray(np.array(Image.open(path)) % 4).save(path)  # 3 is void
    measured = example.main(options(data, tmp_path / "out", "--classes", "grass", "wheat", "soil", "--no-hold-out"))
    assert set(measured["val"]["iou"]) == {"grass", "wheat", "soil"} and "camvid_val" not in measured
    config = read_config(tmp_path / "out")
    assert config["class_names"] == ["grass", "wheat", "soil"] and "CamVid" not in str(config)
    net = load_entry(tmp_path / "out")
    assert net.num_classes == 3 and net.class_names == ("grass", "wheat", "soil")
    with pytest.raises(InputError, match="label 3; expected 0-2, 9 .void. or 255"):
        example.main(options(data, tmp_path / "out2", "--classes", "grass", "wheat", "soil", "--void", "9"))


def test_a_model_is_a_judge_only_if_it_is_said(example, data, tmp_path):
    example.main(options(data, tmp_path / "out"))
    assert "judge" not in read_config(tmp_path / "out")


def test_the_small_unet_is_small(example, data, tmp_path):
    net = example.build(example.parse(["--data", str(data), "--out", str(tmp_path), "--model", "unet"]), None)
    assert sum(p.numel() for p in net.parameters()) < 2_000_000


def test_the_form_of_hrnet(example, data, tmp_path):
    asked = ["--data", str(data), "--out", str(tmp_path), "--model", "hrnet", "--width", "26", "--form", '{"bottlenecks": 3}']
    net = example.build(example.parse(asked), None)
    assert net.config["width"] == 26 and net.config["bottlenecks"] == 3 and tuple(net.config["modules"]) == (1, 3, 2)


def test_resumed_equals_never_stopped(example, data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    example.main(options(data, whole, "--no-hold-out"))
    assert example.main(options(data, parts, "--no-hold-out", "--max-steps", "1")) is None
    assert not (parts / "model.safetensors").exists()
    example.main(options(data, parts, "--no-hold-out", "--resume"))
    a, b = load_entry(whole).state_dict(), load_entry(parts).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_resume_needs_the_same_plan(example, data, tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        example.main(options(data, tmp_path / "out", "--resume"))
    example.main(options(data, tmp_path / "out", "--max-steps", "1"))
    with pytest.raises(TrainingError, match="same options"):
        example.main(options(data, tmp_path / "out", "--resume", "--lr", "1"))


def test_a_training_that_was_begun_is_not_begun_again(example, data, tmp_path):
    out = tmp_path / "out"
    example.main(options(data, out, "--no-hold-out", "--max-steps", "1"))
    kept = (out / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match="checkpoint.pt: a training that was begun; add --resume"):
        example.main(options(data, out, "--no-hold-out"))
    assert (out / "checkpoint.pt").read_bytes() == kept


def test_a_gradient_that_is_not_finite_is_not_taken_in(example, data, tmp_path, monkeypatch):
    def steep(logits, labels, weights):
        loss = (logits * 0).sum()
        loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    monkeypatch.setattr(example, "loss_of", steep)
    with pytest.raises(TrainingError, match="step 0: the gradient is nan; start again in another folder with a lower --lr"):
        example.main(options(data, tmp_path / "out", "--no-hold-out"))
    assert not (tmp_path / "out/checkpoint.pt").exists()


@pytest.mark.parametrize("bad, words", [("--epochs 0", "at least 1"), ("--batch 0", "at least 1"), ("--model unet --backbone-weights x", "unet starts from scratch")])
def test_options_that_make_no_sense(example, data, tmp_path, bad, words, capsys):
    with pytest.raises(SystemExit):
        example.main(options(data, tmp_path / "out", *bad.split()))
    assert words in capsys.readouterr().err


def test_bad_data_is_named(example, data, tmp_path):
    def refused(message):
        with pytest.raises(InputError, match=message):
            example.main(options(data, tmp_path / "out"))

    label = data / "trainannot" / "0001TP_1.png"
    Image.fromarray(np.full((48, 64), 12, np.uint8)).save(label)
    refused("label 12; expected 0-10")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(label)
    refused("size")
    label.unlink()
    refused("no label map")
    with pytest.raises(InputError, match="no images"):
        example.main(options(tmp_path, tmp_path / "out"))


def test_score_ignores_void_and_counts_from_one_matrix(example):
    class Fixed(torch.nn.Module):
        def forward(self, image):
            logits = torch.zeros(1, 11, 4, 4)
            logits[:, 1] = 1  # says building everywhere
            return logits

    label = torch.tensor([[1, 1, 0, 255]] * 4, dtype=torch.uint8)
    found = example.score(Fixed(), [(torch.zeros(3, 4, 4, dtype=torch.uint8), label, "a")])
    assert found["iou"]["building"] == pytest.approx(66.67) and found["iou"]["sky"] == 0.0
    assert found["iou"]["car"] is None and found["miou"] == pytest.approx(33.33)


def test_loss_prefers_the_truth_and_survives_void(example):
    labels = torch.randint(0, 11, (1, 8, 8))
    truth = 20 * torch.nn.functional.one_hot(labels, 11).movedim(-1, 1).float()
    weights = torch.ones(11)
    assert example.loss_of(truth, labels, weights) < 1e-3 < example.loss_of(-truth, labels, weights)
    assert example.loss_of(truth, torch.full_like(labels, 255), weights) == 0
