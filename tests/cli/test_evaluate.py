import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from segaware import FPNSegmenter, image_io
from segaware.cli.main import main
from segaware.entries import write_entry
from segaware.evaluation.cells import Cells
from segaware.evaluation.protocol import Protocol
from segaware.niqe import NIQE


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
    result = run(clean, "--sigma", 25, "--model", "segaware-blind")
    assert result.exit_code == 0, result.output
    assert "3 images of clean; noise: sigma 25" in result.stdout
    assert "noisy" in result.stdout and "segaware-blind" in result.stdout and "PSNR (dB)" in result.stdout and "[" in result.stdout


def test_defaults_are_that_line(shipped, clean):
    assert run(clean).stdout == run(clean, "--sigma", 25, "--model", "segaware-blind").stdout


def test_json(shipped, clean):
    result = run(clean, "-s", 15, "-s", 50, "-m", "ffdnet", "-m", "ffdnet+0.03", "-m", "mine=segaware-blind", "--json", "--harm")
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
    told = json.loads((out / "report.json").read_text())["command"]
    assert told and told in (out / "report.md").read_text(), "what made it stays"
    assert run(out, "--rebuild", "--format", "json").exit_code == 0
    assert json.loads((out / "report.json").read_text())["command"] == told


def test_a_failing_image_is_exit_code_1(shipped, clean):
    (clean / "im1.png").write_bytes(b"no")
    result = run(clean)
    assert result.exit_code == 1 and "segaware-blind" in result.stdout
    assert "im1 (sigma 25)" in result.stderr and "2 cells could not be measured" in result.stderr


