"""Measure the stages of a cascade and of what it is compared with, and write docs/sdabn.md.

    python docs/make_sdabn.py --runs RUNS --camvid CamVid

``--runs`` is the --out folder of examples/train_sdabn.py, with the stages that there are: rows of others
say which command trains them. ``--camvid`` holds val/ and valannot/. What is measured stays in ``--work``,
so that a killed run goes on and a new stage costs its own time only; ``--page`` writes the page from there.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segaware.baselines import LabelCondition
from segaware.cascade import SDB
from segaware.class_maps import class_colours
from segaware.entries import load_entry, locate, read_config
from segaware.errors import EvaluationError, SegawareError
from segaware.evaluation.cells import Cells
from segaware.evaluation.contestants import hash_module
from segaware.evaluation.figures import png
from segaware.evaluation.protocol import Protocol, digest, parse_noise
from segaware.evaluation.significance import compare, interval, replicates, resample, statistic
from segaware.evaluation.sources import open_source
from segaware.inference.folding import fold_batch_norm
from segaware.inference.memory import keep_pages
from segaware.metrics import convention
from segaware.task_metrics import confusion_matrix, predict_labels

DOCS = Path(__file__).parent
CACHE = 1
#: Looks and the stages they need beside what they build on: images ("x1") and segmentations ("S1 sees").
IMAGES = ("DDFN1", "DDFN2", "DDFN3", "x1", "x2", "x3", "ImgD", "GtD1", "DMS", "joint")
MAPS = ("S0 on clean", "S0 on noisy", "S0 on DDFN1", "S0 on DMS", "S1", "S2", "S3", "DDFN1+S", "DDFN2+S", "GtD1+S", "S1+", "joint+")
VARIANT = {
    "D0": "D0", "DDFN": "DDFN --stages 3", "x": "progressive --stages 3", "ImgD": "ImgD", "GtD1": "GtD1", "DMS": "DMS", "joint": "joint",
    "S1+": "S1+", "DDFN1+S": "X+S --on D0", "DDFN2+S": "X+S --on DDFN2", "GtD1+S": "X+S --on GtD1", "S0 on DDFN1": "denoise-then-segment",
}  # fmt: skip

#: The papers' figures at sigma 50: Cityscapes, OutdoorSeg. PSNR and SSIM, or mIoU, pixel and class accuracy.
PAPER = {
    "DDFN1": ((34.157, 0.9082), (27.97, 0.8106)), "DDFN2": ((34.28, 0.9099), (28.06, 0.8136)), "DDFN3": ((34.34, 0.9108), (28.10, 0.8147)),
    "x1": ((34.231, 0.9100), (28.01, 0.8115)), "x2": ((34.34, 0.9115), (28.10, 0.8152)), "x3": ((34.42, 0.9122), (28.14, 0.8159)),
    "ImgD": ((34.09, 0.9072), None), "GtD1": ((34.234, 0.9099), None), "DMS": ((33.74, 0.9005), (27.89, 0.8063)),
    "S0 on clean": ((76.2, 96.0, 84.5), (78.9, 90.0, 87.9)), "S1": ((63.9, 93.41, 74.0), (75.2, 88.25, 85.8)),
    "S2": ((66.1, 94.05, 76.3), (76.4, 88.85, 86.0)), "S3": ((66.5, 94.06, 75.6), (76.7, 89.11, 86.5)),
    "S0 on DDFN1": ((40.5, 72.5, 59.2), (72.8, 86.3, 82.4)), "S0 on DMS": ((51.9, 88.6, 61.4), (75.0, 87.9, 85.1)),
    "DDFN1+S": ((64.7, 93.8, 74.7), None), "DDFN2+S": ((65.7, 93.9, 75.6), None), "GtD1+S": ((87.0, 98.4, 92.3), None),
    "S1+": ((65.1, 93.8, 75.4), None), "joint+": ((57.1, 92.0, 66.8), None),
}  # fmt: skip
#: What the paper claims: words, first, second; PSNR (dB) of images, mIoU (points) of segmentations.
CLAIMS = (
    ("Segmenting first helps the denoiser (SDB x 1 - DDFN x 1)", "x1", "DDFN1"),
    ("It still does after three rounds (SDB x 3 - DDFN x 3)", "x3", "DDFN3"),
    ("Three blocks denoise better than one (SDB x 3 - SDB x 1)", "x3", "x1"),
    ("Three plain denoisers are better than one (DDFN x 3 - DDFN x 1)", "DDFN3", "DDFN1"),
    ("The third block segments better than the first (S3 - S1)", "S3", "S1"),
    ("Trained on noisy images it sees more than the clean-trained one on denoised images (S1 - S0 on DDFN x 1)", "S1", "S0 on DDFN1"),
    ("A segmenter trained on denoised images sees more than one trained on noisy images (DDFN x 1 + S - S1)", "DDFN1+S", "S1"),
    ("A segmenter after the block sees more than after a plain denoiser (S1D1 + S - DDFN x 1 + S)", "S2", "DDFN1+S"),
    ("True labels as condition hardly help (GtD1 - SDB x 1)", "GtD1", "x1"),
    ("It is not the size of the SFT layers (SDB x 1 - ImgD)", "x1", "ImgD"),
    ("Better images than DMS (SDB x 1 - DMS)", "x1", "DMS"),
    ("Better segmentation than DMS (S1 - S0 on DMS)", "S1", "S0 on DMS"),
    ("It is not the size of the segmenter (S1D1S2 - S1+)", "S2", "S1+"),
    ("Training one after the other beats training jointly (S1D1S2 - joint)", "S2", "joint+"),
    ("A segmenter reads the labels off the oracle's images (GtD1 + S - S1D1 + S)", "GtD1+S", "S2"),
)
#: A paper's difference below this says "hardly any": dB, points.
SMALL = {"psnr": 0.02, "iou": 0.5}
#: Verdict where the paper has no figure, for its levels are others.
NOT_THERE = "-"


def needs(name):
    """All stages that a look needs."""
    if found := re.fullmatch(r"x(\d)", name):
        return {f"{part}{i}" for i in range(1, int(found[1]) + 1) for part in "SD"}
    if found := re.fullmatch(r"DDFN(\d)", name):
        return {f"DDFN{i}" for i in range(1, int(found[1]) + 1)}
    if found := re.fullmatch(r"S([1-9])", name):
        return {name} | (needs(f"x{int(found[1]) - 1}") if name != "S1" else set())
    if name.startswith("S0 on "):
        return {"S0"} | (needs(name[6:]) if name[6:] in IMAGES else set())
    if name.endswith("+S"):
        return {name} | needs(name[:-2])
    return {"joint"} if name.startswith("joint") else {name}


class Frame:
    """One image with one noise: what every network makes of it, each computed once."""

    def __init__(self, networks, condition, clean, noisy, labels):
        self.networks, self.condition, self.known = networks, condition, {}
        self.clean, self.noisy, self.labels = clean, noisy, labels

    def look(self, name):
        """An image ``(1, 3, H, W)``, or logits ``(1, K, h, w)``."""
        if name not in self.known:
            self.known[name] = self._compute(name)
        return self.known[name]

    def _compute(self, name):
        nets = self.networks
        if name in ("noisy", "clean"):
            return getattr(self, name)
        if name.startswith("joint"):
            *_, last = nets["joint"].stages(self.noisy)
            self.known["joint"], self.known["joint+"] = last.image, last.logits
            return self.known[name]
        if name.startswith("S0 on "):
            return nets["S0"](self.look(name[6:]))
        if name.endswith("+S"):
            return nets[name](self.look(name[:-2]))
        found = re.fullmatch(r"(x|S|DDFN)([1-9])", name)
        if found is None:
            net = nets[name]
            return net(self.noisy, labels=self.labels) if isinstance(net, LabelCondition) else net(self.noisy)
        kind, number = found[1], int(found[2])
        before = self.look(f"{'DDFN' if kind == 'DDFN' else 'x'}{number - 1}") if number > 1 else None
        if kind == "S":
            return nets[name](self.noisy if before is None else before)
        total = self.noisy if before is None else before + self.noisy
        if kind == "DDFN":
            return nets[name](total)
        return SDB(nets[f"S{number}"], nets[f"D{number}"], condition=self.condition).clean(total, self.look(f"S{number}"))


def stages_in(runs, noise, start):
    """Folders of the finished stages, by name; all trained with the noise that is asked for. ``start`` stands for S0."""
    found = {} if start is None else {"S0": locate(start)}
    words = f"Poisson, peak {noise.peak:g}" if noise.kind == "poisson" else f"AWGN, sigma {noise.sigma:g}"
    for file in sorted(runs.glob("*/model/config.json")):
        config = read_config(file.parent)
        if isinstance(config.get("setting"), dict):
            if config["training_noise"] != words:
                raise EvaluationError(f"{file}: trained with {config['training_noise']}, not {words}; give --noise, or another folder")
            found[config["setting"]["stage"]] = file.parent
    if not found.keys() - {"S0"}:
        raise EvaluationError(f"{runs}: no finished stage of examples/train_sdabn.py (NAME/model/config.json)")
    return found


def measure(args, source, protocol, folders):
    """``{look: {"psnr": (n,), "ssim": (n,)} or {"iou": (n, K, K)}}`` for all that can be looked at."""
    names = [name for name in (*IMAGES, *MAPS) if needs(name) <= folders.keys()]
    used = sorted(set().union(*(needs(name) for name in names)))
    networks = {name: load_entry(folders[name]) for name in used}
    hashes = {name: hash_module(network) for name, network in networks.items()}
    condition = next((read_config(folders[name])["setting"]["condition"] for name in used if name.startswith("D")), "logits")
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}  # as trained, before folding
    for network in networks.values():
        fold_batch_norm(network)
        network.to(memory_format=torch.channels_last).requires_grad_(False)
    keys = {name: f"{name}/{digest(CACHE, condition, *(hashes[one] for one in sorted(needs(name))))[:16]}" for name in names}
    noise, metrics, classes = protocol.noises[0], convention(protocol.preset), len(source.classes)
    data = {name: [] for name in (*names, "noisy")}
    keys["noisy"] = "noisy"
    with Cells(args.work) as cells, keep_pages(), torch.inference_mode():
        for item in source:
            sample = source.load(item)
            identity = hashlib.sha256(sample.clean.numpy().tobytes() + sample.labels.numpy().tobytes()).hexdigest()
            rows = {name: [] for name in data}
            for draw in range(protocol.draws):
                cell = digest(CACHE, identity, protocol.noise_key(noise, name=item.name, index=item.index, draw=draw), protocol.preset)
                known = cells.get(cell)
                missing = [name for name in data if keys[name] not in known]
                if missing and args.page:
                    raise EvaluationError(f"{args.work}: {missing[0]} is not measured on {item.name}; leave --page out")
                if missing:
                    noisy = protocol.noisy(sample.clean, noise, name=item.name, index=item.index, draw=draw)[None]
                    frame = Frame(networks, condition, sample.clean[None], noisy, sample.labels[None])
                    fresh = {}
                    for name in missing:
                        result = frame.look(name)
                        if name in MAPS:
                            said = predict_labels(result, sample.labels.shape)
                            fresh[keys[name]] = confusion_matrix(said, sample.labels[None], classes)[0].tolist()
                        else:
                            pair = result, frame.clean
                            fresh[keys[name]] = [float(metrics.psnr(*pair)), float(metrics.ssim(*pair))]
                    cells.put(cell, fresh)
                    known |= fresh
                for name in data:
                    rows[name].append(known[keys[name]])
            for name, found in rows.items():
                found = np.array(found, dtype=np.float64)
                data[name].append(found.sum(0) if name in MAPS else found.mean(0))
            print(f"{item.index + 1} of {len(source)}: {item.name}", flush=True)
    stacked = {name: np.stack(rows) for name, rows in data.items()}
    return networks, sizes, condition, {n: {"iou": a} if n in MAPS else {"psnr": a[:, 0], "ssim": a[:, 1]} for n, a in stacked.items()}


class Page:
    """The tables and words, from what was measured."""

    def __init__(self, args, source, protocol, sizes, data, folders):
        self.args, self.source, self.protocol, self.data, self.folders = args, source, protocol, data, folders
        self.sizes = sizes
        self.block = protocol.block or source.block
        self.weights = resample(len(source), block=self.block)
        self.units = -(-len(source) // min(self.block, len(source)))
        self.paper = protocol.noises[0].kind == "gaussian" and protocol.noises[0].sigma == 50

    def figure(self, name, kind):
        """Value with its interval, as text; for segmentations all three measures."""
        values = self.data[name]
        if kind == "image":
            psnr, ssim = values["psnr"], values["ssim"].mean()
            low, high = interval(psnr.mean(), replicates(psnr, self.weights), units=self.units)
            return f"{psnr.mean():.2f}{limits(low, high, 2)} / {ssim:.4f}"
        matrix = values["iou"]
        value = float(statistic(matrix.sum(0), "iou"))
        low, high = interval(value, replicates(matrix, self.weights, "iou"), units=self.units)
        rest = [100 * float(statistic(matrix.sum(0), kind)) for kind in ("accuracy", "recall")]
        return f"{100 * value:.1f}{limits(100 * low, 100 * high, 1)} / {rest[0]:.1f} / {rest[1]:.1f}"

    def cell(self, name):
        if name in self.data:
            return self.figure(name, "classes" if name in MAPS else "image")
        return "not trained"

    def papers(self, name):
        """The paper's figures on both sets, as text."""
        out = []
        for values in PAPER.get(name, (None, None)) if self.paper else (None, None):
            if values is None:
                out.append("-")
            else:
                out.append(f"{values[0]:.2f} / {values[1]:.4f}" if len(values) == 2 else " / ".join(map(str, values)))
        return out

    def rows(self, *rows):
        """Markdown rows of (label, look)."""
        return grid([["", "CamVid (ours)", "Cityscapes (paper)", "OutdoorSeg (paper)"], *([label, self.cell(n), *self.papers(n)] for label, n in rows)])

    def claim(self, words, first, second):
        kind = "iou" if first in MAPS else "psnr"
        unit, factor = ("points", 100) if kind == "iou" else ("dB", 1)
        paper = [None if a is None or b is None else a[0] - b[0] for a, b in zip(PAPER[first], PAPER[second], strict=True)]
        shown = ["-" if d is None or not self.paper else f"{d:+.{1 if kind == 'iou' else 2}f}" for d in paper]
        if first not in self.data or second not in self.data:
            return [words, f"not trained: {', '.join(n for n in (first, second) if n not in self.data)}", *shown, ""]
        found = compare(
            self.data[first][kind], self.data[second][kind], self.weights, kind="iou" if kind == "iou" else "mean", block=self.block
        )  # fmt: skip
        difference, low, high = (factor * v for v in (found.difference, found.low, found.high))
        digits = 1 if kind == "iou" else 3
        ours = f"{difference:+.{digits}f}{limits(low, high, digits, '+')} {unit}"
        said = self.unequal(first, second) or (verdict(low, high, paper[0], SMALL[kind]) if self.paper else NOT_THERE)
        return [words, ours, *shown, said]

    def unequal(self, first, second):
        """In words, where the last stages of two looks were not trained alike; then nothing is shown by their difference."""
        budgets = []
        for name in (first, second):
            stage = re.sub(r"^x(\d)$", r"D\1", name.removesuffix("+") if name == "joint+" else name)
            config = read_config(self.folders[stage]) if stage in self.folders else {}
            if "setting" not in config:  # given, not trained here
                return ""
            recipe = config["setting"]["recipe"]
            budgets.append([recipe["steps"], recipe["batch_size"], recipe["learning_rate"]])
        if budgets[0] == budgets[1]:
            return ""
        rate = budgets[0][:2] == budgets[1][:2]
        return "unequal training: " + " against ".join(f"{n:,} steps of {b}{f' at {r:g}' if rate else ''}" for n, b, r in budgets)

    def text(self, strip):
        source, protocol, data = self.source, self.protocol, self.data
        label = protocol.noises[0].label
        claims = [self.claim(*claim) for claim in CLAIMS]
        held = [row[0] for row in claims if row[4].startswith("as in the paper")]
        open_ = [f"{row[0]}: {row[4]}" for row in claims if row[4] not in ("", NOT_THERE) and not row[4].startswith("as in the paper")]
        untried = [row[0] for row in claims if not row[4]]
        out = [
            "# SDABN: segmentation and denoising in turns", "",
            f"Written by `python docs/make_sdabn.py --runs RUNS --camvid DIR{self.start()} --noise '{label}' --draws {protocol.draws}`; every figure of ours"
            " is measured, none is typed."
            f" {source.name}, {len(source)} frames, {len(source.classes)} classes; {label}, neither clipped nor rounded; {protocol.draws}"
            f" noise draws a frame. PSNR by the convention of the paper's code (`sdabn`: nothing clipped, one pixel of border left"
            f" out), SSIM, of which it has none, on the same pixels with a Gaussian window; mIoU from one matrix for the set. Brackets are 95 % intervals; frames are resampled in blocks of {self.block} neighbours,"
            f" so that {len(source)} frames of video count as about {self.units}. Differences are paired: same frames, same noise."
            " **Each stage is one training**: intervals say nothing of another seed, and a point or a few hundredths of a dB may be one.", "",
            "The paper trained for days on other data; **only differences compare**. How to use a cascade: [segment.md](segment.md).", "",
            "## What reproduces", "",
        ]  # fmt: skip
        out += [f"- As in the paper: {text}." for text in held] + [f"- {text}." for text in open_]
        out += [f"- Not tried here: {text}." for text in untried]
        out += ["", grid([["claim", "CamVid (ours)", "Cityscapes", "OutdoorSeg", "verdict"], *claims]), ""]
        if strip:
            out += [f"![{strip[1]}]({strip[0]})", "", f"{strip[1]}.", ""]
        images = "PSNR (dB) / SSIM"
        maps = "mIoU / pixel accuracy / mean class accuracy, in percent"
        boost = [row for i in (1, 2, 3) for row in ((f"DDFN x {i}", f"DDFN{i}"), (f"SDB x {i}", f"x{i}"))]
        out += [
            "## Table 1: which input for the segmenter, which condition for the denoiser", "", f"{maps}:", "",
            self.rows(("S on clean images", "S0 on clean"), ("S on noisy images", "S1"), ("S on images of D0", "DDFN1+S")), "", f"{images}:", "",
            self.rows(("D0 (no condition)", "DDFN1"), ("SD (segmentation)", "x1"), ("ImgD (the image)", "ImgD")), "",
            "## Table 2: against denoising before a clean-trained segmenter", "", f"{images}:", "",
            self.rows(("DDFN", "DDFN1"), ("DMS", "DMS"), ("SDB", "x1")), "", f"{maps}:", "",
            self.rows(("DDFN, then S0", "S0 on DDFN1"), ("DMS (S0)", "S0 on DMS"), ("SDB (S1)", "S1")), "",
            "## Table 3: boosting", "", f"{images}:", "", self.rows(*boost), "", f"{maps}:", "",
            self.rows(*((f"SDB x {i}", f"S{i}") for i in (1, 2, 3))), "",
            "## Table 4: a segmenter after which denoiser", "", f"{images}:", "",
            self.rows(("DDFN x 1", "DDFN1"), ("DDFN x 2", "DDFN2"), ("S1D1", "x1"), ("GtD1 (oracle)", "GtD1")), "", f"{maps}, of a segmenter trained on them:", "",
            self.rows(("DDFN x 1 + S", "DDFN1+S"), ("DDFN x 2 + S", "DDFN2+S"), ("S1D1 + S (= S2)", "S2"), ("GtD1 + S (oracle)", "GtD1+S")), "",
            "## Table 5: size, or order of training", "", f"{maps}; the paper does not say how its S1+ is built, ours is wider and deeper:", "",
            self.rows(*((f"{words}, {self.size(*used)}", name) for words, name, used in (
                ("S1", "S1", ("S1",)), ("S1+", "S1+", ("S1+",)), ("S1D1S2, jointly", "joint+", ("joint",)), ("S1D1S2", "S2", ("S1", "D1", "S2"))
            ))), "",
            "## How the stages were trained", "", self.trained(), "",
        ]  # fmt: skip
        out += self.commands()
        out += ["The noisy frames themselves have " + self.figure("noisy", "image") + " (PSNR in dB / SSIM)."] if "noisy" in data else []
        return "\n".join(out).rstrip() + "\n"

    def size(self, *stages):
        return f"{sum(self.sizes[s] for s in stages) / 1e6:.2f} M" if all(s in self.sizes for s in stages) else "-"

    def trained(self):
        rows = [["stage", "parameters", "steps", "batch", "crop", "on the frames held out"]]
        first = [f"{part}{i}" for i in range(5) for part in "SD"]
        for name in sorted(self.folders, key=lambda n: (first.index(n) if n in first else len(first), n)):
            config = read_config(self.folders[name])
            if "setting" not in config:
                rows.append([name, f"{self.sizes[name]:,}" if name in self.sizes else "-", f"given: `{Path(self.args.start).name}`", "-", "-", "-"])
                continue
            recipe = config["setting"]["recipe"]
            told = {k: v for k, v in (config.get("measured") or {}).items() if name != "joint" or k != "psnr"}  # nothing asks its D1 for an image
            seen = ", ".join(f"{'PSNR' if k == 'psnr' else 'mIoU'} {v:g}" for k, v in told.items()) or "-"
            if config["setting"].get("judge"):
                seen += f" (task loss times {config['setting']['judge'][1]:g})"
            size = f"{self.sizes[name]:,}" if name in self.sizes else "-"
            rows.append([name, size, f"{recipe['steps']:,}", str(recipe["batch_size"]), " x ".join(map(str, recipe["crop"])), seen])
        return grid(rows)

    def commands(self):
        """What is not there, and how it is trained."""
        missing = [name for name in (*IMAGES, *MAPS) if name not in self.data]
        lines = []
        for name in missing:
            key = name if name in VARIANT else {"S0 on DMS": "DMS", "joint+": "joint", "DDFN1": "D0"}.get(name)
            key = key or ("DDFN" if name.startswith("DDFN") else "x")
            line = f"python examples/train_sdabn.py --data CAMVID --out RUNS {self.noise()} --variant {VARIANT[key]}"
            if line not in lines:
                lines.append(line)
        others = [line for line in ("--sigma 30", "--sigma 10", "--poisson 255") if line != self.noise()]
        recipes = "in each stage's `config.json`; those of the cascade that ships in [its card](../segaware/weights/sdabn-camvid-s50/README.md), with the command of the segmenter S0"
        out = ["## What is not trained", "", f"With these commands, and the `--scale`, `--recipe`, `--set` and `--start` of the stages that are there ({recipes}; stages of other recipes are refused), the rows above fill:", "", "```text", *lines, "```", ""] if lines else []
        return [
            *out, f"Other noise, each in a folder of its own, and this page of it; for stages like those above with their `--scale`, `--recipe`, `--set` and `--start` ({recipes}), else they are as long as the paper's, days of a GPU:", "", "```text",
            *(f"python examples/train_sdabn.py --data CAMVID --out RUNS-{other.split()[1]} {other} --variant progressive DDFN" for other in others),
            f"python docs/make_sdabn.py --runs RUNS-{others[0].split()[1]} --camvid CAMVID --noise '{others[0][2:].replace('poisson', 'peak')}' --out sdabn-{others[0].split()[1]}.md", "```", "",
        ]  # fmt: skip

    def start(self):
        return "" if self.args.start is None else f" --start {Path(self.args.start).name}"

    def noise(self):
        noise = self.protocol.noises[0]
        return f"--poisson {noise.peak:g}" if noise.kind == "poisson" else f"--sigma {noise.sigma:g}"


