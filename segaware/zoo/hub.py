"""Models on the Hugging Face Hub: fetch the two files of one, checked, and say where they lie.

The client keeps them in its cache (``HF_HOME``), locked against other processes and renamed into place
when whole. It checks sizes only; contents are checked here. No torch is needed to download.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segaware.errors import WeightsError
from segaware.pretrained import is_repo
from segaware.zoo.advice import HubErrors
from segaware.zoo.catalog import COMMIT

__all__ = ["client", "fetch", "is_repo"]

#: Libraries under the client. An error of theirs that comes through is a connection that broke while a
#: file came, which not every version of the client takes up again by itself.
_HTTP = ("requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2")
#: What a model is; as in :mod:`segaware.entries`, which needs torch.
_FILES = ("config.json", "model.safetensors")

def client() -> dict[str, Any]:
    """How we introduce ourselves to the Hub."""
    from segaware import __version__

    return {"library_name": "segaware", "library_version": __version__}


def fetch(
    repo: str,
    revision: str | None = None,
    *,
    sha256: Mapping[str, str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    also: tuple[str, ...] = (),
) -> Path:
    """The folder in the cache that holds a model's config and weights, both of one commit.

    A revision of 40 hexadecimal digits that is cached makes no request. A file whose contents are not
    what the Hub (or ``sha256``) says is named in a warning and fetched again, once.

    Args:
        revision: branch, tag or commit; None = the main branch.
        sha256: what files must hash to, by name.
        token: for gated and private models; None = that of the log-in, if any.
        local_files_only: read the cache and ask nobody.
        also: further files, left out silently where there are none (cards, licences).

    Raises:
        WeightsError: every way in which this fails, with what to do.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    offline = local_files_only or bool(constants.HF_HUB_OFFLINE)

    def get(name: str, commit: str | None, again: bool = False) -> Path:
        options: dict[str, Any] = {
            "revision": commit,
            "cache_dir": None if cache_dir is None else os.fspath(cache_dir),
            "token": token,
            "local_files_only": offline,  # the 0.x client looks at HF_HUB_OFFLINE once, and too early for some
            "force_download": again,
            **client(),
        }
        try:
            return Path(hf_hub_download(repo, name, **options))
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _HTTP:
                raise
        return Path(hf_hub_download(repo, name, **options))  # goes on where the connection broke

    commit = revision
    with HubErrors(repo, revision):
        for name in _FILES:
            file = get(name, commit)
            commit = _commit(file, commit)  # a branch may move between two files
            wanted = (sha256 or {}).get(name)
            if _whole(file, wanted):
                continue
            if offline:
                raise WeightsError(f"{file}: damaged, and offline; delete it, or come back with the network on to fetch it again")
            logging.getLogger(__name__).warning("%s: not what it should be; fetching it again", file)
            file = get(name, commit, again=True)
            if not _whole(file, wanted):
                expected = "its sha256 in the catalog of segaware" if wanted else "what the Hub says it should be"
                raise WeightsError(
                    f"{file}: fetched twice, and its contents are not {expected}; a proxy or mirror may change it:"
                    " delete the file, check HF_ENDPOINT and proxies, and report it if it stays"
                )
        for name in also:
            try:
                get(name, commit)
            except (EntryNotFoundError, LocalEntryNotFoundError):
                continue
    return file.parent


def _commit(file: Path, asked: str | None) -> str | None:
    """The commit a cached file belongs to: the client keeps it at ``snapshots/COMMIT/NAME``."""
    found = file.parent.name
    return found if COMMIT.fullmatch(found) else asked


def _whole(file: Path, sha256: str | None) -> bool:
    """Whether the contents are the expected ones.

    Without a hash to hold it against, the name of the blob that the cache links to is one: the
    sha256 of a large file, git's hash of a small one. Where neither is there, nothing is known.
    """
    blob = os.path.basename(os.path.realpath(file))
    try:
        if sha256 is not None:
            return _hashed(file, hashlib.sha256()) == sha256
        if re.fullmatch(r"[0-9a-f]{64}", blob):
            return _hashed(file, hashlib.sha256()) == blob
        if re.fullmatch(r"[0-9a-f]{40}", blob):
            return _hashed(file, hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)) == blob
        file.stat()
    except FileNotFoundError:
        return False
    return True


def _hashed(file: Path, state: Any) -> str:
    """A piece at a time: weights may be larger than the memory."""
    with open(file, "rb") as opened:
        while piece := opened.read(1 << 22):
            state.update(piece)
    return str(state.hexdigest())
