"""``segaware evaluate``: denoisers on a folder of clean images, with error bars."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from segaware.cli.command import Command, Failure

__all__ = ["evaluate"]

_PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("source", metavar="CLEAN_DIR", type=_PATH)
@click.option("-m", "--model", "models", multiple=True, metavar="SPEC", help="See below; repeat to compare. [segaware-blind]")
@click.option("-s", "--sigma", "sigmas", multiple=True, type=float, help="Gaussian noise in 8-bit units; repeatable. [25]")
@click.option("--noise", "noises", multiple=True, metavar="TEXT", help="Other noise: 'peak 30' (Poisson), 'peak 30 + sigma 10'.")
@click.option("--harm/--no-harm", default=False, help="Also denoise the clean images: does it do harm?")
@click.option("--metric", "metrics", multiple=True, type=click.Choice(["psnr", "ssim", "niqe"]), help="Repeatable. [psnr ssim]")
@click.option("--preset", type=click.Choice(["usaid", "liu", "sdabn"]), default="usaid", show_default=True, help="Convention of PSNR and SSIM.")
@click.option("--niqe-parameters", type=_PATH, metavar="FILE", help="Other NIQE parameters (.mat, .npz).")
@click.option("-j", "--judge", "judges", multiple=True, metavar="NAME", help="Segmenter, shipped or a folder; repeatable; 'none'. [those that ship]")
@click.option("--layout", type=click.Choice(["auto", "folder", "camvid", "voc", "cityscapes"]), default="auto", show_default=True, help="Of CLEAN_DIR; all but folder have labels.")
@click.option("--split", default="val", show_default=True, help="Of a labelled set.")
@click.option("--classes", type=_PATH, metavar="FILE", help="Class names of your own labels, one a line; for SegNet's layout.")
@click.option("--void", type=click.IntRange(0, 255), metavar="N", help="With --classes: a label that is not counted, beside 255.")
@click.option("--names", type=_PATH, metavar="FILE", help="Only the images named in this file, one a line, without ending.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N images.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.")
@click.option("--seed-by", type=click.Choice(["name", "index"]), default="name", show_default=True, help="What noise depends on beside the seed.")
@click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Noise draws an image.")
@click.option("--block", type=click.IntRange(1), metavar="N", help="Neighbouring frames resampled together. [1; CamVid 10]")
@click.option("-o", "--output", "out", metavar="DIR", type=_PATH, help="Write the report there; a run that was cut short goes on.")
@click.option("--format", "formats", multiple=True, type=click.Choice(["json", "csv", "md", "html"]), help="Of the report; repeatable. [all]")
@click.option("--picture", "pictures", multiple=True, metavar="NAME", help="Image shown in the HTML report; repeatable. [the first]")
@click.option("--tile", default="auto", show_default=True, help="auto, whole or PIXELS; the result is the same.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True, help="auto is float32.")
@click.option("--rebuild", is_flag=True, help="CLEAN_DIR is the folder of a report: write its views again, from its rows.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def evaluate(**options: Any) -> None:
    """Measure denoisers on the clean images in CLEAN_DIR, with noise added to them.

    \b
    A SPEC is one of
      segaware-blind            a model that ships, or a model's folder
      owner/name[@revision]     a repository of the Hugging Face Hub
      DnCNN:weights.pth         a state dict in one of segaware's architectures
      spandrel:file.pth         a file that spandrel knows
      denoised/s{sigma}         a folder of ready images, named as the clean ones
      nlm, tv, wavelet, bm3d    scikit-image's methods; bm3d if it is installed
    NAME=SPEC names it otherwise; SPEC+0.03 gives 3 % of the noise back, SPEC+machine the model's own share.

    Brackets are 95 % intervals; ** is best beyond them, ~ marks what cannot be told from the leader.
    """
    from segaware.evaluation.report import read_report, write_report
    from segaware.evaluation.summary import summarise

    out: Path | None = options["out"]
    if options["rebuild"]:
        results = read_report(options["source"])
        out = out or (options["source"] if options["source"].is_dir() else options["source"].parent)
        formats = options["formats"] or tuple(name for name in _possible() if name != "json")
    else:
        results = _measure(options)
        if results is None:
            return  # the first of several processes speaks for all
        formats = options["formats"] or _possible()
    summary = summarise(results)
    written = []
    if out is not None:  # first: the figures may not be printable where they are printed to
        command = "" if options["rebuild"] else shlex.join(["segaware", *sys.argv[1:]])
        written = write_report(results, out, formats, summary=summary, command=command)
    if options["as_json"]:
        from segaware.evaluation.report import figures_of

        click.echo(json.dumps(figures_of(summary), indent=1))
    else:
        from segaware.evaluation.report import terminal

        click.echo(terminal(summary))
    for path in written:
        click.echo(str(path), err=True)
    if results.failures:
        from segaware.evaluation.report import failures

        lines = "\n".join(f"  {line}" for line in failures(results))
        raise Failure(f"{len(results.failures)} cells could not be measured:\n{lines}", 1)


def _measure(options: dict[str, Any]) -> Any:
    from tqdm import tqdm

    from segaware.entries import DEFAULT_MODEL
    from segaware.evaluation.judges import default_judges
    from segaware.evaluation.protocol import Noise, Protocol, parse_noise
    from segaware.evaluation.sources import open_source
    from segaware.evaluation.spread import evaluate_spread
    from segaware.inference.ranks import launched

    ranks = launched()
    noises = [Noise("gaussian", sigma) for sigma in options["sigmas"]] + [parse_noise(text) for text in options["noises"]]
    protocol = Protocol(
        noises=tuple(noises or [Noise("gaussian", 25.0)]),
        metrics=options["metrics"] or ("psnr", "ssim"),
        **{key: options[key] for key in ("seed", "draws", "seed_by", "preset", "harm", "block")},
    )
    classes = None if options["classes"] is None else _lines(options["classes"], "--classes")
    if classes is None and options["void"] is not None:
        raise click.UsageError("--void goes with --classes: the labels of known sets have their own")
    source = open_source(options["source"], options["layout"], split=options["split"], classes=classes, void=options["void"])
    names = None if options["names"] is None else _lines(options["names"], "--names")
    source = source.select(names, options["limit"])
    judges = list(options["judges"]) or default_judges(source)
    if not judges and source.classes is not None and ranks.first:
        click.echo(
            f"note: no judge that ships knows the classes of {source.name}, so PSNR alone decides; name one of yours, -j FOLDER,"
            " or leave the labels out, --layout folder",
            err=True,
        )
    niqe = None
    if options["niqe_parameters"] is not None:
        from segaware.niqe import NIQE

        niqe = NIQE.from_file(options["niqe_parameters"])
    pictures = options["pictures"]
    if not pictures and options["out"] is not None:
        pictures = (source.items[0].name,)
    tile = options["tile"]
    with tqdm(unit="cell", disable=None if ranks.first else True) as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total, bar.n = total, done
            bar.set_postfix_str(what, refresh=False)
            bar.update(0)

        return evaluate_spread(
            source,
            options["models"] or (DEFAULT_MODEL,),
            protocol,
            ranks=ranks,
            judges=[] if judges == ["none"] else judges,
            out=options["out"],
            pictures=pictures,
            niqe=niqe,
            progress=progress,
            tile=int(tile) if tile.isdecimal() else tile,
            device=options["device"],
            precision=options["precision"],
        )


def _lines(path: Path, option: str) -> list[str]:
    """The lines of a file that hold something."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'}).", param_hint=option) from error
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise click.BadParameter(f"{path}: holds no name; write one a line.", param_hint=option)
    return found


def _possible() -> tuple[str, ...]:
    """All formats; without the packages for figures, those that need none."""
    from importlib.util import find_spec

    return ("json", "csv", "md", *(("html",) if find_spec("matplotlib") and find_spec("jinja2") else ()))