def verdict(low, high, paper, small):
    """Whether an interval says what the paper says."""
    if np.isnan(low):
        return "too few frames to say"
    if abs(paper) < small:
        inside = low > -small and high < small
        return "as in the paper: hardly any difference" if inside else "no difference shown" if low <= 0 <= high else "a difference, where the paper has hardly any"
    if low <= 0 <= high:
        return "no difference shown: the interval holds zero"
    return "as in the paper" if (low > 0) == (paper > 0) else "the other way round than in the paper"


def limits(low, high, digits, sign=""):
    """An interval as text; nothing where there are too few frames for one."""
    return "" if np.isnan(low) else f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def grid(rows):
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def strip(args, source, protocol, networks, condition):
    """Noisy, each block's image, clean; below what S0, each block's segmenter and the labels say. None without a block."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    blocks = [i for i in (1, 2, 3) if needs(f"x{i}") <= networks.keys()]
    if not blocks:
        return None
    item = next((item for item in source if item.name == args.frame), source.items[0])
    sample = source.load(item)
    noisy = protocol.noisy(sample.clean, protocol.noises[0], name=item.name, index=item.index)[None]
    frame = Frame(networks, condition, sample.clean[None], noisy, sample.labels[None])
    columns = [("noisy", "noisy", "S0 on noisy" if "S0" in networks else None)]
    columns += [(f"x{i}", f"x{i}", f"S{i}") for i in blocks] + [("clean", "clean", None)]
    colours = np.vstack([class_colours(len(source.classes)), [[1, 1, 1]]])
    height, width = sample.labels.shape
    figure = Figure(figsize=(3 * len(columns), 6 * height / width + 0.9), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(columns), squeeze=False)
    seen = set()
    with torch.inference_mode():
        for column, (title, image, said) in enumerate(columns):
            pixels = frame.look(image)[0].clamp(0, 1).permute(1, 2, 0).numpy()
            axes[0, column].imshow(pixels)
            axes[0, column].set_title(title, fontsize=11)
            classes = sample.labels if title == "clean" else None if said is None else predict_labels(frame.look(said), (height, width))[0]
            for axis in axes[:, column]:
                axis.set_xticks([])
                axis.set_yticks([])
            if classes is None:
                axes[1, column].set_visible(False)
                continue
            shown = np.where(classes.numpy() < len(source.classes), classes.numpy(), len(source.classes))
            seen |= set(np.unique(shown).tolist())
            axes[1, column].imshow(colours[shown], interpolation="nearest")
            axes[1, column].set_xlabel("labels" if title == "clean" else said, fontsize=10)
    handles = [Patch(facecolor=colours[k], edgecolor="black", linewidth=0.4, label=source.classes[k]) for k in sorted(seen) if k < len(source.classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, min(11, len(handles))), fontsize=9)
    file = args.out.parent / "images" / f"{args.out.stem}-strip.jpg"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(png(figure))).convert("RGB").save(file, quality=88, optimize=True)
    return f"images/{file.name}", f"Frame {item.name}: noisy, {', '.join(c[0] for c in columns[1:-1])}, clean; below what the segmenter of each block sees, and the labels"


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=Path, required=True, help="--out of examples/train_sdabn.py")
    p.add_argument("--camvid", type=Path, required=True, help="folder with val/ and valannot/")
    p.add_argument("--work", type=Path, default=Path("sdabn-work"), help="what was measured is kept here")
    p.add_argument("--out", type=Path, default=DOCS / "sdabn.md")
    p.add_argument("--noise", default="50", help='"50", "peak 255"')
    p.add_argument("--start", help="what the training was given as --start, in the place of S0")
    p.add_argument("--draws", type=int, default=3)
    p.add_argument("--limit", type=int, help="only the first frames: a try")
    p.add_argument("--frame", default="0016E5_08041", help="of the strip")
    p.add_argument("--page", action="store_true", help="measure nothing; fail where something is missing")
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    noise = parse_noise(args.noise)
    source = open_source(args.camvid, "camvid", split="val").select(None, args.limit)
    protocol = Protocol(noises=(noise,), draws=args.draws, preset="sdabn")
    folders = stages_in(args.runs, noise, args.start)
    networks, sizes, condition, data = measure(args, source, protocol, folders)
    page = Page(args, source, protocol, sizes, data, folders)
    text = page.text(strip(args, source, protocol, networks, condition))
    args.out.write_text(text, encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    try:
        main()
    except SegawareError as error:
        sys.exit(f"error: {error}")
