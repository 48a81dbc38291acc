import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from segaware.losses import frozen

EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal_loop.py"


@pytest.fixture
def example(monkeypatch):
    """The example with a segmenter of one convolution in the place of the shipped one."""
    monkeypatch.setattr(frozen, "shipped_folder", lambda name: name)
    monkeypatch.setattr(frozen, "load_entry", lambda folder: nn.Conv2d(3, 4, 5, stride=4, padding=2))
    return runpy.run_path(str(EXAMPLE))


def losses(text: str) -> list[float]:
    return [float(line.split()[3]) for line in text.splitlines() if line.startswith("step")]


def test_it_learns_on_generated_images(example, capsys):
    denoiser = example["main"](None, 40)
    shown = capsys.readouterr().out
    assert "fidelity" in shown and "entropy" in shown
    assert losses(shown)[-1] < losses(shown)[0]
    assert type(denoiser).__name__ == "TinyDenoiser"


def test_it_learns_on_a_folder(example, capsys, tmp_path):
    for name, size in (("a.png", (64, 50)), ("b.JPG", (48, 48)), ("notes.txt", None)):
        if size:
            Image.new("RGB", size, (200, 30, 90)).save(tmp_path / name, format="PNG" if "png" in name else "JPEG")
        else:
            (tmp_path / name).write_text("no image")
    example["main"](tmp_path, 2)
    assert len(losses(capsys.readouterr().out)) == 1


def test_an_empty_folder(example, tmp_path):
    with pytest.raises(SystemExit, match="no PNG"):
        example["main"](tmp_path, 1)


def test_small_images_are_left_out(example, tmp_path):
    Image.new("RGB", (1, 90)).save(tmp_path / "thin.png")
    with pytest.raises(SystemExit, match="48 pixels a side"):
        example["main"](tmp_path, 1)
    Image.new("RGB", (90, 90)).save(tmp_path / "large.png")
    example["main"](tmp_path, 1)
    with pytest.raises(SystemExit, match="no such folder"):
        example["main"](tmp_path / "none", 1)


def test_its_patches_lie_inside(example):
    assert example["patch"](torch.zeros(3, 48, 60)).shape == (3, 48, 48)


def test_it_is_short_enough_to_copy():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 80
