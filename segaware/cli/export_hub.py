"""``segaware export-hub``: the shipped models as folders for the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from segaware.cli.command import Command

__all__ = ["export_hub"]

_PATH = click.Path(path_type=Path)


@click.command("export-hub", cls=Command)
@click.argument("folder", metavar="DIR", type=_PATH)
@click.option("-m", "--model", "names", multiple=True, metavar="NAME", help="Of the models that ship; repeatable. [all]")
@click.option("--owner", metavar="ACCOUNT", help="Account on the Hub, for the cards' lines of use.")
@click.option("--picture", type=_PATH, metavar="FILE", help="Clean photograph for the examples. [one of scikit-image]")
def export_hub(folder: Path, names: tuple[str, ...], owner: str | None, picture: Path | None) -> None:
    """Write a folder a model into DIR, each ready for 'hf upload': config, weights, card, example images.

    A card that is there already is not touched. Prints the folders; uploads nothing.
    """
    from segaware.zoo.export_hub import export_hub as write

    for made in write(folder, names or None, owner=owner, picture=picture):
        click.echo(str(made))
