"""File to file in bands of rows: the same picture as in one piece, in memory that does not grow with it."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peak_memory import DEFINE_PEAK

from segaware import DnCNN, FFDNet, image_io
from segaware.entries import write_entry
from segaware.errors import ImageError, InputError
from segaware.image_io import Image, opened, read, write
from segaware.inference.engine import Engine
from segaware.inference.files import Job, denoise_file
from segaware.inference.noise_level import estimate_file, estimate_picture


def picture(height, width, dtype=np.uint8, channels=3, alpha=False):
    values = np.random.default_rng(height + width).random((height, width, channels + alpha))
    values = (values * (1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max)).astype(dtype)
    return Image(values[:, :, :channels], values[:, :, -1].copy() if alpha else None)


def in_bands(folder, image, engine, ending="png", sigma=None):
    job = Job(write(folder / f"a.{ending}", image), folder / f"b.{ending}")
    return denoise_file(job, engine, sigma), read(job.target)


@pytest.mark.parametrize("tile", [24, "whole"])
@pytest.mark.parametrize(
    ("ending", "dtype"), [("png", np.uint8), ("png", np.uint16), ("tif", np.uint16), ("tif", np.float32), ("webp", np.uint8)]
)
def test_the_same_to_the_last_bit(tmp_path, network, level, ending, dtype, tile):
    if ending == "tif":
        pytest.importorskip("tifffile")
    image = picture(70, 61, dtype, alpha=True)
    engine = Engine(network, tile=tile)
    whole = engine(image, level)
    _, clean = in_bands(tmp_path, image, engine, ending, level)
    assert clean.pixels.dtype == dtype and np.array_equal(clean.pixels, whole.pixels)
    assert np.array_equal(clean.alpha, image.alpha)


sides = st.integers(1, 60)


@settings(max_examples=12, deadline=None)
@given(sides, sides, st.integers(1, 40), st.sampled_from([1, 3]), st.booleans(), st.sampled_from([np.uint8, np.uint16]))
def test_any_size_and_tile(tmp_path_factory, height, width, tile, channels, alpha, dtype):
    image = picture(height, width, dtype, channels, alpha)
    engine = Engine(DnCNN(depth=3, width=2).eval(), tile=tile)
    whole = engine(image)
    _, clean = in_bands(tmp_path_factory.mktemp("bands"), image, engine)
    assert np.array_equal(clean.pixels, whole.pixels) and (not alpha or np.array_equal(clean.alpha, image.alpha))


def test_a_gray_picture_through_a_colour_model_and_back(tmp_path, halve):
    for channels, model in ((1, 3), (3, 1)):
        image = picture(30, 20, np.uint16, channels)
        _, clean = in_bands(tmp_path, image, Engine(halve(channels=model), tile=8))
        assert np.abs(clean.pixels.astype(int) - image.pixels / 2).max() <= 0.5


def test_no_more_rows_are_asked_for_than_the_windows_need(tmp_path, halve, monkeypatch):
    """The first tiles are denoised before the last rows are read."""
    asked, events = [], []
    job = Job(write(tmp_path / "a.png", picture(64, 16)), tmp_path / "b.png")
    rows = image_io.Source.rows
    monkeypatch.setattr(image_io.Source, "rows", lambda self, count: asked.append(count) or rows(self, count))
    monkeypatch.setattr(image_io.Target, "write", lambda self, part: events.append((sum(asked), len(part))))
    with pytest.raises(AssertionError):  # nothing was written
        denoise_file(job, Engine(halve(receptive_field=5), tile=16))
    assert events == [(19, 16), (35, 16), (51, 16), (64, 16)]


def test_a_source_that_is_damaged_further_down_leaves_no_output(tmp_path, halve):
    file = write(tmp_path / "a.png", picture(64, 64))
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ImageError, match="a.png: truncated or damaged"):
        denoise_file(Job(file, tmp_path / "b.png"), Engine(halve(), tile=8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_floats_are_checked_on_the_way(tmp_path, halve):
    pytest.importorskip("tifffile")
    for value, words in ((np.nan, "NaN"), (200, "divide by 255")):
        image = picture(40, 8, np.float32)
        image.pixels[33, 3] = value
        with pytest.raises(InputError, match=rf"a\.tif: .*{words}"):
            in_bands(tmp_path, image, Engine(halve(), tile=8), "tif")
        assert not (tmp_path / "b.tif").exists()


# the noise level


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_level_of_a_file_is_that_of_the_picture(tmp_path, monkeypatch, dtype):
    if dtype == np.float32:
        pytest.importorskip("tifffile")
    monkeypatch.setattr("segaware.inference.noise_level._PATCHES", 2000)
    noise = np.random.default_rng(0).normal(0, 20 / 255, (600, 700, 3)) + np.linspace(0.2, 0.8, 700)[:, None]
    top = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    values = noise if top == 1 else (noise.clip(0, 1) * top).round()
    image = Image(values.astype(dtype))
    file = write(tmp_path / ("a.tif" if dtype == np.float32 else "a.png"), image)
    with opened(file) as source:
        level = estimate_file(source)
    assert level == pytest.approx(estimate_picture(image.pixels), abs=1e-6)
    assert level * 255 == pytest.approx(20, abs=3)  # of few patches


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_model_that_takes_a_level_gets_the_estimate_and_clean_ones_say_so(tmp_path, dtype):
    engine = Engine(FFDNet(depth=3, width=4))
    flat = Image(np.full((64, 64, 3), 100, dtype))
    outcome, clean = in_bands(tmp_path, flat, engine, sigma="auto")
    assert outcome.sigma < 1.5 / 255 and outcome.notices == (f"noise level {outcome.sigma * 255:.1f}, which looks clean",)
    assert engine(tmp_path / "a.png", "auto").notices == outcome.notices
    noisy = picture(64, 64, dtype)
    outcome, clean = in_bands(tmp_path, noisy, engine, sigma="auto")
    assert np.array_equal(clean.pixels, engine(noisy, outcome.sigma).pixels)
    assert outcome.sigma > 0.1 and outcome.notices == (f"noise level {outcome.sigma * 255:.1f}",)


# killed, and memory


CHILD = """
import sys, time
from segaware import image_io
from segaware.cli.main import main
write = image_io.Target.write
def slowly(self, rows):
    write(self, rows)
    print("row", flush=True)
    time.sleep(60)