def textured(path, height, width):
    """Edges at several scales: something that NIQE can look at."""
    random = np.random.default_rng(len(path.stem) + height)
    total = np.zeros((height, width, 3))
    for scale in (1, 3, 9, 27):
        coarse = random.normal(0, scale, (-(-height // scale), -(-width // scale), 3))
        total += coarse.repeat(scale, 0).repeat(scale, 1)[:height, :width]
    Image.fromarray((128 + total).clip(0, 255).astype(np.uint8)).save(path)


def test_niqe(shipped, tmp_path):
    folder, out = tmp_path / "large", tmp_path / "out"
    folder.mkdir()
    textured(folder / "a.png", 192, 200)
    textured(folder / "bb.png", 100, 300)
    result = run(folder, "--metric", "niqe", "--metric", "psnr", "-j", "none", "-o", out, "--format", "json", "--format", "md")
    assert result.exit_code == 0, result.output
    stated = "NIQE (bsds500 parameters; gray plane, not rounded)"
    assert "NIQE (bsds500 parameters), less is better" in result.stdout
    assert stated in (out / "report.md").read_text(encoding="utf-8") and "| NIQE (bsds500" in (out / "report.md").read_text(encoding="utf-8")
    record = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert record["environment"]["metrics"]["niqe"] == stated

    metric = NIQE.shipped()
    clean = torch.from_numpy(image_io.read(folder / "a.png").pixels).permute(2, 0, 1) / 255
    noisy = Protocol().noisy(clean, Protocol().noises[0], name="a", index=0).clamp(0, 1)
    row = next(row for row in record["rows"] if (row["image"], row["contestant"]) == ("a", "noisy"))
    assert row["values"]["niqe"] == float(metric(noisy[None], data_range=1.0))

    metric.save(tmp_path / "own.npz")
    result = run(folder, "--metric", "niqe", "-j", "none", "--niqe-parameters", tmp_path / "own.npz")
    assert "NIQE (bsds500 parameters)" in result.stdout  # the file says which they are


def test_niqe_of_images_that_are_too_small(shipped, clean):
    textured(clean / "large.png", 96, 192)
    result = run(clean, "--metric", "niqe", "--metric", "psnr", "-j", "none")
    assert result.exit_code == 1 and "at least 96 x 192 or 192 x 96 pixels are needed" in result.stderr
    assert "noisy: im0 (sigma 25), im1 (sigma 25), im2 (sigma 25)" in result.stderr and "large" not in result.stderr
    noisy = next(line for line in result.stdout.splitlines() if line.startswith("noisy"))
    assert "(1 of 4)" in noisy and "PSNR" in result.stdout


def test_two_runs_in_one_folder(shipped, clean, tmp_path):
    out = tmp_path / "out"
    with Cells(out):
        result = run(clean, "-o", out)
        assert result.exit_code == 2 and "another run is writing its report here" in result.stderr
    assert run(clean, "-o", out, "--format", "json").exit_code == 0


def test_labels_that_do_not_fit_cost_their_image_alone(shipped, tmp_path):
    for name in ("val", "valannot"):
        (tmp_path / name).mkdir()
    for index in range(3):
        textured(tmp_path / "val" / f"f{index}.png", 24, 32)
        labels = np.full((24, 32), (index, 11)[index == 1], np.uint8)
        labels[0, :5] = 12 if index == 2 else 0
        Image.fromarray(labels).save(tmp_path / "valannot" / f"f{index}.png")
    result = run(tmp_path, "-j", "none")
    assert result.exit_code == 1 and "3 images" in result.stdout
    assert "f2.png: label 12 in 5 pixels, but there are 11 classes (0-10) and void (11, 255)" in result.stderr
    assert "f0" not in result.stderr and "f1" not in result.stderr
    (tmp_path / "valannot" / "f1.png").unlink()
    result = run(tmp_path, "-j", "none")
    assert result.exit_code == 2 and "1 of 3 images have no label file" in result.stderr
    assert f"{tmp_path / 'val' / 'f1.png'} has no {tmp_path / 'valannot' / 'f1.png'}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "segaware-bilnd"], "did you mean 'segaware-blind'"),
        (["-s", "0.1"], "[0, 1] scale; in 8-bit units it is 25.5"),
        (["-s", "300"], "outside 0 to 255"),
        (["--noise", "loud"], "is not understood"),
        (["-j", "nobody"], "unknown model 'nobody'"),
        (["-j", "segaware-blind"], "is no segmenter"),
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


@pytest.fixture
def crops(clean, tmp_path):
    """Images with labels of classes of one's own, and a segmenter that knows them."""
    root = tmp_path / "crops"
    (root / "valannot").mkdir(parents=True)
    clean.rename(root / "val")
    for path in (root / "val").iterdir():
        Image.fromarray(np.tile(np.arange(30) // 8, (24, 1)).astype(np.uint8)).save(root / "valannot" / path.name)  # 0 to 3
    (tmp_path / "classes.txt").write_text("grass\nwinter wheat\n\nsoil\n")
    torch.manual_seed(0)
    names = ["grass", "winter wheat", "soil"]
    write_entry(tmp_path / "mine", FPNSegmenter(3, "squeezenet1_0", width=4, head="trained", class_names=names))
    return root


def test_classes_of_ones_own(shipped, crops, tmp_path):
    result = run(crops, "--classes", tmp_path / "classes.txt", "--void", 3, "-j", tmp_path / "mine", "--metric", "psnr", "--json")
    assert result.exit_code == 0, result.output
    assert "miou:mine" in {s["measure"] for s in json.loads(result.stdout)["summary"]}
    assert "label 3 in 144 pixels" in run(crops, "--classes", tmp_path / "classes.txt", "-j", tmp_path / "mine").output


def test_no_judge_knows_these_classes(shipped, crops, tmp_path):
    result = run(crops, "--classes", tmp_path / "classes.txt", "--void", 3)
    assert result.exit_code == 0 and "PSNR alone decides" in result.stderr and "-j FOLDER" in result.stderr
    assert "PSNR alone" not in run(crops, "--layout", "folder").stderr


def test_classes_need_their_layout(shipped, clean, crops, tmp_path):
    names = tmp_path / "classes.txt"
    assert "this one is 'folder'" in run(crops / "val", "--classes", names).output
    assert run(crops, "--void", 3).exit_code == 2 and "goes with --classes" in run(crops, "--void", 3).output
    names.write_text(" \n")
    assert run(crops, "--classes", names).exit_code == 2 and "holds no name" in run(crops, "--classes", names).output
    names.write_bytes(b"\xff\xfe")
    assert run(crops, "--classes", names).exit_code == 2 and "not UTF-8" in run(crops, "--classes", names).output


def test_names_and_limit(shipped, clean, tmp_path):
    (tmp_path / "names.txt").write_text("im2\nim0\n")
    assert "2 images" in run(clean, "--names", tmp_path / "names.txt").stdout
    assert "1 image of" in run(clean, "--limit", 1, "--seed-by", "index").stdout
    assert run(clean, "--names", tmp_path / "no.txt").exit_code == 2
