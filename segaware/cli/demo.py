"""``segaware demo``: a page in the browser, on this machine alone."""

from __future__ import annotations

import threading

import click

from segaware.cli.command import Command, terminable

__all__ = ["demo"]


@click.command(cls=Command)
@click.option("--port", type=int, default=7860, show_default=True, help="Where to listen; 0 = any free port.")
@click.option("-m", "--model", "models", multiple=True, help="Offer this model too: a folder, or OWNER/NAME of the Hub. Repeatable.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--open/--no-open", "browser", default=True, help="Open it in the browser.")
def demo(port: int, models: tuple[str, ...], device: str, browser: bool) -> None:
    """Look at what a denoiser does: drop an image, slide between before and after, see what a segmenter makes of it.

    The page is served to this machine alone and sends nothing anywhere; uploads are deleted at the end.
    Needs the extra "demo".
    """
    from segaware.demo.server import serving

    with terminable(), serving(port, models=models, device=device, browser=browser) as address:  # or the uploads would stay
        click.echo(f"{address}\nEnd it with Ctrl-C.", err=True)
        try:
            while not threading.Event().wait(0.5):  # on Windows nothing interrupts a wait without end
                pass
        except KeyboardInterrupt:  # the way to end it, no failure
            click.echo("\nstopped", err=True)
