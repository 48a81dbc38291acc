"""The example without Ray: its units, what it writes, how it goes on. With real Ray: tests/bulk/test_ray.py."""

import io
import json
import os
import runpy
import socket
import sys
import tarfile
import types
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

import segaware
from segaware.bulk import DenoiseBatch, Storage, batch, model_hash
from segaware.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "examples" / "bulk" / "denoise_with_ray.py"


@pytest.fixture
def names(shipped, monkeypatch):
    """The example's names, with units done one after the other in the place of Ray."""
    monkeypatch.setattr(batch, "_ENGINES", {})
    names = runpy.run_path(str(EXAMPLE))

    def work(left, arguments, options):
        made = [pickled(names["DenoiseUnit"](**arguments))(as_batch(row)) for row in left]
        return sum(int(m["done"][0]) for m in made), sum(int(m["failed"][0]) for m in made)

    names["main"].__globals__["work"] = work
    names["without_work"] = work
    return names


def pickled(unit):
    """As Ray would send it: its storages without their connections."""
    assert unit.source.__getstate__()["_system"] is None
    return unit


def as_batch(row):
    return {"unit": np.array([row["unit"]]), "names": np.array([row["names"]], dtype=object)}


@pytest.fixture
def photos(tmp_path):
    """Seven good images of five formats and sizes, one damaged, one hidden, one text."""
    random = np.random.default_rng(0)
    for i, name in enumerate(["a.png", "b.jpg", "c/d.png", "c/e.webp", "c/f/g.bmp", "h.png", "z.png"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "cut.png").write_bytes((tmp_path / "photos" / "z.png").read_bytes()[:400])
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


GOOD = ["a.png", "b.jpg", "c/d.png", "c/e.webp", "c/f/g.bmp", "h.png", "z.png"]


def rows_of(target: Path) -> list[dict]:
    return [json.loads(line) for file in sorted((target / "_segaware").glob("*.jsonl")) for line in file.read_text().splitlines()]


def images_of(target: Path) -> list[str]:
    found = (p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file())
    return sorted(name for name in found if not name.startswith("_segaware/"))


def test_images(names, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert names["main"]([str(photos), str(out), "--unit", "3"]) == 1  # one failed
    said = json.loads(capsys.readouterr().out)
    assert said == {"images": 8, "done": 7, "failed": 1, "target": str(out)}
    assert images_of(out) == GOOD
    for name in ("a.png", "c/d.png", "c/f/g.bmp", "z.png"):
        assert np.array_equal(np.asarray(Image.open(out / name)), segaware.denoise(np.asarray(Image.open(photos / name))))
    rows = rows_of(out)
    assert sorted(row["file"] for row in rows) == sorted([*GOOD, "cut.png"])
    failed = [row for row in rows if row["status"] != "done"]
    assert [row["file"] for row in failed] == ["cut.png"] and "fetch or save it again" in failed[0]["error"]
    assert {row["model"] for row in rows} == {model_hash("segaware-blind")} and all(row["seconds"] >= 0 for row in rows)


def test_shards(names, photos, tmp_path):
    out = tmp_path / "out"
    assert names["main"]([str(photos), str(out), "--form", "shards", "--unit", "3", "--model", "ffdnet", "--sigma", "auto"]) == 1
    assert images_of(out) == ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]
    found = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            found |= {entry.name: tar.extractfile(entry).read() for entry in tar}
    assert sorted(found) == GOOD
    expected = segaware.denoise(np.asarray(Image.open(photos / "h.png")), "ffdnet", sigma="auto")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found["h.png"]))), expected)
    levels = {row["file"]: row["sigma"] for row in rows_of(out)}
    level = DenoiseBatch("ffdnet", column="bytes", sigma="auto")({"bytes": [(photos / "h.png").read_bytes()]})["sigma"][0]
    assert levels["h.png"] == round(float(level) * 255, 2) > 10 and levels["cut.png"] is None  # 8-bit units, as segaware denoise


