import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segaware.errors import InputError
from segaware.task_metrics import (
    class_accuracy,
    confusion_matrix,
    iou,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    predict_labels,
    topk_hits,
)


def labelled(batch=3, classes=5, size=(9, 11), void=0.2):
    truth = torch.randint(classes, (batch, *size))
    guess = torch.where(torch.rand(truth.shape) < 0.6, truth, torch.randint(classes, truth.shape))
    return guess, torch.where(torch.rand(truth.shape) < void, 255, truth)


def test_a_matrix_one_can_check_by_hand():
    truth = torch.tensor([[0, 0, 1, 1, 1, 255]])
    guess = torch.tensor([[0, 1, 1, 1, 0, 2]])
    matrix = confusion_matrix(guess, truth, 3)
    assert matrix.tolist() == [[[1, 1, 0], [1, 2, 0], [0, 0, 0]]]
    assert iou(matrix)[0, :2].tolist() == pytest.approx([1 / 3, 2 / 4]) and iou(matrix)[0, 2].isnan()
    assert mean_iou(matrix).item() == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert mean_iou(matrix, absent="zero").item() == pytest.approx((1 / 3 + 1 / 2) / 3)
    assert pixel_accuracy(matrix).item() == pytest.approx(3 / 5)
    assert class_accuracy(matrix)[0, :2].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert mean_accuracy(matrix).item() == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_class_only_in_the_predictions_counts_as_missed():
    matrix = confusion_matrix(torch.tensor([[0, 2]]), torch.tensor([[0, 0]]), 3)
    assert iou(matrix)[0, 2] == 0 and class_accuracy(matrix)[0, 2].isnan()
    assert mean_iou(matrix).item() == pytest.approx((1 / 2 + 0) / 2)


def test_the_mean_of_a_set_is_that_of_its_matrix():
    guess, truth = labelled()
    matrices = confusion_matrix(guess, truth, 5)
    whole = confusion_matrix(guess.reshape(1, -1), truth.reshape(1, -1), 5)
    assert torch.equal(matrices.sum(0, keepdim=True), whole)
    assert mean_iou(matrices).shape == (3,) and iou(matrices).shape == (3, 5)
    resampled = matrices[torch.randint(3, (7, 3))].sum(1)  # a stack of resampled sets
    assert mean_iou(resampled).shape == (7,)


def test_equals_torchmetrics():
    classification = pytest.importorskip("torchmetrics.functional.classification")
    guess, truth = labelled()
    matrix = confusion_matrix(guess, truth, 5).sum(0)
    options = {"num_classes": 5, "ignore_index": 255}
    assert torch.equal(matrix, classification.multiclass_confusion_matrix(guess, truth, **options))
    assert mean_iou(matrix).item() == pytest.approx(
        classification.multiclass_jaccard_index(guess, truth, average="macro", **options).item(), abs=1e-6
    )
    for average, ours in (("micro", pixel_accuracy), ("macro", mean_accuracy)):
        theirs = classification.multiclass_accuracy(guess, truth, average=average, **options)
        assert ours(matrix).item() == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_labels_of_any_integer_type(dtype):
    guess, truth = labelled()
    assert torch.equal(
        confusion_matrix(guess.to(dtype), truth.to(dtype), 5), confusion_matrix(guess, truth, 5)
    )


def test_one_answer_an_image_counts_too():
    matrix = confusion_matrix(torch.tensor([0, 1]), torch.tensor([1, 1]), 2)
    assert matrix.tolist() == [[[0, 0], [1, 0]], [[0, 0], [0, 1]]]


def test_all_void_is_nan_and_not_perfect():
    truth = torch.full((1, 4, 4), 255)
    matrix = confusion_matrix(torch.zeros(1, 4, 4, dtype=torch.long), truth, 3)
    assert matrix.sum() == 0 and mean_iou(matrix).isnan().all() and pixel_accuracy(matrix).isnan().all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 8))
def test_properties(seed, classes):
    torch.manual_seed(seed)
    guess, truth = labelled(2, classes, (4, 6))
    matrix = confusion_matrix(guess, truth, classes)
    assert int(matrix.sum()) == int((truth != 255).sum())
    order = torch.randperm(classes)
    mapped = torch.where(truth == 255, 255, order[truth.clamp(max=classes - 1)])
    permuted = confusion_matrix(order[guess], mapped, classes)
    assert torch.allclose(mean_iou(permuted), mean_iou(matrix), equal_nan=True)  # names do not matter
    values = iou(matrix)
    assert ((values >= 0) & (values <= 1) | values.isnan()).all()
    assert (values <= class_accuracy(matrix) + 1e-12).logical_or(class_accuracy(matrix).isnan()).all()
    assert torch.allclose(iou(matrix.mT), values, equal_nan=True)  # symmetric in labels and predictions
    perfect = torch.where(truth == 255, 0, truth)
    assert pixel_accuracy(confusion_matrix(perfect, truth, classes)).eq(1).all()


