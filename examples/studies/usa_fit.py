"""How fast does the USA module fit true, block-permuted and pixel-permuted label maps? Figure 2 of the U-SAID paper, on CamVid.

    python examples/studies/usa_fit.py --data CamVid --backbone-weights squeezenet1_0.safetensors --out runs/usa-fit

The backbone is fixed, the rest starts random and learns by cross-entropy (unlike in U-SAID itself, where all of it is
fixed). Each map is permuted once: its four quadrants among each other, or all its pixels. The paper's claim: the truer the
map, the faster the fit, so such a module prefers images that look like segmentable ones. It trains on VOC 2012 with
ResNet-101. Killed at any moment, the same command goes on. Writes usa-fit.json and usa-fit.png to --out.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from settings import at_least_one, same_study

from segaware import FPNSegmenter
from segaware.errors import SegawareError
from segaware.evaluation.figures import _pyplot, png
from segaware.evaluation.sources import open_source
from segaware.losses.task import task

KINDS = ("true", "blocks", "pixels")


def permuted(labels: torch.Tensor, kind: str, seed: int) -> torch.Tensor:
    """``labels (H, W)``, even sides: as they are, quadrants permuted (never as they were), or all pixels permuted."""
    random = np.random.default_rng(seed)
    if kind == "pixels":
        return labels.flatten()[torch.from_numpy(random.permutation(labels.numel()))].reshape(labels.shape)
    if kind == "blocks":
        order = random.permutation(4)
        while (order == np.arange(4)).any():
            order = random.permutation(4)
        h, w = labels.shape[0] // 2, labels.shape[1] // 2
        quadrants = [labels[:h, :w], labels[:h, w:], labels[h:, :w], labels[h:, w:]]
        a, b, c, d = (quadrants[i] for i in order)
        return torch.cat([torch.cat([a, b], 1), torch.cat([c, d], 1)])
    return labels


def load(args):
    """All training frames at half size (images (3, h, w) uint8, labels (h, w))."""
    source = open_source(args.data, "camvid", split="train").select(limit=args.limit)
    frames = []
    for item in source:
        sample = source.load(item)
        image = F.interpolate(sample.clean[None], scale_factor=1 / args.shrink, mode="bilinear", antialias=args.shrink > 1)[0]
        height, width = (side // 2 * 2 for side in image.shape[1:])
        labels = F.interpolate(sample.labels[None, None].float(), size=image.shape[1:], mode="nearest-exact")[0, 0].long()
        frames.append(((image[:, :height, :width] * 255).round().to(torch.uint8), labels[:height, :width]))
    return frames, len(source.classes)


def guessing(frames, classes: int) -> dict[str, float]:
    """Cross-entropy of who knows class shares alone, of all frames together or of each: at stride 4, where the loss looks."""
    small = [F.interpolate(labels[None, None].float(), size=[-(-side // 4) for side in labels.shape], mode="nearest").flatten().long() for _, labels in frames]
    counts = torch.stack([torch.bincount(labels[labels != 255], minlength=classes) for labels in small]).double()

    def entropy(of: torch.Tensor) -> torch.Tensor:
        shares = of / of.sum(-1, keepdim=True).clamp_min(1)
        return -torch.xlogy(shares, shares).sum(-1)

    weights = counts.sum(1) / counts.sum()
    return {"shares of all": float(entropy(counts.sum(0))), "shares of each": float((weights * entropy(counts)).sum())}


def fit_one(args, kind: str, seed: int, frames, classes: int) -> list[float]:
    """Cross-entropy at every step of one training."""
    file = args.out / f"{kind}-s{seed}.json"
    if file.is_file():
        return json.loads(file.read_text())
    torch.manual_seed(seed)
    net = FPNSegmenter(classes, args.backbone, args.backbone_weights, args.width, head="released")
    net.backbone.requires_grad_(False)
    optimiser = torch.optim.Adam(net.head_parameters(), lr=args.rate)
    checkpoint, losses = args.out / f"{kind}-s{seed}.pt", []
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        losses = state["losses"]
    net.eval()  # a fixed backbone: its statistics as well
    saved = time.monotonic()
    while len(losses) < args.steps:
        chosen = np.random.default_rng([seed, len(losses)]).integers(len(frames), size=args.batch_size)
        images = torch.stack([frames[i][0] for i in chosen]).float() / 255
        labels = torch.stack([permuted(frames[i][1], kind, seed=int(i)) for i in chosen])
        loss = task(net(images), labels, resize="labels")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        if time.monotonic() - saved > args.save_every:
            partial = checkpoint.with_suffix(".partial")
            torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "losses": losses}, partial)
            os.replace(partial, checkpoint)
            saved = time.monotonic()
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(losses))
    os.replace(partial, file)
    checkpoint.unlink(missing_ok=True)
    return losses


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="CamVid in SegNet's layout")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--backbone", default="squeezenet1_0")
    p.add_argument("--backbone-weights", help="ImageNet weights; default: random")
    p.add_argument("--width", type=int, default=256)
    p.add_argument("--steps", type=int, default=500)
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--batch-size", type=int, default=4)
    p.add_argument("--shrink", type=int, default=2, help="frames are made smaller by this factor")
    p.add_argument("--limit", type=int, help="only so many frames")
    p.add_argument("--rate", type=float, default=1e-4, help="1e-3 throws the released head, which has no normalisation, far off at first")
    p.add_argument("--save-every", type=float, default=60, help="seconds between checkpoints")
    args = p.parse_args(argv)
    at_least_one(args, "width", "steps", "batch_size", "shrink", "limit")
    options = same_study(args, ("seeds", "save_every"))
    frames, classes = load(args)
    curves = {}
    for seed in args.seeds:
        for kind in KINDS:
            curves.setdefault(kind, []).append(fit_one(args, kind, seed, frames, classes))
            print(f"{kind}, seed {seed}: {np.mean(curves[kind][-1][-20:]):.3f} over the last 20 steps", flush=True)
    result = {**options, "frames": len(frames), "guessing": guessing(frames, classes), "curves": curves, "final": {k: [float(np.mean(c[-20:])) for c in v] for k, v in curves.items()}}
    (args.out / "usa-fit.json").write_text(json.dumps(result) + "\n")
    figure = _pyplot()(6, 3.6)
    axes = figure.subplots()
    names = {"true": "true maps", "blocks": "quadrants permuted", "pixels": "pixels permuted"}
    for kind, colour in zip(KINDS, ("#0072B2", "#E69F00", "#D55E00"), strict=True):
        for index, curve in enumerate(curves[kind]):
            width = max(1, len(curve) // 25)
            smooth = np.convolve(curve, np.ones(width) / width, "valid")
            axes.plot(np.arange(len(smooth)) + width, smooth, color=colour, lw=1, label=names[kind] if index == 0 else None)
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy, running mean")
    axes.legend(fontsize=8)
    (args.out / "usa-fit.png").write_bytes(png(figure))
    return result


if __name__ == "__main__":
    try:
        main()
    except SegawareError as error:
        sys.exit(f"error: {error}")
