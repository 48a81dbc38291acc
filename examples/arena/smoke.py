"""Generated data and tiny networks: the whole comparison in a minute or two. Its figures mean nothing."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segaware import DnCNN, FPNSegmenter, HRNetSegmenter, SegAwareWrapper
from segaware.entries import write_entry
from segaware.evaluation.sources import CAMVID_CLASSES
from segaware.segmenters.backbones import load_library
from segaware.training import Recipe, fit

K = len(CAMVID_CLASSES)


def scene(rng: np.random.Generator, size=(64, 80)) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of eight pixels of one class and one colour a class, a little textured, some of them void."""
    labels = np.kron(rng.integers(0, K + 1, (size[0] // 8, size[1] // 8)), np.ones((8, 8), dtype=int))
    colours = np.random.default_rng(1).integers(30, 226, (K + 1, 3))
    image = colours[labels] + rng.integers(-20, 21, (*size, 3))
    return image.clip(0, 255).astype(np.uint8), labels.astype(np.uint8)


def prepare(root: Path) -> dict:
    """Write it all below ``root``; the arguments of the comparison that go with it."""
    place = root / "smoke"
    if not (place / "ready").is_file():
        rng = np.random.default_rng(0)
        for folder, count, size in (("photographs", 8, (64, 80)), ("test", 3, (96, 192))):  # NIQE needs two blocks of 96
            (place / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.fromarray(scene(rng, size)[0]).save(place / folder / f"{i}.png")
        for split, stems in (("train", [f"0001TP_{i}" for i in range(4)] + [f"0006R0_{i}" for i in range(3)]), ("val", ["0016E5_0", "0016E5_1", "0016E5_2"])):
            for folder in (split, f"{split}annot"):
                (place / "camvid" / folder).mkdir(parents=True, exist_ok=True)
            for stem in stems:
                image, labels = scene(rng)
                Image.fromarray(image).save(place / "camvid" / split / f"{stem}.png")
                Image.fromarray(labels).save(place / "camvid" / f"{split}annot" / f"{stem}.png")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            start = SegAwareWrapper(DnCNN(depth=3, width=8), ())
            recipe = Recipe(steps=60, batch_size=4, patch_size=32, precision="float32", fixed_norm_steps=60, optimizer="muon")
            fit(start, place / "photographs", recipe, place / "start-run", progress=False)
            names = CAMVID_CLASSES
            write_entry(place / "start", start.denoiser)
            write_entry(place / "home", FPNSegmenter(K, "squeezenet1_0", None, 16, head="trained", class_names=names))
            write_entry(place / "second", HRNetSegmenter(K, width=4, modules=(1, 1, 1), blocks=1, bottlenecks=1, init="kaiming", class_names=names))
            for judge in ("judge-a", "judge-b"):
                write_entry(place / judge, FPNSegmenter(K, "squeezenet1_0", None, 8, head="trained", class_names=names))
            from safetensors.torch import save_file

            net = load_library("torchvision.models").squeezenet1_0(weights=None)  # random in the place of ImageNet's
            save_file(net.state_dict(), place / "imagenet.safetensors")
        (place / "ready").touch()
    return {
        "photographs": place / "photographs", "camvid": place / "camvid", "test_photographs": place / "test",
        "test_photographs_limit": None, "start": place / "start", "segmenter": [place / "home", place / "second"],
        "judge": [place / "judge-a", place / "judge-b"], "imagenet": place / "imagenet.safetensors",
        "batch_size": 2, "patch_size": 48, "precision": "float32", "validation_crop": 48, "held_every": 1, "test_every": 1,
        "probes": 1, "choose_sigma": [50.0], "keep_share": [0.05], "beside": [f"older={place / 'start'}"], "segmenter_steps": 2, "segmenter_crop": 32, "segmenter_batch": 2,
    }  # fmt: skip
