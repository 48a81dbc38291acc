"""Average precision on boxes whose answer is known. Skipped where torchmetrics or its COCO backend is not installed."""

import math
import sys

import pytest
import torch

from segaware import detection
from segaware.detection import DetectionAP
from segaware.errors import EvaluationError, InputError


def boxes(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = 100 * torch.arange(count)[:, None] + 40 * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 20 + 30 * torch.rand(count, 2, generator=generator)], dim=1)


def image(seed=0, **changes):
    found = boxes(seed=seed)
    return {"boxes": found, "labels": torch.arange(len(found)) % 2 + 1, **changes}


def detected(target, scores=None, **changes):
    return {**target, "scores": torch.linspace(0.9, 0.5, len(target["boxes"])) if scores is None else scores, **changes}


@pytest.fixture
def metric():
    try:
        return DetectionAP(per_class=True)
    except EvaluationError as error:
        pytest.skip(str(error))


def test_all_found_is_one(metric):
    targets = [image(seed) for seed in range(3)]
    metric.update([detected(t) for t in targets], targets)
    found = metric.compute()
    assert found["ap"] == found["ap50"] == found["ap75"] == pytest.approx(1)
    assert found["ap_per_class"] == pytest.approx({1: 1, 2: 1})
    assert math.isnan(found["ap_large"])  # there are none


def test_half_found_is_half(metric):
    target = image(labels=torch.ones(6, dtype=torch.long))
    found = {key: value[:3] for key, value in detected(target).items()}
    metric.update([found], [target])
    assert metric.compute()["ap50"] == pytest.approx(0.5, abs=0.01)  # COCO reads precision at 101 recalls


def test_before_any_image_there_is_nothing_to_say(metric):
    for _ in range(2):
        found = metric.compute()
        assert math.isnan(found["ap"]) and found["ap_per_class"] == {}
        metric.update([], [])


def test_shifted_boxes_pass_at_some_overlaps_alone(metric):
    target = {"boxes": torch.tensor([[0.0, 0, 100, 100]]), "labels": torch.tensor([1])}
    shifted = {"boxes": target["boxes"] + torch.tensor([20.0, 0, 20, 0]), "labels": target["labels"]}  # IoU 0.667
    metric.update([detected(shifted)], [target])
    found = metric.compute()
    assert found["ap50"] == pytest.approx(1) and found["ap75"] == 0
    assert found["ap"] == pytest.approx(0.4)  # at 0.50, 0.55, 0.60 and 0.65 of ten


def test_wrong_class_and_nothing_found_are_zero(metric):
    target = image()
    wrong = detected(target, labels=target["labels"] + 2)
    nothing = {"boxes": torch.empty(0), "labels": torch.empty(0).long(), "scores": torch.empty(0)}
    metric.update([wrong, nothing], [target, image(1)])
    assert metric.compute()["ap"] == 0


@pytest.mark.parametrize(
    ("detections", "targets", "repair"),
    [
        ([], [image()], "one of each"),
        ([image()], [image()], "has no scores"),
        ([detected(image(), boxes=torch.zeros(6, 5))], [image()], r"\(N, 4\)"),
        ([detected(image(), scores=torch.ones(5))], [image()], "6 boxes but scores"),
        ([detected(image())], [image(labels=torch.full((6,), 1.7))], r"targets\[0\] has labels of type torch.float32"),
        ([detected(image(), boxes=boxes() * torch.nan)], [image()], "NaN or infinite"),
        ([detected(image())], [image(boxes=boxes().flip(1))], r"targets\[0\].*corners"),
    ],
)
def test_refusals(monkeypatch, detections, targets, repair):
    monkeypatch.setattr(detection, "_build", lambda per_class: None)
    with pytest.raises(InputError, match=repair):
        DetectionAP().update(detections, targets)


def test_missing_torchmetrics_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", None)
    with pytest.raises(EvaluationError, match=r"segaware\[detection\]"):
        DetectionAP()
