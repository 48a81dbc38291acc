"""segaware denoise --save-segmentation: maps beside the images, and nothing lost."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image as PILImage

from segaware import DDFN, SDABN, SDB, HRNetSegmenter, denoise, from_pretrained
from segaware.cli.main import main
from segaware.entries import write_entry
from segaware.inference.segmentation import denoise_and_segment


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    segmenter = HRNetSegmenter(4, width=2, modules=(1, 1, 1), blocks=1, bottlenecks=1, init="kaiming", class_names=list("abcd"))
    return write_entry(tmp_path_factory.mktemp("zoo") / "cascade", SDABN([SDB(segmenter, DDFN(condition_channels=4, blocks=1))]))


@pytest.fixture
def run(model, shipped, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in ("a.png", "in/b.jpg", "in/deep/c.png", "twice/d.png", "twice/d.jpg"):
        file = tmp_path / "work" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        PILImage.effect_noise((24, 17), 60).convert("RGB").save(file)
    return lambda *arguments: CliRunner().invoke(main, ["denoise", *map(str, arguments), *([] if "-m" in arguments else ["-m", str(model)])])


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_one_image(run, tmp_path, model):
    here = tmp_path / "work"
    result = run("a.png", "-o", "out.png", "--save-segmentation", "maps", "--json")
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)["files"]
    assert record["segmentation"] == "maps/a.png" and files(here / "maps") == ["a.png"]
    with PILImage.open(here / "maps/a.png") as picture:
        assert picture.mode == "P" and json.loads(picture.text["class_names"]) == list("abcd")
        found = np.array(picture)
    both = denoise_and_segment(here / "a.png", from_pretrained(model))
    assert np.array_equal(found, both.classes)
    with PILImage.open(here / "out.png") as picture:
        assert np.array_equal(np.array(picture), both.image.pixels)
        assert np.array_equal(np.array(picture), denoise(here / "a.png", from_pretrained(model)).pixels)


def test_a_folder_and_what_is_there_already(run, tmp_path):
    here = tmp_path / "work"
    assert run("in", "-o", "out", "--save-segmentation", "maps").stdout == "done 2, skipped 0, failed 0\n"
    assert files(here / "maps") == ["b.png", "deep/c.png"] and files(here / "out") == ["b.jpg", "deep/c.png"]
    (here / "out/b.jpg").write_bytes(b"mine")
    (here / "maps/b.png").unlink()
    (here / "maps/deep/c.png").write_bytes(b"mine")
    assert run("in", "-o", "out", "--save-segmentation", "maps").stdout == "done 1, skipped 1, failed 0\n"

    assert (here / "out/b.jpg").read_bytes() == b"mine" == (here / "maps/deep/c.png").read_bytes()
    assert PILImage.open(here / "maps/b.png").mode == "P"


def test_with_a_manifest_a_lost_map_is_made_again(run, tmp_path):
    here = tmp_path / "work"
    call = ("in", "-o", "out", "--save-segmentation", "maps", "--manifest", "run.jsonl")
    assert run(*call).stdout == "done 2, skipped 0, failed 0\n"
    made = (here / "maps/b.png").read_bytes()
    (here / "maps/b.png").unlink()
    assert run(*call).stdout == "done 1, skipped 1, failed 0\n"
    assert (here / "maps/b.png").read_bytes() == made
    assert run(*call).stdout == "done 0, skipped 2, failed 0\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.png", "-o", "b.png", "--save-segmentation", "."], "would replace a.png"),
        (["a.png", "-o", "maps/a.png", "--save-segmentation", "maps"], "would replace maps/a.png"),
        (["a.png", "-o", "b.png", "--save-segmentation", "maps", "--compare", "maps/a.png"], "would replace maps/a.png"),
        (["a.png", "-o", "b.png", "--save-segmentation", "a.png"], "give a folder"),
        (["a.png", "-o", "b.png", "--save-segmentation", "there"], "exists already"),
        (["in", "-o", "out", "--save-segmentation", "in/maps"], "lies in the input folder"),
        (["in", "-o", "out", "--save-segmentation", "out"], "would replace out"),
        (["twice", "-o", "out", "--save-segmentation", "maps"], "would be the segmentation of both"),
        (["a.png", "-o", "b.png", "--save-segmentation", "maps", "--tile", "64"], "tile"),
        (["a.png", "-o", "b.png", "--save-segmentation", "maps", "-m", "segaware-blind"], "denoises but does not segment; choose a cascade"),
    ],
)
def test_usage(run, tmp_path, arguments, words):
    here = tmp_path / "work"
    (here / "there").mkdir()
    (here / "there" / "a.png").write_bytes(b"mine")
    before = {name: (here / name).read_bytes() for name in files(here)}
    result = run(*arguments)
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.stderr
    assert {name: (here / name).read_bytes() for name in files(here)} == before
