"""What a run over a folder has done, one JSON line an image, so that it can be killed and started again.

The file is only ever added to. Its first line says what run this is; another run is refused. A line is
written by one call, under a lock, once the output is in its place; a line that a crash cut short is
closed by whoever writes next, and passed over by whoever reads. Several shards may share one manifest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segaware.errors import InputError
from segaware.inference.locks import LocksMissing, lock, unlock
from segaware.inference.shards import Shard, place_of

__all__ = ["Manifest"]

_FORMAT = 1
#: Bytes that stand for locks, far behind the end of any manifest: one for writing, one for each shard and rank.
_WRITING = 1 << 50
_SHARDS = _WRITING + 1
_RANKS = 1 << 16
_LONGEST = 1 << 20
_START = b'{"run"'
_NAMES = {"model_hash": "weights of the model", "input": "input folder", "output": "output folder", "segmentation": "folder of the segmentation"}


class Manifest:
    """The manifest of one run, held by one of its shards.

    Args:
        path: made if missing, with its folder.
        run: what the outputs depend on: model, its hash, sigma, options, folders. Compared, except ``"about"``.
        shard: which images this process answers for.

    Raises:
        InputError: another run's manifest, one begun with another number of shards, no manifest at all, a
            shard that another process is at, a file system without locks, or a file that cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], run: dict[str, Any], shard: Shard) -> None:
        self.path, self.shard, self._fd = Path(path), shard, -1
        self._done: dict[int, int] = {}
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, flags, 0o666)
            # a rank of one job and another, of a job with more of them, never share more than their own byte
            if not lock(self._fd, _SHARDS + shard.index * _RANKS + shard.rank, wait=False):
                raise InputError(f"{self.path}: another process is at shard {shard} of this run; wait for it, or end it first")
            with self._alone():
                header = self._header()
                if header is None:
                    self._append({"run": {"format": _FORMAT, **run, "shards": shard.count}})
                else:
                    self._compare(header, {**run, "shards": shard.count})
            self._index()
        except OSError as error:
            self.close()
            raise self._said(error) from error
        except BaseException:
            self.close()
            raise

    def _lines(self) -> Iterator[bytes]:
        """Whole lines, without their end; what is longer than any record is no line."""
        with os.fdopen(self._fd, "rb", closefd=False) as file:  # another descriptor, closed, would give the locks back
            file.seek(0)
            for line in iter(lambda: file.readline(_LONGEST), b""):
                if line.endswith(b"\n"):
                    yield line[:-1]

    def _header(self) -> dict[str, Any] | None:
        """The record of the run; None for a file that is empty, or was cut short in that line."""
        for line in self._lines():
            record = _parsed(line)
            if isinstance(record.get("run"), dict):
                if record["run"].get("format") == _FORMAT:
                    return record["run"]
                raise InputError(f"{self.path}: was written by another version of segaware; go on with that one, or name another manifest")
            if not _START.startswith(line[: len(_START)]):  # else: cut short
                break
        else:
            os.lseek(self._fd, 0, os.SEEK_SET)
            if _START.startswith(os.read(self._fd, len(_START))):
                return None
        raise InputError(f"{self.path}: is no manifest of segaware, and stays as it is; name a new file")

    def _compare(self, then: dict[str, Any], now: dict[str, Any]) -> None:
        if then.get("shards") != now["shards"]:
            n = then.get("shards")
            raise InputError(
                f"{self.path}: was begun with {n} shards, not {now['shards']}; give every job i/{n},"
                " or cut the folder anew with another manifest (outputs that are there are compared, not lost)"
            )
        changed = [key for key in now if key != "about" and then.get(key) != now[key]]
        if changed:
            words = ", ".join(f"{_NAMES.get(key, key)} {_short(then.get(key))} -> {_short(now[key])}" for key in changed)
            raise InputError(f"{self.path}: is the manifest of another run ({words}); give the same to go on with it, or name another manifest")

    def _index(self) -> None:
        """Remember what is done of this shard: a number an image, whatever its name is."""
        for line in self._lines():
            record = _parsed(line)
            name = record.get("file")
            if not isinstance(name, str):
                continue
            place = place_of(name)
            if not self.shard.holds(place):
                continue
            if record.get("status") == "done" and all(isinstance(record.get(key), int) for key in ("bytes_in", "bytes_out")):
                self._done[place] = record["bytes_in"] << 64 | record["bytes_out"]
            else:
                self._done.pop(place, None)

    def is_done(self, place: int, source: Path, *targets: Path) -> bool:
        """Whether the image is done, and so still: of the length it had, the output too, everything there."""
        known = self._done.get(place)
        if known is None:
            return False
        try:
            sizes = [os.stat(path).st_size for path in (source, *targets)]
        except OSError:
            return False
        return sizes[0] << 64 | sizes[1] == known

    def add(self, record: dict[str, Any]) -> None:
        """One more line, whole.

        Raises:
            InputError: the disk is full or the file cannot be written; what was there stays.
        """
        try:
            with self._alone():
                self._append(record)
        except OSError as error:
            raise self._said(error) from error

    def _append(self, record: dict[str, Any]) -> None:
        line = (json.dumps(record, separators=(",", ":")) + "\n").encode()
        size = os.fstat(self._fd).st_size
        if size:
            os.lseek(self._fd, size - 1, os.SEEK_SET)
            if os.read(self._fd, 1) != b"\n":  # cut short by a crash
                line = b"\n" + line
        while line:
            line = line[os.write(self._fd, line) :]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock(self._fd, _WRITING, wait=True)
        try:
            yield
        finally:
            unlock(self._fd, _WRITING)

    def _said(self, error: OSError) -> InputError:
        if isinstance(error, LocksMissing):
            return InputError(
                f"{self.path}: this file system does not lock files ({error.strerror}); name a manifest on one that does,"
                " e.g. on the machine's own disk, another for each shard"
            )
        return InputError(f"{self.path}: cannot be written ({error.strerror}); free space or choose another place, and run again: what is done is kept")

    def close(self) -> None:
        """Let another process have the shard."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else "none" if value is None else f"{value}"
