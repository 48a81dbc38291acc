"""The ``segaware`` command. Nothing heavy is imported before a command has something to do."""

from __future__ import annotations

import click

from segaware import __version__
from segaware.cli.command import Program
from segaware.cli.convert import convert
from segaware.cli.demo import demo
from segaware.cli.denoise import denoise
from segaware.cli.doctor import doctor
from segaware.cli.download import download
from segaware.cli.estimate_noise import estimate_noise
from segaware.cli.evaluate import evaluate
from segaware.cli.export import export
from segaware.cli.export_hub import export_hub
from segaware.cli.models import models

__all__ = ["main"]


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="segaware", message="%(prog)s %(version)s")
def main() -> None:
    """Denoise images so that people and machines can still see what is on them.

    \b
    segaware denoise noisy.png -o clean.png
    segaware denoise photos/ -o denoised/
    segaware evaluate photos/ --sigma 25
    segaware models
    segaware download OWNER/NAME
    segaware export onnx dncnn-blind dncnn.onnx --dynamic
    segaware demo
    segaware doctor
    """


main.add_command(convert)
main.add_command(demo)
main.add_command(denoise)
main.add_command(doctor)
main.add_command(download)
main.add_command(estimate_noise)
main.add_command(evaluate)
main.add_command(export)
main.add_command(export_hub)
main.add_command(models)
