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


@pytest.mark.parametrize("damage", [lambda whole: whole[:-40], lambda whole: b"none", lambda whole: gzip.compress(b"{")])
def test_damaged_figures(make, tmp_path, damage):
    whole = (DOCS / "data/results-cbsd68.json.gz").read_bytes()
    (tmp_path / "docs/data/results-cbsd68.json.gz").write_bytes(damage(whole))
    with pytest.raises(SystemExit, match="results-cbsd68.json.gz: damaged .*take it from git again"):
        make.main(["--only", "page", "--work", "nowhere"])


def test_nothing_kept(make):
    with pytest.raises(SystemExit, match="results-cbsd68.json.gz: not there; measure first"):
        make.main(["--only", "page", "--work", "nowhere"])


def record(path):
    return json.loads(gzip.decompress(path.read_bytes()))


@pytest.mark.slow
def test_one_measured_again_beside_all_gives_what_measuring_all_gives(make, tmp_path, arguments, monkeypatch, capsys):
    make.main(arguments)
    monkeypatch.setattr(make, "contestants", lambda authors: ["noisy", "nlm=nlm+0.03", "nlm+0.06"])
    make.main([*arguments[:-1], str(tmp_path / "again"), "--again", "nlm", "--beside", "nlm+0.06"])
    laid = {which: record(tmp_path / f"docs/data/results-{which}.json.gz") for which in ("camvid", "cbsd68")}
    page = (tmp_path / "docs/results.md").read_text(encoding="utf-8")
    make.main([*arguments[:-1], str(tmp_path / "all")])
    for which, found in laid.items():
        asked = record(tmp_path / f"docs/data/results-{which}.json.gz")
        assert found.pop("again") == [{"names": ["nlm"], "beside": ["noisy", "nlm+0.06"], "unknown": []}]
        assert found["summary"] == asked["summary"]
        pairs = [{(p["measure"], p["noise"], p["first"], p["second"]): p for p in one["comparisons"]} for one in (found, asked)]
        assert pairs[0].keys() == pairs[1].keys()
        for place, pair in pairs[0].items():
            asked_p = pairs[1][place].pop("p_holm")  # made from p as kept, of six digits
            laid_p = pair.pop("p_holm")
            assert pair == pairs[1][place] and (laid_p == asked_p or laid_p == pytest.approx(asked_p, rel=1e-5))
    assert "nlm was measured again, beside noisy, nlm+0.06" in page
    assert "measured again" not in (tmp_path / "docs/results.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_one_measured_again_beside_some(make, tmp_path, arguments, monkeypatch, capsys):
    monkeypatch.setattr(make, "contestants", lambda authors: ["noisy", "nlm", "weak=nlm+0.3", "far=nlm+0.6"])
    make.main(arguments)
    monkeypatch.setattr(make, "contestants", lambda authors: ["noisy", "nlm", "weak=nlm+0.35", "far=nlm+0.6"])
    some = [*arguments[:-1], str(tmp_path / "again"), "--only", "cbsd68", "--again", "weak", "--beside", "nlm"]
    make.main(some)
    make.main([*some[:-6], "--only", "page", *some[-4:]])
    found = make.kept_figures("cbsd68")
    assert found.comparison("psnr", "sigma 15", "weak", "nlm") and found.comparison("psnr", "sigma 15", "nlm", "far")
    assert found.comparison("psnr", "sigma 15", "weak", "far") is None
    kept = (tmp_path / "docs/data/results-cbsd68.json.gz").read_bytes()
    for words, change in (
        ("far was not measured there; if only some were meant to be", ["--only", "page"]),
        ("nobody: not one of noisy, nlm, weak, far", ["--again", "nobody", "--beside", "nlm"]),
        ("nobody: not one of", ["--again", "weak", "--beside", "nobody"]),
        ("--beside: name in --again", ["--beside", "nlm"]),
        ("strange is not among the kept figures", ["--again", "strange", "--beside", "nlm"]),
        ("nlm, psnr at sigma 15: .* is another", ["--again", "weak", "--beside", "nlm"]),
    ):
        now = ["noisy", "nlm=nlm+0.1" if words.startswith("nlm,") else "nlm", "weak=nlm+0.35", "far=nlm+0.6", "strange=nlm+0.2"]
        monkeypatch.setattr(make, "contestants", lambda authors, now=now: now if "strange" in words else now[:-1])  # noqa: B023
        with pytest.raises(SystemExit, match=words):
            make.main([*arguments[:-1], str(tmp_path / "again"), *change])
        assert (tmp_path / "docs/data/results-cbsd68.json.gz").read_bytes() == kept
