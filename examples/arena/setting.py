"""What all contestants share: data, segmenters, the training's recipe, and where things lie."""

import argparse
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segaware.entries import load_entry, locate
from segaware.errors import EvaluationError, InputError
from segaware.evaluation.contestants import hash_module
from segaware.evaluation.judges import Judge, open_judge
from segaware.evaluation.protocol import Noise, Protocol
from segaware.evaluation.sources import CAMVID_CLASSES, Source, open_source
from segaware.niqe_features import BLOCK
from segaware.pretrained import is_repo, load_pretrained
from segaware.segmenters.backbones import load_library
from segaware.training import Recipe
from segaware.training.data import ImageFiles, image_files
from segaware.training.precision import precision_here

HELD_DRIVE = "0006R0"  # of CamVid's training frames: no denoiser and no judge trained on it; fpn-camvid, as it ships, did
HELD_IMAGES = 32
REPORTED = ("frames", "photographs", "drive")  # the test sets, and the held-out drive, which choices are made on
FOLDER_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # what a denoiser beside the comparison may be called
TEST_SIGMAS = (15.0, 25.0, 35.0, 50.0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # that judges
TRAINS_ON = "mps" if DEVICE == "cpu" and torch.backends.mps.is_available() else DEVICE  # as accelerate takes it


@dataclass
class Setting:
    """The arguments of the comparison, and what is read with them."""

    args: argparse.Namespace
    _cache: dict = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.args.out

    def once(self, name, make):
        """``make()``, computed when first asked for."""
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]

    # data

    def photographs(self) -> tuple[list[Path], list[Path]]:
        """Files without labels: to train on, and held out (the very split of the shipped denoisers)."""
        files = image_files(self.args.photographs)
        held = min(HELD_IMAGES, len(files) // 4)
        step = len(files) // max(1, held)
        out = files[step // 2 :: step][:held]
        return [f for f in files if f not in out], out

    def frames(self, held: bool = False) -> Source:
        """CamVid's training frames without the held-out drive, or (thinned out) that drive."""
        source = open_source(self.args.camvid, "camvid", split="train")
        names = [item.name for item in source if (HELD_DRIVE in item.name) == held]
        if not names:
            raise InputError(f"{self.args.camvid}: no training frames {'of' if held else 'beside'} drive {HELD_DRIVE}")
        return source.select(names[:: self.args.held_every] if held else names)

    def training_images(self) -> list[tuple[Tensor, Tensor]]:
        """(image, labels): photographs, whose labels are all 255, then frames. One order for every contestant."""

        def read():
            photographs = ImageFiles(self.photographs()[0])
            photographs.read_all()
            void = torch.tensor(255, dtype=torch.uint8)
            found = [(image, void.expand(image.shape[1:])) for image in photographs]
            source = self.frames()
            for item in source:
                sample = source.load(item)
                found.append(((sample.clean * 255).round().to(torch.uint8), sample.labels.to(torch.uint8)))
            return found

        return self.once("images", read)

    def test_sets(self) -> dict[str, Source]:
        """What is only reported: labelled frames and photographs."""
        frames = open_source(self.args.camvid, "camvid", split="val")
        frames = frames.select([item.name for item in frames][:: self.args.test_every])
        photographs = open_source(self.args.test_photographs, "folder")
        if self.args.test_photographs_limit:
            photographs = photographs.select(limit=self.args.test_photographs_limit)
        return {"frames": frames, "photographs": photographs}

    def block(self, every: int) -> int:
        """Neighbouring frames drawn together: ten of the clip, fewer where it is thinned out."""
        return max(1, math.ceil(10 / every))

    # networks

    def start(self):
        """A fresh copy of the denoiser that every contestant begins with."""
        return load_entry(locate(self.args.start))

    def home(self):
        """The segmenters that train: the first is the one most losses look through."""
        return self.once("home", lambda: [load_entry(locate(spec)) for spec in self.args.segmenter])

    def home_judge(self) -> Judge:
        return self.once("home judge", lambda: Judge("home", load_entry(locate(self.args.segmenter[0])), device=DEVICE))

    def judges(self) -> list[Judge]:
        """The held-out judges.

        Raises:
            EvaluationError: one of them took part in training (unless forced), or knows other classes.
        """

        def check():
            trained = {hash_module(load_entry(locate(spec))): spec for spec in self.args.segmenter}
            found = [open_judge(spec, device=DEVICE) for spec in self.args.judge]
            for judge in found:
                if judge.key in trained and not self.args.force:
                    raise EvaluationError(
                        f"judge {judge.name} is the training segmenter {trained[judge.key]}: it would find what it was asked to make;"
                        " take another judge, or --force"
                    )
                judge.check(CAMVID_CLASSES, "CamVid")
            names = [judge.name for judge in found]
            twice = sorted({name for name in names if names.count(name) > 1} | {"home"} & {*names})
            if twice:
                raise EvaluationError(f"--judge: {', '.join(twice)} names two judges (home is the training segmenter); rename the folder of one")
            return found

        return self.once("judges", check)

    def check_classes(self, number: int) -> None:
        """The segmenter that a supervised contestant looks through must know the labels' classes.

        Raises:
            InputError: it knows others.
        """
        for spec in self.args.segmenter[number : number + 1]:
            net = load_entry(locate(spec))
            names = getattr(net, "class_names", None)
            if net.num_classes != len(CAMVID_CLASSES) or (names and tuple(names) != CAMVID_CLASSES):
                raise InputError(
                    f"--segmenter {spec}: knows {net.num_classes} classes ({', '.join(names or ('unnamed',))}), the labels have"
                    f" {len(CAMVID_CLASSES)} ({', '.join(CAMVID_CLASSES)}); train one on these labels (examples/train_segmenter.py)"
                    + ", or name --contestants that need none of it (--list)" * (number > 0)
                )

    def protocols(self) -> dict[str, Protocol]:
        """How contestants are judged, on held-out frames for choosing and on the reported sets.

        Raises:
            EvaluationError: levels that make no sense.
        """
        chosen, reported = (tuple(Noise(sigma=sigma) for sigma in sigmas) for sigmas in (self.args.choose_sigma, TEST_SIGMAS))
        return {
            "held-out": Protocol(noises=chosen, metrics=("psnr",), block=self.block(self.args.held_every)),
            "frames": Protocol(noises=reported, metrics=("psnr", "ssim"), harm=True, seed_by="name", block=self.block(self.args.test_every)),
            "photographs": Protocol(noises=reported, metrics=("psnr", "ssim", "niqe"), seed_by="index", block=1),
        }

    def imagenet(self) -> nn.Module:
        """torchvision's SqueezeNet 1.0 with the given weights; wants ImageNet's normalisation.

        Raises:
            InputError: a file that holds other weights, or none.
        """

        def make():
            net, file = load_library("torchvision.models").squeezenet1_0(weights=None), self.args.imagenet
            try:
                net.load_state_dict(load_file(file))
            except (OSError, SafetensorError, RuntimeError, ValueError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise InputError(f"--imagenet {file}: not SqueezeNet 1.0 under torchvision's names, as safetensors ({reason}); see docs/datasets.md") from error
            return net.eval()

        return self.once("imagenet", make)

    # before anything is bound to a folder, or trained

    def check(self) -> None:
        """Refuse now, and not after an hour, what makes no sense.

        Raises:
            SegawareError: judges, levels, a recipe or weights that do not do.
        """
        self.judges()
        self.home_judge()
        self.check_classes(0)  # it judges as well, whoever trains
        self.protocols()
        for seed in self.args.seeds or [0]:
            self.recipe(seed)
        if self.args.imagenet is not None:
            self.imagenet()

    def check_files(self) -> None:
        """Read each image that is measured once: to leave it out later would make another comparison.

        Raises:
            SegawareError: one that cannot be read or measured, or too few photographs.
        """
        if not self.photographs()[1]:
            raise InputError(f"--photographs {self.args.photographs}: {len(self.photographs()[0])} images, of which none can be held out; give four at least")
        for which, source in {"held-out": self.frames(held=True), **self.test_sets()}.items():
            for item in source:
                height, width = source.load(item).clean.shape[-2:]
                if which == "photographs" and (height // BLOCK) * (width // BLOCK) < 2:
                    raise InputError(
                        f"--test-photographs: {item.name} has {width} x {height} pixels, NIQE needs two blocks of {BLOCK} x {BLOCK}; take it out"
                    )

    # recipe

    def recipe(self, seed: int) -> Recipe:
        """The same for every contestant: what step s sees is a function of (seed, s)."""
        args = self.args
        return Recipe(
            steps=args.steps, batch_size=args.batch_size, patch_size=args.patch_size, optimizer=args.optimizer,
            learning_rate=args.learning_rate, schedule="trapezoid", warmup=min(50, args.steps // 4),
            cooldown=args.steps - args.steps // 4, fixed_norm_steps=args.steps, measure_norm=False, precision=args.precision,
            seed=seed, log_every=max(1, args.steps // 40), validate_every=args.steps, validation_crop=args.validation_crop,
            validation_sigmas=(15.0, 25.0, 50.0),
        )  # fmt: skip

    def record(self) -> dict:
        """What identifies the comparison; another one may not share its folder. As JSON gives it back."""
        keys = (
            "start", "segmenter", "judge", "share", "batch_size", "patch_size", "optimizer", "learning_rate", "precision",
            "validation_crop", "probes", "choose_sigma", "keep_share", "held_every", "test_every", "test_photographs_limit",
            "segmenter_steps", "segmenter_batch", "segmenter_crop", "segmenter_rate", "force",
        )  # fmt: skip
        told = {key: json.loads(json.dumps(getattr(self.args, key), default=str)) for key in keys}
        told["precision"] = precision_here(self.args.precision, torch.device(TRAINS_ON))  # "auto" is another one elsewhere
        return told | self.once("files", self._files) | self.once("weights", self._weights)

    def _weights(self) -> dict:
        """The networks of training by what they hold: under the same name there may be others elsewhere, or later."""
        file = self.args.imagenet
        if file is not None and not Path(file).is_file():
            raise InputError(f"--imagenet {file}: no such file; give SqueezeNet 1.0 weights (safetensors)")
        return {
            "start_weights": contents(self.start()), "segmenter_weights": [contents(net) for net in self.home()],
            "judge_contents": [contents(_opened(spec)) for spec in self.args.judge],  # not keys, which tell Python's version too
            "imagenet_weights": None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12],
        }  # fmt: skip

    def _files(self) -> dict:
        """The files of the comparison by their names: where they lie is nobody's business."""
        args = self.args
        frames = {split: open_source(args.camvid, "camvid", split=split) for split in ("train", "val")}
        return {
            "photographs": _names(f.relative_to(args.photographs).as_posix() for f in image_files(args.photographs)),
            "camvid": _names(f"{split}/{item.name}" for split, source in frames.items() for item in source),
            "test_photographs": _names(item.name for item in open_source(args.test_photographs, "folder")),
        }


def _names(names: Iterable[str]) -> str:
    found = sorted(names)
    return f"{len(found)} files, names {hashlib.sha256(chr(10).join(found).encode()).hexdigest()[:12]}"


def _opened(spec: str) -> nn.Module:
    return load_pretrained(spec) if is_repo(spec) else load_entry(locate(spec))


def contents(net: nn.Module) -> str:
    """Its weights in twelve digits: under another version of Python, or of the code, the same."""
    return hashlib.sha256(save(net.state_dict())).hexdigest()[:12]


def read_json(path: Path):
    """What a file of the comparison holds.

    Raises:
        EvaluationError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvaluationError(f"{path}: damaged ({error}); move it away, and what it told is made anew") from error


def write_json(path: Path, value) -> None:
    """Whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
