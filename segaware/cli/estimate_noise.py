"""``segaware estimate-noise``: the noise level of image files."""

from __future__ import annotations

import json
from pathlib import Path

import click

from segaware.cli.command import Command, Failure

__all__ = ["estimate_noise"]


@click.command("estimate-noise", cls=Command)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["auto", "patch", "wavelet"]),
    default="auto",
    show_default=True,
    help="auto is patch, but for tiny images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def estimate_noise(files: tuple[Path, ...], method: str, as_json: bool) -> None:
    """Estimate the noise level of each FILE in 8-bit units, as --sigma takes it.

    White Gaussian noise is assumed. Noise that a camera, a scaling or JPEG has smoothed reads too low.
    """
    from segaware import image_io
    from segaware.errors import SegawareError
    from segaware.inference.noise_level import CLEAN_LOOKING, estimate_file, estimate_picture

    records, failed = [], []
    for file in files:
        try:
            with image_io.opened(file) as source:
                level = estimate_file(source) if method == "auto" else estimate_picture(source.whole().pixels, method=method)
        except SegawareError as error:
            message = str(error)
            failed.append(message if message.startswith(str(file)) else f"{file}: {message}")
            continue
        clean = level < CLEAN_LOOKING
        records.append({"file": str(file), "sigma": round(level * 255, 2), "looks_clean": clean})
        if not as_json:
            click.echo(f"{file}: {level * 255:.1f}{' (looks clean)' if clean else ''}")
    if as_json:
        click.echo(json.dumps(records, indent=2))
    if failed:
        lines = "\n".join(f"  {message}" for message in failed)
        raise Failure(f"{len(failed)} of {len(files)} images failed:\n{lines}", 1)
