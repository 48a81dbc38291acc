from pathlib import Path

import numpy as np
import pytest

from segaware import image_io
from segaware.errors import ImageError, InputError
from segaware.image_io import Image
from segaware.inference.engine import Engine
from segaware.inference.files import Job, denoise_file, path_below, plan, run_job, side_by_side


def save(path, value=100, height=6, width=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    return image_io.write(path, Image(np.full((height, width, 3), value, np.uint8)))


def names(jobs, root):
    return [(job.source.relative_to(root).as_posix(), job.target.relative_to(root).as_posix()) for job in jobs]


def test_plan_for_a_file(tmp_path):
    source = save(tmp_path / "a.png")
    assert plan(source, tmp_path / "b.jpg") == [Job(source, tmp_path / "b.jpg")]
    (tmp_path / "out").mkdir()
    assert plan(source, tmp_path / "out") == [Job(source, tmp_path / "out" / "a.png")]
    assert plan(source, f"{tmp_path}/new/") == [Job(source, tmp_path / "new" / "a.png")]


def test_plan_mirrors_a_tree(tmp_path):
    for name in ("in/b.PNG", "in/a.jpg", "in/deep/er/c.tif", "in/.hidden.png", "in/.git/d.png"):
        save(tmp_path / name)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    assert names(plan(tmp_path / "in", tmp_path / "out"), tmp_path) == [
        ("in/a.jpg", "out/a.jpg"),
        ("in/b.PNG", "out/b.PNG"),
        ("in/deep/er/c.tif", "out/deep/er/c.tif"),
    ]
    assert not (tmp_path / "out").exists()


def test_one_folder_by_two_names(tmp_path, monkeypatch):
    """As on disks that do not tell capitals from small letters, where names alone say nothing."""
    save(tmp_path / "Photos" / "a.png")
    alike = Path.samefile
    monkeypatch.setattr(Path, "samefile", lambda one, other: str(one).lower() == str(other).lower() or alike(one, other))
    assert path_below(tmp_path / "photos" / "x", tmp_path / "Photos") == Path("x")
    assert path_below(tmp_path / "other", tmp_path / "Photos") is None
    with pytest.raises(InputError, match="is the input folder"):
        plan(tmp_path / "Photos", tmp_path / "photos")
    with pytest.raises(InputError, match="inside the input folder"):
        plan(tmp_path / "Photos", tmp_path / "photos" / "out")


def test_plan_refuses(tmp_path):
    source = save(tmp_path / "in" / "a.png")
    save(tmp_path / "there.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub" / "in").mkdir(parents=True)
    save(tmp_path / "sub" / "in" / "in" / "x.png")
    save(tmp_path / "sub" / "in" / "x.png")
    for given, target, error, words in [
        ("none.png", "b.png", InputError, "no such file or folder"),
        ("in/a.png", "in/a.png", InputError, "the output is the input"),
        ("in/a.png", "in/../in/a.png", InputError, "the output is the input"),
        ("in/a.png", "in", InputError, "the output is the input"),
        ("in/a.png", "there.png", InputError, "exists already.*--overwrite"),
        ("in/a.png", "b.gif", ImageError, "use one of"),
        ("in", "in", InputError, "is the input folder"),
        ("in", "in/out", InputError, "inside the input folder"),
        ("in", "there.png", InputError, "give a folder"),
        ("empty", "out", InputError, "no images in this folder"),
        ("sub/in", "sub", InputError, "would replace an input"),
    ]:
        with pytest.raises(error, match=words):
            plan(tmp_path / given, tmp_path / target)
    assert plan(source, tmp_path / "there.png", overwrite=True)
    with pytest.raises(InputError, match="the output is the input"):
        plan(source, source, overwrite=True)


def test_a_link_to_the_input_is_the_input(tmp_path):
    source = save(tmp_path / "a.png")
    try:
        (tmp_path / "b.png").hardlink_to(source)
        (tmp_path / "c.png").symlink_to(source)
    except OSError:
        pytest.skip("no links here")
    for name in ("b.png", "c.png"):
        with pytest.raises(InputError, match="the output is the input"):
            plan(source, tmp_path / name, overwrite=True)


def test_denoise_file(tmp_path, halve):
    job = Job(save(tmp_path / "a.png", 100), tmp_path / "new" / "b.png")
    reference = Image(np.full((6, 8, 3), 60, np.uint8))
    outcome = denoise_file(job, Engine(halve()), compare=tmp_path / "both.png", reference=reference)
    assert outcome.status == "done" and (image_io.read(job.target).pixels == 50).all()
    both = image_io.read(tmp_path / "both.png").pixels
    assert both.shape == (6, 16, 3) and (both[:, :8] == 100).all() and (both[:, 8:] == 50).all()
    assert outcome.psnr == pytest.approx((20 * np.log10(255 / 40), 20 * np.log10(255 / 10)))


@pytest.mark.parametrize("reference", [np.zeros((6, 9, 3), np.uint8), np.zeros((6, 8, 1), np.uint8)])
def test_the_reference_must_fit(tmp_path, halve, reference):
    job = Job(save(tmp_path / "a.png"), tmp_path / "b.png")
    with pytest.raises(InputError, match="8 x 6 colour, but the reference is .* clean image of this one"):
        denoise_file(job, Engine(halve()), reference=Image(reference))
    assert not job.target.exists()


def test_run_job_reports_what_happened(tmp_path, halve):
    good, bad = save(tmp_path / "a.png"), tmp_path / "bad.png"
    bad.write_bytes(b"")
    engine = Engine(halve())
    assert run_job(Job(good, tmp_path / "o.png"), engine).status == "done"
    before = (tmp_path / "o.png").read_bytes()
    assert run_job(Job(save(tmp_path / "c.png", 7), tmp_path / "o.png"), engine).status == "skipped"
    assert (tmp_path / "o.png").read_bytes() == before
    assert run_job(Job(tmp_path / "c.png", tmp_path / "o.png"), engine, overwrite=True).status == "done"
    assert (tmp_path / "o.png").read_bytes() != before
    outcome = run_job(Job(bad, tmp_path / "p.png"), engine)
    assert outcome.status == "failed" and "0 bytes" in outcome.error and not (tmp_path / "p.png").exists()
    engine.run = lambda *_: 1 / 0
    outcome = run_job(Job(good, tmp_path / "p.png"), engine)
    assert outcome.status == "failed" and "a.png: ZeroDivisionError" in outcome.error


def test_a_folder_that_cannot_be_made(tmp_path, halve):
    (tmp_path / "file").write_text("")
    outcome = run_job(Job(save(tmp_path / "a.png"), tmp_path / "file" / "sub" / "a.png"), Engine(halve()))
    assert outcome.status == "failed" and "cannot make this folder" in outcome.error


def test_side_by_side_of_gray_with_alpha():
    gray = Image(np.zeros((2, 3, 1), np.uint8), np.zeros((2, 3), np.uint8))
    assert side_by_side(gray, gray).mode == "L" and side_by_side(gray, gray).width == 6
