"""docs/make_results.py: the page says what its kept figures say, and both what was measured."""

import gzip
import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segaware import HRNetSegmenter
from segaware.errors import EvaluationError
from segaware.evaluation.report import read_report
from segaware.evaluation.sources import CAMVID_CLASSES
from segaware.evaluation.summary import summarise

pytest.importorskip("matplotlib")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def make(tmp_path, monkeypatch):
    """The script, writing into a folder of its own."""
    monkeypatch.syspath_prepend(str(DOCS))
    spec = importlib.util.spec_from_file_location("make_results", DOCS / "make_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    for folder in ("data", "images"):
        (tmp_path / "docs" / folder).mkdir(parents=True)
    return module


def test_the_page_is_what_its_figures_say(make, tmp_path):
    for name in ("results.md", "images/results-strip.jpg", *(f"data/results-{which}.json.gz" for which in ("camvid", "cbsd68"))):
        shutil.copy(DOCS / name, tmp_path / "docs" / name)
    make.main(["--only", "page", "--work", str(tmp_path / "nothing measured")])
    assert (tmp_path / "docs/results.md").read_text(encoding="utf-8") == (DOCS / "results.md").read_text(encoding="utf-8")


def pictures(folder, names, side):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{name}.png")


@pytest.fixture
def arguments(make, tmp_path, monkeypatch):
    """Small stand-ins for both sets and the judges."""
    pictures(tmp_path / "cbsd68", "ab", 200)
    pictures(tmp_path / "camvid/val", ["f0", "f1"], 32)
    (tmp_path / "camvid/valannot").mkdir()
    for i in range(2):
        Image.fromarray(np.full((32, 32), 3 + i, np.uint8)).save(tmp_path / f"camvid/valannot/f{i}.png")
    torch.manual_seed(0)
    judge = HRNetSegmenter(11, width=2, modules=(1, 1, 1), blocks=1, bottlenecks=1, class_names=CAMVID_CLASSES).eval()
    monkeypatch.setattr(make, "judges", lambda: [judge])
    monkeypatch.setattr(make, "contestants", lambda authors: ["noisy", "nlm", "nlm+0.06"])
    return ["--cbsd68", str(tmp_path / "cbsd68"), "--camvid", str(tmp_path / "camvid"), "--work", str(tmp_path / "work")]


def test_from_images_to_a_page(make, tmp_path, arguments, capsys):
    make.main(arguments)
    capsys.readouterr()

    page = (tmp_path / "docs/results.md").read_text(encoding="utf-8")
    assert "| nlm+0.06 |" in page and "images/results-strip.jpg" in page and "2 images of CamVid val" in page
    for which in ("cbsd68", "camvid"):
        measured, kept = summarise(read_report(tmp_path / "work" / which)), make.kept_figures(which)
        compared = {key: found for key, found in measured.comparisons.items() if found}
        assert kept.entries.keys() == measured.entries.keys() and kept.comparisons.keys() == compared.keys()
        for key, entry in measured.entries.items():
            assert kept.entries[key].value == pytest.approx(entry.value, rel=1e-5, nan_ok=True) and kept.entries[key].mark == entry.mark
            assert math.isnan(kept.entries[key].low) == math.isnan(entry.low)
        for key, found in compared.items():
            assert [one.difference for one in kept.comparisons[key]] == pytest.approx([one.difference for one in found], rel=1e-5, nan_ok=True)
    assert str(tmp_path) not in json.dumps([kept.results.source, kept.results.environment])


@pytest.mark.parametrize("damage", [lambda whole: whole[:-40], lambda whole: b"none", lambda whole: gzip.compress(b"{"), lambda whole: gzip.compress(b"{}")])
def test_damaged_figures(make, tmp_path, damage):
    whole = (DOCS / "data/results-cbsd68.json.gz").read_bytes()
    (tmp_path / "docs/data/results-cbsd68.json.gz").write_bytes(damage(whole))
    with pytest.raises(SystemExit, match="results-cbsd68.json.gz: damaged .*take it from git again"):
        make.main(["--only", "page", "--work", "nowhere"])


def test_nothing_kept(make):
    with pytest.raises(SystemExit, match="results-cbsd68.json.gz: not there; measure first"):
        make.main(["--only", "page", "--work", "nowhere"])


def test_a_try_writes_no_page(make, tmp_path, arguments, capsys):
    make.main([*arguments, "--limit", "1"])
    assert read_report(tmp_path / "work/try/cbsd68").images == ["a"] and [f.name for f in (tmp_path / "work").iterdir()] == ["try"]
    assert not [path for path in (tmp_path / "docs").rglob("*") if path.is_file()]


def test_a_page_of_something_else_is_told_of_before_anything_is_measured(make, tmp_path, arguments):
    (tmp_path / "docs/results.md").write_text("mine")
    with pytest.raises(SystemExit, match="not a page of this script"):
        make.main(arguments)
    assert not (tmp_path / "work").exists()


def test_what_was_not_measured_or_is_damaged_leaves_all_as_it_was(make, tmp_path, arguments, monkeypatch, capsys):
    make.main(arguments)
    assert "checkpoints of U-SAID's authors were not there" in (tmp_path / "docs/results.md").read_text(encoding="utf-8")
    before = {path: path.read_bytes() for path in (tmp_path / "docs").rglob("*") if path.is_file()}

    def refused(words):
        with pytest.raises((SystemExit, EvaluationError), match=words):
            make.main([*arguments, "--only", "page"])
        assert {path: path.read_bytes() for path in (tmp_path / "docs").rglob("*") if path.is_file()} == before

    monkeypatch.setattr(make, "contestants", lambda authors: ["noisy", "nlm", "nlm+0.06", "far=nlm+0.6"])
    make.main([*arguments, "--only", "cbsd68"])  # and not camvid
    refused("camvid: far was not measured there")
    report = tmp_path / "work/camvid/report.json"
    report.write_bytes(report.read_bytes()[:-100])
    refused("report.json: damaged")


def test_the_strip_is_drawn_when_all_are_there(make, tmp_path, arguments, capsys):
    make.main(arguments)
    strip = tmp_path / "docs/images/results-strip.jpg"
    strip.write_bytes(b"as it was")
    make.main([*arguments, "--only", "page"])
    drawn = strip.read_bytes()
    assert drawn != b"as it was"
    next((tmp_path / "work/camvid/pictures/f0/sigma_50").glob("nlm.png")).unlink()
    strip.write_bytes(b"as it was")
    make.main([*arguments, "--only", "page"])
    assert strip.read_bytes() == b"as it was"
