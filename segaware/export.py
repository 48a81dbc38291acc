"""A denoiser or segmenter as a file that runs without this package: ONNX, or a program of ``torch.export``.

No file is kept before it has run: in onnxruntime, or loaded again by torch, on two inputs that the
network was not traced with, where it must give what the network gives.
"""

from __future__ import annotations

import copy
import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segaware.contracts import DenoiserInfo
from segaware.errors import InputError, ModelError

__all__ = ["TOLERANCE", "Check", "Exported", "export_onnx", "export_program"]

#: Largest difference that is let through: of the answer's largest value, or of 1 where that is larger.
TOLERANCE = 1e-4
SIZE = (256, 256)  # of images where it is fixed
# Sides that leave something to pad and to crop at every stride up to 32 ...
_TRACED = (2, 99, 75)
# ... and what the result is tried on: nothing to pad or crop, and something everywhere.
_TRIED = ((1, 64, 96), (3, 45, 70))

_Run = Callable[[tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Check:
    """One run of an exported file beside the network.

    Args:
        shape: of the images it was given.
        difference: the largest between the two, over the answer's largest value or 1.
    """

    shape: tuple[int, ...]
    difference: float


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: the file.
        runner: what it was tried with.
        inputs: by name, their shapes; an axis that is open has a name.
        output: name and shape of the answer.
        checks: how it compares with the network.
    """

    path: Path
    runner: str
    inputs: dict[str, tuple[int | str, ...]]
    output: tuple[str, tuple[int | str, ...]]
    checks: tuple[Check, ...]


def export_onnx(
    model: nn.Module,
    file: str | os.PathLike[str],
    *,
    dynamic: bool = False,
    size: tuple[int, int] = SIZE,
    batch: int = 1,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a network as one ``.onnx`` file that gives the same in onnxruntime. Needs the extra ``onnx``.

    Inputs are ``noisy`` ``(B, C, H, W)`` in [0, 1] plus noise, with ``sigma`` ``(B,)`` on the same
    scale for a network that takes one, and the output ``clean``, not clamped; of a segmenter ``image``
    and ``logits``. Everything that the network does to an image, padding included, is in the file.

    Args:
        model: a denoiser or segmenter of :mod:`segaware.contracts`; left as it is, a copy is used.
        dynamic: batch and size are open; else as in ``batch`` and ``size``.
        metadata: texts to be kept in the file, by name.
        overwrite: replace a file that is there.

    Raises:
        InputError: another ending, a file that is there, a size below 1.
        ModelError: a package is missing or too old, torch cannot export the network, or the file does not
            give what the network gives to 1e-4 (it is not kept).
    """
    port = _Port(model, dynamic, size, batch)
    path = _target(file, ".onnx", overwrite)
    _recent("export to ONNX")
    onnx, runtime = _packages("onnx", "onnxruntime", "onnxscript")[:2]
    program = port.trace()
    with _quiet(), _explained(f"{port.name}: torch cannot write it as ONNX"):
        proto = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True).model_proto  # type: ignore[union-attr]
    port.label(proto)
    onnx.helper.set_model_props(proto, {"made_by": "segaware", "network": port.name, **(metadata or {})})
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4

    def write(partial: Path) -> None:
        partial.write_bytes(proto.SerializeToString())

    def load(partial: Path) -> _Run:
        session = runtime.InferenceSession(str(partial), options, providers=["CPUExecutionProvider"])
        return lambda given: torch.from_numpy(
            session.run(None, {name: value.numpy() for name, value in zip(port.inputs, given, strict=True)})[0]
        )

    return _keep(path, write, load, port, "onnxruntime")


def export_program(
    model: nn.Module,
    file: str | os.PathLike[str],
    *,
    dynamic: bool = False,
    size: tuple[int, int] = SIZE,
    batch: int = 1,
    overwrite: bool = False,
) -> Exported:
    """Write a network as a ``.pt2`` file, which ``torch.export.load(file).module()`` runs; as :func:`export_onnx`.

    With ``dynamic`` the program states itself which sizes it takes: all in which every level of the
    network keeps more than one pixel (sides over 32 where the coarsest has stride 32).
    """
    port = _Port(model, dynamic, size, batch)
    path = _target(file, ".pt2", overwrite)
    program = port.trace()

    def load(partial: Path) -> _Run:
        module = torch.export.load(partial).module()
        return lambda given: module(*given)

    return _keep(path, lambda partial: torch.export.save(program, partial), load, port, "torch.export")


class _Port:
    """A network with named inputs and one output, and what to try it with."""

    def __init__(self, model: nn.Module, dynamic: bool, size: tuple[int, int], batch: int) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"export: expected a network, got {type(model).__name__}; load it with segaware.from_pretrained")
        if min(*size, batch) < 1:
            raise InputError(f"export: size {size[0]} x {size[1]}, batch {batch}; need at least 1 each")
        self.name, self.dynamic = type(model).__name__, dynamic
        info, classes = getattr(model, "info", None), getattr(model, "num_classes", None)
        if isinstance(info, DenoiserInfo):
            self.channels: int = info.channels or getattr(model, "likely_channels", None) or 3
            self.inputs = ("noisy", "sigma") if info.takes_sigma else ("noisy",)
            self.output, self.answers = "clean", self.channels
        elif isinstance(classes, int):
            self.channels, self.inputs, self.output, self.answers = 3, ("image",), "logits", classes
        else:
            raise ModelError(
                f"export: {self.name} is neither a denoiser nor a segmenter of the contract; wrap it:"
                " SegAwareWrapper(network, ()) or SegmenterAdapter(network, num_classes)"
            )
        self.network = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.shapes = [_TRACED, *_TRIED] if dynamic else [(batch, *size)] * 3

    def given(self, index: int) -> tuple[Tensor, ...]:
        """Images, and a noise level for each: what to trace with at 0, then what to try."""
        batch, height, width = self.shapes[index]
        images = torch.rand(batch, self.channels, height, width, generator=torch.Generator().manual_seed(index))
        return (images, torch.linspace(0.05, 0.2, batch))[: len(self.inputs)]

    def trace(self) -> Any:
        shapes = None
        if self.dynamic:
            _recent("export with open sizes")
            open_ = torch.export.Dim.DYNAMIC
            shapes = ({0: open_, 2: open_, 3: open_}, {0: open_})[: len(self.inputs)]
        named = _NAMED[self.inputs](self.network)
        with _quiet(), torch.no_grad(), _explained(f"{self.name}: torch.export cannot trace it"):
            return torch.export.export(named, self.given(0), dynamic_shapes=shapes, strict=False)

    @property
    def described(self) -> tuple[dict[str, tuple[int | str, ...]], tuple[str, tuple[int | str, ...]]]:
        """Shapes of the inputs by name, and name and shape of the output."""
        if not self.dynamic:
            first = self.given(1)
            answer = self.network(*first)
            return {name: tuple(value.shape) for name, value in zip(self.inputs, first, strict=True)}, (self.output, tuple(answer.shape))
        image = ("batch", self.channels, "height", "width")
        inputs = dict(zip(self.inputs, (image, ("batch",)), strict=False))
        same = self.output == "clean"
        return inputs, (self.output, image if same else ("batch", self.answers, "logits_height", "logits_width"))

    def label(self, proto: Any) -> None:
        """Our names for the inputs, the output, and the axes that are open."""
        inputs, (output, shape) = self.described
        renamed = {proto.graph.output[0].name: output}
        for value, (name, axes) in zip(proto.graph.input, inputs.items(), strict=True):
            renamed[value.name] = name
            _name_axes(value, axes)
        _name_axes(proto.graph.output[0], shape)
        for value in (*proto.graph.input, *proto.graph.output):
            value.name = renamed[value.name]
        for node in proto.graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = renamed.get(name, name)
        del proto.graph.value_info[:]  # shapes of what is in between, in torch's own letters

    def check(self, run: _Run) -> tuple[Check, ...]:
        """The file beside the network; ModelError where they differ."""
        checks = []
        for index in (1, 2):
            given = self.given(index)
            with torch.no_grad():
                expected = self.network(*given)
            shape = tuple(given[0].shape)
            with _quiet(), _explained(f"{self.name}: the exported file does not run on images {shape}"):
                found = run(given)
            if found.shape != expected.shape:
                raise ModelError(f"{self.name}: the exported file gives {tuple(found.shape)} for images {shape}, the network {tuple(expected.shape)}")
            difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
            if not difference <= TOLERANCE:  # also catches NaN
                raise ModelError(
                    f"{self.name}: the exported file differs by {difference:.2g} on images {shape}, more than {TOLERANCE:g};"
                    " it was not kept. A network that asks for the size of its input may need one file a size: leave dynamic out"
                )
            checks.append(Check(shape, difference))
        return tuple(checks)


