"""``segaware denoise``: one file, or a folder with all below it."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segaware.cli.command import Command, Failure

if TYPE_CHECKING:
    from segaware.inference.engine import Engine
    from segaware.inference.files import Job, Outcome

__all__ = ["denoise"]


class _Tile(click.ParamType):
    name = "auto|whole|PIXELS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        if value in ("auto", "whole") or isinstance(value, int):
            return value
        if value.isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is not auto, whole or a positive number of pixels", param, ctx)


class _Sigma(click.ParamType):
    name = "LEVEL|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        if value == "auto" or isinstance(value, float):
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


class _Keep(click.ParamType):
    name = "SHARE|machine"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        if value == "machine" or isinstance(value, float):
            return value
        try:
            share = float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a share, e.g. 0.03, nor machine", param, ctx)
        if not 0 <= share < 1:
            self.fail(f"{value} is no share in [0, 1), e.g. 0.03 for 3 %", param, ctx)
        return share


_PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("source", metavar="INPUT", type=_PATH)
@click.option(
    "-o", "--output", "target", metavar="OUTPUT", type=_PATH, required=True, help="File, or folder for a folder."
)
@click.option("-m", "--model", help="Name (see 'segaware models'), folder, or repository of the Hub (OWNER/NAME[@REVISION]).")
@click.option(
    "-s", "--sigma", type=_Sigma(), help="Noise level in 8-bit units (25 is 25/255), or auto, for models that take one."
)
@click.option(
    "--keep", type=_Keep(), default=0.0, help="Share of the noise to give back: 0.03, or machine (the model's own). [0]"
)
@click.option("--tile", type=_Tile(), default="auto", show_default=True, help="Side of a tile; the result is the same.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="auto is float32; bfloat16 is faster and a little worse.",
)
@click.option("--compare", metavar="FILE", type=_PATH, help="Also write noisy | denoised side by side.")
@click.option("--reference", metavar="CLEAN", type=_PATH, help="Print PSNR against this clean image, before and after.")
@click.option(
    "--save-segmentation", "segmentation", metavar="DIR", type=_PATH,
    help="Also write the classes of each pixel into DIR, as PNGs with a palette; for models that segment.",
)
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist (else: refused; in folders skipped).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def denoise(
    source: Path,
    target: Path,
    model: str | None,
    sigma: float | str | None,
    keep: float | str,
    tile: str | int,
    device: str,
    precision: str,
    compare: Path | None,
    reference: Path | None,
    segmentation: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Denoise INPUT, an image or a folder of images, into OUTPUT.

    Reads and writes PNG (8 and 16 bits a channel), TIFF (8, 16, floats), JPEG, BMP and WebP; the depth
    stays. A folder is mirrored with all below it; images whose output exists are skipped, bad ones are
    listed at the end. Memory follows the rows at work, not the image.
    """
    _check_sigma(sigma)
    from segaware import image_io
    from segaware.inference.files import plan, plan_segmentation

    jobs = plan(source, target, overwrite=overwrite)
    single = not source.is_dir()
    if not single and (compare or reference):
        raise click.UsageError("--compare and --reference are for a single image, but INPUT is a folder")
    if compare is not None:
        _check_compare(compare, [jobs[0].source, jobs[0].target, *([reference] if reference else [])], overwrite)
    if reference is not None and reference.exists() and jobs[0].target.exists() and reference.samefile(jobs[0].target):
        raise click.UsageError(f"--reference {reference} is also the output, which would replace it; choose another output")
    if segmentation is not None:
        taken = [path for path in (compare, reference) if path is not None]
        jobs = plan_segmentation(jobs, source, segmentation, taken=taken, overwrite=overwrite)
    clean = image_io.read(reference) if reference is not None else None

    from segaware.inference.engine import DEFAULT_MODEL, Engine
    from segaware.inference.segmentation import SegmentingEngine

    engine = (Engine if segmentation is None else SegmentingEngine)(model or DEFAULT_MODEL, keep=keep, tile=tile, precision=precision, device=device)
    _check_model_sigma(engine, sigma)
    level = sigma / 255 if isinstance(sigma, float) else sigma
    outcomes = _run(jobs, engine, level, single, overwrite, compare, clean)
    _report(outcomes, engine, sigma, single, as_json)


