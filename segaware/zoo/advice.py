"""What the Hub's client raises, said as one of our errors, with what to do.

Only classes of ``huggingface_hub.errors`` and ``OSError`` are told apart: the HTTP library underneath
was ``requests`` in 0.x, ``httpx`` in 1.x and ``httpx2`` in 2.x.
"""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager
from types import TracebackType

from segaware.errors import WeightsError

__all__ = ["HubErrors", "advise"]

_TOKEN = "log in with 'hf auth login', set HF_TOKEN, or pass token="
_CACHED = "what was fetched before is read with local_files_only=True or HF_HUB_OFFLINE=1"


class HubErrors(AbstractContextManager["HubErrors"]):
    """``with HubErrors(repo):`` whatever the client raises inside comes out as :class:`WeightsError`.

    Args:
        repo: ``owner/name``, to be named in the message.
        revision: branch, tag or commit that is asked for, if any.
        writing: an upload, which needs another token.
    """

    def __init__(self, repo: str, revision: str | None = None, *, writing: bool = False) -> None:
        self.repo, self.revision, self.writing = repo, revision, writing

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, WeightsError):
            words = advise(error, self.repo, self.revision, writing=self.writing)
            raise WeightsError(f"{self.repo}: {words}") from error


def advise(error: Exception, repo: str, revision: str | None = None, *, writing: bool = False) -> str:
    """What happened and the repair, in one line."""
    from huggingface_hub import errors as hub

    chain = _chain(error)
    for cause in chain:  # the client wraps: "not in the cache", caused by what really happened
        if isinstance(cause, hub.GatedRepoError):
            return f"gated: ask for access on its page on the Hub, then {_TOKEN}"
        if type(cause).__name__ == "DisabledRepoError":
            return "disabled by the Hub; its owner can say why"
        if isinstance(cause, hub.RepositoryNotFoundError):
            return f"no such model on the Hub, or a private one (and no such folder here): check the spelling; for a private one {_TOKEN}"
        if isinstance(cause, hub.RevisionNotFoundError):
            return f"has no revision {revision!r}; give a branch, a tag or a full commit"
        if not writing and isinstance(cause, hub.EntryNotFoundError) and not isinstance(cause, hub.LocalEntryNotFoundError):
            return "holds no config.json with model.safetensors; no model that segaware has saved"
        if isinstance(cause, hub.LocalTokenNotFoundError):
            return f"a token is needed and none is there: {_TOKEN}"
        if isinstance(cause, hub.HFValidationError):
            return "not a name that the Hub takes; it is 'owner/name', of letters, digits, '-', '_' and '.'"
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            what = f"the token may not write there ({status}): use one with write access" if writing else f"refused ({status})"
            return f"{what}; {_TOKEN}"
        if status == 429:
            return "the Hub asks to slow down (429): wait a while, or log in for a higher limit"
        if isinstance(status, int) and status >= 500:
            return f"the Hub is in trouble ({status}): try again later; {_CACHED}"
        if isinstance(status, int) and status >= 400 and writing:
            return f"the Hub refused the upload ({status}): {_first_line(cause)}"
    if any(isinstance(cause, hub.OfflineModeIsEnabled) for cause in chain) or "outgoing traffic has been disabled" in str(error):
        if writing:
            return "offline, so nothing was sent: unset HF_HUB_OFFLINE and push again"
        return "no such folder here, not in the cache, and offline: fetch it once with the network on (unset HF_HUB_OFFLINE, no local_files_only)"
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left on the disk of the cache{_place(cause)}: free some, or pass another cache_dir= (or set HF_HOME)"
        if isinstance(cause, PermissionError):
            return f"the cache cannot be written{_place(cause)}: pass another cache_dir= (or set HF_HOME)"
    last = chain[-1]
    if isinstance(last, hub.FileMetadataError):
        return f"the server is no Hugging Face Hub ({_first_line(last)}); check HF_ENDPOINT and proxies"
    doing = "the upload" if writing else "no such folder here, and the download"
    hint = "try again" if writing else f"try again; {_CACHED}"
    return f"{doing} did not come through ({type(last).__name__}: {_first_line(last)}); {hint}"


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from, outermost first."""
    chain = [error]
    while (following := chain[-1].__cause__ or chain[-1].__context__) is not None and following not in chain:
        chain.append(following)
    return chain


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no details")


def _place(error: OSError) -> str:
    return f" ({error.filename})" if error.filename else ""
