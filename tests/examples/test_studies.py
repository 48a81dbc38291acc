"""examples/studies: each runs on a few generated pictures, leaves its figure, and repeats nothing."""

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segaware import DnCNN, FPNSegmenter, from_pretrained
from segaware.entries import read_config, write_entry
from segaware.errors import EvaluationError, InputError, SegawareError
from segaware.wrapper import FIDELITY_SCALE

STUDIES = Path(__file__).parents[2] / "examples" / "studies"


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """A script finds its neighbours."""
    monkeypatch.syspath_prepend(STUDIES)


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
            "--classes", 3, "--seeds", 0, 1, "--steps", 2, "--batch-size", 1, "--patch-size", 16, "--metric", "psnr", "--limit", 1, "--gamma", 1e8]  # fmt: skip
    rows = study.main(list(map(str, call)))  # of so small a network the term says next to nothing, so its weight is large
    assert [(row["classes"], row["head"], row["seed"]) for row in rows] == [(0, None, 0), (0, None, 1), (3, 0, 0), (3, 1, 1)]
    assert len({row["psnr"] for row in rows}) == 4  # the seed reaches head and data
    assert rows[0]["gradient_share"] == 0 < rows[2]["gradient_share"] and is_png(place / "out/class-count.png")
    apart = study.main(list(map(str, [*call, "--heads", 0, 1])))
    assert [(row["classes"], row["head"], row["seed"]) for row in apart] == [(0, None, 0), (0, None, 1), (3, 0, 0), (3, 1, 0), (3, 0, 1), (3, 1, 1)]
    assert len({row["psnr"] for row in apart}) == 6 and [apart[i] for i in (0, 1, 2, 5)] == rows
    monkeypatch.setattr(study, "fit", None)  # a second call trains nothing
    assert study.main(list(map(str, call))) == rows
    for option, value in (("--steps", 3), ("--gamma", 2), ("--width", 4), ("--start", place / "segmenter")):
        with pytest.raises(EvaluationError, match=rf"holds a study with {option} .*; give the same, or another --out"):
            study.main(list(map(str, [*call, option, value])))
    (place / "out/settings.json").write_text("half {")
    with pytest.raises(EvaluationError, match=r"settings\.json: does not say .* another --out"):
        study.main(list(map(str, call)))
    record = json.loads((place / "out/class-count.json").read_text())
    assert (record["steps"], record["start"], record["width"], record["images"]) == (2, "start", 8, 1)
    assert str(place) not in json.dumps(record)


@pytest.mark.parametrize("name, wrong", [
    ("usa_fit", ["--shrink", 0]), ("usa_fit", ["--steps", 0]), ("usa_fit", ["--batch-size", 0]), ("usa_fit", ["--data", "nowhere"]),
    ("usa_fit", ["--backbone-weights", "nowhere"]), ("liu_scales", ["--divide", 0]), ("liu_scales", ["--rate", -1]), ("liu_scales", ["--train", "nowhere"]),
    ("class_count", ["--start", "nowhere"]), ("class_count", ["--width", 0]),
])  # fmt: skip
def test_a_typo_binds_no_folder(place, name, wrong):
    study, fit = load(name), {"--steps": 1, "--batch-size": 1, "--limit": 1, "--out": place / "out"}
    fit |= {"--data": place / "camvid", "--width": 8, "--shrink": 1} if name == "usa_fit" else {"--train": place / "images", "--test": place / "images", "--patch-size": 16}
    fit |= {"liu_scales": {"--divide": 32, "--scales": 2}, "class_count": {"--start": place / "start", "--width": 8, "--classes": 3, "--metric": "psnr"}, "usa_fit": {}}[name]
    fit |= {"--seeds": 0}
    with pytest.raises(SegawareError):
        study.main([str(part) for pair in {**fit, wrong[0]: wrong[1]}.items() for part in pair])
    assert study.main([str(part) for pair in fit.items() for part in pair])


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


def test_guessing_by_hand():
    """One frame of one class, one with two in halves: nothing and ln 2 by frame, shares of 3/4 and 1/4 together."""
    first, second = torch.zeros(8, 8, dtype=torch.long), torch.zeros(8, 8, dtype=torch.long)
    second[4:] = 2
    first[:, 1] = 255  # between the pixels that are looked at
    found = load("usa_fit").guessing([(None, first), (None, second)], 3)
    assert found == {"shares of all": pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)), "shares of each": pytest.approx(np.log(2) / 2)}


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
    with pytest.raises(EvaluationError, match="--steps 6, not 7; give the same"):
        call("parts", "--steps", 7)
    assert call("parts") == whole
    with pytest.raises(EvaluationError, match="--rate"):  # of finished parts as well
        call("parts", "--rate", 1)


