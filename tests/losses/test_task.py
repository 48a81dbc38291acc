import math

import pytest
import torch
import torch.nn.functional as F
from losses.tester import LossTester
from torch import nn

from segaware.errors import InputError
from segaware.losses.task import TaskLoss, task


class TestSegmentation(LossTester):
    needs = ("labels",)

    def build(self, network):
        return TaskLoss(network, class_weights=[1, 2, 3, 4, 5])


class TestLabelsReduced(LossTester):
    needs = ("labels",)

    def build(self, network):
        return TaskLoss(network, resize="labels")

    def test_without_labels(self, loss, noisy):
        with pytest.raises(InputError, match="labels=..."):
            loss(noisy)


@pytest.mark.parametrize("resize", ["logits", "labels"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 4.0, 50.0]])
def test_the_loss_is_the_function_with_its_options(segmenter, resize, weights):
    image, labels = torch.rand(2, 3, 12, 16), torch.randint(0, 5, (2, 12, 16))
    loss = TaskLoss(segmenter, class_weights=weights, resize=resize)
    expected = task(segmenter(image), labels, class_weights=None if weights is None else torch.tensor(weights), resize=resize)
    assert torch.equal(loss(image, labels=labels), expected)
    if weights:
        assert not torch.isclose(expected, task(segmenter(image), labels, resize=resize), rtol=1e-4)


def test_uniform_is_log_k():
    assert float(task(torch.zeros(2, 21, 4, 4), torch.ones(2, 4, 4, dtype=torch.uint8))) == pytest.approx(math.log(21))


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 3.0])])
def test_against_torch(weights):
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    labels[0, 0] = 255
    expected = F.cross_entropy(logits, labels, weight=weights, ignore_index=255)
    assert torch.isclose(task(logits, labels, class_weights=weights), expected)
    assert torch.isclose(task(logits, labels[:, None].byte(), class_weights=weights), expected)


def test_sizes():
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 8, 10))
    up = F.interpolate(logits, size=(8, 10), mode="bilinear", align_corners=False)
    assert torch.isclose(task(logits, labels), F.cross_entropy(up, labels))
    assert torch.isclose(task(logits, labels, resize="labels"), F.cross_entropy(logits, labels[:, ::2, ::2]))


@pytest.mark.parametrize("weights", [None, torch.ones(3)])
def test_nothing_to_learn_from(weights):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = task(logits, torch.full((2, 8, 8), 255), class_weights=weights)
    value.backward()
    assert float(value.detach()) == 0.0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [2, 5])
def test_extreme_logits_stay_finite(dtype, size):
    logits = (1e4 * torch.randn(1, 3, 2, 2).sign()).to(dtype).requires_grad_()
    value = task(logits, torch.zeros(1, size, size, dtype=torch.long))
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and logits.grad.isfinite().all()


def test_classification():
    logits, labels = torch.randn(4, 10), torch.randint(0, 10, (4,))
    assert torch.isclose(task(logits, labels), F.cross_entropy(logits, labels))
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    image = torch.rand(4, 3, 8, 8, requires_grad=True)
    TaskLoss(classifier)(image, labels=labels).backward()
    assert image.grad.abs().sum() > 0


def test_class_255_of_a_thousand_counts():
    logits = torch.randn(2, 1000)
    labels = torch.tensor([255, 7])
    assert torch.isclose(task(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("labels", "mend"),
    [
        (torch.full((2, 4, 4), 3), r"labels 3 to 3 are outside \[0, 2\] or 255 \(ignored\)"),
        (torch.full((2, 4, 4), -1), "labels -1 to -1 are outside"),
        (torch.full((2, 4, 4), 254, dtype=torch.uint8), "labels 254 to 254"),
        (torch.zeros(2, 4, 4), r"labels.long\(\)"),
        (torch.zeros(2, dtype=torch.long), r"\(B, H, W\) for a segmentation"),
        (torch.zeros(3, 4, 4, dtype=torch.long), "do not fit"),
        ([[1]], "integer tensor"),
    ],
)
def test_bad_labels(labels, mend):
    with pytest.raises(InputError, match=mend):
        task(torch.zeros(2, 3, 4, 4), labels)


def test_bad_options():
    with pytest.raises(InputError, match="give one a class"):
        task(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), class_weights=torch.ones(2))
    with pytest.raises(InputError, match='"labels"'):
        TaskLoss(nn.Conv2d(3, 3, 1), resize="both")


@pytest.mark.parametrize("upstream", [1.0, 65536.0])
def test_labels_that_all_weigh_nothing(upstream):
    """A batch of class 0 alone, whose weight is 0: nothing to learn, and no infinite gradient."""
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = task(logits, torch.zeros(2, 4, 4, dtype=torch.long), class_weights=torch.tensor([0.0, 1.0, 1.0]))
    (gradient,) = torch.autograd.grad(value * upstream, logits)
    assert value == 0 and torch.equal(gradient, torch.zeros_like(gradient))
