"""``segaware export``: a network as a file for other runtimes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segaware.cli.command import Command

if TYPE_CHECKING:
    from segaware.export import Exported

__all__ = ["export"]

_PATH = click.Path(path_type=Path)


class _Size(click.ParamType):
    name = "HEIGHTxWIDTH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        height, _, width = value.lower().partition("x")
        if height.isdecimal() and width.isdecimal() and int(height) and int(width):
            return int(height), int(width)
        self.fail(f"{value!r} is no size; give height and width in pixels, e.g. 480x640", param, ctx)


def _options(command: Any) -> Any:
    for option in (
        click.argument("model"),
        click.argument("out", type=_PATH),
        click.option("--dynamic", is_flag=True, help="Leave batch and size open."),
        click.option("--size", type=_Size(), default="256x256", show_default=True, help="Of the images, without --dynamic."),
        click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images at once, without --dynamic."),
        click.option("--revision", help="Branch, tag or commit of a repository of the Hub."),
        click.option("--overwrite", is_flag=True, help="Replace OUT if it exists."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    )[::-1]:
        command = option(command)
    return command


@click.group()
def export() -> None:
    """Write a model as a file that runs without segaware.

    The file is run on two inputs and compared with the model before it is kept.
    """


@export.command(cls=Command)
@_options
def onnx(model: str, out: Path, revision: str | None, as_json: bool, **options: Any) -> None:
    """Write MODEL as OUT.onnx, for onnxruntime and others.

    MODEL is a name ('segaware models'), a folder, or a repository of the Hub (OWNER/NAME). Inputs are
    images in [0, 1], and the noise level of each (sigma / 255) for models that are told it.
    """
    from segaware.export import export_onnx
    from segaware.zoo.load import from_pretrained

    network: Any = from_pretrained(model, revision=revision)
    provenance = getattr(network, "provenance", {})
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in provenance.items()}
    _report(export_onnx(network, out, metadata={"source": model, **metadata}, **options), as_json)


@export.command(cls=Command)
@_options
def torch(model: str, out: Path, revision: str | None, as_json: bool, **options: Any) -> None:
    """Write MODEL as OUT.pt2, which torch.export.load runs.

    MODEL and the inputs are those of 'segaware export onnx'.
    """
    from segaware.export import export_program
    from segaware.zoo.load import from_pretrained

    _report(export_program(from_pretrained(model, revision=revision), out, **options), as_json)


def _report(done: Exported, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(done), "path": str(done.path)}, indent=2))
        return
    given = ", ".join(f"{name} {_shape(shape)}" for name, shape in done.inputs.items())
    click.echo(f"{done.path}: {given} -> {done.output[0]} {_shape(done.output[1])}")
    click.echo(f"{f'tried in {done.runner} on':28}largest difference")
    for check in done.checks:
        click.echo(f"{_shape(check.shape):28}{check.difference:.1e}")


def _shape(shape: tuple[int | str, ...]) -> str:
    return " x ".join(map(str, shape))