class _Blind(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor) -> Any:
        return self.network(noisy)


class _Told(_Blind):
    def forward(self, noisy: Tensor, sigma: Tensor) -> Any:  # type: ignore[override]
        return self.network(noisy, sigma)


class _Seeing(_Blind):
    def forward(self, image: Tensor) -> Any:
        return self.network(image)


#: Inputs are called by these names in the file.
_NAMED: dict[tuple[str, ...], type[_Blind]] = {("noisy",): _Blind, ("noisy", "sigma"): _Told, ("image",): _Seeing}


def _keep(path: Path, write: Callable[[Path], None], load: Callable[[Path], _Run], port: _Port, runner: str) -> Exported:
    """Write beside the place, try, and only then rename."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        with _quiet(), _explained(f"{port.name}: the exported file cannot be written or read again"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            run = load(partial)
        checks = port.check(run)
        del run  # some systems do not rename what is open
        os.replace(partial, path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path, runner, *port.described, checks)


def _target(file: str | os.PathLike[str], ending: str, overwrite: bool) -> Path:
    path = Path(file)
    if path.suffix != ending:
        raise InputError(f"{path}: the file must end in {ending}")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; choose another name, or allow it with --overwrite (overwrite=True)")
    return path


def _recent(what: str) -> None:
    if torch.__version__ < "2.6":  # compared as a version
        raise ModelError(f"{what} needs torch 2.6 or later, and this is {torch.__version__}; pip install -U torch torchvision")


def _packages(*names: str) -> list[Any]:
    found = []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            raise ModelError(f"export to ONNX needs {', '.join(names)}; {name} is missing ({error}): pip install 'segaware[onnx]'") from error
    return found


def _name_axes(value: Any, shape: tuple[int | str, ...]) -> None:
    for axis, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        if isinstance(size, str):
            axis.dim_param = size
        else:
            axis.dim_value = size


@contextmanager
def _quiet() -> Any:
    """Without the exporters' warnings about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _explained(what: str) -> Any:
    """Exporters and runtimes raise whatever they meet."""
    try:
        yield
    except (InputError, ModelError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:
        words = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(f"{what} ({type(error).__name__}: {words[0][:300] if words else 'no details'})") from error
