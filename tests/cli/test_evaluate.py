import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from segaware.cli.main import main


def run(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


@pytest.fixture
def clean(tmp_path):
    folder = tmp_path / "clean"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        small = random.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((30, 24), Image.Resampling.BICUBIC).save(folder / f"im{index}.png")
    return folder


def test_the_line_of_the_readme(shipped, clean):
    result = run(clean, "--sigma", 25, "--model", "dncnn-blind")
    assert result.exit_code == 0, result.output
    assert "3 images of clean; noise: sigma 25" in result.stdout
    assert "noisy" in result.stdout and "dncnn-blind" in result.stdout and "PSNR (dB)" in result.stdout and "[" in result.stdout


def test_defaults_are_that_line(shipped, clean):
    assert run(clean).stdout == run(clean, "--sigma", 25, "--model", "dncnn-blind").stdout


def test_json(shipped, clean):
    result = run(clean, "-s", 15, "-s", 50, "-m", "ffdnet", "-m", "ffdnet+0.03", "-m", "mine=dncnn-blind", "--json", "--harm")
    record = json.loads(result.stdout)
    assert {s["contestant"] for s in record["summary"]} == {"noisy", "ffdnet", "ffdnet+0.03", "mine"}
    assert {s["noise"] for s in record["summary"]} == {"sigma 15", "sigma 50", "clean"}


def test_report_resume_and_rebuild(shipped, clean, tmp_path):
    out = tmp_path / "out"
    formats = ["--format", "json", "--format", "md"]
    first = run(clean, "-o", out, *formats)
    assert first.exit_code == 0 and {p.name for p in out.iterdir()} >= {"report.json", "report.md", "cells.jsonl"}
    lines = (out / "cells.jsonl").read_text()
    second = run(clean, "-o", out, *formats)
    assert second.stdout == first.stdout and (out / "cells.jsonl").read_text() == lines
    (out / "report.md").unlink()
    (out / "cells.jsonl").unlink()
    third = run(out, "--rebuild", "--format", "md")
    assert third.exit_code == 0 and third.stdout == first.stdout and (out / "report.md").is_file()


def test_a_failing_image_is_exit_code_1(shipped, clean):
    (clean / "im1.png").write_bytes(b"no")
    result = run(clean)
    assert result.exit_code == 1 and "dncnn-blind" in result.stdout
    assert "im1 (sigma 25)" in result.stderr and "2 cells could not be measured" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "dncnn-blidn"], "did you mean 'dncnn-blind'"),
        (["-s", "0.1"], "[0, 1] scale; in 8-bit units it is 25.5"),
        (["-s", "300"], "outside 0 to 255"),
        (["--noise", "loud"], "is not understood"),
        (["-j", "nobody"], "unknown model 'nobody'"),
        (["-j", "dncnn-blind"], "is no segmenter"),
        (["-m", "tv", "-m", "tv"], "given twice"),
        (["--layout", "camvid"], "no such folder"),
        (["--picture", "im9", "-o", "x"], "no such image"),
    ],
)
def test_usage(arguments, words, shipped, clean, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(clean, *arguments)
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.output


def test_empty_folder(shipped, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty")
    assert result.exit_code == 2 and "no images here or below" in result.stderr


def test_names_and_limit(shipped, clean, tmp_path):
    (tmp_path / "names.txt").write_text("im2\nim0\n")
    assert "2 images" in run(clean, "--names", tmp_path / "names.txt").stdout
    assert "1 image of" in run(clean, "--limit", 1, "--seed-by", "index").stdout
    assert run(clean, "--names", tmp_path / "no.txt").exit_code == 2
