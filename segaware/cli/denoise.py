"""``segaware denoise``: one file, or a folder with all below it."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segaware.cli.command import Command, Failure, terminable

if TYPE_CHECKING:
    from segaware.inference.bench import Order
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


class _Count(click.ParamType):
    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        if value == "auto" or isinstance(value, int):
            return value
        if value.isdecimal() and 0 < int(value) <= 4096:
            return int(value)
        self.fail(f"{value!r} is neither a number from 1 to 4096 nor auto", param, ctx)


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
    "-o", "--output", "output", metavar="OUTPUT", required=True, help="File, or folder for a folder."
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
@click.option("--processes", type=_Count(), default=1, help="Of a folder: how many at once; auto: one a core, or a GPU. [1]")
@click.option("--shard", metavar="I/N", help="Of a folder: only the I-th of N parts, from 1 to N, the same whoever asks.")
@click.option(
    "--manifest", metavar="FILE", type=_PATH,
    help="Of a folder: keep a record here, a JSON line an image; run again, what is done is passed over. Shards may share it.",
)
@click.option(
    "--batch", type=_Count(), default="auto", show_default=True,
    help="Of a folder: small images of one size at once; auto: only where no bit changes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def denoise(
    source: Path,
    output: str,
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
    processes: int | str,
    shard: str | None,
    manifest: Path | None,
    batch: int | str,
    as_json: bool,
) -> None:
    """Denoise INPUT, an image or a folder of images, into OUTPUT.

    Reads and writes PNG (8 and 16 bits a channel), TIFF (8, 16, floats), JPEG, BMP and WebP; the depth
    stays. A folder is mirrored with all below it; images whose output exists are skipped, bad ones are
    listed at the end. Memory follows the rows at work, not the image.
    """
    _check_sigma(sigma)
    target = Path(output)
    if output.endswith(("/", os.sep)) and source.is_file():  # a folder is meant, be it there or not
        target = target / source.name
    if source.is_dir():
        if compare or reference:
            raise click.UsageError("--compare and --reference are for a single image, but INPUT is a folder")
        from segaware.inference.bench import Order

        order = Order(
            model, sigma, keep, tile, precision, device, segmentation is not None, batch, "replace" if overwrite else "skip"
        )
        _folder(source, target, order, segmentation, shard, manifest, processes, as_json)
        return
    if source.exists() and (shard or manifest or processes != 1):
        raise click.UsageError("--shard, --manifest and --processes are for folders, but INPUT is a single image")
    from segaware import image_io
    from segaware.inference.files import plan, plan_segmentation
    from segaware.inference.ranks import launched

    jobs = plan(source, target, overwrite=overwrite)
    if compare is not None:
        _check_compare(compare, [jobs[0].source, jobs[0].target, *([reference] if reference else [])], overwrite)
    if reference is not None and reference.exists() and jobs[0].target.exists() and reference.samefile(jobs[0].target):
        raise click.UsageError(f"--reference {reference} is also the output, which would replace it; choose another output")
    if segmentation is not None:
        taken = [path for path in (compare, reference) if path is not None]
        jobs = plan_segmentation(jobs, source, segmentation, taken=taken, overwrite=overwrite)
    if not launched().first:
        return  # one image, one process
    clean = image_io.read(reference) if reference is not None else None

    from segaware.inference.engine import DEFAULT_MODEL, Engine
    from segaware.inference.segmentation import SegmentingEngine

    engine = (Engine if segmentation is None else SegmentingEngine)(model or DEFAULT_MODEL, keep=keep, tile=tile, precision=precision, device=device)
    _check_model_sigma(engine, sigma)
    level = sigma / 255 if isinstance(sigma, float) else sigma
    outcome = _run(jobs[0], engine, level, overwrite, compare, clean)
    _report(outcome, engine, sigma, as_json)


def _folder(
    source: Path, target: Path, order: Order, segmentation: Path | None, shard: str | None, manifest: Path | None, processes: int | str, as_json: bool
) -> None:
    """A folder, or this process's part of it; the first of several processes prints what all have done."""
    import dataclasses

    from tqdm import tqdm

    from segaware.inference.folder import denoise_folder
    from segaware.inference.pool import suitable
    from segaware.inference.ranks import gathered, launched
    from segaware.inference.shards import Shard

    ranks = launched()
    part = dataclasses.replace(Shard.parse(shard or "1/1"), rank=ranks.index, ranks=ranks.count)
    records: list[dict[str, Any]] = []
    # disable=None: no bar where stderr is no terminal
    with terminable(), tqdm(unit="image", disable=None if ranks.first else True) as bar:

        def report(outcome: Outcome, total: int | None) -> None:
            bar.total = total
            bar.set_postfix_str(outcome.job.source.name, refresh=False)
            bar.update()
            for notice in outcome.notices:
                bar.write(f"{outcome.job.source}: {notice}", file=sys.stderr)
            if as_json and manifest is None:
                records.append(_record(outcome))

        tally = denoise_folder(
            source, target, order, segmentation=segmentation, shard=part, manifest=manifest, local=ranks.local,
            processes=suitable(order.device) if isinstance(processes, str) else processes, report=report,
        )  # fmt: skip
    (tally, records), *others = gathered((tally, records), ranks)
    if ranks.first:
        for other, theirs in others:
            tally += other
            records += theirs
    counts = {status: getattr(tally, status) for status in ("done", "skipped", "failed")}
    if as_json and ranks.first:
        facts = tally.facts
        assert facts is not None
        record: dict[str, Any] = {"model": facts.model, "model_hash": facts.model_hash, "sigma": order.sigma, "shard": str(part), **counts}
        click.echo(json.dumps(record | ({"files": records} if manifest is None else {"manifest": str(manifest)}), indent=2))
    elif ranks.first:
        click.echo(", ".join(f"{status} {number}" for status, number in counts.items()))
    if tally.failed:
        lines = "\n".join(f"  {line}" for line in tally.failures)
        more = f"\n  and {tally.failed - len(tally.failures)} more" if tally.failed > len(tally.failures) else ""
        raise Failure(f"{tally.failed} of {sum(counts.values())} images failed:\n{lines}{more}", 1)


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
    from segaware.inference.files import same_file

    target_format(compare)
    if any(compare.resolve() == path.resolve() or same_file(compare, path) for path in taken):
        raise click.UsageError(f"--compare {compare} is also the input, the output or the reference")
    if compare.exists() and not overwrite:
        raise click.UsageError(f"--compare {compare} exists already; choose another name, or allow it with --overwrite")


