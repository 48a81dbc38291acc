import errno
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as PILImage

import segaware
from segaware import image_io
from segaware.cli.main import main
from segaware.image_io import Image


@pytest.fixture
def run(shipped, tmp_path, monkeypatch):
    """Run ``segaware denoise`` in a folder of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return lambda *arguments: CliRunner().invoke(main, ["denoise", *map(str, arguments)])


@pytest.fixture
def here(run, tmp_path):
    return tmp_path / "work"


def save(path, height=6, width=8, channels=3, alpha=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return image_io.write(path, Image(pixels, pixels[:, :, 0].copy() if alpha else None))


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_one_file(run, here):
    source = save(here / "a.png")
    result = run("a.png", "-o", "b.png")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "b.png\n", "")
    expected = segaware.denoise(source, "segaware-blind")
    assert np.array_equal(image_io.read(here / "b.png").pixels, expected.pixels)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.webp"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (6, 8)])
def test_formats_and_sizes(run, here, name, height, width):
    save(here / name, height, width)
    assert run(name, "-o", f"out/{name}", "--tile", 64).exit_code == 0
    assert image_io.read(here / "out" / name).pixels.shape == (height, width, 3)


@pytest.mark.parametrize(("channels", "alpha"), [(1, False), (1, True), (3, True)])
def test_gray_and_alpha(run, here, channels, alpha):
    source = image_io.read(save(here / "a.png", channels=channels, alpha=alpha))
    assert run("a.png", "-o", "b.png").exit_code == 0
    clean = image_io.read(here / "b.png")
    assert clean.mode == source.mode and (not alpha or np.array_equal(clean.alpha, source.alpha))


def test_sigma_is_in_8_bit_units(run, here):
    source = save(here / "a.png")
    assert run("a.png", "-o", "b.png", "--model", "ffdnet", "--sigma", 25).exit_code == 0
    expected = segaware.denoise(source, "ffdnet", sigma=25 / 255)
    assert np.array_equal(image_io.read(here / "b.png").pixels, expected.pixels)


def test_compare_and_reference(run, here):
    save(here / "a.png"), save(here / "clean.png")
    result = run("a.png", "-o", "b.png", "--compare", "both.png", "--reference", "clean.png")
    assert result.exit_code == 0
    assert "PSNR inf dB before, " in result.stdout and "dB after (of the 8-bit images)" in result.stdout
    assert image_io.read(here / "both.png").width == 16


def test_json(run, here):
    save(here / "a.png"), save(here / "clean.png")
    record = json.loads(run("a.png", "-o", "b.png", "--reference", "clean.png", "--json").stdout)
    assert record["model"] == "segaware-blind" and record["sigma"] is None
    (file,) = record["files"]
    assert (file["input"], file["output"], file["status"]) == ("a.png", "b.png", "done")
    assert file["psnr"]["before"] is None and file["psnr"]["after"] > 0


def test_a_palette_is_noted(run, here):
    PILImage.fromarray(np.zeros((4, 4, 3), np.uint8)).quantize(4).save(here / "p.png")
    result = run("p.png", "-o", "b.png")
    assert result.exit_code == 0 and "p.png: palette converted to RGB" in result.stderr


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_stay_16(run, here, ending, channels):
    if ending == "tif":
        pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (6, 8, channels), dtype=np.uint16)
    noisy = Image(pixels, pixels[:, :, 0].copy(), icc_profile=b"profile", resolution=(300, 300))
    image_io.write(here / f"a.{ending}", noisy)
    assert run(f"a.{ending}", "-o", f"b.{ending}").exit_code == 0
    clean = image_io.read(here / f"b.{ending}")
    assert np.array_equal(clean.pixels, segaware.denoise(pixels)) and clean.pixels.dtype == np.uint16
    assert np.array_equal(clean.alpha, noisy.alpha) and clean.icc_profile == b"profile" and clean.resolution
    image_io.write(here / "clean.png", noisy)
    result = run(f"a.{ending}", "-o", f"c.{ending}", "--reference", "clean.png")
    assert "PSNR inf dB before, " in result.stdout and "dB after (of the 16-bit images)" in result.stdout
    assert np.array_equal(image_io.read(here / f"c.{ending}").pixels, clean.pixels)
    result = run(f"a.{ending}", "-o", "c.jpg")
    assert result.exit_code == 1 and "JPEG cannot hold" in result.stderr and not (here / "c.jpg").exists()


# folders


def test_a_tree(run, here):
    for name in ("in/a.png", "in/deep/b.jpg", "in/deep/c.tif"):
        save(here / name)
    result = run("in", "-o", "out")
    assert result.exit_code == 0 and result.stdout == "done 3, skipped 0, failed 0\n"
    assert files(here / "out") == ["a.png", "deep/b.jpg", "deep/c.tif"]
    (here / "out" / "a.png").write_bytes(b"mine")
    (here / "out" / "deep" / "b.jpg").unlink()
    assert run("in", "-o", "out").stdout == "done 1, skipped 2, failed 0\n"
    assert (here / "out" / "a.png").read_bytes() == b"mine"
    assert run("in", "-o", "out", "--overwrite").stdout == "done 3, skipped 0, failed 0\n"
    assert image_io.read(here / "out" / "a.png").width == 8


def test_bad_files_are_listed_and_the_rest_is_done(run, here):
    save(here / "in" / "a.png"), save(here / "in" / "z.png")
    (here / "in" / "empty.png").write_bytes(b"")
    (here / "in" / "text.jpg").write_bytes(b"no image")
    (here / "in" / "half.png").write_bytes(save(here / "in" / "z.png", 64, 64).read_bytes()[:2000])
    result = run("in", "-o", "out")
    assert result.exit_code == 1 and result.stdout == "done 2, skipped 0, failed 3\n"
    assert "3 of 5 images failed" in result.stderr
    for words in ("empty.png: the file is empty", "text.jpg: not an image", "half.png: truncated"):
        assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert files(here / "out") == ["a.png", "z.png"]
    record = json.loads(run("in", "-o", "out", "--json").stdout)
    assert sorted(file["status"] for file in record["files"]) == ["failed"] * 3 + ["skipped"] * 2


# what cannot be meant: exit code 2, one clear line, nothing written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.png"], "Missing option"),
        (["none.png", "-o", "b.png"], "none.png: no such file or folder"),
        (["a.png", "-o", "a.png"], "the output is the input"),
        (["a.png", "-o", "a.png", "--overwrite"], "the output is the input"),
        (["a.png", "-o", "there.png"], "exists already"),
        (["a.png", "-o", "b.gif"], "use one of"),
        (["empty", "-o", "out"], "no images in this folder"),
        (["in", "-o", "in"], "is the input folder"),
        (["in", "-o", "in/out"], "inside the input folder"),
        (["in", "-o", "there.png"], "give a folder"),
        (["in", "-o", "out", "--reference", "a.png"], "for a single image"),
        (["a.png", "-o", "b.png", "--compare", "b.png"], "is also the input, the output"),
        (["a.png", "-o", "b.png", "--compare", "a.png", "--overwrite"], "is also the input"),
        (["a.png", "-o", "b.png", "--compare", "there.png"], "exists already"),
        (["a.png", "-o", "b.png", "--compare", "c.gif"], "use one of"),
        (["a.png", "-o", "b.png", "--reference", "none.png"], "none.png: cannot be read"),
        (["a.png", "-o", "there.png", "--reference", "there.png", "--overwrite"], "is also the output"),
        (["a.png", "-o", "b.png", "--model", "ffdnett", "--sigma", "25"], "did you mean 'ffdnet'"),
        (["a.png", "-o", "b.png", "--model", "empty"], "no readable config.json"),
        (["a.png", "-o", "b.png", "--model", "ffdnet"], "needs the noise level: --sigma 25"),
        (["a.png", "-o", "b.png", "--sigma", "25"], "leave --sigma out"),
        (["a.png", "-o", "b.png", "--sigma", "300"], "outside 0 to 255"),
        (["a.png", "-o", "b.png", "--sigma", "-1"], "outside 0 to 255"),
        (["a.png", "-o", "b.png", "--sigma", "nan"], "outside 0 to 255"),
        (["a.png", "-o", "b.png", "--sigma", "0.1"], "8-bit units: 25.5"),
        (["a.png", "-o", "b.png", "--sigma", "much"], "neither a number nor auto"),
        (["a.png", "-o", "b.png", "--tile", "-3"], "auto, whole or a positive number"),
        (["a.png", "-o", "b.png", "--device", "gpu"], "device 'gpu' is unknown"),
        (["a.png", "-o", "b.png", "--precision", "half"], "'half'"),
    ],
)
def test_usage(run, here, arguments, words):
    save(here / "a.png"), save(here / "in" / "a.png"), save(here / "there.png")
    (here / "empty").mkdir()
    before = {name: (here / name).read_bytes() for name in files(here)}
    result = run(*arguments)
    assert result.exit_code == 2 and words in result.stderr and not result.stdout
    assert "Traceback" not in result.stderr
    assert {name: (here / name).read_bytes() for name in files(here)} == before


def test_no_cuda(run, here, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    save(here / "a.png")
    result = run("a.png", "-o", "b.png", "--device", "cuda")
    assert result.exit_code == 2 and "device 'cuda' is not available here; use 'cpu'" in result.stderr


def test_a_damaged_model(run, here, shipped):
    save(here / "a.png")
    (shipped / "ffdnet" / "model.safetensors").write_bytes(b"\0" * 20)
    result = run("a.png", "-o", "b.png", "--model", "ffdnet", "--sigma", 25)
    assert result.exit_code == 2 and "damaged or not a safetensors file" in result.stderr


# what fails on the way: exit code 1


def test_a_bad_file(run, here):
    (here / "a.png").write_bytes(b"no image")
    result = run("a.png", "-o", "b.png")
    assert (result.exit_code, result.stdout) == (1, "") and "Error: a.png: not an image" in result.stderr
    assert files(here) == ["a.png"]


def test_the_disk_fills_up(run, here, monkeypatch):
    save(here / "a.png")
    old = save(here / "b.png", 2, 2).read_bytes()

    def fill(self):
        self._file.write(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("segaware.image_io.target.PngWriter.finish", fill)
    result = run("a.png", "-o", "b.png", "--overwrite")
    assert result.exit_code == 1 and "b.png: cannot be written (No space left on device)" in result.stderr
    assert files(here) == ["a.png", "b.png"] and (here / "b.png").read_bytes() == old


def test_an_unwritable_output(run, here):
    save(here / "a.png")
    (here / "file").write_text("")
    result = run("a.png", "-o", "file/b.png")
    assert result.exit_code == 1 and "cannot make this folder" in result.stderr and "Traceback" not in result.stderr


def test_a_reference_of_another_size(run, here):
    save(here / "a.png"), save(here / "clean.png", 7, 8)
    result = run("a.png", "-o", "b.png", "--reference", "clean.png")
    assert result.exit_code == 1 and "give the clean image of this one" in result.stderr
    assert not (here / "b.png").exists()


def test_interrupt(run, here, monkeypatch):
    save(here / "in" / "a.png"), save(here / "in" / "b.png")
    write = image_io.Target.write

    def interrupt(self, rows):
        write(self, rows)
        if self.path.name == "b.png":
            raise KeyboardInterrupt

    monkeypatch.setattr(image_io.Target, "write", interrupt)
    result = run("in", "-o", "out")
    assert result.exit_code == 130 and "interrupted; finished files are kept" in result.stderr
    assert files(here / "out") == ["a.png"]


def test_an_unexpected_error_has_a_traceback_only_on_demand(run, here, monkeypatch):
    save(here / "a.png")
    monkeypatch.setattr("segaware.inference.engine.Engine.__init__", lambda *_, **__: 1 / 0)
    result = run("a.png", "-o", "b.png")
    assert result.exit_code == 1 and "ZeroDivisionError: division by zero (run again with --debug" in result.stderr
    assert isinstance(run("a.png", "-o", "b.png", "--debug").exception, ZeroDivisionError)
