"""examples/studies: each runs on a few generated pictures, leaves its figure, and repeats nothing."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segaware import DnCNN, FPNSegmenter
from segaware.entries import write_entry
from segaware.errors import EvaluationError, TrainingError

STUDIES = Path(__file__).parents[2] / "examples" / "studies"


def load(name):
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "camvid/train", "camvid/trainannot"):
        (tmp_path / folder).mkdir(parents=True)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(tmp_path / f"images/{i}.png")
        labels = np.kron(rng.integers(0, 12, (4, 5)), np.ones((8, 8))).astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / f"camvid/trainannot/{i}.png")
        Image.fromarray((labels[..., None] * np.array([20, 7, 13])).astype(np.uint8)).save(tmp_path / f"camvid/train/{i}.png")
    write_entry(tmp_path / "start", DnCNN(depth=3, width=4))
    write_entry(tmp_path / "segmenter", FPNSegmenter(11, "squeezenet1_0", None, 8, head="trained"))
    return tmp_path


def is_png(file):
    return file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 2000


def test_class_count(place, monkeypatch):
    study = load("class_count")
    call = ["--train", place / "images", "--test", place / "images", "--start", place / "start", "--out", place / "out", "--width", 8,
            "--classes", 3, "--seeds", 0, 1, "--steps", 2, "--batch-size", 1, "--patch-size", 16, "--metric", "psnr", "--limit", 1]  # fmt: skip
    rows = study.main(list(map(str, call)))
    assert [(row["classes"], row["seed"]) for row in rows] == [(0, 0), (0, 1), (3, 0), (3, 1)]
    assert rows[0]["gradient_share"] == 0 < rows[2]["gradient_share"] and is_png(place / "out/class-count.png")
    monkeypatch.setattr(study, "fit", None)  # a second call trains nothing
    assert study.main(list(map(str, call))) == rows


def test_permutations_keep_the_counts():
    study = load("usa_fit")
    labels = torch.arange(24).reshape(4, 6)
    for kind in study.KINDS:
        found = study.permuted(labels, kind, seed=3)
        assert found.shape == labels.shape and torch.equal(found.flatten().sort().values, labels.flatten())
        assert torch.equal(found, study.permuted(labels, kind, seed=3)) and torch.equal(found, labels) == (kind == "true")
    blocks = study.permuted(labels, "blocks", seed=3)
    quadrants = {tuple(part.flatten().tolist()) for half in labels.split(2) for part in half.split(3, 1)}
    assert {tuple(part.flatten().tolist()) for half in blocks.split(2) for part in half.split(3, 1)} == quadrants


def test_usa_fit_resumes_exactly(place):
    study = load("usa_fit")

    def call(out, *more):
        options = ["--data", place / "camvid", "--out", place / out, "--width", 8, "--steps", 6, "--seeds", 0, "--batch-size", 1, "--shrink", 1, *more]
        return study.main(list(map(str, options)))

    whole = call("whole")
    assert set(whole["curves"]) == {"true", "blocks", "pixels"} and is_png(place / "whole/usa-fit.png")
    permuted, seen = study.permuted, []

    def killed(labels, kind, seed):
        seen.append(kind)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return permuted(labels, kind, seed)

    study.permuted = killed
    with pytest.raises(KeyboardInterrupt):
        call("parts", "--save-every", 0)
    study.permuted = permuted
    with pytest.raises(TrainingError, match="same --steps"):
        call("parts", "--steps", 7)
    assert call("parts") == whole


def test_gradient_maps(place):
    study = load("gradient_maps")
    call = ["--image", place / "camvid/train/0.png", "--labels", place / "camvid/trainannot/0.png", "--model", place / "start",
            "--segmenter", place / "segmenter", "--crop", 32, "--out", place / "out"]  # fmt: skip
    record = study.main(list(map(str, call)))
    assert set(record) == {"fidelity", "perceptual", "entropy", "KL to clean", "Jacobian", "Fisher", "true labels"}
    alike = [record[a]["cosine_to"][b] for a, b in (("fidelity", "entropy"), ("entropy", "fidelity"))]
    assert alike[0] == pytest.approx(alike[1]) and -1 <= alike[0] < 1 and all(r["norm"] > 0 for r in record.values())
    assert is_png(place / "out/gradient-maps.png")


def test_noise_draws(place):
    study = load("noise_draws")
    call = ["--data", place / "images", "--model", f"a={place / 'start'}", "--model", f"b={place / 'start'}+0.5", "--judge", place / "segmenter",
            "--draws", 2, "--metric", "psnr", "--out", place / "out"]  # fmt: skip
    rows = study.main(list(map(str, call)))
    assert {row["measure"] for row in rows} == {"psnr", "consistency:segmenter"}
    second = next(row for row in rows if (row["measure"], row["method"]) == ("psnr", "b"))
    assert 0 <= second["against"]["a"]["p_draws"] <= 1 and second["variance"] > 0
    assert is_png(place / "out/noise-draws.png") and json.loads((place / "out/noise-draws.json").read_text())["draws"] == 2
    with pytest.raises(EvaluationError, match="needs two"):
        study.main(list(map(str, [*call, "--draws", 1])))


def test_liu_scales(place, monkeypatch):
    study = load("liu_scales")
    call = ["--train", place / "images", "--test", place / "images", "--out", place / "out", "--scales", 2, 3, "--columns", "128/128", "128/256 without skip",
            "--divide", 16, "--steps", 1, "--batch-size", 1, "--patch-size", 16, "--limit", 1]  # fmt: skip
    rows = study.main(list(map(str, call)))
    assert [(row["scales"], row["paper"]) for row in rows] == [(2, 30.41), (2, 30.39), (3, 30.64), (3, 30.52)]
    assert rows[0]["parameters"] < rows[2]["parameters"] and is_png(place / "out/liu-scales.png")
    monkeypatch.setattr(study, "fit", None)
    assert study.main(list(map(str, call))) == rows
