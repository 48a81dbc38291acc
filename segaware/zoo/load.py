"""Trained models by name, folder or repository of the Hugging Face Hub: load one; list those that ship."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from segaware.entries import (
    DEFAULT_MODEL,
    build_for,
    fill,
    informed,
    load_entry,
    locate,
    read_config,
    shipped_folder,
    shipped_names,
)
from segaware.errors import InputError, WeightsError, closest
from segaware.pretrained import is_repo
from segaware.registry import ARCHITECTURES, build
from segaware.wrapper import SegAwareWrapper
from segaware.zoo.catalog import catalog
from segaware.zoo.hub import fetch

__all__ = ["DEFAULT_MODEL", "ModelRecord", "from_pretrained", "from_pretrained_as", "list_models", "resolve"]

_Model = TypeVar("_Model")
#: An image of one pixel is padded to so many squared.
_LARGEST_MULTIPLE = 1024
#: What a model remembers of where it comes from, and what is saved with it again.
_PROVENANCE = ("training_noise", "training_data", "license")


def from_pretrained(
    source: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    denoiser: nn.Module | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A trained network, in eval mode, its parameters trainable.

    Args:
        source: a name of the zoo (:func:`list_models`; those that ship touch no network), the folder of
            a model, which holds ``config.json`` and ``model.safetensors``, or a repository of the
            Hugging Face Hub that holds them, ``"owner/name"`` or ``"owner/name@revision"``. A folder goes
            before a repository.
        revision: branch, tag or commit of a repository; a full commit (40 digits) that is cached makes
            no request. None = as the zoo has pinned it, else the main branch.
        cache_dir: None = that of the Hub's client (``HF_HOME``).
        token: for gated and private repositories; None = that of the log-in.
        local_files_only: read the cache, ask nobody; the same as ``HF_HUB_OFFLINE=1``.
        denoiser: the network to fill, for a saved :class:`segaware.SegAwareWrapper` around a network
            that is not of this package.
        device: where to put it; None = the processor.
        dtype: of its parameters; None = float32.

    Raises:
        WeightsError: an unknown name or repository, a download that fails, or a missing, damaged or
            foreign file.
        ModelError: an unknown architecture.
        InputError: a dtype that is no floating one, or has no room for the weights; a revision of what has none; a ``denoiser`` that is
            missing or of no use.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(f"from_pretrained: dtype {dtype} is not a floating one; use torch.float32 or torch.bfloat16")
    folder = resolve(source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
    model = _load(folder, denoiser)
    if dtype == torch.float16:
        large = [key for key, value in model.state_dict().items() if value.is_floating_point() and bool((value.abs() > 65504).any())]
        if large:
            raise InputError(
                f"{source}: {large[0]} holds values beyond 65,504, which float16 has no room for; use dtype=torch.bfloat16, or float32 under torch.autocast"
            )
    return model.to(device=device, dtype=dtype)


def from_pretrained_as(cls: type[_Model], source: str | os.PathLike[str] = DEFAULT_MODEL, **options: Any) -> _Model:
    """:func:`from_pretrained`, for a source that must hold a ``cls``. A wrapper is put around a denoiser.

    Raises:
        WeightsError: another architecture, besides what is raised there.
    """
    fetching = {key: options.pop(key) for key in ("revision", "cache_dir", "token", "local_files_only") if key in options}
    folder = resolve(source, **fetching)
    held = read_config(folder)["architecture"]
    wanted = f"{cls.__module__}:{cls.__qualname__}"
    wraps = issubclass(cls, SegAwareWrapper)
    if not wraps and ARCHITECTURES.get(held, held) != wanted:
        raise WeightsError(f"{source}: holds {held}, not {cls.__name__}; use {held}.from_pretrained or segaware.from_pretrained")
    model = from_pretrained(folder, **options)
    if wraps and not isinstance(model, SegAwareWrapper):
        if getattr(model, "info", None) is None:
            raise WeightsError(f"{source}: holds {held}, a segmenter, not a denoiser that could be wrapped")
        model = SegAwareWrapper(model, ()).eval()
    if not isinstance(model, cls):
        raise WeightsError(f"{source}: holds {type(model).__name__}, not {cls.__name__}; use segaware.from_pretrained")
    return model


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    also: tuple[str, ...] = (),
) -> Path:
    """The folder of a model, fetched if it must be; arguments and errors as :func:`from_pretrained`.

    Args:
        also: further files to fetch from a repository, where it has them.
    """
    shipped = isinstance(source, str) and source in shipped_names()
    if isinstance(source, str) and "@" in source and not os.path.lexists(source):
        whole, (source, _, after) = source, source.partition("@")
        if not after or revision not in (None, after):
            raise InputError(f"{whole}: two revisions, or none after the @; give one, as {source}@REVISION or revision=")
        return resolve(
            source, revision=after, cache_dir=cache_dir, token=token, local_files_only=local_files_only, also=also
        )
    if not shipped and isinstance(source, str):
        known = catalog()
        options: dict[str, Any] = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only, "also": also}
        if source in known:
            entry = known[source]
            pinned = revision in (None, entry.revision)
            return fetch(entry.repo, revision or entry.revision, sha256=entry.sha256 if pinned else None, **options)
        if is_repo(source):
            return fetch(source, revision, **options)
        if Path(source).name == source and not os.path.lexists(source):
            raise WeightsError(f"unknown model {source!r}; {closest(source, [*shipped_names(), *known])}")
    if revision is not None:
        raise InputError(f"{source}: revision {revision!r} is for repositories of the Hub; this is {'shipped' if shipped else 'a folder'}")
    return locate(source)


def _load(folder: Path, denoiser: nn.Module | None) -> nn.Module:
    config = read_config(folder)
    if config["architecture"] == "SegAwareWrapper":
        model: nn.Module = _wrapper(folder, config, denoiser)
    elif denoiser is not None:
        raise InputError(f"{folder}: holds {config['architecture']}, which is built from its config; leave denoiser= out")
    else:
        model = load_entry(folder)
    model.provenance = {key: config[key] for key in _PROVENANCE if config.get(key)}  # type: ignore[assignment]
    return model


def _wrapper(folder: Path, config: dict[str, Any], denoiser: nn.Module | None) -> SegAwareWrapper:
    """A saved wrapper, without losses, around its own denoiser or the one given."""
    adapter = dict(config["arguments"])
    multiple = adapter.get("size_multiple")
    if isinstance(multiple, (int, float)) and multiple > _LARGEST_MULTIPLE:
        raise WeightsError(f"{folder}: its config pads images to multiples of {multiple!r}; no network needs that, fetch or save the model again")
    described = adapter.pop("denoiser", None)
    if denoiser is None:
        if not isinstance(described, dict) or not isinstance(described.get("architecture"), str):
            raise InputError(f"{folder}: the weights of a network that is not of segaware; build it and pass it as denoiser=network")
        if not isinstance(described.get("arguments"), dict):
            raise WeightsError(f"{folder}: the config's denoiser has no arguments; save the model again")
        denoiser = build_for(folder, described["architecture"], described["arguments"])
    try:
        wrapper = SegAwareWrapper(denoiser, (), **adapter)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{folder}: its config does not describe a wrapper ({error}); save the model again") from error
    fill(wrapper, folder, type(denoiser).__name__)
    info = informed(wrapper.info, config, folder)
    wrapper._call.told = {"training_noise": info.training_noise, "keep": info.keep}
    return wrapper.eval()


@dataclass(frozen=True)
class ModelRecord:
    """What is known of a shipped model without loading its weights.

    Args:
        kind: "denoiser" or "segmenter".
        takes_sigma: whether a denoiser must be told the noise level.
        parameters: of the architecture, trainable.
        size: bytes of the weights file.
        training_noise, training_data: what the weights know, in words; "" where not stated.
        measured: the config's own measured figures.
    """

    name: str
    architecture: str
    kind: str
    takes_sigma: bool
    parameters: int
    size: int
    training_noise: str = ""
    training_data: str = ""
    measured: dict[str, Any] = field(default_factory=dict)


def list_models() -> list[ModelRecord]:
    """All models that ship with the package, by name; reads no weights."""
    return [_record(name) for name in shipped_names()]


def _record(name: str) -> ModelRecord:
    folder = shipped_folder(name)
    config = read_config(folder)
    with torch.device("meta"):  # shapes alone
        model = build(config["architecture"], config["arguments"])
    info = getattr(model, "info", None)
    weights = folder / "model.safetensors"
    measured = config.get("measured")
    return ModelRecord(
        name=name,
        architecture=config["architecture"],
        kind="denoiser" if info is not None else "segmenter",
        takes_sigma=bool(getattr(info, "takes_sigma", False)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        size=weights.stat().st_size if weights.is_file() else 0,
        training_noise=str(config.get("training_noise") or ""),
        training_data=_words(config.get("training_data")),
        measured=measured if isinstance(measured, dict) else {},
    )


def _words(value: Any) -> str:
    """Training data is a sentence, or an object whose ``name`` is one."""
    return str(value.get("name", "")) if isinstance(value, dict) else str(value or "")
