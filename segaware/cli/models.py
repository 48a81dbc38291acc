"""``segaware models``: the zoo as a table."""

from __future__ import annotations

import dataclasses
import json

import click

from segaware.cli.command import Command

__all__ = ["models"]


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print the full records as JSON.")
def models(as_json: bool) -> None:
    """List the models that come with segaware."""
    from segaware.zoo.load import DEFAULT_MODEL, list_models

    records = list_models()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(record) for record in records], indent=2))
        return
    if not records:
        click.echo("no models ship with this installation; give the folder of one to --model")
        return
    rows = [("NAME", "KIND", "ARCHITECTURE", "PARAMETERS", "SIGMA", "KNOWS")]
    for record in records:
        sigma = "" if record.kind != "denoiser" else "--sigma" if record.takes_sigma else "blind"
        name = record.name + (" *" if record.name == DEFAULT_MODEL else "")
        knows = record.training_noise or record.training_data
        rows.append((name, record.kind, record.architecture, f"{record.parameters:,}", sigma, knows))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for record in records:
        if record.measured:
            click.echo(f"{record.name}: {_figures(record.measured)}")
    if any(record.name == DEFAULT_MODEL for record in records):
        click.echo("* the default")


#: What the table leaves to --json.
_DETAIL = ("command", "protocol", "chosen_on", "iou", "held_out_psnr")


def _figures(measured: dict[str, object]) -> str:
    """``{"psnr": {"15": 33.9}}`` as ``psnr 15: 33.90``, whatever the nesting; text as it is."""
    parts = []
    for key, value in measured.items():
        if key in _DETAIL:
            continue
        if isinstance(value, dict):
            parts.append(f"{key} " + _figures(value))
        else:
            parts.append(f"{key}: {value:.2f}" if isinstance(value, float) else f"{key}: {value}")
    return ", ".join(parts)
