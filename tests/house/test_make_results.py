"""docs/make_results.py: the page says what its kept figures say, and both what was measured."""

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


def test_from_images_to_a_page(make, tmp_path, monkeypatch, capsys):
    pictures(tmp_path / "cbsd68", "ab", 200)
    pictures(tmp_path / "camvid/val", ["f0", "f1"], 32)
    (tmp_path / "camvid/valannot").mkdir()
    for i in range(2):
        Image.fromarray(np.full((32, 32), 3 + i, np.uint8)).save(tmp_path / f"camvid/valannot/f{i}.png")
    torch.manual_seed(0)
    judge = HRNetSegmenter(11, width=2, modules=(1, 1, 1), blocks=1, bottlenecks=1, class_names=CAMVID_CLASSES).eval()
    monkeypatch.setattr(make, "judges", lambda: [judge])
    monkeypatch.setattr(make, "contestants", lambda authors: ["noisy", "nlm", "nlm+0.06"])
    arguments = ["--cbsd68", str(tmp_path / "cbsd68"), "--camvid", str(tmp_path / "camvid"), "--work", str(tmp_path / "work")]
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


def test_nothing_kept(make):
    with pytest.raises(SystemExit, match="results-cbsd68.json.gz: not there; measure first"):
        make.main(["--only", "page", "--work", "nowhere"])
