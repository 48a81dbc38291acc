"""The training example runs, resumes and leaves a model that denoises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segaware import denoise, from_pretrained

SCRIPT = Path(__file__).parents[2] / "examples" / "train_denoiser.py"
QUICK = ["--steps", "4", "--batch-size", "2", "--patch-size", "16", "--log-every", "2", "--validation-crop", "32"]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"images/{i}.png")
    return tmp_path / "images"


def run(*args):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("model", ["ffdnet", "liu"])
def test_train_then_denoise(tmp_path, folder, model):
    out = tmp_path / "run"
    done = run("--data", folder, "--model", model, "--out", out, "--hold-out", 2, *QUICK, "--optimizer", "muon")
    assert done.returncode == 0, done.stderr
    assert "held-out PSNR {'15':" in done.stdout
    net = from_pretrained(out / "model")
    noisy = torch.rand(3, 20, 30)
    assert denoise(noisy, net, sigma=0.1 if model == "ffdnet" else None).shape == noisy.shape
    again = run("--data", folder, "--model", model, "--out", out, "--hold-out", 2, *QUICK, "--optimizer", "adam")
    assert again.returncode == 1 and "another recipe" in again.stderr and "Traceback" not in again.stderr


def test_with_awareness(tmp_path, folder):
    done = run("--data", folder, "--model", "dncnn", "--out", tmp_path / "run", "--awareness", "entropy", *QUICK)
    assert done.returncode == 0, done.stderr
    assert '"entropy"' in (tmp_path / "run/log.jsonl").read_text()


@pytest.mark.slow
def test_a_weight_that_takes_over_ends_with_the_one_to_try(tmp_path, folder):
    for file in folder.iterdir():  # smooth: what the denoiser does well
        Image.open(file).resize((3, 3)).resize((50, 40), Image.Resampling.BICUBIC).save(file)
    asked = ["--start-from", "liu-blind", "--awareness", "entropy", "--gamma", "1e6", "--learning-rate", "1e-3", *QUICK, "--steps", "1000"]
    done = run("--data", folder, "--model", "liu", "--out", tmp_path / "run", *asked)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "awareness dominates" in done.stderr and "instead of 1e+06" in done.stderr


def test_a_pool_of_judges(tmp_path, folder):
    judges = ["--awareness", "jacobian", "--segmenter", "fpn-camvid", "fpn-camvid"]
    done = run("--data", folder, "--model", "dncnn", "--out", tmp_path / "run", *judges, *QUICK)
    assert done.returncode == 0, done.stderr
    assert '"judge_pool"' in (tmp_path / "run/log.jsonl").read_text()


def test_no_images(tmp_path):
    done = run("--data", tmp_path, "--out", tmp_path / "run")
    assert done.returncode == 1 and "no images" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--hold-out", 4], "leaves none to train on"), (["--model", "liu", "--hold-identity"], "is for ffdnet")],
)
def test_senseless_options(tmp_path, folder, options, words):
    done = run("--data", folder, "--out", tmp_path / "run", *QUICK, *options)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