@pytest.mark.parametrize("form", ["images", "shards"])
def test_a_killed_run_goes_on_without_repeating(names, photos, tmp_path, monkeypatch, capsys, form):
    out = tmp_path / "out"
    command = [str(photos), str(out), "--unit", "2", "--form", form]
    put, puts = Storage.put, []

    def dies(self, name, data):
        if len(puts) == 4:  # in the second unit of images, after the second manifest of shards
            raise KeyboardInterrupt
        puts.append(name)
        put(self, name, data)

    monkeypatch.setattr(Storage, "put", dies)
    assert names["main"](command) == 130
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert 3 < len(before) < 10
    monkeypatch.setattr(Storage, "put", put)
    assert names["main"](command) == 1
    again = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if again[path] != before[path]} <= set(out.glob("shard-00003.tar"))  # nothing that was finished
    assert sorted(row["file"] for row in rows_of(out)) == sorted([*GOOD, "cut.png"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["done"] == 7
    assert not list(out.rglob("*partial*"))
    capsys.readouterr()
    assert names["main"](command) == 1  # a finished run has nothing to do
    assert "0 to do" in capsys.readouterr().err


def test_retry(names, photos, tmp_path):
    out = tmp_path / "out"
    command = [str(photos), str(out), "--unit", "3"]
    assert names["main"](command) == 1
    (photos / "cut.png").write_bytes((photos / "z.png").read_bytes())
    assert names["main"](command) == 1  # not asked for
    assert names["main"]([*command, "--retry"]) == 0
    assert images_of(out) == sorted([*GOOD, "cut.png"])
    assert sorted(row["file"] for row in rows_of(out)) == sorted([*GOOD, "cut.png"])


def test_a_cluster_that_does_not_answer(names):
    """Ray would end the process itself, in C++."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        names["answers"](f"127.0.0.1:{port}")
    with pytest.raises(InputError, match=f"no Ray cluster at '127.0.0.1:{port}'.*leave --address out"):
        names["answers"](f"127.0.0.1:{port}")
    with pytest.raises(InputError, match="no Ray cluster"):
        names["answers"]("127.0.0.1:99999")
    for other in (None, "auto", "local", "ray://127.0.0.1:1"):  # Ray's own words, or its client's errors
        names["answers"](other)


def test_addresses(names, photos, capsys):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.put(str(photos), "/bucket/photos", recursive=True)
    assert names["main"](["memory://bucket/photos", "memory://bucket/clean", "--unit", "4", "--form", "images"]) == 1
    assert sorted(path for path in memory.find("/bucket/clean") if "_segaware" not in path) == [f"/bucket/clean/{name}" for name in GOOD]


def test_an_image_that_went_away_or_may_not_be_read_is_a_row(names, photos, tmp_path, monkeypatch):
    read = Storage.read

    def refused(self, name):
        if name == "c/d.png":
            raise PermissionError("Access Denied")
        if name == "h.png":
            raise FileNotFoundError(2, "No such file")
        return read(self, name)

    monkeypatch.setattr(Storage, "read", refused)
    assert names["main"]([str(photos), str(tmp_path / "out")]) == 1
    failed = {row["file"]: row["error"] for row in rows_of(tmp_path / "out") if row["status"] == "failed"}
    assert set(failed) == {"cut.png", "c/d.png", "h.png"} and "Access Denied" in failed["c/d.png"]


def bad(photos: Path, out: Path) -> dict[str, tuple[list[str], str]]:
    return {
        "no folder": ([f"{photos}-gone", str(out)], "check the name"),
        "no images": ([str(photos / "c" / "f" / "g"), str(out)], "check the name"),
        "unknown address": (["nowhere://photos", str(out)], "s3://bucket/folder"),
        "one in the other": ([str(photos), str(photos / "clean")], "choose folders apart"),
        "model": ([str(photos), str(out), "--model", "ffdnett"], "did you mean 'ffdnet'"),
        "no sigma": ([str(photos), str(out), "--model", "ffdnet"], "sigma='auto'"),
        "no number": ([str(photos), str(out), "--sigma", "much"], "a number or auto"),
        "storage": ([str(photos), str(out), "--storage", "endpoint"], "KEY=VALUE"),
        "unit": ([str(photos), str(out), "--unit", "0"], "positive"),
        "fewer than no gpus": ([str(photos), str(out), "--gpus", "-1"], "0 or more"),
        "no number of gpus": ([str(photos), str(out), "--gpus", "nan"], "0 or more"),
    }


@pytest.mark.parametrize("case", bad(Path(), Path()))
def test_wrong_input(names, photos, tmp_path, capsys, case):
    command, repair = bad(photos, tmp_path / "out")[case]
    assert names["main"](command) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and repair in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_another_run_is_not_mixed_in(names, photos, tmp_path, capsys):
    out = tmp_path / "out"
    names["main"]([str(photos), str(out)])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for change in (["--unit", "5"], ["--form", "shards"], ["--model", "ffdnet", "--sigma", "25"]):
        assert names["main"]([str(photos), str(out), *change]) == 2
        assert "holds another run" in capsys.readouterr().err
    Image.new("RGB", (9, 9)).save(photos / "new.png")
    assert names["main"]([str(photos), str(out)]) == 2
    assert "images 8 then, 9 now, other images" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", ["images", "shards"])
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_new_run_does_not_count_the_files_of_others_as_its_own(names, photos, capsys, tmp_path, form, kind):
    fsspec.filesystem("memory").store.clear()
    out = Storage(tmp_path / "out" if kind == "local" else "memory://bucket/out")
    taken = "c/d.png" if form == "images" else "shard-00007.tar"
    for name in ("notes.txt", "c/other.png", taken):
        out.put(name, b"of another tool")
    assert names["main"]([str(photos), out.address, "--form", form]) == 2
    said = capsys.readouterr().err
    assert f"holds {taken} already" in said and "choose an empty or new target" in said
    assert not out.has("_segaware/run.json") and out.read(taken) == b"of another tool"
    other = Storage(f"{out.address}-2")
    other.put("c/other.png", b"not in the way")
    assert names["main"]([str(photos), other.address, "--form", form]) == 1  # one of the photos is damaged


def refuse(name):
    def read(self, path, works=Storage.read):
        if path == name:
            raise PermissionError(13, "Permission denied")
        return works(self, path)

    return lambda out, monkeypatch: monkeypatch.setattr(Storage, "read", read)


DAMAGE = {
    "run.json without rights": (refuse("_segaware/run.json"), "run.json: cannot be read (Permission denied); check your rights"),
    "manifest without rights": (refuse("_segaware/00001.jsonl"), "00001.jsonl: cannot be read (Permission denied); check your rights"),
    "cut": (lambda out, _: (out / "_segaware" / "run.json").write_text('{"source"'), "run.json: damaged"),
    "no settings": (lambda out, _: (out / "_segaware" / "run.json").write_text("[]"), "run.json: damaged (no settings of a run)"),
    "no text": (lambda out, _: (out / "_segaware" / "run.json").write_bytes(b"\xff\xfe\x00"), "run.json: damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_to_a_run_is_one_line(names, photos, tmp_path, monkeypatch, capsys, case):
    out = tmp_path / "out"
    command = [str(photos), str(out), "--unit", "4"]
    assert names["main"](command) == 1
    spoil, words = DAMAGE[case]
    spoil(out, monkeypatch)
    capsys.readouterr()
    assert names["main"](command) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and len(said.splitlines()) == 1


def test_stray_manifests_are_none(names, photos, tmp_path, capsys):
    out = tmp_path / "out"
    command = [str(photos), str(out), "--unit", "4"]
    assert names["main"](command) == 1
    for stray in ("00001 (1).jsonl", "000001.jsonl", "notes.jsonl", "00077.jsonl", "old/00001.jsonl"):
        (out / "_segaware" / stray).parent.mkdir(exist_ok=True)
        (out / "_segaware" / stray).write_text("")
    (out / "_segaware" / "00001.jsonl").unlink()
    capsys.readouterr()
    assert names["main"](command) == 1
    assert "2 units, 1 to do" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["images", "shards"])
def test_names_that_are_no_utf8(names, photos, tmp_path, form):
    odd = os.fsdecode(b"caf\xe9.png")
    try:
        (photos / odd).write_bytes((photos / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (photos / "cut.png").unlink()
    out = tmp_path / "out"
    assert names["main"]([str(photos), str(out), "--form", form]) == 0
    assert [row["status"] for row in rows_of(out) if row["file"] == odd] == ["done"]
    if form == "images":
        assert (out / odd).read_bytes() == (out / "a.png").read_bytes()
    else:
        with tarfile.open(out / "shard-00000.tar") as tar:
            assert odd in tar.getnames()


NODES = [
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}, {"Alive": True, "Resources": {"CPU": 64.0}},
    {"Alive": False, "Resources": {"CPU": 128.0, "GPU": 8.0}}, {"Alive": False, "Resources": {}},
]  # fmt: skip


@pytest.mark.parametrize(("cpus", "gpus", "fits"), [(1, 0, True), (64, 0, True), (8, 0.5, True), (65, 0, False), (1, 2, False), (9, 1, False)])
def test_workers_that_fit_on_no_node_are_refused(names, capsys, cpus, gpus, fits):
    """Ray would wait for ever; on a cluster that may grow it may have to."""
    names["check_room"](NODES, cpus, gpus, grows=True)
    assert ("waiting for one" in capsys.readouterr().err) == (not fits)
    if fits:
        names["check_room"](NODES, cpus, gpus, grows=False)
        return
    with pytest.raises(InputError, match="there are nodes of 64 processors and 0 graphics cards, 8 processors and 1 graphics cards; ask for less"):
        names["check_room"](NODES, cpus, gpus, grows=False)


def test_workers_are_measured_before_ray_has_them_and_ray_is_ended(shipped, photos, tmp_path, monkeypatch, capsys):
    calls = []
    ray = types.ModuleType("ray")
    ray.data = types.ModuleType("ray.data")
    ray.is_initialized, ray.nodes = lambda: False, lambda: NODES
    ray.init, ray.shutdown = lambda **_: calls.append("init"), lambda: calls.append("shutdown")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    assert runpy.run_path(str(EXAMPLE))["main"]([str(photos), str(tmp_path / "out"), "--gpus", "4"]) == 2
    assert "no node has room for a worker of --cpus 1 --gpus 4" in capsys.readouterr().err
    assert calls == ["init", "shutdown"]


def test_a_model_that_differs_between_machines(names, photos, tmp_path):
    unit = names["DenoiseUnit"](Storage(photos), Storage(tmp_path / "out"), "images", "ffdnet", model_hash("segaware-blind"), sigma=0.1)
    with pytest.raises(InputError, match="copy the model's folder to all machines"):
        unit({"unit": [0], "names": ['["a.png"]']})


def test_without_ray(shipped, photos, tmp_path, monkeypatch, capsys):
    names = runpy.run_path(str(EXAMPLE))
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert names["main"]([str(photos), str(tmp_path / "out")]) == 2
    assert 'pip install "segaware[ray]"' in capsys.readouterr().err


def test_what_ends_a_worker_is_one_line(names):
    class OfRay(Exception):
        cause = InputError("s3://bucket: cannot be written: no right to; check the rights")

    try:
        raise RuntimeError("task failed") from OfRay("a\nlong\ntraceback")
    except RuntimeError as error:
        assert names["reason"](error) == "s3://bucket: cannot be written: no right to; check the rights"
