"""Train a small segmenter on CamVid (or any data in its layout) and save it as a model folder.

    python examples/train_segmenter.py --data CamVid --backbone-weights squeezenet1_0.safetensors --out runs/fpn-camvid

``--data`` holds train/, trainannot/, val/, valannot/: images and label maps with the same stems. Classes of
your own: ``--classes grass crop soil --no-hold-out``. ``--hold-out 0006R0`` leaves the training frames with
that name in their stem out and scores on them, for choosing; ``val`` is scored once, at the end. A killed
run goes on with ``--resume``.

``--model`` names the network: ``fpn`` and ``deeplab`` on a backbone, ``hrnet`` and ``unet`` from
scratch. ``--judge`` marks the model as one that judges and never trains a denoiser. Needs the extra ``train``.
"""

import argparse
import copy
import json
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from segaware import DeepLabSegmenter, FPNSegmenter, HRNetSegmenter, SMPSegmenter
from segaware.entries import write_entry
from segaware.errors import InputError, SegawareError, TrainingError

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
COUNT, IGNORE = len(CLASSES), 255
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def build(args, weights):
    """The network of ``--model``; all take (B, 3, H, W) in [0, 1] and have a backbone and head_parameters()."""
    k, names = len(args.classes), tuple(args.classes)
    if args.model == "fpn":
        return FPNSegmenter(k, args.backbone, weights, args.width or 96, head="trained", class_names=names)
    if args.model == "deeplab":
        return DeepLabSegmenter(k, args.backbone, weights, args.width or 128, class_names=names)
    if args.model == "hrnet":
        # the released initialisation, N(0, 0.001), is made for ImageNet's weights to be loaded over it
        form = {"width": 16, "modules": (1, 2, 2)} | ({} if args.width is None else {"width": args.width, "modules": (1, 3, 2)})
        return HRNetSegmenter(k, weights, init="kaiming", class_names=names, **{**form, **args.form})
    # 1.8 M parameters: ResNet-10 down to stride 16, and a U-Net's way back
    return SMPSegmenter(
        k, "Unet", "tu-resnet10t", 4, options={"decoder_channels": [96, 48, 32, 16]}, class_names=names
    )


def load(root, split, keep=lambda stem: True, count=COUNT, void=11):
    """All frames of a split as uint8 tensors [(image (3, H, W), labels (H, W) below ``count`` or 255, stem)]."""
    labels = {p.stem: p for p in sorted((root / f"{split}annot").glob("*.png"))}
    frames = []
    for path in sorted(p for p in (root / split).glob("*") if p.suffix.lower() in IMAGES and keep(p.stem)):
        if path.stem not in labels:
            raise InputError(f"{path}: no label map {root / f'{split}annot' / path.stem}.png")
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).contiguous()
        label = torch.from_numpy(np.array(Image.open(labels[path.stem])))
        if label.shape != image.shape[1:]:
            raise InputError(
                f"{labels[path.stem]}: size {tuple(label.shape)}, but the image has {tuple(image.shape[1:])}"
            )
        known = torch.isin(label, torch.tensor([*range(count), void, IGNORE]))
        if not known.all():
            raise InputError(
                f"{labels[path.stem]}: label {label[~known][0]}; expected 0-{count - 1}, {void} (void) or 255"
            )
        frames.append((image, torch.where(label == void, IGNORE, label).to(torch.uint8), path.stem))
    if not frames:
        raise InputError(f"{root / split}: no images to read")
    return frames


