import json
import os

import numpy as np
import pytest
from PIL import Image as PILImage

from segaware.class_maps import class_colours, write_class_map
from segaware.errors import ImageError, InputError

NAMES = ("sky", "road", "tree")
MAP = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.int64)


def test_indices_palette_and_names(tmp_path):
    file = write_class_map(tmp_path / "map.png", MAP, NAMES)
    with PILImage.open(file) as picture:
        assert picture.mode == "P" and np.array_equal(np.array(picture), MAP)
        assert json.loads(picture.text["class_names"]) == list(NAMES)
        assert np.array_equal(np.array(picture.convert("RGB"))[0], np.round(class_colours(3) * 255))
    assert os.listdir(tmp_path) == ["map.png"]


def test_all_256_classes(tmp_path):
    classes = np.arange(256).reshape(16, 16)
    with PILImage.open(write_class_map(tmp_path / "map.png", classes, [f"é{i}" for i in range(256)])) as picture:
        assert np.array_equal(np.array(picture), classes) and json.loads(picture.text["class_names"])[255] == "é255"


@pytest.mark.parametrize(
    ("name", "classes", "names", "error", "words"),
    [
        ("map.jpg", MAP, NAMES, ImageError, "ends in .png"),
        ("map.png", MAP, NAMES[:2], InputError, "classes 0 to 2, but there are names for 0 to 1"),
        ("map.png", -MAP, NAMES, InputError, "classes -2 to 0"),
        ("map.png", MAP[0], NAMES, InputError, r"give integers \(H, W\)"),
        ("map.png", MAP / 2, NAMES, InputError, "float64; give integers"),
        ("map.png", MAP, ["x"] * 257, InputError, "257 classes; a PNG with a palette holds 1 to 256"),
        ("none/map.png", MAP, NAMES, ImageError, "cannot be written"),
    ],
)
def test_bad_input(tmp_path, name, classes, names, error, words):
    with pytest.raises(error, match=words):
        write_class_map(tmp_path / name, classes, names)
    assert os.listdir(tmp_path) == []


def test_an_old_map_outlives_a_full_disk(tmp_path, monkeypatch):
    file = write_class_map(tmp_path / "map.png", MAP, NAMES)
    before = file.read_bytes()

    def fill(self, opened, **options):
        opened.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PILImage.Image, "save", fill)
    with pytest.raises(ImageError, match="No space left on device"):
        write_class_map(file, MAP, NAMES)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["map.png"]
