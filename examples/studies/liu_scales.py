"""How many scales, how wide, with or without the skip? Table I of Liu et al. (TIP 2020), as far as its topology is known.

    python examples/studies/liu_scales.py --train BSDS500/train --test Kodak --steps 2000 --out runs/liu-scales

The paper compares PSNR at sigma 35 on Kodak after long trainings, one each. Its parameter counts cannot be reproduced by
any wiring tried (see LiuDenoiser), so neither is this table, exactly; the order of its cells is what can be looked at.
Killed at any moment, the same command goes on. Writes liu-scales.json and liu-scales.png to --out. Needs the extras train, eval and viz.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from settings import at_least_one, same_study

from segaware import LiuDenoiser, SegAwareWrapper
from segaware.errors import SegawareError
from segaware.evaluation.contestants import Model
from segaware.evaluation.figures import _pyplot, png
from segaware.evaluation.protocol import Noise, Protocol
from segaware.evaluation.runner import evaluate
from segaware.evaluation.sources import open_source
from segaware.training import Recipe, fit

#: (encoder width, decoder width, skip) of the table's columns, and its PSNR by scales.
COLUMNS = {
    "128/128": (128, 128, True), "128/256 without skip": (128, 256, False), "128/256": (128, 256, True), "256/256": (256, 256, True),
}  # fmt: skip
PAPER = {2: (30.41, 30.39, 30.54, 30.70), 3: (30.64, 30.52, 30.83, 30.87), 4: (30.76, 30.67, 30.91, 30.96)}


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--train", type=Path, required=True, help="folder of clean images")
    p.add_argument("--test", type=Path, required=True, help="folder of clean images; the paper's are Kodak's")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--scales", nargs="+", type=int, default=[2, 3, 4])
    p.add_argument("--columns", nargs="+", default=list(COLUMNS), choices=list(COLUMNS), metavar="NAME", help=", ".join(COLUMNS))
    p.add_argument("--divide", type=int, default=1, help="widths of encoder and decoder by so much, for a quick look; the first convolution keeps its 64")
    p.add_argument("--seeds", nargs="+", type=int, default=[0])
    p.add_argument("--sigma", type=float, default=35.0)
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--patch-size", type=int, default=48)
    p.add_argument("--rate", type=float, default=1e-3)
    p.add_argument("--precision", default="auto")
    p.add_argument("--limit", type=int, help="only so many test images")
    p.add_argument("--progress", action="store_true")
    args = p.parse_args(argv)
    at_least_one(args, "divide", "steps", "batch_size", "patch_size", "limit")
    options = same_study(args, ("scales", "columns", "seeds", "test", "limit"))
    source = open_source(args.test, "folder").select(limit=args.limit)
    protocol = Protocol(noises=(Noise(sigma=args.sigma),), metrics=("psnr",), seed_by="index")
    rows = []
    for scales in args.scales:
        for column in args.columns:
            encoder, decoder, skip = COLUMNS[column]
            for seed in args.seeds:
                folder = args.out / f"{scales}-{column.replace('/', '-').replace(' ', '-')}-s{seed}"
                torch.manual_seed(seed)
                net = LiuDenoiser(3, scales, encoder // args.divide, decoder // args.divide, skip)
                recipe = Recipe(
                    steps=args.steps, batch_size=args.batch_size, patch_size=args.patch_size, sigma=(args.sigma, args.sigma),
                    optimizer="muon", learning_rate=args.rate, schedule="trapezoid", warmup=min(50, args.steps // 4),
                    cooldown=args.steps * 2 // 3, fixed_norm_steps=args.steps, seed=seed, precision=args.precision,
                )  # fmt: skip
                if not (folder / "model" / "config.json").is_file():
                    fit(SegAwareWrapper(net, ()), args.train, recipe, folder, progress=args.progress)
                results = evaluate(source, [Model("it", folder / "model")], protocol, out=folder / "test")
                psnr = float(np.nanmean(results.data(results.measures[0], results.names.index("it"), 0)))
                rows.append({"scales": scales, "column": column, "seed": seed, "parameters": sum(p.numel() for p in net.parameters()), "psnr": psnr,
                             "paper": PAPER.get(scales, (None,) * 4)[list(COLUMNS).index(column)]})  # fmt: skip
                print(rows[-1], flush=True)
    (args.out / "liu-scales.json").write_text(json.dumps({**options, "images": len(source), "rows": rows}, indent=1) + "\n")
    figure = _pyplot()(6, 3.6)
    axes = figure.subplots()
    for column, colour in zip(args.columns, ("#0072B2", "#E69F00", "#009E73", "#D55E00"), strict=False):
        here = [row for row in rows if row["column"] == column]
        axes.plot([row["parameters"] / 1e6 for row in here], [row["psnr"] for row in here], "o", color=colour, label=column)
        for row in here:
            axes.annotate(str(row["scales"]), (row["parameters"] / 1e6, row["psnr"]), fontsize=8, xytext=(3, 3), textcoords="offset points")
    axes.set_xlabel("parameters, millions (number: scales)")
    axes.set_ylabel(f"PSNR at sigma {args.sigma:g}, dB")
    axes.legend(fontsize=8)
    (args.out / "liu-scales.png").write_bytes(png(figure))
    return rows


if __name__ == "__main__":
    try:
        main()
    except SegawareError as error:
        sys.exit(f"error: {error}")