def batch_of(frames, indices, crop, scales):
    """Random window, scale, flip (image and labels alike) and colours -> ((B, 3, crop, crop), (B, crop, crop))."""
    low, high = scales
    fill = {tv_tensors.Image: 114, tv_tensors.Mask: IGNORE}
    images, labels = [], []
    for index in indices:
        scale = low * (high / low) ** float(torch.rand(()))
        view = v2.Compose(  # cut first: resizing whole frames would cost more than the network
            [
                v2.RandomCrop(round(crop / scale), pad_if_needed=True, fill=fill),
                v2.Resize((crop, crop), antialias=True),
                v2.RandomHorizontalFlip(),
            ]
        )
        image, label = view(tv_tensors.Image(frames[index][0]), tv_tensors.Mask(frames[index][1]))
        images.append(image.as_subclass(torch.Tensor))
        labels.append(label.as_subclass(torch.Tensor))
    x = torch.stack(images).float() / 255
    brightness, contrast, saturation = (torch.empty(len(x), 1, 1, 1).uniform_(0.7, 1.3) for _ in range(3))
    x = torch.lerp(x.mean(1, keepdim=True), x, saturation)
    x = (torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast) * brightness).clamp_(0, 1)
    return x.contiguous(memory_format=torch.channels_last), torch.stack(labels).long()


def class_weights(frames, count=COUNT):
    """1 / sqrt(frequency), mean 1: rare classes count, without drowning the others."""
    counts = sum(
        torch.bincount(label.flatten().long(), minlength=256)[:count] for _, label, _ in frames
    ).double()
    weights = (counts.clamp(min=1) / counts.sum()).rsqrt() * (counts > 0)
    return (weights / weights.sum() * (counts > 0).sum()).float()


def loss_of(logits, labels, weights):
    """Weighted cross-entropy plus 1 - soft Jaccard of the classes in the batch, at label size."""
    logits = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    valid = labels != IGNORE
    truth = labels[valid]
    if not len(truth):
        return logits.sum() * 0
    logp = logits.log_softmax(1).movedim(1, -1)[valid]  # (pixels, K)
    entropy = F.nll_loss(logp, truth, weights)
    said, there = logp.exp().sum(0), torch.bincount(truth, minlength=logits.shape[1])
    right = logp.gather(1, truth[:, None])[:, 0].exp()
    both = torch.zeros_like(said).index_add(0, truth, right)
    jaccard = both / (said + there - both).clamp(min=1e-6)
    return entropy + 1 - jaccard[there > 0].mean()


@torch.no_grad()
def score(model, frames, names=CLASSES):
    """IoU per class from one confusion matrix; logits brought to label size, void left out."""
    model.eval()
    k = len(names)
    confusion = torch.zeros(k * k, dtype=torch.int64)
    for image, label, _ in frames:
        logits = model(image[None].float() / 255)
        guess = F.interpolate(logits, label.shape, mode="bilinear", align_corners=False)[0].argmax(0)
        valid = label != IGNORE
        confusion += torch.bincount(label[valid].long() * k + guess[valid], minlength=k * k)
    confusion = confusion.reshape(k, k)
    hits = confusion.diag().double()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - confusion.diag())  # NaN: neither there nor said
    return {
        "miou": round(100 * float(iou.nanmean()), 2),
        "pixel_accuracy": round(100 * float(hits.sum() / confusion.sum()), 2),
        "iou": {
            c: None if math.isnan(v) else round(100 * float(v), 2) for c, v in zip(names, iou.tolist(), strict=True)
        },
    }


def average(ema, model, decay):
    with torch.no_grad():
        for mine, new in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
            mine.lerp_(new, 1 - decay) if mine.is_floating_point() else mine.copy_(new)