def test_predictions_are_enlarged_before_the_class_is_chosen():
    logits = torch.randn(2, 4, 3, 5)
    up = torch.nn.functional.interpolate(logits, (12, 20), mode="bilinear", align_corners=False)
    assert torch.equal(predict_labels(logits, (12, 20)), up.argmax(1))
    assert torch.equal(predict_labels(logits), logits.argmax(1))
    assert torch.equal(predict_labels(logits[:, :, 0, 0]), logits[:, :, 0, 0].argmax(1))
    assert predict_labels(logits.half(), (4, 4)).shape == (2, 4, 4)


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 4, 3)])
def test_topk_counts_the_highest_scores(shape):
    logits = torch.randn(shape)
    labels = torch.randint(7, shape[:1] + shape[2:])
    found = topk_hits(logits, labels, (1, 3, 7))
    best = logits.movedim(1, -1).topk(3).indices
    expected = (best == labels[..., None]).any(-1).double().reshape(6, -1).mean(1)
    assert torch.allclose(found[1], expected)
    assert torch.allclose(found[0], (logits.argmax(1) == labels).double().reshape(6, -1).mean(1))
    assert (found[2] == 1).all() and (found[0] <= found[1]).all()


def test_equal_scores_earn_nothing_by_chance():
    labels = torch.arange(5)
    assert topk_hits(torch.zeros(5, 5), labels, 1)[0].tolist() == [1, 0, 0, 0, 0]
    assert topk_hits(torch.zeros(5, 5), labels, 2)[0].tolist() == [1, 1, 0, 0, 0]
    assert torch.equal(topk_hits(torch.zeros(5, 5), labels, 1)[0], (torch.zeros(5, 5).argmax(1) == labels).double())


def test_topk_leaves_void_out():
    logits = torch.eye(3)[None, :, :, None]  # right at all three places
    labels = torch.tensor([[[0], [1], [255]]])
    assert topk_hits(logits, labels, 1).item() == 1
    assert math.isnan(topk_hits(logits, torch.full((1, 3, 1), 255), 1).item())
    wide = torch.zeros(1, 300)
    wide[0, 255] = 1
    assert topk_hits(wide, torch.tensor([255]), 1).item() == 1  # a class of that number is a class


@pytest.mark.parametrize(
    ("call", "repair"),
    [
        (lambda: confusion_matrix(torch.zeros(1, 2), torch.zeros(1, 2).long(), 2), r"arg-max.*\.long\(\)"),
        (lambda: confusion_matrix(torch.zeros(1, 2).long(), torch.zeros(1, 3).long(), 2), r"predict_labels\("),
        (lambda: confusion_matrix(torch.zeros(1, 2).long(), torch.full((1, 2), 11), 11), "11 to 11 are outside"),
        (lambda: confusion_matrix(torch.full((1, 2), 7), torch.zeros(1, 2).long(), 5), "same classes"),
        (lambda: confusion_matrix(torch.full((1, 2), -1), torch.zeros(1, 2).long(), 5), "-1 to -1"),
        (lambda: confusion_matrix(torch.zeros(1, 2).long(), torch.zeros(1, 2).long(), 3, ignore=0), "no class"),
        (lambda: mean_iou(torch.zeros(3, 3), absent="maybe"), "'skip' or 'zero'"),
        (lambda: iou(torch.zeros(3, 4)), r"\(\.\.\., K, K\)"),
        (lambda: predict_labels(torch.zeros(2, 3), (4, 4)), "give no size"),
        (lambda: predict_labels(torch.full((1, 2, 2, 2), math.nan)), "NaN"),
        (lambda: topk_hits(torch.zeros(2, 3), torch.zeros(2).long(), 4), "from 1 to 3"),
        (lambda: topk_hits(torch.zeros(2, 3), torch.full((2,), 9), 1), "same classes"),
        (lambda: topk_hits(torch.zeros(2, 3), torch.zeros(3).long(), 1), "do not fit"),
        (lambda: topk_hits(torch.full((2, 3), math.nan), torch.zeros(2).long(), 1), "NaN"),
    ],
)
def test_refusals(call, repair):
    with pytest.raises(InputError, match=repair):
        call()
