import json
import os
import subprocess
import sys

import pytest

from segaware.errors import InputError
from segaware.inference.locks import LocksMissing
from segaware.inference.manifest import Manifest
from segaware.inference.shards import Shard, place_of

RUN = {"model": "m", "model_hash": "a" * 64, "sigma": 25.0, "keep": 0.0, "input": "/in", "output": "/out", "about": {"segaware": "1"}}
ONE = Shard()


def done(name, **more):
    return {"file": name, "status": "done", "bytes_in": 3, "bytes_out": 5, **more}


@pytest.fixture
def files(tmp_path):
    """An input of 3 bytes and an output of 5."""
    (tmp_path / "in").write_bytes(b"123")
    (tmp_path / "out").write_bytes(b"12345")
    return tmp_path / "in", tmp_path / "out"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "m.jsonl"


def is_done(manifest, name, files):
    return manifest.is_done(place_of(name), *files)


def test_what_is_done_is_remembered(path, files):
    with Manifest(path, RUN, ONE) as manifest:
        manifest.add(done("a.png"))
        manifest.add({"file": "b.png", "status": "failed", "error": "no"})
        manifest.add(done("c.png"))
        manifest.add({"file": "c.png", "status": "failed", "error": "gone"})
    before = path.read_bytes()
    assert json.loads(before.splitlines()[0])["run"]["shards"] == 1
    with Manifest(path, {**RUN, "about": {"segaware": "2"}}, ONE) as manifest:
        assert [is_done(manifest, name, files) for name in ("a.png", "b.png", "c.png", "d.png")] == [True, False, False, False]
        source, target = files
        target.write_bytes(b"1234")
        assert not is_done(manifest, "a.png", files), "an output of another length"
        target.write_bytes(b"12345")
        source.write_bytes(b"1234")
        assert not is_done(manifest, "a.png", files), "an input of another length"
        source.unlink()
        assert not is_done(manifest, "a.png", files)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", range(2, 60, 7))
def test_a_line_that_was_cut_short(path, files, cut):
    with Manifest(path, RUN, ONE) as manifest:
        manifest.add(done("a.png"))
        manifest.add(done("b.png"))
    whole = path.read_bytes()
    left = whole[: -min(cut, len(json.dumps(done("b.png"))))]
    path.write_bytes(left)
    with Manifest(path, RUN, ONE) as manifest:
        assert is_done(manifest, "a.png", files) and not is_done(manifest, "b.png", files)
        manifest.add(done("c.png"))
    assert path.read_bytes().startswith(left), "added to, never changed"
    with Manifest(path, RUN, ONE) as manifest:
        assert is_done(manifest, "a.png", files) and is_done(manifest, "c.png", files) and not is_done(manifest, "b.png", files)


@pytest.mark.parametrize("length", [0, 1, 4, 30])
def test_a_header_that_was_cut_short(path, files, length):
    Manifest(path, RUN, ONE).close()
    path.write_bytes(path.read_bytes()[:length])
    with Manifest(path, RUN, ONE) as manifest:
        manifest.add(done("a.png"))
    with Manifest(path, RUN, ONE) as manifest:
        assert is_done(manifest, "a.png", files)
    with pytest.raises(InputError, match="another run"):
        Manifest(path, {**RUN, "sigma": 50.0}, ONE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_hash": "b" * 64}, "weights of the model a{12} -> b{12}"),
        ({"sigma": 50.0}, "sigma 25.0 -> 50.0"),
        ({"sigma": None}, "sigma 25.0 -> none"),
        ({"keep": 0.03, "input": "/other"}, "keep 0.0 -> 0.03, input folder /in -> /other"),
        ({"output": "/other"}, "output folder /out -> /other.*or name another manifest"),
    ],
)
def test_another_run_is_refused(path, change, words):
    Manifest(path, RUN, ONE).close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=words):
        Manifest(path, {**RUN, **change}, ONE)
    assert path.read_bytes() == before


def test_shards_that_disagree(path):
    Manifest(path, RUN, Shard(1, 2)).close()
    with pytest.raises(InputError, match="begun with 2 shards, not 3; give every job i/2"):
        Manifest(path, RUN, Shard(1, 3))
    Manifest(path, RUN, Shard(2, 2)).close()


@pytest.mark.parametrize("content", [b"my notes\n", b"my notes", b'{"file": "a.png"}\n', b"\xff\xd8\xff\xe0", b"[1]\n"])
def test_what_is_no_manifest_stays(tmp_path, content):
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match="is no manifest of segaware, and stays"):
        Manifest(file, RUN, ONE)
    assert file.read_bytes() == content


def test_a_manifest_of_another_version(path):
    path.parent.mkdir()
    path.write_text('{"run":{"format":99}}\n')
    with pytest.raises(InputError, match="another version"):
        Manifest(path, RUN, ONE)


def test_a_shard_keeps_to_its_own(path, files):
    with Manifest(path, RUN, Shard(1, 2)) as manifest:
        for index in range(20):
            manifest.add(done(f"{index}.png"))
    with Manifest(path, RUN, Shard(1, 2)) as one, Manifest(path.with_name("n.jsonl"), RUN, Shard(2, 2)):
        assert {is_done(one, f"{index}.png", files) for index in range(20)} == {True, False}


HOLD = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from segaware.inference.manifest import Manifest
from segaware.inference.shards import Shard
with Manifest({file!r}, {run!r}, Shard({index}, 2)) as manifest:
    print("held", flush=True)
    sys.stdin.readline()
    for number in range(200):
        manifest.add({{"file": f"{index}-{{number}}", "status": "failed", "error": "x" * 300}})
"""


def hold(path, index):
    code = HOLD.format(path=sys.path, file=str(path), run=RUN, index=index)
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_two_processes_write_and_one_shard_has_one(path):
    path.parent.mkdir()
    one, two = hold(path, 1), hold(path, 2)
    try:
        with pytest.raises(InputError, match="another process is at shard 1/2"):
            Manifest(path, RUN, Shard(1, 2))
    finally:
        for process in (one, two):  # both go before the first is waited for
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in (one, two):
            process.communicate(timeout=60)
    assert one.returncode == two.returncode == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum("run" in record for record in records) == 1
    assert sorted(r["file"] for r in records[1:]) == sorted(f"{i}-{n}" for i in (1, 2) for n in range(200))
    Manifest(path, RUN, Shard(1, 2)).close()  # free again


def test_what_the_system_writes_in_pieces_is_whole(path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    with Manifest(path, RUN, ONE) as manifest:
        for index in range(3):
            manifest.add(done(f"{index}.png"))
    assert [json.loads(line).get("file") for line in path.read_text().splitlines()] == [None, "0.png", "1.png", "2.png"]


def test_places_that_cannot_be(tmp_path, path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Manifest(tmp_path / "file" / "m.jsonl", RUN, ONE)
    with pytest.raises(InputError, match="cannot be written"):
        Manifest(tmp_path, RUN, ONE)

    def none(*_, **__):
        raise LocksMissing(38, "Function not implemented")

    monkeypatch.setattr("segaware.inference.manifest.lock", none)
    with pytest.raises(InputError, match="does not lock files.*another for each shard"):
        Manifest(path, RUN, ONE)


def test_a_full_disk(path, monkeypatch):
    with Manifest(path, RUN, ONE) as manifest:
        manifest.add(done("a.png"))
        before = path.read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(InputError, match="No space left on device.*what is done is kept"):
            manifest.add(done("b.png"))
        monkeypatch.undo()
    assert path.read_bytes() == before