image_io.Target.write = slowly
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize(("number", "old"), [("SIGKILL", True), ("SIGTERM", False)])
def test_killing_it_leaves_no_output_or_the_old_one(tmp_path, number, old):
    write_entry(tmp_path / "model", DnCNN(depth=2, width=2))
    write(tmp_path / "a.png", picture(64, 64))
    if old:
        (tmp_path / "b.png").write_bytes(b"old")
    files = [tmp_path / "a.png", "-o", tmp_path / "b.png", "-m", tmp_path / "model"]
    arguments = ["denoise", *files, "--tile", "16", "--overwrite", "--device", "cpu"]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "row\n", child.communicate()[1]
    time.sleep(0.1)
    child.send_signal(getattr(signal, number))
    _, errors = child.communicate(timeout=60)
    assert child.returncode != 0 and "Traceback" not in errors
    left = {path.name for path in tmp_path.iterdir()} - {"model", "a.png"}
    partial = {name for name in left if name.endswith(".partial")}
    assert left - partial == ({"b.png"} if old else set())
    assert not old or (tmp_path / "b.png").read_bytes() == b"old"
    assert not partial or number == "SIGKILL"  # which nobody can answer


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="resource")
@pytest.mark.parametrize(("ending", "dtype"), [("png", "uint8"), ("png", "uint16"), ("tif", "uint16")])
def test_memory_does_not_grow_with_the_picture(tmp_path, ending, dtype):
    """Of 3 and of 24 megapixels: the difference stays below a third of the larger one's own 16-bit size."""
    pytest.importorskip("tifffile")
    write_entry(tmp_path / "model", DnCNN(depth=2, width=4))
    peaks = []
    for height in (1000, 8000):
        strip = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (250, 3000, 3)).astype(dtype)
        head = Image(strip).head
        whole = image_io.Head(height, 3000, 3, dtype=head.dtype)
        with image_io.Target(tmp_path / f"a.{ending}", whole) as target:
            for _ in range(height // 250):
                target.write(strip)
        code = f"""{DEFINE_PEAK}
from segaware.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(peak())
"""
        files = [tmp_path / f"a.{ending}", "-o", tmp_path / f"b.{ending}", "-m", tmp_path / "model"]
        arguments = ["denoise", *files, "--device", "cpu", "--overwrite"]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 48, f"{peaks} MiB"