def _check_model_sigma(engine: Engine, sigma: float | str | None) -> None:
    if engine.info.takes_sigma and sigma is None:
        raise click.UsageError(f"model {engine.name!r} needs the noise level: --sigma 25 (8-bit units), or --sigma auto")
    if not engine.info.takes_sigma and sigma is not None:
        raise click.UsageError(f"model {engine.name!r} is blind, it finds the noise level itself; leave --sigma out")


def _run(job: Job, engine: Engine, sigma: float | str | None, overwrite: bool, compare: Path | None, reference: Any) -> Outcome:
    from tqdm import tqdm

    from segaware.inference.files import run_job

    # disable=None: no bar where stderr is no terminal
    with terminable(), engine, tqdm(unit="tile", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        outcome = run_job(job, engine, sigma, overwrite=overwrite, compare=compare, reference=reference, progress=progress)
        for notice in outcome.notices:
            bar.write(f"{job.source}: {notice}", file=sys.stderr)
    return outcome


def _report(outcome: Outcome, engine: Engine, sigma: float | str | None, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"model": engine.name, "sigma": sigma, "files": [_record(outcome)]}, indent=2))
    elif outcome.status == "done":
        click.echo(click.format_filename(outcome.job.target))
        if outcome.psnr is not None:
            before, after = outcome.psnr
            click.echo(f"PSNR {before:.2f} dB before, {after:.2f} dB after (of the {outcome.bits}-bit images)")
    if outcome.status == "failed":
        raise Failure(outcome.error or "failed", 1)


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
