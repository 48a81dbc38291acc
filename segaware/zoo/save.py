"""Save a model as a folder, or to the Hub, so that ``from_pretrained`` finds it again."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segaware.entries import CONFIG, WEIGHTS, write_entry
from segaware.errors import WeightsError
from segaware.registry import is_registered, name_of
from segaware.wrapper import SegAwareWrapper
from segaware.zoo.advice import HubErrors
from segaware.zoo.card import model_card
from segaware.zoo.hub import client

__all__ = ["CARD", "copy_files", "push_to_hub", "save_pretrained"]

CARD = "README.md"
#: How a network is called when nothing was said: such a wrapper adds nothing to the denoiser it holds.
_PLAIN = {"predicts": "image", "value_range": [0.0, 1.0], "takes_sigma": "auto", "size_multiple": 1}


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    config: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    repo: str | None = None,
) -> Path:
    """Write ``config.json``, ``model.safetensors`` and, where there is none yet, a card ``README.md``.

    Of a :class:`segaware.SegAwareWrapper` the denoiser is saved, with the way it is called; its losses
    are not. A foreign denoiser is no part of the folder but for its weights: give it again on loading,
    ``from_pretrained(folder, denoiser=network)``. Training data, training noise and licence that a model
    was loaded with go along, its measured figures do not: the weights may have changed.

    Args:
        config: what is to be known of it besides architecture and arguments: ``training_noise``,
            ``training_data``, ``recipe``, ``measured``, ``limits``, ``license``.
        dtype: of the stored weights.
        repo: ``owner/name`` that the card shows how to load from.

    Raises:
        WeightsError: a model that does not keep its constructor's arguments, a config that JSON cannot
            say, a folder that cannot be written.
    """
    provenance = getattr(model, "provenance", None) or getattr(getattr(model, "denoiser", None), "provenance", None)
    known = {**(provenance if isinstance(provenance, dict) else {}), **(config or {})}
    folder = Path(folder)
    if isinstance(model, SegAwareWrapper):
        record = _wrapped(model)
        known = {**record, **known}
        if record["architecture"] == "SegAwareWrapper":
            holder: nn.Module = _Holder(model.denoiser)
        else:
            holder = model.denoiser
    else:
        holder = model
        known = {"architecture": name_of(model), "arguments": getattr(model, "config", None), **known}
    try:
        write_entry(folder, holder, known, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{folder}: {CONFIG} cannot hold this config ({error}); use text, numbers, lists and objects") from error
    card = folder / CARD
    if not card.exists():
        try:
            card.write_text(model_card(known, (repo or folder.resolve().name).split("/")[-1], repo=repo), encoding="utf-8")
        except OSError as error:
            raise WeightsError(f"{card}: cannot be written ({error.strerror})") from error
    return folder


class _Holder(nn.Module):
    """Weights without a way to build them: passes for a model with an empty ``config``."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self._denoiser = [denoiser]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._denoiser[0].state_dict(*args, **kwargs)  # keys of torch.compile's wrapping are cut by write_entry


def _wrapped(wrapper: SegAwareWrapper) -> dict[str, Any]:
    """Architecture and arguments of what is in a wrapper: the denoiser's own where the wrapper adds nothing."""
    arguments = getattr(wrapper.denoiser, "config", None)
    adapter = wrapper.adapter
    kind = type(getattr(wrapper.denoiser, "_orig_mod", wrapper.denoiser))
    own = isinstance(arguments, dict) and (kind.__module__.split(".")[0] == "segaware" or is_registered(wrapper.denoiser))
    if own and {**adapter, "takes_sigma": "auto"} == _PLAIN:
        return {"architecture": name_of(wrapper.denoiser), "arguments": arguments}
    named = {"architecture": name_of(wrapper.denoiser), "arguments": arguments} if own else None
    return {"architecture": "SegAwareWrapper", "arguments": {"denoiser": named, **adapter}}


def push_to_hub(
    model: nn.Module,
    repo: str,
    *,
    config: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload model with segaware",
) -> str:
    """Upload a model in one commit; the repository is made if there is none. A card that is there stays.

    Args:
        repo: ``owner/name``.
        config, dtype: as in :func:`save_pretrained`.
        private: of a repository that is made; None = what the account does by itself.
        token: with write access; None = that of the log-in.
        revision: branch; None = the main one.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        WeightsError: a model that cannot be saved, and every way in which the upload fails.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, config=config, dtype=dtype, repo=repo)
        with HubErrors(repo, revision, writing=True):
            api = HfApi(token=token, **client())
            api.create_repo(repo, private=private, exist_ok=True)
            files = [CONFIG, WEIGHTS]
            if not api.file_exists(repo, CARD, revision=revision):
                files.append(CARD)
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, allow_patterns=files, revision=revision, commit_message=message
            )
    return str(done.commit_url)


def copy_files(files: Iterable[Path], folder: Path) -> None:
    """Each file into ``folder`` under its name: written beside its place and renamed, so that none is there in part.

    Raises:
        OSError: a folder that cannot be written; the caller says what to choose instead.
    """
    for file in files:
        partial = folder / f".{file.name}.{secrets.token_hex(4)}.partial"
        try:
            shutil.copyfile(file, partial)
            os.replace(partial, folder / file.name)
        finally:
            partial.unlink(missing_ok=True)
