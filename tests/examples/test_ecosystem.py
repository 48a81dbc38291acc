"""The examples beside other libraries, each where its library installs."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import segaware
from segaware.losses import frozen

FOLDER = Path(__file__).parents[2] / "examples" / "ecosystem"


def example(name: str, *needs: str) -> dict:
    for package in needs:
        pytest.importorskip(package)
    return runpy.run_path(str(FOLDER / f"{name}.py"))


@pytest.fixture
def small_judge(monkeypatch):
    """A segmenter of one convolution in the place of the shipped one."""
    monkeypatch.setattr(frozen, "shipped_folder", lambda name: name)
    monkeypatch.setattr(frozen, "load_entry", lambda folder: nn.Conv2d(3, 4, 5, stride=4, padding=2))


@pytest.mark.slow
def test_lightning(small_judge, recwarn):
    names = example("lightning_module", "lightning")
    denoising = names["main"](12)
    image = names["squares"](1)
    assert denoising(image).shape == image.shape
    assert denoising.hparams["depth"] == 8  # from the checkpoint
    untrained = names["Denoising"]()
    assert not torch.equal(untrained.eval()(image), denoising(image))


@pytest.mark.slow
def test_hugging_face_trainer(small_judge):
    denoiser, losses = example("hf_trainer", "transformers", "accelerate")["main"](20)
    assert losses[-1] < losses[0] and not denoiser.training


def test_deepinv(monkeypatch):
    names = example("deepinv_pnp", "deepinv")
    before, after = names["main"]("ffdnet", 25)
    assert after > before + 5
    adapted = names["ForDeepinv"](segaware.from_pretrained("dncnn-blind"))
    image = torch.rand(2, 3, 16, 16)
    assert torch.equal(adapted(image, 0.1), adapted.denoiser(image))
    adapted = names["ForDeepinv"](segaware.from_pretrained("ffdnet"))
    assert torch.equal(adapted(image, torch.tensor([0.1, 0.1])), adapted(image, 0.1))


def test_spandrel(small_judge, tmp_path):
    names = example("spandrel_model", "spandrel")
    start = names["small_checkpoint"](tmp_path / "start.pth")
    trained = names["main"](start, 3, tmp_path / "out.pth")
    before, after = torch.load(start, weights_only=True), torch.load(trained, weights_only=True)
    assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)


def test_smp(shipped):
    losses, score = example("smp_segmentation", "segmentation_models_pytorch")["main"]("segaware-blind", 4)
    assert len(losses) == 4 and losses[-1] < losses[0] and 0 <= score <= 1


@pytest.mark.slow
def test_onnx_runtime(shipped):
    names = example("onnx_runtime", "onnx", "onnxscript", "onnxruntime")
    assert names["main"]("ffdnet", 25.0) <= 1


def test_torchvision_detection(shipped):
    losses, found = example("torchvision_detection")["main"]("segaware-blind", 2)
    assert len(losses) == 2 and found["boxes"].shape[1:] == (4,)
    detector = example("torchvision_detection")["DenoisedDetector"](nn.Identity())
    assert not list(detector.parameters()) and not detector.state_dict()


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_they_are_short_enough_to_copy(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 70


def test_all_that_are_promised_are_there():
    assert len(list(FOLDER.glob("*.py"))) == 7
