"""Write a page on awareness and its figures from the JSON of examples/compare_awareness.py.

    python docs/make_awareness.py arena/results.json --again "from a better start" arena-better/results.json --out docs/PAGE.md

Works on whatever is finished: a screen alone, a final of some seeds. Runs no model. ``--out`` is the page; ``--screen``
takes the screen from the JSON of another folder, of the same setting (one gone on with by ``--known``); ``--again``,
repeatable, adds the final of another comparison (another start, other steps) in one table, under the words before it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from awareness_figures import frontier, gains, keep_curve
from awareness_final import again, final, harm, photographs
from awareness_record import Found, bracket, grid, means, num, text
from by_hand import BEGIN, END, kept

TITLE = "Does awareness help?"


def head(found: Found) -> list[str]:
    setting, screen, final = (found.record[k] for k in ("setting", "screen", "final"))
    steps = {phase: sorted({r["steps"] for r in found.record[phase]["runs"]}) for phase in ("screen", "final")}
    seeds = sorted({r["seed"] for r in final["runs"]})
    name = lambda spec: Path(str(spec)).name  # noqa: E731
    out = [
        "Awareness losses of this library (and what the papers propose), trained from one start with the same steps, data and noise,"
        f" and judged by {judged_by(setting)}. Written by `docs/make_awareness.py` from the JSON of"
        " `examples/compare_awareness.py`; how the losses are defined: [losses.md](losses.md).", "",
    ]  # fmt: skip
    if setting:
        out += [
            f"Start: `{name(setting['start'])}`; training segmenter: {', '.join(f'`{name(s)}`' for s in setting['segmenter'])}; held-out judges:"
            f" {', '.join(f'`{name(s)}`' for s in setting['judge'])}. Awareness begins with {text(setting['share'], 2)} of fidelity's gradient at"
            f" the denoised image, times the weight's factor; {setting['optimizer']}, rate {setting['learning_rate']:g}, batches of"
            f" {setting['batch_size']} patches of {setting['patch_size']} x {setting['patch_size']}.", "",
        ]  # fmt: skip
    done = [f"{len(screen['runs'])} trainings of the screen ({', '.join(map(str, steps['screen']))} steps)"] if screen["runs"] else []
    if final["runs"]:
        done.append(f"{len(final['runs'])} of the final ({', '.join(map(str, steps['final']))} steps, seeds {', '.join(map(str, seeds))})")
    out += [f"Trained: {' and '.join(done) or 'nothing'}." + ("" if found.frames else " **The reported sets have not been measured yet.**"), ""]
    return out


def judged_by(setting: dict) -> str:
    if setting and setting.get("force"):
        return "segmenters of which some took part in training (`--force`): what these say proves nothing"
    return "segmenters that took no part in any training"


def in_short(found: Found) -> list[str]:
    """What the figures say, by fixed rules: intervals that leave out zero are called differences."""
    lines = []
    for noise in found.noises(found.frames):
        free = [g for g in found.record.get("gaps", ()) if g["noise"] == noise and found.group(g["contestant"]) in ("seed", "later")]
        free = [g for g in free if not found.labels(g["contestant"]) and not g["contestant"].endswith("+keep")]
        if not free:
            continue
        best = max(free, key=lambda g: num(g["gain"]))
        psnr = found.row(found.frames, "psnr", noise, best["contestant"])
        cost = (psnr or {}).get("against", {}).get("fidelity", {})
        sure = num(best["p_holm"]) < 0.05  # corrected, for it is the best of several
        several, up = len(best["seed_gains"]) > 1, num(best["gain"]) > 0
        word = ("helps" if up else "harms") if several else ("helped" if up else "harmed") + " in this one training"
        word = word if sure else "cannot be told from no awareness"
        line = (
            f"{noise}: the gap of the control to clean input is {text(best['gap'], 1, 100)} points of mIoU. Best awareness without labels: `{best['contestant']}`,"
            f" {bracket(best, 'gain')} points across the held-out judges (seeds: {', '.join(text(g, 1, 100, True) for g in best['seed_gains'])}): it {word}"
        )
        if "closed" in best and sure and up:
            line += f", and closes {bracket(best, 'closed', 0, 100, False)} % of the gap"
        line += f"; PSNR {text(cost.get('difference'), 2, 1, True)} dB"
        keep = found.gap(noise, "fidelity+keep")
        if keep is not None:
            line += f". Giving noise back, without training: {bracket(keep, 'gain')} points; over that: {bracket(best, 'over_keep')}"
        taught = [g for g in found.record.get("gaps", ()) if g["noise"] == noise and found.labels(g["contestant"]) and "+" not in g["contestant"]]
        if taught:
            top = max(taught, key=lambda g: num(g["gain"]))
            line += f". With labels (`{top['contestant']}`): {bracket(top, 'gain')}"
            if f"over:{top['contestant']}" in best:
                line += f"; `{best['contestant']}` over that: {bracket(best, 'over:' + top['contestant'])}"
        lines.append(f"- {line}.")
    return ["## In short", "", *lines, ""] if lines else []


def screen(found: Found) -> list[str]:
    """The chosen weight of each contestant in a table, by judge at the highest level; then all weights."""
    runs, chosen = found.record["screen"]["runs"], found.chosen
    if not chosen:
        return []
    figures = [f for r in runs for f in r.get("held_out", ())]
    noise = list(dict.fromkeys(f["noise"] for f in figures if f["noise"] != "clean"))[-1]
    judges = list(dict.fromkeys(f["measure"].partition(":")[2] for f in figures if ":" in f["measure"] and f["measure"] != "miou:home"))
    controls = {r["seed"]: r for r in runs if r["contestant"] == "fidelity"}

    def against(run: dict, judge: str | None = None, level: str | None = None) -> tuple[float, float]:
        own, other = means(run, run["contestant"], judge, level), means(controls.get(run["seed"], {}), "fidelity", judge, level)
        return own[0] - other[0], own[1] - other[1]

    rows = [["contestant", "what it is", "labels", "factor", "mIoU, points against the control", "PSNR, dB, on frames or photographs, whichever lost more", *(f"{j}, {noise}" for j in judges),
             "gradient, share of fidelity's by quarter"]]  # fmt: skip
    tried = [["contestant", "factor: points of mIoU (dB of PSNR on the frames)"]]
    order = sorted(chosen, key=lambda n: (num(chosen[n].get("cost", 0)) > found.record["budget"], -num(chosen[n].get("gain", chosen[n]["miou"]))))
    seeds = len({r["seed"] for r in runs})
    seeds = "one seed" if seeds == 1 else f"{seeds} seeds"
    unseen = "that some judge may have trained on" if (found.record["setting"] or {}).get("force") else "that no denoiser and no held-out judge trained on"
    for name in order:
        pick = chosen[name]
        own = [r for r in runs if r["contestant"] == name and r["factor"] == pick["factor"] and "held_out" in r and (r["seed"] in controls or not controls)]
        terms = [[fmean(quarter) for quarter in zip(*seeds, strict=True)] for seeds in zip(*(r["shares"].values() for r in own), strict=True)]
        shares = "; ".join(" ".join(text(v, 3) for v in values) for values in terms) or "–"
        rows.append([f"`{name}`", found.what(name), "yes" if found.labels(name) else "no", f"{pick['factor']:.3g}",
                     text(pick.get("gain"), 2, 100, True), text(-num(pick.get("cost")), 3, 1, True),
                     *(text(fmean(against(r, j, noise)[1] for r in own), 1, 100, True) for j in judges), shares])  # fmt: skip
        own = sorted((r for r in runs if r["contestant"] == name and "held_out" in r and (r["seed"] in controls or not controls)), key=lambda r: (r["factor"], r["seed"]))
        gaps = [(r["factor"], *against(r)) for r in own]
        tried.append([f"`{name}`", "; ".join(f"{factor:.3g}: {text(miou, 2, 100, True)} ({text(psnr, 3, 1, True)})" for factor, psnr, miou in gaps)])
    return [
        f"## The screen: held-out data, {seeds}", "",
        f"Mean over the held-out judges and levels, on frames {unseen}. Of the weights tried, the one with most mIoU at no more than"
        f" {found.record['budget']:.2f} dB below the control; those that cost more come last. {seeds.capitalize()}, no intervals: this chooses, it proves nothing.", "",
        *grid(rows), "![Fidelity against task](images/awareness-frontier.png)", "", "All weights that were tried:", "", *grid(tried),
    ]  # fmt: skip


def give_back(found: Found) -> list[str]:
    rows = [["contestant", "seed", "share given back, by level"]]
    for run in found.record["final"]["runs"] or [r for r in found.record["screen"]["runs"] if "keep" in r]:
        if "keep" in run:
            own = run["contestant"] != "fidelity" and run.get("keep_against") != "fidelity"
            shares = ", ".join(f"{noise}: {share:g}" for noise, share in run["keep"].items())
            rows.append([f"`{run['contestant']}`", str(run["seed"]), shares + (" (from itself)" if own else "")])
    if len(rows) == 1:
        return []
    return [
        "## Noise given back", "",
        f"The share of most mIoU on held-out frames at no more than {found.record['budget']:.2f} dB below the control of the same seed, awareness and give-back"
        " together (\"from itself\": below the contestant, where that control was not there yet); see [give-back.md](give-back.md).", "",
        *grid(rows), "![Noise given back](images/awareness-keep.png)", "",
    ]  # fmt: skip


def instead(found: Found) -> list[str]:
    rows = [["images", "segmenter", *(noises := list(dict.fromkeys(r["noise"] for r in found.record.get("instead", {}).get("rows", ()))))]]
    pairs = dict.fromkeys((r["images"], r["segmenter"]) for r in found.record.get("instead", {}).get("rows", ()))
    for images, segmenter in pairs:
        cells = []
        for noise in noises:
            row = next(r for r in found.record["instead"]["rows"] if (r["images"], r["segmenter"], r["noise"]) == (images, segmenter, noise))
            cells.append(f"{text(row['value'], 1, 100)} [{text(row['low'], 1, 100)}, {text(row['high'], 1, 100)}]")
        rows.append([{"fidelity": "denoised by the control"}.get(images, images), "as it is" if segmenter == "home" else segmenter, *cells])
    if len(rows) == 1:
        return []
    return [
        "## If you may touch the segmenter", "",
        f"mIoU of the training segmenter itself, as it is and after {found.record['instead']['steps']} further steps on noisy or on denoised frames of sigma 0-55, with labels.", "",
        *grid(rows),
    ]  # fmt: skip


def left_out(found: Found) -> list[str]:
    lines = [f"- `{name}`: {reason}" for name, reason in found.record.get("skipped", {}).items()]
    lines += [f"- {phase}: `{r['contestant']}`, factor {text(r['factor'])}, seed {r['seed']}: {r['error']}"
              for phase in ("screen", "final") for r in found.record[phase]["runs"] if r["state"] == "stopped"]  # fmt: skip
    return ["## Left out, or stopped", "", *lines, ""] if lines else []


def page(record: dict, words: str = f"{BEGIN}\n{END}", others: Sequence[tuple[str, dict]] = (), title: str = TITLE) -> str:
    """``words``: what people have written into the page, between two marks; the rest is written anew.

    ``others``: titles and JSONs of further comparisons.
    """
    found = Found(record)
    further = [line for title, other in others for line in again(title, Found(other), record["setting"])]
    parts = (head, lambda _: [words, ""], in_short, final, lambda _: further, screen, photographs, harm, give_back, instead, left_out)
    return f"# {title}\n\n" + "\n".join(line for part in parts for line in part(found)).rstrip() + "\n"


def loaded(file: Path) -> dict:
    try:
        content = file.read_bytes()
        return json.loads(gzip.decompress(content) if file.suffix == ".gz" else content)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        sys.exit(f"error: {file}: cannot be read ({error}); write it with examples/compare_awareness.py --collect")


def screened(record: dict, other: dict, file: Path) -> dict:
    """``record`` with the screen of ``other``, and who was left out there; both must be of one setting."""
    here, there = record["setting"], other["setting"]
    differ = [key for key in here if key in there and here[key] != there[key]]
    if differ:
        sys.exit(f"error: {file}: another setting than the page's ({', '.join(differ)}); its screen belongs on a page of its own")
    known = other["contestants"] | record["contestants"]  # an older screen does not know who came since
    return record | {"screen": other["screen"], "skipped": other["skipped"], "contestants": known}


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of the comparison, plain or as .json.gz")
    parser.add_argument("--out", type=Path, required=True, help="the page, whose tables are written anew; figures go to images/ beside it, under its name")
    parser.add_argument("--title", default=TITLE, help="of the page [%(default)s]")
    parser.add_argument("--screen", type=Path, help="results.json whose screen stands on the page [that of RESULTS]")
    parser.add_argument("--again", nargs=2, action="append", default=[], metavar=("TITLE", "RESULTS"), help="a further comparison")
    args = parser.parse_args(argv)
    record, *others = [loaded(file) for file in (args.results, *(Path(file) for _, file in args.again))]
    titles = [title for title, _ in args.again]
    try:
        if args.screen is not None:
            record = screened(record, loaded(args.screen), args.screen)
        from segaware.evaluation.figures import png

        words = kept(args.out)
        written = page(record, BEGIN + END, list(zip(titles, others, strict=True)), args.title)
        written = written.replace("](images/awareness-", f"](images/{args.out.stem}-")  # two pages, two sets of figures
        kinds = {"frontier": frontier, "gains": gains, "keep": keep_curve}
        shown = {f"{args.out.stem}-{what}.png": figure for what, figure in kinds.items() if f"images/{args.out.stem}-{what}.png" in written}
        figures = {name: png(figure(Found(record))) for name, figure in shown.items()}  # before anything is written
        written = written.replace(BEGIN + END, words)  # as people wrote it
    except (KeyError, AttributeError, TypeError) as error:
        files = ", ".join(str(file) for file in (args.results, *(file for _, file in args.again), args.screen) if file)
        what = f"no {error} in it" if isinstance(error, KeyError) else f"not the results of a comparison ({error})"
        sys.exit(f"error: {files}: {what}; write it anew with examples/compare_awareness.py --collect")
    images = args.out.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name, content in figures.items():
        (images / name).write_bytes(content)
    partial = args.out.with_name(f".{args.out.name}.partial")  # whole or not at all: part of it people have written
    partial.write_text(written, encoding="utf-8")
    os.replace(partial, args.out)
    print(args.out)
    return args.out


if __name__ == "__main__":
    main()