def _check_sigma(sigma: float | str | None) -> None:
    if not isinstance(sigma, float):
        return
    if not 0 <= sigma <= 255:  # also catches NaN
        raise click.BadParameter(f"{sigma:g} is outside 0 to 255, the 8-bit scale.", param_hint="--sigma")
    if 0 < sigma < 1:
        raise click.BadParameter(
            f"{sigma:g} seems to be on the [0, 1] scale; here it is in 8-bit units: {sigma * 255:g}.",
            param_hint="--sigma",
        )


def _check_compare(compare: Path, taken: list[Path], overwrite: bool) -> None:
    from segaware.image_io import target_format

    target_format(compare)
    if any(compare.resolve() == path.resolve() for path in taken):
        raise click.UsageError(f"--compare {compare} is also the input, the output or the reference")
    if compare.exists() and not overwrite:
        raise click.UsageError(f"--compare {compare} exists already; choose another name, or allow it with --overwrite")


def _check_model_sigma(engine: Engine, sigma: float | str | None) -> None:
    if engine.info.takes_sigma and sigma is None:
        raise click.UsageError(f"model {engine.name!r} needs the noise level: --sigma 25 (8-bit units), or --sigma auto")
    if not engine.info.takes_sigma and sigma is not None:
        raise click.UsageError(f"model {engine.name!r} is blind, it finds the noise level itself; leave --sigma out")


def _run(
    jobs: list[Job],
    engine: Engine,
    sigma: float | str | None,
    single: bool,
    overwrite: bool,
    compare: Path | None,
    reference: Any,
) -> list[Outcome]:
    from tqdm import tqdm

    from segaware.inference.files import run_job

    outcomes = []
    # disable=None: no bar where stderr is no terminal
    with _terminable(), engine, tqdm(total=None if single else len(jobs), unit="tile" if single else "image", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        for job in jobs:
            if not single:
                bar.set_postfix_str(job.source.name, refresh=False)
            outcome = run_job(
                job,
                engine,
                sigma,
                overwrite=overwrite,
                compare=compare,
                reference=reference,
                progress=progress if single else None,
            )
            for notice in outcome.notices:
                bar.write(f"{job.source}: {notice}", file=sys.stderr)
            if not single:
                bar.update()
            outcomes.append(outcome)
    return outcomes


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Within: a SIGTERM ends the program as an exception does, so that half a file is taken away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(outcomes: list[Outcome], engine: Engine, sigma: float | str | None, single: bool, as_json: bool) -> None:
    by_status = {status: [o for o in outcomes if o.status == status] for status in ("done", "skipped", "failed")}
    failed = by_status["failed"]
    if as_json:
        record = {"model": engine.name, "sigma": sigma, "files": [_record(outcome) for outcome in outcomes]}
        click.echo(json.dumps(record, indent=2))
    elif single:
        for outcome in by_status["done"]:
            click.echo(f"{outcome.job.target}")
            if outcome.psnr is not None:
                before, after = outcome.psnr
                click.echo(f"PSNR {before:.2f} dB before, {after:.2f} dB after (of the {outcome.bits}-bit images)")
    else:
        click.echo(", ".join(f"{status} {len(found)}" for status, found in by_status.items()))
    if single and failed:
        raise Failure(failed[0].error or "failed", 1)
    if failed:
        lines = "\n".join(f"  {outcome.error}" for outcome in failed)
        raise Failure(f"{len(failed)} of {len(outcomes)} images failed:\n{lines}", 1)


def _record(outcome: Outcome) -> dict[str, Any]:
    record: dict[str, Any] = {
        "input": str(outcome.job.source),
        "output": str(outcome.job.target),
        "status": outcome.status,
        "seconds": round(outcome.seconds, 3),
    }
    if outcome.job.segmentation is not None:
        record["segmentation"] = str(outcome.job.segmentation)
    if outcome.error:
        record["error"] = outcome.error
    if outcome.sigma is not None:
        record["sigma"] = round(outcome.sigma * 255, 2)
    if outcome.notices:
        record["notices"] = list(outcome.notices)
    if outcome.psnr is not None:
        # JSON has no infinity: equal images give null
        before, after = (round(value, 4) if math.isfinite(value) else None for value in outcome.psnr)
        record["psnr"] = {"before": before, "after": after}
    return record
