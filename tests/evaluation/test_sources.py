import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from segaware.errors import EvaluationError, ImageError
from segaware.evaluation.sources import CAMVID_CLASSES, open_source


def test_folder(folder):
    source = open_source(folder)
    assert [item.name for item in source] == ["im0", "im1", "im2", "im3", "more/im4", "more/im5"]
    assert [item.index for item in source] == list(range(6)) and source.classes is None and source.block == 1
    sample = source.load(source.items[0])
    pixels = np.array(Image.open(folder / "im0.png"))
    assert sample.labels is None
    torch.testing.assert_close(sample.clean, torch.from_numpy(pixels).permute(2, 0, 1) / 255)


def test_gray_images_stay_gray(tmp_path):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "g.png")
    assert open_source(tmp_path).load(open_source(tmp_path).items[0]).clean.shape == (1, 4, 5)


def test_select_counts_anew(folder):
    source = open_source(folder).select(["im5", "im1"])
    assert [(item.name, item.index) for item in source] == [("im1", 0), ("more/im5", 1)]
    assert [item.name for item in open_source(folder).select(limit=2)] == ["im0", "im1"]
    with pytest.raises(EvaluationError, match="1 of 2 names.*im9"):
        open_source(folder).select(["im1", "im9"])


def test_camvid(labelled):
    for path in (labelled / "valannot").glob("*.png"):
        labels = np.array(Image.open(path))
        labels[0, 10] = 11  # void of SegNet's labels
        Image.fromarray(labels).save(path)
    source = open_source(labelled)
    assert source.classes == CAMVID_CLASSES and source.block == 10
    labels = source.load(source.items[0]).labels
    assert labels is not None and labels.dtype == torch.int64 and labels[0, 10] == 255 and labels[0, 0] == 255


def test_own_classes(labelled):
    source = open_source(labelled, classes=("red", "green", "blue"))
    assert source.classes == ("red", "green", "blue") and source.block == 1
    assert set(source.load(source.items[0]).labels.unique().tolist()) <= {0, 1, 2, 255}


def test_voc(tmp_path):
    for name in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("b\na\n")
    for stem in "ab":
        Image.fromarray(np.full((6, 7, 3), 90, np.uint8)).save(tmp_path / f"JPEGImages/{stem}.jpg")
        labels = Image.fromarray(np.array([[0, 20, 255, 15, 1, 2, 3]] * 6, np.uint8))
        palette = labels.convert("P")
        palette.putdata(list(np.array(labels).flatten()))
        palette.save(tmp_path / f"SegmentationClass/{stem}.png")
    source = open_source(tmp_path)
    assert source.name == "VOC val" and [item.name for item in source] == ["a", "b"] and len(source.classes) == 21
    assert source.load(source.items[0]).labels[0].tolist() == [0, 20, 255, 15, 1, 2, 3]
    (tmp_path / "JPEGImages/a.jpg").unlink()
    with pytest.raises(EvaluationError, match="1 of 2 images are missing"):
        open_source(tmp_path)


def test_cityscapes(tmp_path):
    image = tmp_path / "leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png"
    label = tmp_path / "gtFine/val/bonn/bonn_000000_000019_gtFine_labelIds.png"
    for path in (image, label):
        path.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(image)
    Image.fromarray(np.array([[7, 33, 0, 29]] * 2, np.uint8)).save(label)
    source = open_source(tmp_path)
    assert source.load(source.items[0]).labels[0].tolist() == [0, 18, 255, 255]


