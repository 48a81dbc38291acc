"""docs/make_sdabn.py: a page from whatever stages there are."""

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segaware import DDFN, HRNetSegmenter
from segaware.baselines import ImageCondition, LabelCondition
from segaware.cascade import SDABN, SDB
from segaware.errors import EvaluationError
from segaware.evaluation.sources import CAMVID_CLASSES
from segaware.training.progressive import train_stages
from segaware.training.stages import StageRecipe

pytest.importorskip("matplotlib")
DOCS = Path(__file__).parents[2] / "docs"
RECIPE = StageRecipe(1, 2, (16, 16), "adam", 1e-3)


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make_sdabn", DOCS / "make_sdabn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("data") / "camvid", np.random.default_rng(0)
    for folder in ("val", "valannot"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        labels = np.kron(rng.integers(0, 12, (4, 5)), np.ones((8, 8))).astype(np.uint8)
        Image.fromarray(labels).save(root / f"valannot/f{i}.png")
        Image.fromarray((labels[..., None] * np.array([20, 7, 13])).astype(np.uint8)).save(root / f"val/f{i}.png")
    return root


def segmenter(width=2):
    return HRNetSegmenter(11, width=width, modules=(1, 1, 1), blocks=1, bottlenecks=1, class_names=CAMVID_CLASSES)


MAKERS = {
    "segmenter": segmenter, "segmenter+": lambda: segmenter(3), "denoiser": lambda: DDFN(condition_channels=11, blocks=1),
    "plain": lambda: DDFN(blocks=1), "image": lambda: ImageCondition(DDFN(condition_channels=3, blocks=1)),
    "labels": lambda: LabelCondition(DDFN(condition_channels=11, blocks=1)),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    frames = [(torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8), torch.randint(0, 11, (20, 24), dtype=torch.uint8))]
    wanted = ["D1", "S2", "D2", "DDFN2", "ImgD", "GtD1", "DMS", "joint", "S1+", "DDFN1+S", "DDFN2+S", "GtD1+S"]
    train_stages(wanted, MAKERS, frames, {"segmenter": RECIPE, "denoiser": RECIPE}, out, progress=False)
    return out


def page(make, runs, camvid, tmp_path, *more):
    make.main(["--runs", str(runs), "--camvid", str(camvid), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "page.md"), "--draws", "2", *more])
    return (tmp_path / "page.md").read_text(encoding="utf-8")


def test_a_page_of_nearly_all(make, runs, camvid, tmp_path, monkeypatch):
    text = page(make, runs, camvid, tmp_path)
    assert "3 frames, 11 classes; sigma 50" in text and "2 noise draws" in text
    row = next(line for line in text.splitlines() if line.startswith("| SDB x 2 |"))
    assert "34.34 / 0.9115" in row and "28.10 / 0.8152" in row and "nan" not in text
    assert next(line for line in text.splitlines() if line.startswith("| DDFN x 3 |")).startswith("| DDFN x 3 | not trained |")
    assert "--variant DDFN --stages 3" in text and "--variant ImgD" not in text
    assert "| DMS | " in text and "joint" in text and "0.0" in text
    with Image.open(tmp_path / "images/page-strip.jpg") as picture:
        assert picture.width > picture.height / 2
    claims = [line for line in text.splitlines() if line.startswith("| True labels")]
    assert len(claims) == 1 and claims[0].endswith("| too few frames to say |") and "unequal" not in text
    assert "one training" in text and "SSIM, of which it has none" in text
    # nothing is measured twice, and the page comes from what is kept
    before = (tmp_path / "work/cells.jsonl").read_bytes()
    assert page(make, runs, camvid, tmp_path, "--page") == text
    assert (tmp_path / "work/cells.jsonl").read_bytes() == before
    found = make.open_source
    monkeypatch.setattr(make, "open_source", lambda *a, **k: replace(found(*a, **k), block=1))  # frames that are no video
    text = page(make, runs, camvid, tmp_path, "--page")
    row = next(line for line in text.splitlines() if line.startswith("| Segmenting first helps"))
    low, high = map(float, re.search(r"\[(\S+), (\S+)\] dB", row).groups())
    assert low <= high and "too few" not in row and "nan" not in text


def test_unequal_trainings_show_nothing(make, runs, camvid, tmp_path):
    longer = tmp_path / "longer"
    shutil.copytree(runs, longer)
    for stage, change in (("S2", {"steps": 1200}), ("ImgD", {"learning_rate": 0.5})):
        file = longer / stage / "model/config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["setting"]["recipe"] |= change
        file.write_text(json.dumps(config), encoding="utf-8")
    text = page(make, longer, camvid, tmp_path)
    said = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in text.splitlines() if line.startswith("| ")}
    after = next(v for k, v in said.items() if k.startswith("A segmenter after the block"))
    assert after == "unequal training: 1,200 steps of 2 against 1 steps of 2"
    assert next(v for k, v in said.items() if k.startswith("It is not the size of the SFT")) == "unequal training: 1 steps of 2 at 0.001 against 1 steps of 2 at 0.5"
    assert next(v for k, v in said.items() if k.startswith("Segmenting first")) == "too few frames to say"


