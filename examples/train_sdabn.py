"""Train a cascade of segmentation-denoising blocks on CamVid (or any data in its layout), stage after stage.

    python examples/train_sdabn.py --data CamVid --sigma 50 --stages 3 --out runs/sdabn-50

S0 (on clean images), S1, D1, S2, D2, S3, D3 are trained in this order, each in its folder below --out;
a finished stage is not trained again, and a killed run goes on with the same command. ``--data`` holds
train/, trainannot/, val/, valannot/: images and label maps with the same stems. ``--hold-out 0006R0``
leaves the training frames with that name in their stem out and measures every stage on them.
``--recipe FILE`` changes the recipes: {"segmenter": {"steps": 9000}, "S2": {"learning_rate": 0.01}}.

``--variant`` trains what the paper compares the cascade with, into the same --out, so that no stage is
trained twice (segaware/training/variants.py says what each stage is):

    progressive            S0 S1 D1 S2 D2 ...: the cascade (the default)
    SD                     its first block: segment, then denoise
    D0, DDFN               one plain denoiser; --stages of them in turns
    ImgD                   D1 with the noisy image as condition instead of the segmentation
    GtD1                   D1 with the true labels as condition (an oracle, in use as well)
    X+S                    a segmenter on the images of --on (D0, DDFN2, S1D1, GtD1, any model folder or zoo name)
    S1+                    a segmenter of twice the size, 8.00 M (width 26, three bottlenecks: our choice)
    joint                  S1, D1 and S2 at once, on the loss of S2
    DMS                    a plain denoiser, trained also through the frozen S0
    denoise-then-segment   D0 and S0, which are put one after the other without further training
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segaware import DDFN, HRNetSegmenter, from_pretrained
from segaware.baselines import ImageCondition, LabelCondition
from segaware.errors import InputError, SegawareError, TrainingError
from segaware.training.progressive import TASK_WEIGHT, train_cascade, train_stages
from segaware.training.stages import RECIPES
from segaware.training.variants import VARIANTS, entry, targets

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def load(root, split, void, keep=lambda stem: True):
    """All frames of a split: [(image (3, H, W), labels (H, W))], uint8, ``void`` as 255."""
    frames = []
    for path in sorted(p for p in (root / split).glob("*") if p.suffix.lower() in IMAGES and keep(p.stem)):
        label_file = root / f"{split}annot" / f"{path.stem}.png"
        if not label_file.is_file():
            raise InputError(f"{path}: no label map {label_file}")
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).contiguous()
        labels = torch.from_numpy(np.array(Image.open(label_file)))
        if labels.shape != image.shape[1:]:
            raise InputError(f"{label_file}: size {tuple(labels.shape)}, but the image has {tuple(image.shape[1:])}")
        frames.append((image, torch.where(labels == void, 255, labels).to(torch.uint8)))
    return frames


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, help="folder of this training")
    noise = p.add_mutually_exclusive_group()
    noise.add_argument("--sigma", type=float, default=50, help="Gaussian noise, 8-bit units")
    noise.add_argument("--poisson", type=float, metavar="PEAK", help="Poisson noise instead; the paper's peak is 255")
    p.add_argument("--variant", nargs="+", choices=VARIANTS, default=["progressive"], help="see above; several one after the other")
    p.add_argument("--on", default="D0", help="the denoiser of X+S: a stage's name, a model folder or a zoo name")
    p.add_argument("--task-weight", type=float, default=TASK_WEIGHT, help="of the segmentation loss in DMS")
    p.add_argument("--stages", type=int, default=3, help="segmentation-denoising blocks, or plain denoisers in turns")
    p.add_argument("--closing", action="store_true", help="one more segmenter after the last block (S1 D1 S2)")
    p.add_argument("--until", help="stop after this stage, e.g. D1")
    p.add_argument("--preset", choices=sorted(RECIPES), default="camvid", help="recipes to begin with")
    p.add_argument("--scale", type=float, default=1.0, help="factor of all stages' steps")
    p.add_argument("--recipe", type=Path, help="JSON file of changes: by part (segmenter, denoiser) or stage (S2)")
    p.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="change a field of all recipes, e.g. workers=8")
    p.add_argument("--condition", choices=("logits", "probs"), default="logits")
    p.add_argument("--start", help="clean-trained segmenter S1 starts from: zoo name or model folder; default: train S0")
    p.add_argument("--start-larger", help="the same for S1+, of its form; train it as --start was, or the comparison is of trainings")
    p.add_argument("--classes", nargs="+", default=CAMVID, help="their names")
    p.add_argument("--void", type=int, help="label that is not counted, beside 255; default: the first after the classes")
    p.add_argument("--hold-out", default="0006R0", help='part of the stems to leave out and measure on; "" = none')
    p.add_argument("--segmenter", type=json.loads, default={}, help="JSON of HRNetSegmenter's arguments")
    p.add_argument("--larger", type=json.loads, default={"width": 26, "bottlenecks": 3}, help="JSON of what S1+ has otherwise")
    p.add_argument("--denoiser", type=json.loads, default={}, help="JSON of DDFN's arguments")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = p.parse_args(argv)
    args.void = len(args.classes) if args.void is None else args.void
    return args


def recipes_of(args):
    """Preset, then --scale and noise, then --set, then --recipe; parts first, single stages from their part."""
    noise = {"sigma": args.sigma} if args.poisson is None else {"noise": "poisson", "peak": args.poisson}
    given = dict(pair.partition("=")[::2] for pair in args.set)
    try:
        noise |= {key: json.loads(value) for key, value in given.items()}
        changes = json.loads(args.recipe.read_text()) if args.recipe else {}
    except (OSError, ValueError) as error:
        raise TrainingError(f"--recipe, --set: {error}; give a JSON object, and FIELD=NUMBER") from error
    recipes = {part: r.change(steps=max(1, round(r.steps * args.scale)), **noise) for part, r in RECIPES[args.preset].items()}
    for name in sorted(changes, key=lambda n: n not in recipes):
        part = name if name in recipes else "denoiser" if entry(name).part == "denoiser" else "segmenter"
        recipes[name] = recipes[part].change(**changes[name])
    return recipes


def makers_of(args):
    """Fresh networks by kind."""
    names = tuple(args.classes)
    return {
        "segmenter": lambda: HRNetSegmenter(len(names), class_names=names, **args.segmenter),
        "segmenter+": lambda: HRNetSegmenter(len(names), class_names=names, **{**args.segmenter, **args.larger}),
        "denoiser": lambda: DDFN(condition_channels=len(names), **args.denoiser),
        "plain": lambda: DDFN(**args.denoiser),
        "image": lambda: ImageCondition(DDFN(condition_channels=3, **args.denoiser)),
        "labels": lambda: LabelCondition(DDFN(condition_channels=len(names), **args.denoiser)),
    }


def given_of(args):
    """Finished networks from elsewhere, by the name of the stage that they stand for; and the name that --on has then."""
    named = {"S0": args.start, "S0+": args.start_larger}
    given = {stage: from_pretrained(name) for stage, name in named.items() if name}
    if "X+S" not in args.variant or args.on in ("S1D1", "SD", "D0"):
        return given, args.on
    try:
        return given, entry(args.on).name
    except TrainingError:
        name = Path(args.on).resolve().name
        return given | {name: from_pretrained(args.on)}, name


def main(argv=None):
    args = parse(argv)
    out = args.hold_out
    frames = load(args.data, "train", args.void, lambda stem: not out or out not in stem)
    held = load(args.data, "train", args.void, lambda stem: out in stem) if out else []
    if not frames:
        raise InputError(f"{args.data / 'train'}: no images to train on")
    print(f"{len(frames)} training frames, {len(held)} held out, on {args.device}", flush=True)
    makers, recipes, cascade = makers_of(args), recipes_of(args), None
    given, on = given_of(args)
    common = {"condition": args.condition, "validation": held, "until": args.until, "device": args.device}
    for variant in args.variant:
        if variant == "progressive":
            cascade = done = train_cascade(
                makers["segmenter"], makers["denoiser"], frames, recipes, args.out,
                stages=args.stages, closing=args.closing, start=given.get("S0"), **common,
            )  # fmt: skip
        else:
            wanted = targets(variant, stages=args.stages, closing=args.closing, on=on)
            done = train_stages(wanted, makers, frames, recipes, args.out, given=given, task_weight=args.task_weight, **common)
        print(f"{variant}: " + ("done" if done is not None else f"stopped after {args.until}; the same command without --until goes on"))
    for file in sorted(args.out.glob("*/model/config.json")):
        print(f"{file.parts[-3]}: {json.loads(file.read_text())['measured']}")
    return cascade


if __name__ == "__main__":
    try:
        main()
    except SegawareError as error:
        sys.exit(f"error: {error}")