def save(path, state):
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, help="folder of the model, its checkpoint and log")
    p.add_argument("--model", choices=("fpn", "deeplab", "hrnet", "unet"), default="fpn")
    p.add_argument("--classes", nargs="+", default=CLASSES, metavar="NAME", help="of the labels, in their order")
    p.add_argument("--void", type=int, help="label that is not counted, beside 255; default: the first after the classes")
    p.add_argument("--judge", action="store_true", help="keep this model apart for judging")
    p.add_argument("--backbone", default="squeezenet1_0", help="of fpn and deeplab")
    p.add_argument("--backbone-weights", help="file, or 'imagenet' to download; default: random")
    p.add_argument("--width", type=int, help="default: fpn 96, deeplab 128, hrnet 16 (18 gives the paper's form)")
    p.add_argument("--form", type=json.loads, default={}, help='of hrnet: JSON of its arguments, e.g. {"bottlenecks": 3}')
    held = p.add_mutually_exclusive_group()
    held.add_argument("--hold-out", default="0006R0", help="part of the stems to leave out and score on")
    held.add_argument("--no-hold-out", dest="hold_out", action="store_const", const=None)
    p.add_argument("--epochs", type=int, default=30)
    p.add_argument("--crop", type=int, default=288)
    p.add_argument("--scales", type=float, nargs=2, default=(0.65, 1.8), metavar=("LOW", "HIGH"))
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--lr", type=float, default=1.5e-3, help="of the head; a pretrained backbone has a fifth")
    p.add_argument("--ema", type=float, default=0.99)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--max-steps", type=int, help="stop after so many steps of the plan (resume later)")
    p.add_argument("--save-every", type=float, default=120, help="seconds between checkpoints")
    p.add_argument("--float32", action="store_true", help="no bfloat16")
    p.add_argument("--resume", action="store_true")
    args = p.parse_args(argv)
    if args.backbone_weights and args.model == "unet":
        p.error("--backbone-weights: unet starts from scratch; leave it out, or take --model fpn or deeplab")
    for name in ("epochs", "crop", "batch"):
        if getattr(args, name) < 1:
            p.error(f"--{name} {getattr(args, name)}: at least 1")
    args.void = len(args.classes) if args.void is None else args.void
    return args


