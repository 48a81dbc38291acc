"""Ten noise draws a method, tested as in Table X of the U-SAID paper, beside the test that it should have been.

    python examples/studies/noise_draws.py --data CamVid --judge deeplab-camvid --sigma 25 --draws 10 \\
        --model plain=runs/plain/model --model aware=runs/aware/model --out runs/noise-draws

The paper's p-values (two-sided t, pooled variance, over draws) ask whether another draw of the noise would change the
order of *these* trainings on *these* images. Whether other images would, the bootstrap over images asks. --data is a
folder of images (PSNR, NIQE, consistency) or a labelled set (mIoU too). Goes through segaware.evaluation: a run that was
cut short goes on. Writes the report, noise-draws.json and noise-draws.png to --out.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from segaware.errors import EvaluationError, SegawareError
from segaware.evaluation.figures import _pyplot, png
from segaware.evaluation.protocol import Noise, Protocol
from segaware.evaluation.report import write_report
from segaware.evaluation.results import number
from segaware.evaluation.runner import evaluate
from segaware.evaluation.significance import statistic
from segaware.evaluation.sources import open_source
from segaware.evaluation.summary import summarise


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--model", action="append", required=True, help="as for segaware evaluate; repeat")
    p.add_argument("--judge", nargs="*", default=[])
    p.add_argument("--sigma", type=float, default=25.0)
    p.add_argument("--draws", type=int, default=10)
    p.add_argument("--metric", nargs="*", default=["psnr", "niqe"])
    p.add_argument("--limit", type=int)
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args(argv)
    if args.draws < 2:
        raise EvaluationError(f"--draws {args.draws}: a test over draws needs two, the paper has ten")
    source = open_source(args.data).select(limit=args.limit)
    protocol = Protocol(noises=(Noise(sigma=args.sigma),), draws=args.draws, metrics=tuple(args.metric))
    results = evaluate(source, args.model, protocol, judges=args.judge, out=args.out)
    summary = summarise(results)
    write_report(results, args.out, ("json", "md"), summary=summary)

    names = [name for name in results.names if name != "noisy"]
    record, figures = [], {}
    for measure in (m for m in results.measures if m.major):
        noise = results.noises[0]
        for name in names:
            index = results.names.index(name)
            per_draw = [results.data(measure, index, 0, draw) for draw in range(args.draws)]
            figures[measure.key, name] = [float(statistic(d.mean(0) if measure.kind == "mean" else d.sum(0), measure.kind)) for d in per_draw]
        for i, first in enumerate(names):
            values = figures[measure.key, first]
            if summary.entry(measure.key, noise, first) is None:
                print(f"{measure.title}: measured on no image of {first}; report.md has the reasons")
                continue
            row = {"measure": measure.key, "method": first, "mean": number(np.mean(values)), "variance": number(np.var(values, ddof=1)), "against": {}}
            for second in names[:i]:
                found = summary.comparison(measure.key, noise, first, second)
                if found is None:  # no image that both have
                    continue
                row["against"][second] = {"difference": number(found.difference), "p_draws": found.p_draws, "p_images": number(found.p),
                                          "low": number(found.low), "high": number(found.high)}  # fmt: skip
                print(f"{measure.title}: {first} - {second} {measure.text(found.difference, signed=True)}, p over draws"
                      f" {'-' if found.p_draws is None else format(found.p_draws, '.2g')}, p over images {found.p:.2g}")  # fmt: skip
            record.append(row)
    (args.out / "noise-draws.json").write_text(json.dumps({"sigma": args.sigma, "draws": args.draws, "images": len(source), "rows": record}, indent=1) + "\n")
    measures = [m for m in results.measures if m.major]
    figure = _pyplot()(3.2 * len(measures), 3.2)
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        for place, name in enumerate(names):
            values = np.array(figures[measure.key, name]) * (100 if measure.percent else 1)
            axes.plot(np.full(len(values), place) + np.linspace(-0.15, 0.15, len(values)), values, "o", ms=3, color="#0072B2")
            entry = summary.entry(measure.key, results.noises[0], name)
            if entry is None:
                continue
            scale = 100 if measure.percent else 1
            axes.errorbar([place + 0.3], [scale * entry.value], yerr=[[scale * (entry.value - entry.low)], [scale * (entry.high - entry.value)]], fmt="s", ms=4, color="#D55E00")
        axes.set_xticks(range(len(names)), names, rotation=30, fontsize=8)
        axes.set_title(f"{measure.title}\ndots: draws; bar: interval over images", fontsize=8)
    (args.out / "noise-draws.png").write_bytes(png(figure))
    return record


if __name__ == "__main__":
    try:
        main()
    except SegawareError as error:
        sys.exit(f"error: {error}")