class TestBad:
    def test_missing_labels_are_named_in_pairs(self, labelled):
        (labelled / "valannot/f3.png").unlink()
        with pytest.raises(EvaluationError, match=r"1 of 5 images have no label file:\n.*f3\.png has no .*valannot.f3\.png"):
            open_source(labelled)

    def test_labels_without_image(self, labelled):
        (labelled / "val/f3.png").unlink()
        with pytest.raises(EvaluationError, match="1 label files without an image: f3"):
            open_source(labelled)

    def test_label_of_another_size(self, labelled):
        Image.fromarray(np.zeros((8, 9), np.uint8)).save(labelled / "valannot/f0.png")
        source = open_source(labelled)
        with pytest.raises(EvaluationError, match=r"f0\.png: 9 x 8 labels, but .* 56 x 40"):
            source.load(source.items[0])

    def test_label_out_of_range(self, labelled):
        labels = np.zeros((40, 56), np.uint8)
        labels[3, 4:6] = 12
        Image.fromarray(labels).save(labelled / "valannot/f0.png")
        source = open_source(labelled)
        with pytest.raises(EvaluationError, match="label 12 in 2 pixels, but there are 11 classes"):
            source.load(source.items[0])

    def test_coloured_label(self, labelled):
        Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(labelled / "valannot/f0.png")
        source = open_source(labelled)
        with pytest.raises(EvaluationError, match="one 8-bit channel of class indices"):
            source.load(source.items[0])

    def test_damaged_label(self, labelled):
        (labelled / "valannot/f0.png").write_bytes(b"no png")
        source = open_source(labelled)
        with pytest.raises(ImageError, match="label map cannot be read"):
            source.load(source.items[0])

    def test_empty_folder(self, tmp_path):
        with pytest.raises(EvaluationError, match="no images here or below"):
            open_source(tmp_path)

    def test_no_folder(self, tmp_path):
        with pytest.raises(EvaluationError, match="no such folder"):
            open_source(tmp_path / "x")
        (tmp_path / "f.png").write_bytes(b"")
        with pytest.raises(EvaluationError, match="a file; give the folder"):
            open_source(tmp_path / "f.png")

    def test_two_images_of_one_name(self, folder):
        (folder / "im0.bmp").write_bytes((folder / "im0.png").read_bytes())
        with pytest.raises(EvaluationError, match="have one name"):
            open_source(folder)

    def test_layout_that_is_not_there(self, folder):
        for layout in ("camvid", "voc", "cityscapes", "odd"):
            with pytest.raises(EvaluationError):
                open_source(folder, layout)


def test_a_labelled_set_without_the_split(labelled):
    (labelled / "valannot").rename(labelled / "testannot")
    (labelled / "val").rename(labelled / "test")
    with pytest.raises(EvaluationError, match="without the split 'val'; there is test: give one"):
        open_source(labelled)
    assert open_source(labelled, split="test").classes is not None
    assert open_source(labelled, "folder").classes is None


def test_reports_are_no_images(folder):
    before = [item.name for item in open_source(folder)]
    for name in ("report/pictures/im1", "report"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "report/cells.jsonl").touch()
    shutil.copy(next(folder.glob("im1.*")), folder / "report/pictures/im1/noisy.png")
    assert [item.name for item in open_source(folder)] == before
    shutil.copytree(folder / "report/pictures", folder / "pictures")
    assert "pictures/im1/noisy" in [item.name for item in open_source(folder)], "of a user's own"
    (folder / "cells.jsonl").touch()  # a report into the folder of the images itself
    assert [item.name for item in open_source(folder)] == before


def test_names_of_other_tongues_and_systems(folder):
    """A narrow no-break space, as in the names of screenshots on a Mac; a wide one; letters of all kinds."""
    first = next(folder.glob("im1.*"))
    for name in ("Screenshot 2026-11-22 at 3.04\u202fPM", "\u3000写真", "Übung\xa01"):
        shutil.copy(first, folder / f"{name}.png")
        assert name in {item.name for item in open_source(folder)}


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_names_that_are_no_text(folder):
    first = next(folder.glob("im1.*"))
    first.rename(os.fsdecode(os.fsencode(folder) + b"/\xe9.png"))
    with pytest.raises(EvaluationError, match="rename the file"):
        open_source(folder)
