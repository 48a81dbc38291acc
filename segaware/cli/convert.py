"""``segaware convert``: somebody else's checkpoint as a model folder."""

from __future__ import annotations

import json
from pathlib import Path

import click

from segaware.cli.command import Command

__all__ = ["convert"]

_PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("files", metavar="FILE...", type=_PATH, nargs=-1, required=True)
@click.option("--arch", "architecture", metavar="NAME", required=True, help="DnCNN, FFDNet, LiuDenoiser, DDFN, HRNetSegmenter or SDABN.")
@click.option("-o", "--output", "folder", metavar="DIR", type=_PATH, required=True, help="Folder of the new model.")
@click.option("--bn-eps", type=float, help="Epsilon of its batch normalisation, if not that of the layout's authors.")
@click.option("--overwrite", is_flag=True, help="Replace a model that is in DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert(
    files: tuple[Path, ...], architecture: str, folder: Path, bn_eps: float | None, overwrite: bool, as_json: bool
) -> None:
    """Convert FILE, a checkpoint of another project, into the model folder DIR.

    Known are the networks of U-SAID's authors, KAIR (DnCNN, FFDNet), deepinv (DnCNN), the official
    HRNet, SDABN's authors (of a whole cascade the FILE of each stage, S1 D1 S2 ...), wrapped as
    trainings wrap them, and Liu's Caffe blobs as an .npz. Nothing in FILE is run. Its terms of use stay.
    """
    from segaware.zoo.convert import CONVERTERS, convert_file

    names = {name.lower(): name for name in CONVERTERS}
    architecture = names.get(architecture.lower(), architecture)
    model, found = convert_file(files, architecture, folder, bn_eps=bn_eps, overwrite=overwrite)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if as_json:
        record = {
            "architecture": architecture,
            "arguments": found.arguments,
            "layout": found.layout,
            "loaded": found.used,
            "parameters": parameters,
            "output": str(folder),
        }
        click.echo(json.dumps(record, indent=2))
        return
    arguments = ", ".join(f"{key}={value}" for key, value in found.arguments.items())
    click.echo(f"{found.layout}: loaded all {found.used} tensors into {architecture}({arguments}), {parameters:,} parameters")
    click.echo(str(folder))