def main(argv=None):
    args = parse(argv)
    out_of, known = args.hold_out, {"count": len(args.classes), "void": args.void}
    train = load(args.data, "train", lambda stem: not out_of or out_of not in stem, **known)
    held = load(args.data, "train", lambda stem: out_of in stem, **known) if out_of else []
    weights = class_weights(train, len(args.classes))
    print(
        f"{len(train)} training frames, {len(held)} held out, class weights {[round(w, 2) for w in weights.tolist()]}",
        flush=True,
    )

    torch.manual_seed(args.seed)
    first = None if args.resume else args.backbone_weights
    model = build(args, first).to(memory_format=torch.channels_last)
    ema = copy.deepcopy(model)
    head = {id(p) for p in model.head_parameters()}
    rest = [p for p in model.parameters() if id(p) not in head]
    optimiser = torch.optim.AdamW(
        [
            {"params": model.head_parameters(), "lr": args.lr},
            {"params": rest, "lr": args.lr / 5 if args.backbone_weights else args.lr},
        ],
        weight_decay=1e-2,
    )
    per_epoch = max(1, len(train) // args.batch)
    total, warmup = args.epochs * per_epoch, min(per_epoch, 100)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min(1.0, (s + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, s / total)))
    )

    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.is_file() and not args.resume:
        raise TrainingError(f"{checkpoint}: a training that was begun; add --resume to go on, or choose another --out")
    step = 0
    parts = {"model": model, "ema": ema, "optimiser": optimiser, "schedule": schedule}
    chosen = vars(args) | {"scales": list(args.scales), "pretrained": bool(args.backbone_weights)}
    plan = {
        k: v
        for k, v in chosen.items()
        if k in ("model", "backbone", "width", "hold_out", "epochs", "crop", "batch", "lr", "seed", "classes", "void", "form", "scales", "ema", "float32", "pretrained")
        and not (k == "backbone" and args.model in ("hrnet", "unet"))
        and not (k in ("classes", "void") and tuple(args.classes) == CLASSES)
        and not (k == "form" and not v)
    }
    if args.resume:
        if not checkpoint.is_file():
            raise TrainingError(f"{checkpoint}: nothing to resume; start without --resume")
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["plan"] != plan:
            raise TrainingError(f"{checkpoint}: made with {state['plan']}, not {plan}; resume with the same options")
        step = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
        print(f"resumed at step {step}", flush=True)

    def keep():
        save(checkpoint, {"step": step, "plan": plan} | {name: part.state_dict() for name, part in parts.items()})

    start = saved = time.monotonic()
    begun, running = step, 0.0
    stop = min(total, args.max_steps or total)
    model.train()
    while step < stop:
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([args.seed, epoch]).permutation(len(train))
        torch.manual_seed(args.seed * 1_000_003 + step)  # augmentation hangs on the step alone: resuming repeats it
        indices = order[place * args.batch : (place + 1) * args.batch]
        images, labels = batch_of(train, indices, args.crop, args.scales)
        with nullcontext() if args.float32 else torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        loss = loss_of(logits, labels, weights)
        if not torch.isfinite(loss):
            raise TrainingError(f"step {step}: loss is {loss.item()}; start again in another folder with a lower --lr")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        if not torch.isfinite(norm):  # the weights must not take it in, nor the checkpoint
            raise TrainingError(f"step {step}: the gradient is {norm.item()}; start again in another folder with a lower --lr")
        optimiser.step()
        schedule.step()
        step += 1
        average(ema, model, min(args.ema, step / (step + 10)))
        running = loss.item() if step == begun + 1 else 0.98 * running + 0.02 * loss.item()
        if step % per_epoch == 0 or step == stop:
            scored = (
                f", held-out mIoU {score(ema, held, args.classes)['miou']:.2f}"
                if held and (step // per_epoch % 5 == 0 or step == stop)
                else ""
            )
            each = (time.monotonic() - start) / (step - begun)
            print(
                f"step {step}/{total} epoch {step // per_epoch}: loss {running:.3f}{scored}, {each:.2f} s/step,"
                f" {each * (stop - step) / 60:.0f} min left",
                flush=True,
            )
        if time.monotonic() - saved > args.save_every or step == stop:
            keep()
            saved = time.monotonic()
    if step < total:
        print(f"stopped at step {step} of {total}; go on with --resume")
        return None

    camvid, height, width = tuple(args.classes) == CLASSES, *train[0][1].shape
    measured = {
        "camvid_val" if camvid else "val": score(ema, load(args.data, "val", **known), args.classes),
        "protocol": "whole frames, logits brought to the labels' size, void left out, one confusion matrix",
    }
    if held:
        measured["held_out"] = {"frames": out_of, **score(ema, held, args.classes)}
    squeezenet = args.backbone_weights and args.backbone == "squeezenet1_0" and args.model in ("fpn", "deeplab")
    notice = "; SqueezeNet start: BSD 2-clause, notice beside this file" if squeezenet else ""
    config = {
        "class_names": list(args.classes),
        "training_noise": "",
        "recipe": {
            "script": "examples/train_segmenter.py",
            "steps": total,
            "optimiser": "AdamW, weight decay 0.01",
            "loss": "cross-entropy weighted 1 / sqrt(frequency) + soft Jaccard",
            **plan,
            "scales": list(args.scales),
            "ema": args.ema,
        },
        "measured": measured,
        "training_data": {
            "name": f"{'CamVid, SegNet split' if camvid else args.data.resolve().name}, {len(train)} clean training frames of {width} x {height}",
            "terms": "research use; cite Brostow, Fauqueur, Cipolla 2009" if camvid else "those of your images",
            "start": "ImageNet backbone" if args.backbone_weights else "random weights",
        },
        "license": ("weights for research use, as the data" if camvid else "that of your images") + notice,
    }
    if args.judge:
        config["judge"] = True
    write_entry(args.out, ema, config, dtype=torch.float16)
    print(json.dumps(measured, indent=2))
    return measured


if __name__ == "__main__":
    try:
        main()
    except SegawareError as error:
        sys.exit(f"error: {error}")
