"""Folders by address. S3 is tried against a server in test_s3.py; here the local disk and fsspec's memory."""

import os
import pickle
from pathlib import Path

import fsspec
import pytest

from segaware.bulk import Storage
from segaware.errors import InputError


@pytest.fixture(params=["local", "memory", "relative", "file"])
def place(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return Storage("memory://bucket/out")
    return Storage({"local": str(tmp_path / "out"), "relative": "out/", "file": f"file://{tmp_path}/out"}[request.param])


def test_what_is_put_is_there(place):
    assert not place.has("a/b.png")
    place.put("a/b.png", b"one")
    place.put("a/b.png", b"two")
    with place.writing("c.tar") as file:
        file.write(b"1")
        file.write(b"2")
    place.put(".hidden.png", b"")
    place.put("note.txt", b"")
    assert place.has("a/b.png") and place.read("a/b.png") == b"two" and place.read("c.tar") == b"12"
    assert place.names((".png", ".tar")) == ["a/b.png", "c.tar"]
    again = pickle.loads(pickle.dumps(place))
    assert again.read("c.tar") == b"12"


def test_a_failure_leaves_the_old_file(place):
    place.put("a.tar", b"old")
    with pytest.raises(RuntimeError, match="of the writer"), place.writing("a.tar") as file:
        file.write(b"half")
        raise RuntimeError("of the writer")
    assert place.read("a.tar") == b"old" and place.names((".tar",)) == ["a.tar"]


def test_relative_addresses_are_of_here_and_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Storage("out")
    monkeypatch.chdir("/")
    place.put("a", b"1")
    assert (tmp_path / "out" / "a").read_bytes() == b"1"


def test_leftovers_of_killed_writers_are_no_files_and_go_at_the_end(tmp_path):
    place = Storage(tmp_path)
    writing = place.writing("a.png")  # held: a generator that is let go closes the file
    writing.__enter__().write(b"half")
    assert place.names((".png",)) == [] and not place.has("a.png") and os.listdir(tmp_path) == [".partial"]
    place.tidy()
    assert os.listdir(tmp_path) == []
    place.tidy()


def test_a_lost_file_is_its_own_error(place):
    place.put("a", b"")
    with pytest.raises(FileNotFoundError):
        place.read("b")


@pytest.mark.parametrize(
    ("address", "repair"),
    [("", "give a folder"), ("nowhere://x/y", "give a folder or, e.g., s3://"), ("none/of/these", "check the name"), ("photo.png", "give the folder")],
)
def test_addresses_that_cannot_be_read(address, repair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(b"1")
    with pytest.raises(InputError, match=repair):
        Storage(address).names((".png",))


def test_a_missing_package_is_named(monkeypatch):
    def url_to_fs(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    with pytest.raises(InputError, match=r"Install s3fs.*pip install \"segaware\[s3\]\""):
        Storage("s3://bucket/x").names((".png",))


@pytest.mark.parametrize(
    ("error", "repair"),
    [
        (PermissionError("Access Denied"), "no right to .Access Denied.*rights of the folder or bucket"),
        (FileNotFoundError("The specified bucket does not exist"), "no such bucket.*check the name"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), "AWS_ACCESS_KEY_ID"),
        (OSError(28, "No space left on device"), "No space left.*free space"),
    ],
)
@pytest.mark.parametrize("what", ["put", "names", "has"])
def test_what_a_store_says_is_said_in_our_words(error, repair, what, monkeypatch):
    place = Storage("memory://bucket")
    system = place.system()

    def refuse(*_, **__):
        raise error

    for name in ("pipe_file", "find", "isfile"):
        monkeypatch.setattr(system, name, refuse)
    with pytest.raises(InputError, match=rf"memory://bucket: .*{repair}"):
        {"put": lambda: place.put("a", b""), "names": lambda: place.names(("a",)), "has": lambda: place.has("a")}[what]()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        Storage(tmp_path / "file" / "out").put("a", b"1")


@pytest.mark.parametrize(
    ("one", "other", "inside"),
    [("a", "a", True), ("a", "a/b", True), ("a", "ab", False), ("a/b", "a", False), ("s3://a/b", "s3://a/b/c", True), ("s3://a/b", "b", False)],
)
def test_folders_in_one_another(one, other, inside):
    assert Storage(one).holds(Storage(other)) is inside
