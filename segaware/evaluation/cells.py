"""Finished cells on disk, one JSON line each, so that an interrupted run goes on where it was.

A line is written by one call at the end of the file; a line that a crash cut short is dropped when
the file is opened again. One run at a time holds a folder.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import IO, Any

from segaware.errors import EvaluationError

__all__ = ["Cells"]


class Cells:
    """``{key: {measure: result}}`` in ``FOLDER/cells.jsonl``; only the places of lines are held in memory.

    Args:
        folder: made if missing; None = remember nothing.
        known: another such file, whose cells are known as well; it is only read.

    Raises:
        EvaluationError: another run holds the folder, or it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, known: str | os.PathLike[str] | None = None) -> None:
        self._places: dict[str, list[int]] = {}
        self._known: tuple[IO[bytes], dict[str, list[int]]] | None = None
        self._file: IO[bytes] | None = None
        self._lock: IO[bytes] | None = None
        if folder is None:
            return
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / ".lock", "ab")
            _hold(self._lock, folder)
            self._file = open(folder / "cells.jsonl", "a+b")
        except OSError as error:
            self.close()
            raise EvaluationError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from error
        except EvaluationError:
            self.close()
            raise
        self._file.truncate(_index(self._file, self._places))
        if known is not None and Path(known).is_file():
            self._known = open(known, "rb"), {}
            _index(*self._known)

    def get(self, key: str) -> dict[str, Any]:
        """What is known of a cell: measure -> result; later lines win."""
        known: dict[str, Any] = {}
        for file, places in (*([self._known] if self._known else []), (self._file, self._places)):
            for place in places.get(key, ()):
                assert file is not None
                file.seek(place)
                known.update(json.loads(file.readline())["results"])
        return known

    def absorb(self, other: str | os.PathLike[str]) -> None:
        """Add the cells of another such file.

        Raises:
            EvaluationError: as :meth:`put`.
        """
        with open(other, "rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    key, results = record["key"], record["results"]
                except (ValueError, KeyError, TypeError):
                    continue
                mine = self.get(key)
                if any(name not in mine or mine[name] != result for name, result in results.items()):
                    self.put(key, results)

    def put(self, key: str, results: dict[str, Any]) -> None:
        """Add results of a cell, at once and whole.

        Raises:
            EvaluationError: the disk is full or the file cannot be written; what was there stays.
        """
        if self._file is None:
            return
        line = (json.dumps({"key": key, "results": results}, separators=(",", ":")) + "\n").encode()
        place = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise EvaluationError(f"{self._file.name}: cannot be written ({error.strerror}); free space and run again, finished cells are kept") from error
        self._places.setdefault(key, []).append(place)

    def close(self) -> None:
        """Let another run have the folder."""
        for file in (self._file, self._lock, self._known[0] if self._known else None):
            if file is not None:
                with contextlib.suppress(OSError):  # of a full disk put() has told; the rest must be let go of
                    file.close()
        self._file = self._lock = self._known = None

    def __enter__(self) -> Cells:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _index(file: IO[bytes], places: dict[str, list[int]]) -> int:
    """Where each cell's lines begin, into ``places``; gives the end of the last whole line."""
    file.seek(0)
    end = 0
    for line in file:
        try:
            key = json.loads(line)["key"]
        except (ValueError, KeyError, TypeError):
            if line.endswith(b"\n"):  # damaged in the middle: skip it, that cell is computed again
                end += len(line)
            continue
        if not line.endswith(b"\n"):
            break
        places.setdefault(key, []).append(end)
        end += len(line)
    return end


def _hold(file: IO[bytes], folder: Path) -> None:
    """The system's lock: it ends with the process, however that ends."""
    try:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise EvaluationError(f"{folder}: another run is writing its report here; wait for it, or choose another output folder") from error