def test_other_noise_has_no_verdicts(make, runs, camvid, tmp_path):
    """The paper's differences are those of sigma 50: no page of another level is held against them."""
    other = tmp_path / "other"
    shutil.copytree(runs, other)
    for file in other.glob("*/model/config.json"):
        file.write_text(file.read_text(encoding="utf-8").replace("AWGN, sigma 50", "AWGN, sigma 30"), encoding="utf-8")
    text = page(make, other, camvid, tmp_path, "--noise", "30")
    rows = [line for line in text.splitlines() if re.match(r"\| .* \| .*(dB|points) \|", line)]
    assert len(rows) > 8 and all(row.endswith("| - | - | - |") for row in rows)
    assert "s in the paper" not in text.split("| claim |")[0]


def test_the_looks_are_those_of_the_cascade(make, runs, camvid):
    from segaware.entries import load_entry

    networks = {p.parents[0].name: load_entry(p) for p in runs.glob("*/model") if p.parents[0].name != "model"}
    noisy, labels = torch.rand(1, 3, 20, 24), torch.randint(0, 11, (1, 20, 24))
    frame = make.Frame(networks, "logits", torch.rand(1, 3, 20, 24), noisy, labels)
    cascade = SDABN([SDB(networks[f"S{i}"], networks[f"D{i}"]) for i in (1, 2)])
    with torch.no_grad():
        for i, stage in enumerate(cascade.stages(noisy), start=1):
            torch.testing.assert_close(frame.look(f"S{i}"), stage.logits)
            torch.testing.assert_close(frame.look(f"x{i}"), stage.image)
        first = networks["DDFN1"](noisy)
        torch.testing.assert_close(frame.look("DDFN2"), networks["DDFN2"](first + noisy))
        torch.testing.assert_close(frame.look("DDFN2+S"), networks["DDFN2+S"](frame.look("DDFN2")))
        torch.testing.assert_close(frame.look("S0 on DDFN1"), networks["S0"](first))
        torch.testing.assert_close(frame.look("GtD1"), networks["GtD1"](noisy, labels=labels))
        torch.testing.assert_close(frame.look("S0 on clean"), networks["S0"](frame.clean))
        torch.testing.assert_close(frame.look("S1+"), networks["S1+"](noisy))


def test_a_page_of_two_stages(make, runs, camvid, tmp_path):
    few = tmp_path / "few"
    shutil.copytree(runs / "DDFN1", few / "DDFN1")
    shutil.copytree(runs / "S1", few / "S1")
    text = page(make, few, camvid, tmp_path)
    assert "Not tried here: Segmenting first helps the denoiser" in text and "--variant progressive --stages 3" in text
    assert not (tmp_path / "images").exists() and "strip" not in text
    with pytest.raises(EvaluationError, match="trained with AWGN, sigma 50, not AWGN, sigma 30; give --noise"):
        page(make, few, camvid, tmp_path, "--noise", "30")
    with pytest.raises(EvaluationError, match="no finished stage"):
        page(make, tmp_path / "none", camvid, tmp_path)
    with pytest.raises(EvaluationError, match="is not measured on"):
        page(make, runs, camvid, tmp_path, "--page")
    started = page(make, few, camvid, tmp_path, "--start", str(runs / "S0/model"))
    assert "| DDFN, then S0 | " in started and "| DDFN, then S0 | not trained" not in started


@pytest.mark.parametrize(
    ("low", "high", "paper", "words"),
    [
        (0.01, 0.1, 0.07, "as in the paper"),
        (-0.01, 0.1, 0.07, "no difference shown: the interval holds zero"),
        (-0.2, -0.1, 0.07, "the other way round than in the paper"),
        (-0.2, -0.1, -0.07, "as in the paper"),
        (-0.01, 0.01, 0.004, "as in the paper: hardly any difference"),
        (-0.1, 0.01, 0.004, "no difference shown"),
        (0.05, 0.1, 0.004, "a difference, where the paper has hardly any"),
        (float("nan"), float("nan"), 0.07, "too few frames to say"),
    ],
)
def test_verdicts(make, low, high, paper, words):
    assert make.verdict(low, high, paper, 0.02) == words


def test_every_look_has_its_paper_and_its_stages(make):
    for _, first, second in make.CLAIMS:
        assert first in make.PAPER and second in make.PAPER and (first in make.MAPS) == (second in make.MAPS)
    for name in (*make.IMAGES, *make.MAPS):
        assert make.needs(name)
    assert make.needs("S3") == {"S1", "D1", "S2", "D2", "S3"} and make.needs("DDFN2+S") == {"DDFN1", "DDFN2", "DDFN2+S"}
    assert json.dumps(make.PAPER)
