"""A folder on this machine or in an object store, by address; what is put there appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from segaware.errors import InputError
from segaware.inference.files import path_below

__all__ = ["Storage"]

#: Where a single put is all or nothing; elsewhere a file is written under another name and renamed.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"}
#: One name for what fsspec opens under several.
_ALIASES = {"s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs"}
#: The folder for what is being written; on the same disk, so that renaming moves nothing. A name that nobody else
#: uses, unlike rsync's ".partial".
_PARTIAL = ".segaware-partial"


class Storage:
    """A folder by its path or its fsspec address (``s3://bucket/folder``). Picklable; connects when first used.

    Args:
        address: relative paths are taken from here and now, so that workers mean the same folder.
        options: for the file system of an address, as fsspec names them: ``endpoint_url="http://..."``. Not
            used for local folders. Whoever sees the object sees them: leave passwords to the environment.

    Raises:
        InputError: an unknown kind of address, or one whose package is missing (named); later, wherever the
            place cannot be reached, read or written.
    """

    def __init__(self, address: str | os.PathLike[str], **options: Any) -> None:
        from fsspec.utils import get_protocol

        text = os.fspath(address)
        if not text:
            raise InputError("an empty address; give a folder or an address such as s3://bucket/folder")
        self.protocol = str(get_protocol(text))
        self.local = self.protocol in ("file", "local")
        if self.local:
            text = os.path.abspath(text.partition("://")[2] if "://" in text else text)
            options = {}
        self.address = text.rstrip("/") if len(text) > 1 else text
        self.options = options
        self._system: Any = None
        self._root = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_system": None}

    def __repr__(self) -> str:
        return f"Storage({self.address!r})"

    def system(self) -> Any:
        """The fsspec file system."""
        if self._system is None:
            import fsspec

            try:
                system, root = fsspec.core.url_to_fs(self.address, **self.options)
            except ImportError as error:
                raise InputError(f"{self.address}: this kind of address needs another package ({error}); for s3:// pip install \"segaware[s3]\"") from error
            except Exception as error:
                raise InputError(f"{self.address}: no address that can be opened ({_words(error)}); give a folder or, e.g., s3://bucket/folder") from error
            self._root = str(root).rstrip("/")
            self._system = system  # last: another thread takes the root for known where this is set
        return self._system

    def path(self, name: str) -> str:
        """Where ``name`` is, for the file system."""
        self.system()
        return f"{self._root}/{name}"

    def holds(self, other: Storage) -> bool:
        """Whether ``other`` is this folder or lies in it."""
        if self.local and other.local:
            return path_below(Path(other.address), Path(self.address)) is not None
        return other._place().startswith(self._place())

    def _place(self) -> str:
        """The address as all spellings of it give it, with a slash at the end."""
        rest = self.address.partition("://")[2]
        return f"{_ALIASES.get(self.protocol, self.protocol)}://{rest}/"

    def names(self, endings: tuple[str, ...], *, must_exist: bool = True) -> list[str]:
        """The files below with one of these endings, relative, sorted, hidden ones left out.

        Raises:
            InputError: a folder that cannot be listed (named); no such place, where it ``must_exist``.
        """
        from fsspec.asyn import AsyncFileSystem
        from fsspec.spec import AbstractFileSystem

        system = self.system()
        with self._told("listed"):
            system.invalidate_cache()
            find = getattr(type(system), "_find", type(system).find)
            # fsspec's own walk passes over folders that it may not read; the flat listing of a store knows no folders
            walks = find in (AbstractFileSystem.find, AsyncFileSystem._find)
            try:
                found = self._below(system) if walks else system.find(self._root)
            except FileNotFoundError:
                if must_exist:
                    raise
                return []
            if found == [self._root]:
                raise InputError(f"{self.address}: a file; give the folder that it is in")
            if must_exist and not found and not system.isdir(self._root):
                raise InputError(f"{self.address}: no such folder; check the name")
        start = len(self._root) + 1
        names = (str(path)[start:] for path in found)
        return sorted(n for n in names if n.lower().endswith(endings) and not any(part.startswith(".") for part in n.split("/")))

    def _below(self, system: Any) -> list[str]:
        """The paths of all files below, folder by folder.

        Raises:
            FileNotFoundError: there is no such place.
            InputError: a folder that cannot be listed.
        """
        folders, found = [self._root or "/"], []
        while folders:
            folder = folders.pop()
            below = folder[len(self._root) :]
            with self._told("listed", apart=() if below else (FileNotFoundError,), of=self.address + below):
                entries = system.ls(folder, detail=True)
            for entry in entries:
                path = str(entry["name"]).rstrip("/")
                name = path.rpartition("/")[2]
                if entry["type"] != "directory":
                    found.append(path)
                elif path != folder and not name.startswith(".") and name != "lost+found":  # the last is the system's, not for us
                    folders.append(path)
        return found

    def has(self, name: str) -> bool:
        """Whether this file is there."""
        system = self.system()
        with self._told("looked at"):
            system.invalidate_cache()  # others write here at the same time
            return bool(system.isfile(self.path(name)))

    def read(self, name: str) -> bytes:
        """A file.

        Raises:
            FileNotFoundError, PermissionError: this one is not there or not for us.
            InputError: the place cannot be reached.
        """
        system = self.system()
        with self._told("read", apart=(FileNotFoundError, PermissionError)):
            return bytes(system.cat_file(self.path(name)))

    def put(self, name: str, data: bytes) -> None:
        """Write a file; readers see the old one, or none, until all of it is there."""
        if self.protocol in _OBJECT_STORES:
            system = self.system()
            with self._told("written"):
                system.pipe_file(self.path(name), data)
            return
        with self.writing(name) as file:
            file.write(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write into that takes its place at the end, and is gone after an error."""
        system = self.system()
        with self._told("written"):
            if self.local:
                folder = Path(self._root, _PARTIAL)
                folder.mkdir(parents=True, exist_ok=True)
            else:
                folder = Path(tempfile.mkdtemp(prefix="segaware-"))
            partial = folder / secrets.token_hex(8)
        try:
            try:
                with open(partial, "xb") as file:
                    yield file
            except OSError as error:  # a full disk; other errors are those of whoever writes
                with self._told("written"):
                    raise error
            with self._told("written"):
                target = self.path(name)
                if self.local:
                    Path(target).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(partial, target)
                elif self.protocol in _OBJECT_STORES:
                    system.put_file(str(partial), target)
                else:
                    beside = f"{self._root}/{_PARTIAL}-{partial.name}"
                    system.makedirs(target.rpartition("/")[0], exist_ok=True)
                    system.put_file(str(partial), beside)
                    system.mv(beside, target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
            if not self.local:
                shutil.rmtree(folder, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what killed writers left behind; for the end of a run, when nobody writes any more."""
        if self.local:
            self.system()
            folder = Path(self._root, _PARTIAL)
            with contextlib.suppress(OSError):  # not there, or not empty
                for path in folder.iterdir():
                    if re.fullmatch("[0-9a-f]{16}", path.name):
                        path.unlink()
                folder.rmdir()

    @contextlib.contextmanager
    def _told(self, what: str, apart: tuple[type[Exception], ...] = (), of: str = "") -> Iterator[None]:
        """Within: whatever the file system raises (of a folder ``of`` it), what is kept ``apart`` excepted, is said in our words."""
        place = of or self.address
        ours: tuple[type[Exception], ...] = (InputError, *apart)
        try:
            yield
        except ours:
            raise
        except FileNotFoundError as error:
            raise InputError(f"{place}: cannot be {what}: no such bucket, folder or file ({_words(error)}); check the name") from error
        except PermissionError as error:
            raise InputError(
                f"{place}: cannot be {what}: no right to ({_words(error)}); check the rights of the folder or bucket and your credentials"
            ) from error
        except Exception as error:
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"):
                raise InputError(f"{place}: cannot be {what}: {_words(error)}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in") from error
            raise InputError(f"{place}: cannot be {what} ({_words(error)}); check the address, the network and free space") from error


def _words(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:200]
