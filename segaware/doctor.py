"""What a bug report should say of an installation, and what is wrong with it. Never raises, sends nothing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["Finding", "examine"]

#: Distributions that decide how the package behaves.
_PACKAGES = (
    "torch", "torchvision", "segmentation-models-pytorch", "timm", "huggingface-hub", "safetensors", "numpy", "pillow",
    "accelerate", "scipy", "scikit-image", "matplotlib", "torchmetrics", "onnx", "onnxruntime",
)  # fmt: skip
_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_ROOM = 2**30


@dataclass
class Finding:
    """One line of the report.

    Args:
        name: what was looked at.
        value: what was found.
        problem: what is wrong and its repair; "" where nothing is.
    """

    name: str
    value: str
    problem: str = field(default="")


def examine() -> list[Finding]:
    """All that can be found out without the network; a check that fails is a finding itself."""
    findings: list[Finding] = []
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("segaware", _ourselves),
        ("packages", _packages),
        ("torch", _torch),
        ("torchvision", _pair),
        ("devices", _devices),
        ("models", _models),
        ("cache", _cache),
        ("Hub", _hub),
        ("environment", _environment),
    ]
    for name, check in checks:
        try:
            findings += check()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a broken installation fails in its own ways, exits included
            findings.append(Finding(name, "cannot be told", f"{type(error).__name__}: {_line(error)}"))
    return findings


def _ourselves() -> list[Finding]:
    from segaware import __version__

    return [
        Finding("segaware", f"{__version__} ({Path(__file__).parent})"),
        Finding("Python", f"{platform.python_version()} ({sys.executable})"),
        Finding("system", f"{platform.platform()}, {os.cpu_count()} processors"),
    ]


def _packages() -> list[Finding]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return [Finding("packages", ", ".join(found) or "none of those we know")]


def _torch() -> list[Finding]:
    torch = import_module("torch")
    value = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if float(torch.ones(2).sum()) != 2:
        return [Finding("torch", value, "counts wrongly: install it again")]
    return [Finding("torch", value)]


def _pair() -> list[Finding]:
    """torch and torchvision are built as a pair; a CPU build beside a CUDA build imports or runs with errors."""
    repair = "install both in one command: pip install --force-reinstall torch torchvision"
    try:
        torch, vision = import_module("torch"), import_module("torchvision")
        import_module("torchvision.ops").nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:
        return [Finding("torchvision", "does not work", f"{type(error).__name__}: {_line(error)}; no pair with this torch? {repair}")]
    return [Finding("torchvision", f"{vision.__version__}, its compiled operators run")]


def _devices() -> list[Finding]:
    torch = import_module("torch")
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    mps = getattr(torch.backends, "mps", None)
    if mps is not None and mps.is_available():
        names.append("mps")
    built = f"; built for CUDA {torch.version.cuda}, none found" if torch.version.cuda and len(names) == 1 else ""
    return [Finding("devices", ", ".join(names) + built)]


def _models() -> list[Finding]:
    entries = import_module("segaware.entries")
    names = entries.shipped_names()
    broken = []
    for name in names:
        folder = entries.shipped_folder(name)
        entries.read_config(folder)
        if not (folder / entries.WEIGHTS).is_file():
            broken.append(name)
    problem = f"no weights: {', '.join(broken)}; install segaware again" if broken else ""
    if not names:
        problem = "none ship with this installation; install segaware again"
    return [Finding("models", ", ".join(names) or "none", problem)]


def _cache() -> list[Finding]:
    constants = import_module("huggingface_hub.constants")
    folder = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    problem = ""
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = f"{there} cannot be written: set HF_HOME to a folder that can"
    free = shutil.disk_usage(there).free
    if not problem and free < _ROOM:
        problem = f"less than {_ROOM >> 30} GiB free: make room, or set HF_HOME to another disk"
    return [Finding("cache", f"{folder}{'' if folder.exists() else ' (not there yet)'}, {free / 2**30:.1f} GiB free", problem)]


def _hub() -> list[Finding]:
    hub, constants = import_module("huggingface_hub"), import_module("huggingface_hub.constants")
    findings = [Finding("Hub", f"{_without_user(constants.ENDPOINT)}{', offline' if constants.HF_HUB_OFFLINE else ''}")]
    # whether there is one, never the token itself
    findings.append(Finding("Hub token", "there is one" if hub.get_token() else "none (needed for gated and private models alone)"))
    return findings


def _environment() -> list[Finding]:
    flags = [f"{name}={_without_user(os.environ[name])}" for name in _FLAGS if os.environ.get(name)]
    # addresses of proxies hold passwords
    flags += [f"{name} is set" for name in _PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    return [Finding("environment", ", ".join(flags) or "no flags or proxies set")]


def _without_user(address: str) -> str:
    if "@" not in address:
        return address
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1]).geturl()


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no details")
