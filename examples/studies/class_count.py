"""How many classes should U-SAID's random segmenter have? The paper's Table II, with seeds.

    python examples/studies/class_count.py --train BSDS500/train --test CBSD68 --start dncnn-blind \\
        --backbone-weights squeezenet1_0.safetensors --out runs/class-count

The paper prints one number for each K and finds its peak at 21. Here each K is trained with several seeds from one start:
a peak that is less than the spread of its seeds is no peak. A seed draws the random head as well as patches and noise;
--heads draws the head apart, each with each of --seeds, which tells whose luck it is. Killed at any moment, the same
command goes on. Writes class-count.json and class-count.png to --out. Needs the extras train, eval and viz.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from settings import at_least_one, same_study

from segaware import FPNSegmenter, SegAwareWrapper, from_pretrained
from segaware.errors import SegawareError
from segaware.evaluation.contestants import Model
from segaware.evaluation.figures import _pyplot, png
from segaware.evaluation.protocol import Noise, Protocol
from segaware.evaluation.runner import evaluate
from segaware.evaluation.sources import open_source
from segaware.losses.entropy import EntropySegAwareLoss
from segaware.training import Recipe, fit


def train(args, classes: int, head: int, seed: int, folder: Path) -> Path:
    """One U-SAID (K classes; 0 = fidelity alone) from the start; the folder of its model."""
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    terms = ()
    if classes:
        torch.manual_seed(head)  # it is part of the loss
        segmenter = FPNSegmenter(classes, args.backbone, args.backbone_weights, args.width, head="released")
        terms = (args.gamma, EntropySegAwareLoss(segmenter))
    recipe = Recipe(
        steps=args.steps, batch_size=args.batch_size, patch_size=args.patch_size, optimizer="muon", learning_rate=args.rate,
        schedule="trapezoid", warmup=min(50, args.steps // 4), cooldown=args.steps - args.steps // 4, fixed_norm_steps=args.steps,
        measure_norm=False, seed=seed, precision=args.precision, log_every=max(1, args.steps // 20),
    )  # fmt: skip
    return fit(SegAwareWrapper(from_pretrained(args.start), terms), args.train, recipe, folder, progress=args.progress).model


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--train", type=Path, required=True, help="folder of clean images")
    p.add_argument("--test", type=Path, required=True, help="folder of clean images")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--start", default="dncnn-blind")
    p.add_argument("--classes", nargs="+", type=int, default=[10, 21, 40])
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--heads", nargs="+", type=int, help="seeds of the random head, each with each of --seeds; default: that of the data")
    p.add_argument("--gamma", type=float, default=1.0, help="1 is the paper's")
    p.add_argument("--backbone", default="squeezenet1_0")
    p.add_argument("--backbone-weights", help="ImageNet weights; default: random")
    p.add_argument("--width", type=int, default=256)
    p.add_argument("--sigma", type=float, default=25.0)
    p.add_argument("--limit", type=int, help="only so many test images")
    p.add_argument("--metric", nargs="+", default=["psnr", "niqe"], help="the paper's are PSNR and NIQE")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--patch-size", type=int, default=48)
    p.add_argument("--rate", type=float, default=3e-4)
    p.add_argument("--precision", default="auto")
    p.add_argument("--progress", action="store_true")
    args = p.parse_args(argv)
    at_least_one(args, "width", "steps", "batch_size", "patch_size", "limit")
    options = same_study(args, ("classes", "seeds", "heads", "test", "limit", "sigma", "metric"))
    source = open_source(args.test, "folder").select(limit=args.limit)
    protocol = Protocol(noises=(Noise(sigma=args.sigma),), metrics=tuple(args.metric), seed_by="index")
    rows = []
    for classes in (0, *args.classes):
        for seed, head in ((s, h) for s in args.seeds for h in (args.heads if classes and args.heads else [s])):
            place = args.out / (f"k{classes}-s{seed}" if head == seed else f"k{classes}-h{head}-s{seed}")
            folder = train(args, classes, head, seed, place)
            results = evaluate(source, [Model("it", folder)], protocol, out=place / "test")
            values = {m.key: float(np.nanmean(results.data(m, results.names.index("it"), 0))) for m in results.measures}
            logged = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]
            shares = [r["terms"]["entropy"]["gradient"] / r["terms"]["fidelity"]["gradient"] for r in logged if "entropy" in r.get("terms", {})]
            rows.append({"classes": classes, "head": head if classes else None, "seed": seed, **values, "gradient_share": float(np.mean(shares)) if shares else 0.0})
            print(rows[-1], flush=True)
    (args.out / "class-count.json").write_text(json.dumps({**options, "sigma": args.sigma, "images": len(source), "rows": rows}, indent=1) + "\n")
    (args.out / "class-count.png").write_bytes(png(draw(rows, args.metric)))
    return rows


def draw(rows, metrics):
    """Every seed a dot, the mean a line; K = 0 is fidelity alone."""
    figure = _pyplot()(4 * len(metrics), 3.2)
    kinds = list(dict.fromkeys(row["classes"] for row in rows))
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        means = [np.mean([row[metric] for row in rows if row["classes"] == k]) for k in kinds]
        axes.plot(range(len(kinds)), means, "-", color="#0072B2")
        axes.plot([kinds.index(row["classes"]) for row in rows], [row[metric] for row in rows], "o", color="#D55E00", ms=4)
        axes.set_xticks(range(len(kinds)), ["none" if k == 0 else str(k) for k in kinds])
        axes.set_xlabel("classes of the random segmenter")
        axes.set_ylabel({"psnr": "PSNR, dB", "niqe": "NIQE (less is better)", "ssim": "SSIM"}[metric])
    return figure


if __name__ == "__main__":
    try:
        main()
    except SegawareError as error:
        sys.exit(f"error: {error}")
