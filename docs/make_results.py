"""Measure the shipped and the published denoisers, and write docs/results.md with its figures.

    python docs/make_results.py --cbsd68 CBSD68 --camvid CamVid --authors checkpoints

``--cbsd68`` is a folder of the 68 test images, ``--camvid`` SegNet's CamVid (val/, valannot/), ``--authors``
the folder with the U-SAID authors' three checkpoints (usaid-authors-DnCNN.pth, -SSAID.pth, -USAID.pth); they
carry no licence and are not ours to give away: without the option they are left out, and the page says so.

About four hours on one processor core. What is measured stays in ``--work``: a killed run goes on, after more
training of one denoiser it alone is measured anew, and ``--only cbsd68`` beside ``--only camvid`` uses two cores. Every
figure, interval and paired difference goes from there into docs/data/results-*.json.gz, and the page is written from
those alone: ``--only page`` measures nothing, and without a ``--work`` folder it writes the page again from the kept
figures. ``--limit 2`` is a try: it writes the reports in ``--work`` and leaves page and figures as they are.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import os
import sys
import zlib
from pathlib import Path

from awareness_record import num
from by_hand import kept
from PIL import Image

from segaware.entries import read_config, shipped_folder, shipped_names
from segaware.errors import SegawareError
from segaware.evaluation.figures import fidelity_task, levels, png, strip
from segaware.evaluation.pictures import Pictures
from segaware.evaluation.protocol import Noise, Protocol
from segaware.evaluation.report import about, how_to_read, read_report, table, write_report
from segaware.evaluation.results import Results
from segaware.evaluation.runner import evaluate
from segaware.evaluation.significance import Comparison
from segaware.evaluation.sources import open_source
from segaware.evaluation.summary import Entry, Summary

DOCS = Path(__file__).parent
SIGMAS = (15, 25, 35, 50)
PLAIN = "authors-DnCNN"
AUTHORS = (PLAIN, "authors-SSAID", "authors-USAID")
SHARES = ("0.03", "0.06")
OURS = ("dncnn-blind", "liu-blind", "segaware-blind", "features-blind")
#: Frame with cars, people and poles, for the strip.
FRAME = "0016E5_08041"
#: docs/images is looked at in a browser: no wider than this.
WIDEST = 2000


def judges():
    """Shipped segmenters that never train a denoiser."""
    return [name for name in shipped_names() if read_config(shipped_folder(name)).get("judge")]


def contestants(authors):
    specs = ["noisy", "nlm"]
    if authors is not None:
        specs += [f"{name}=DnCNN:{authors / f'usaid-{name}.pth'}" for name in AUTHORS]
        plain = f"DnCNN:{authors / f'usaid-{PLAIN}.pth'}"
        specs += [f"{PLAIN}+{share}={plain}+{share}" for share in SHARES]
    return [*specs, *OURS]


def measure(which, args):
    noises = tuple(Noise("gaussian", sigma) for sigma in SIGMAS)
    if which == "cbsd68":
        source = open_source(args.cbsd68, "folder")
        # image i of the sorted list draws with seed i: the convention of the published figures
        protocol = Protocol(noises=noises, metrics=("psnr", "ssim", "niqe"), seed_by="index", preset="usaid")
        pictures = ()
    else:
        source = open_source(args.camvid, "camvid", split="val")
        protocol = Protocol(noises=noises, metrics=("psnr", "ssim"), preset="usaid", harm=True)
        pictures = tuple(item.name for item in source if item.name == FRAME) or (source.items[0].name,)
    source = source.select(None, args.limit)
    shown = [0]

    def progress(done, total, what):
        if done == total or done - shown[0] >= 50:
            shown[0] = done
            print(f"{which}: {done} of {total} cells, {what}", flush=True)

    results = evaluate(
        source, contestants(args.authors), protocol, judges=judges(), out=args.work / which,
        pictures=[name for name in pictures if name in {item.name for item in source}], progress=progress,
    )  # fmt: skip
    write_report(results, args.work / which, ("json", "html"))


def judge_table(summary):
    """Clean mIoU of each judge, its classes, and what noise alone costs."""
    names = [judge["name"] for judge in summary.results.judges]
    classes = summary.results.source["classes"]
    head = ["judge", "clean", *(f"sigma {s}" for s in SIGMAS)]
    rows, per = [], []
    for name in names:
        clean = summary.entry(f"miou:{name}", "clean", "noisy")
        falls = [summary.entry(f"miou:{name}", f"sigma {s}", "noisy").value - clean.value for s in SIGMAS]
        rows.append([name, f"{100 * clean.value:.1f}", *(f"{100 * fall:+.1f}" for fall in falls)])
        per.append([name, *(f"{100 * v:.1f}" if not math.isnan(v) else "-" for v in clean.per_class)])
    return grid([head, *rows]), grid([["judge", *classes], *per])


def grid(rows):
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def section(summary, keys, noises):
    """Tables of the measures whose key starts with one of ``keys``."""
    out = []
    for found in (m for key in keys for m in summary.results.measures if m.key == key or m.key.startswith(f"{key}:")):
        out += [f"**{found.title}**", "", grid(table(summary, [found], noises, single=False)), ""]
    return out


def difference(found, measure):
    if found is None or math.isnan(found.low):
        return "-"
    star = " *" if found.p_holm < 0.05 else ""
    return (
        f"{measure.text(found.difference, signed=True)}"
        f" [{measure.text(found.low, signed=True)}, {measure.text(found.high, signed=True)}]{star}"
    )


def question(summary, pairs):
    """Paired differences of mIoU, and in words under how many judges and levels they are beyond noise."""
    measures = [m for m in summary.results.measures if m.key.startswith("miou:")]
    noises = [f"sigma {s}" for s in SIGMAS]
    rows, words = [["pair", "judge", *noises]], []
    for first, second in pairs:
        up = down = looks = 0
        for measure in measures:
            cells = []
            for noise in noises:
                found = summary.comparison(measure.key, noise, first, second)
                cells.append(difference(found, measure))
                if found is not None and not math.isnan(found.low):
                    looks += 1
                    up += found.p_holm < 0.05 and found.difference > 0
                    down += found.p_holm < 0.05 and found.difference < 0
            rows.append([f"{first} - {second}", measure.judge, *cells])
        words.append(
            f"- **{first}** against **{second}**: beyond noise in {up + down} of {looks} looks"
            f" ({len(measures)} judges x {len(noises)} levels): {up} for the first, {down} for the second."
        )
    return grid(rows), words


def save(figure, name):
    picture = Image.open(io.BytesIO(png(figure))).convert("RGB")
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.LANCZOS)
    path = DOCS / "images" / name
    picture.save(path, quality=88, optimize=True)
    return f"images/{name}"


def figures_of(which, args):
    """What the tables of a set are made of, without the confusion matrices of each image."""
    folder = args.work / which
    missing = {spec.partition("=")[0] for spec in contestants(args.authors)} - set(read_report(folder).names)
    if missing:
        raise SystemExit(f"error: {folder}: {min(missing)} was not measured there; measure again, what is there stays")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return _short({key: value for key, value in report.items() if key not in ("rows", "command")})


def keep_figures(measured):
    """Write docs/data/results-WHICH.json.gz of all sets that were measured, each whole or not at all."""
    for which, figures in measured.items():
        path = DOCS / "data" / f"results-{which}.json.gz"
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_bytes(gzip.compress(json.dumps(figures, separators=(",", ":")).encode(), 9, mtime=0))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _short(value):
    """Six digits are more than any table shows."""
    if isinstance(value, dict):
        return {key: _short(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def kept_figures(which):
    """The summary of a set as :func:`keep_figures` left it."""
    path = DOCS / "data" / f"results-{which}.json.gz"
    if not path.is_file():
        raise SystemExit(f"error: {path}: not there; measure first, without --only page")
    try:
        return _summary(json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path}: damaged ({error}); take it from git again, or measure without --only page") from error


def _summary(record):
    results = Results(
        protocol=Protocol.from_dict(record["protocol"]), source=record["source"], images=record["images"],
        contestants=record["contestants"], judges=record["judges"], environment=record["environment"],
    )  # fmt: skip
    summary = Summary(results)
    for found in record["summary"]:
        numbers = {key: num(found[key]) for key in ("value", "low", "high")}
        entry = Entry(**{**found, **numbers, "per_class": tuple(num(v) for v in found["per_class"])})
        summary.entries[entry.measure, entry.noise, entry.contestant] = entry
    for found in record["comparisons"]:
        measure, noise = found.pop("measure"), found.pop("noise")
        numbers = {key: num(found[key]) for key in ("difference", "low", "high", "p", "p_holm")}
        summary.comparisons.setdefault((measure, noise), []).append(Comparison(**{**found, **numbers}))
    return summary


def page(args):
    cbsd, camvid = kept_figures("cbsd68"), kept_figures("camvid")
    noises = [f"sigma {s}" for s in SIGMAS]
    clean, per_class = judge_table(camvid)
    machine = camvid.results.environment
    authors = PLAIN in camvid.results.names
    out = [
        "# Results", "",
        "Written by `python docs/make_results.py --cbsd68 DIR --camvid DIR --authors DIR`; every figure of the tables is measured"
        " (in JSON: [CamVid](data/results-camvid.json.gz), [CBSD68](data/results-cbsd68.json.gz));"
        " only \"In short\" is written by hand, from them. Noise is white and Gaussian, neither clipped nor rounded;"
        " denoisers that need sigma are told it."
        f" Measuring takes about four hours of one core. segaware {machine['segaware']}, torch {machine['torch']}, on {machine['device']}."
        + ("" if authors else " The checkpoints of U-SAID's authors were not there to be measured."), "",
        "Brackets are 95 % bootstrap intervals. Bold is best beyond a paired, corrected interval; ~ cannot be told from the best.", "",
    ]  # fmt: skip
    pairs = [(AUTHORS[2], PLAIN), (AUTHORS[1], PLAIN), (AUTHORS[2], AUTHORS[1])] if authors else []
    pairs += [(f"{PLAIN}+{share}", PLAIN) for share in SHARES] if authors else []
    pairs += [(AUTHORS[2], f"{PLAIN}+{share}") for share in SHARES] if authors else []
    pairs += [("segaware-blind", name) for name in (f"{PLAIN}+{SHARES[0]}", AUTHORS[2], PLAIN)] if authors else []
    pairs += [("segaware-blind", "liu-blind"), ("features-blind", "liu-blind"), ("segaware-blind", "features-blind"), ("liu-blind", "dncnn-blind")]
    differences, words = question(camvid, pairs)
    out += [kept(DOCS / "results.md"), ""]
    out += [
        "## The judges", "",
        "Three segmenters trained on clean CamVid frames with `examples/train_segmenter.py`; none of them trains a denoiser."
        " Everything was chosen on the drive 0006R0, left out of training. mIoU (%) on val, 11 classes: clean, and what noise alone takes.", "",
        clean, "", "IoU (%) of each class, clean:", "", per_class, "",
        "## Does awareness differ from giving noise back?", "",
        "Paired differences of mIoU in points on CamVid val (first minus second); * = p below 0.05 after Holm's correction"
        " over all pairs of the methods. **val is one clip of seven seconds**: its 101 frames are resampled in blocks of"
        f" {camvid.results.block} and count as about ten images; each method is one training, so a difference may be that of"
        " two seeds.", "", *words, "", differences, "",
    ]  # fmt: skip
    figure = levels(camvid)
    if figure is not None:
        out += [f"![Every measure against sigma, a line a method; framed on the denoisers, the noisy image lies below]({save(figure, 'results-levels.png')})", ""]
    figure = fidelity_task(camvid)
    if figure is not None:
        out += [f"![PSNR across, mIoU up, a panel a judge; bars are intervals over blocks of frames, which all methods share]({save(figure, 'results-fidelity-task.png')})", ""]
    out += ["## CamVid val", "", *about(camvid), "", *section(camvid, ("psnr", "ssim", "miou", "consistency"), noises)]
    out += ["### Do no harm: clean frames through the denoiser", ""]
    harm = [m for m in camvid.results.measures if m.key.partition(":")[0] in ("psnr", "changed")]
    out += [grid(table(camvid, harm, ["clean"])), ""]
    judge = camvid.results.judges[0]["name"]
    frame = FRAME if FRAME in camvid.results.images else camvid.results.images[0]
    pictures, place = Pictures(args.work / "camvid"), "images/results-strip.jpg"
    if all(pictures.load(pictures.image(frame, name, "sigma 50")) is not None for name in camvid.results.names):
        place = save(strip(camvid, pictures, frame, "sigma 50", judge), "results-strip.jpg")
    if (DOCS / place).is_file():  # without the measured pictures of all the strip stays as it was drawn
        out += [f"![Frame {frame} at sigma 50: noisy, by each method, clean; what {judge} sees]({place})", ""]
    out += ["## CBSD68", "", *about(cbsd), "", *section(cbsd, ("psnr", "ssim", "niqe", "consistency"), noises)]
    out += ["## How to read this", "", *(f"- {line}" for line in how_to_read(camvid))]
    out += [f"- {line}" for line in how_to_read(cbsd) if line not in how_to_read(camvid)]
    (DOCS / "results.md").write_text("\n".join(out).rstrip() + "\n", encoding="utf-8")
    print(DOCS / "results.md")


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cbsd68", type=Path, help="folder of the 68 images")
    p.add_argument("--camvid", type=Path, help="folder with val/ and valannot/")
    p.add_argument("--authors", type=Path, help="folder of the authors' checkpoints")
    p.add_argument("--work", type=Path, default=Path("results-work"), help="what was measured is kept here")
    p.add_argument("--only", choices=("cbsd68", "camvid", "page"))
    p.add_argument("--limit", type=int, help="only the first images of each set: a try, which writes no page")
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    if args.limit is not None:
        args.work /= "try"  # what a try measured is never taken for all of it
    writes = args.only in (None, "page") and args.limit is None
    if writes:
        kept(DOCS / "results.md")  # a page that cannot be written is told of before hours of measuring
    for which in ("cbsd68", "camvid"):
        if args.only in (None, which):
            if getattr(args, which) is None:
                raise SystemExit(f"error: --{which}: give the folder of the data")
            measure(which, args)
    if writes:
        measured = [which for which in ("cbsd68", "camvid") if (args.work / which / "report.json").is_file()]
        keep_figures({which: figures_of(which, args) for which in measured})
        page(args)


if __name__ == "__main__":
    try:
        main()
    except SegawareError as error:
        sys.exit(f"error: {error}")
