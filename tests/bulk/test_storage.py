"""Folders by address. S3 is tried against a server in test_s3.py; here the local disk and fsspec's memory."""

import os
import pickle
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

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
    assert place.names((".png",)) == [] and not place.has("a.png") and os.listdir(tmp_path) == [".segaware-partial"]
    place.tidy()
    assert os.listdir(tmp_path) == []
    place.tidy()


def test_tidying_leaves_what_others_put_there(tmp_path):
    ours, theirs = tmp_path / ".segaware-partial" / "0123456789abcdef", [tmp_path / ".partial" / "a.png", tmp_path / ".segaware-partial" / "a.png"]
    for path in (ours, *theirs):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"1")
    Storage(tmp_path).tidy()
    assert not ours.exists() and all(path.exists() for path in theirs)


class Folders(MemoryFileSystem):
    """Listed folder by folder, as by fsspec's walk, like most that are no object stores."""

    find = AbstractFileSystem.find


@pytest.mark.parametrize("kind", ["local", "remote"])
@pytest.mark.parametrize("below", ["/c/d", "/c", ""])
def test_a_folder_that_may_not_be_listed_is_no_empty_one(tmp_path, monkeypatch, kind, below):
    """fsspec's walk would pass over it, and its images be lost without a word."""
    if kind == "local":
        place, scandir = Storage(tmp_path), os.scandir
        for name in ("a.png", "c/b.png", "c/d/e.png"):
            place.put(name, b"1")

        def refused(path="."):
            if os.fspath(path) == f"{tmp_path}{below}":
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refused)
    else:
        system = Folders()
        system.store.clear()
        place = Storage("sftp://host/photos")
        place._root, place._system, ls = "/photos", system, system.ls
        for name in ("a.png", "c/b.png", "c/d/e.png"):
            system.pipe_file(f"/photos/{name}", b"1")

        def refused(path, *given, **options):
            if path == f"/photos{below}":
                raise PermissionError(13, "Permission denied")
            return ls(path, *given, **options)

        monkeypatch.setattr(system, "ls", refused)
    with pytest.raises(InputError, match=rf"^{place.address}{below}: cannot be listed: no right to .*check the rights"):
        place.names((".png",))
    monkeypatch.undo()
    assert place.names((".png",)) == ["a.png", "c/b.png", "c/d/e.png"]


def test_folders_that_are_not_looked_for_images_may_be_closed(tmp_path, monkeypatch):
    place, scandir = Storage(tmp_path), os.scandir
    for name in ("a.png", ".trash/b.png", "lost+found/c"):
        place.put(name, b"1")

    def refused(path="."):
        if os.path.basename(path) in (".trash", "lost+found"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert place.names((".png",)) == ["a.png"]


def test_a_place_that_is_not_there_yet(place):
    new = Storage(f"{place.address}/new")
    assert new.names((".png",), must_exist=False) == []
    with pytest.raises(InputError, match="check the name"):
        new.names((".png",))


def test_whoever_sees_the_file_system_sees_the_root(tmp_path):
    """Threads connect at the same time."""

    class Watched(Storage):
        def __setattr__(self, name, value):
            assert name != "_system" or value is None or self._root == str(tmp_path)
            super().__setattr__(name, value)

    Watched(tmp_path).system()


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

    for name in ("pipe_file", "find", "ls", "isfile"):
        monkeypatch.setattr(system, name, refuse)
    with pytest.raises(InputError, match=rf"memory://bucket: .*{repair}"):
        {"put": lambda: place.put("a", b""), "names": lambda: place.names(("a",)), "has": lambda: place.has("a")}[what]()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        Storage(tmp_path / "file" / "out").put("a", b"1")


@pytest.mark.parametrize(
    ("one", "other", "inside"),
    [("a", "a", True), ("a", "a/b", True), ("a", "ab", False), ("a/b", "a", False), ("s3://a/b", "s3://a/b/c", True), ("s3://a/b", "b", False)]
    + [("s3a://a", "s3://a/b", True), ("gs://a", "gcs://a/b", True), ("s3://a", "gs://a/b", False)]
    + [("local:///a", "/a/b", True), ("/a", "file:///a/b", True), ("/", "/a", True)],
)
def test_folders_in_one_another(one, other, inside):
    assert Storage(one).holds(Storage(other)) is inside


def test_a_folder_of_two_names_is_one(tmp_path, monkeypatch):
    """As with letters of another case, or a bind mount: the real path does not tell."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "Photos").symlink_to(tmp_path / "photos")
    monkeypatch.setattr(os.path, "realpath", lambda path, **_: os.path.abspath(path))
    for inner in ("Photos", "Photos/clean/new"):
        assert Storage(tmp_path / "photos").holds(Storage(tmp_path / inner))
    assert not Storage(tmp_path / "photos").holds(Storage(tmp_path / "other"))