def test_gradient_maps(place):
    study = load("gradient_maps")
    call = ["--model", place / "start", "--segmenter", place / "segmenter", "--crop", 32, "--out", place / "out"]
    frames = [place / f"camvid/train/{i}.png" for i in range(3)]
    maps = [place / f"camvid/trainannot/{i}.png" for i in range(3)]
    one = study.main(list(map(str, [*call, "--image", frames[0], "--labels", maps[0]])))
    record = one["images"]["0"]
    assert set(record) == {"fidelity", "perceptual", "entropy", "KL to clean", "Jacobian", "Fisher", "true labels"}
    assert all(r["norm"] > 0 for r in record.values()) and is_png(place / "out/gradient-maps.png")
    several = study.main(list(map(str, [*call, "--image", *frames, "--labels", *maps])))
    assert several["images"]["0"] == record and len(several["images"]) == 3
    for first, second in (("fidelity", "entropy"), ("entropy", "true labels")):
        values = [several["images"][str(i)][first]["cosine_to"][second] for i in range(3)]
        found = several["cosines"][first][second]
        assert found == {"mean": pytest.approx(np.mean(values)), "least": min(values), "greatest": max(values)} and -1 <= min(values) < max(values) < 1
        assert several["cosines"][second][first] == pytest.approx(found)
    with pytest.raises(InputError, match="2 maps for 3 images"):
        study.main(list(map(str, [*call, "--image", *frames, "--labels", *maps[:2]])))
    Image.open(maps[0]).resize((80, 64), Image.Resampling.NEAREST).save(place / "double.png")
    (place / "none.png").write_bytes(b"no picture")
    for file, words in (("double.png", "80 x 64 labels for an image of 40 x 32"), ("none.png", "cannot be read as a label map")):
        with pytest.raises(InputError, match=words):
            study.main(list(map(str, [*call, "--image", frames[0], "--labels", place / file])))


def test_gradients_by_hand(place):
    """The gradient of the mean square at the denoised image is twice the difference over its count; then norms and cosines."""
    study = load("gradient_maps")
    args = Namespace(crop=32, sigma=50.0, layer="backbone.features.5", void=11)
    nets = (from_pretrained(place / name) for name in ("start", "segmenter"))
    clean, _, denoised, gradients = study.look(args, *nets, place / "camvid/train/0.png", None)
    assert torch.allclose(gradients["fidelity"], FIDELITY_SCALE * 2 * (denoised - clean) / clean.numel(), rtol=1e-4, atol=1e-6)
    clean, noisy = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    found = study.alike({"a": 2 * (noisy - clean), "b": clean - noisy, "c": torch.zeros(1, 3, 8, 8)})
    assert found["a"]["cosine_to"]["b"] == pytest.approx(-1) and found["a"]["cosine_to"]["c"] == 0
    assert found["a"]["norm"] == pytest.approx(2 * float((noisy - clean).square().sum().sqrt()))


def test_noise_draws(place):
    study = load("noise_draws")
    call = ["--data", place / "images", "--model", f"a={place / 'start'}", "--model", f"b={place / 'start'}+0.5", "--judge", place / "segmenter",
            "--draws", 2, "--metric", "psnr", "--out", place / "out"]  # fmt: skip
    rows = study.main(list(map(str, call)))
    assert {row["measure"] for row in rows} == {"psnr", "consistency:segmenter"}
    second = next(row for row in rows if (row["measure"], row["method"]) == ("psnr", "b"))
    # by hand, from the report's own cells: the two-sided t test with pooled variance over the draws
    from scipy.stats import ttest_ind

    from segaware.evaluation.report import read_report

    report = read_report(place / "out")
    measure = next(m for m in report.measures if m.key == "psnr")
    draws = {name: [report.data(measure, report.names.index(name), 0, draw).mean() for draw in range(2)] for name in "ab"}
    assert second["against"]["a"]["p_draws"] == pytest.approx(ttest_ind(draws["a"], draws["b"]).pvalue, rel=1e-4)
    assert second["variance"] == pytest.approx(np.var(draws["b"], ddof=1)) and second["variance"] > 0
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
    found = [read_config(place / "out" / folder / "model")["arguments"] for folder in ("2-128-128-s0", "3-128-256-without-skip-s0")]
    assert found[0] == {**found[1], "scales": 2, "encoder_width": 8, "decoder_width": 8, "global_skip": True}
    assert (found[1]["scales"], found[1]["encoder_width"], found[1]["decoder_width"], found[1]["global_skip"]) == (3, 8, 16, False)
    monkeypatch.setattr(study, "fit", None)
    assert study.main(list(map(str, call))) == rows
    for option, value in (("--divide", 8), ("--sigma", 25), ("--steps", 2)):
        with pytest.raises(EvaluationError, match=f"holds a study with {option} "):
            study.main(list(map(str, [*call, option, value])))
