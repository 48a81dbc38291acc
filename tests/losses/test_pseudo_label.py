import math

import pytest
import torch
import torch.nn.functional as F
from losses.tester import LossTester

from segaware.errors import InputError, ModelError
from segaware.losses.pseudo_label import PseudoLabelLoss, pseudo_label


class TestOwnDecision(LossTester):
    def build(self, network):
        return PseudoLabelLoss(network)


class TestCrossEntropy(LossTester):
    def build(self, network):
        return PseudoLabelLoss(network, focus=0)


class TestOwnDecisionOnClean(LossTester):
    needs = ("clean",)

    def build(self, network):
        return PseudoLabelLoss(network, teacher="self")


class TestTeacher(LossTester):
    needs = ("clean",)

    @pytest.fixture
    def loss(self, segmenter, other_segmenter):
        return PseudoLabelLoss(segmenter, teacher=other_segmenter)

    def build(self, network):
        return PseudoLabelLoss(teacher=network)

    def test_teacher_is_frozen_too(self, loss, other_segmenter, noisy, clean):
        nn_parent = torch.nn.ModuleList([loss, other_segmenter]).train()
        assert len(nn_parent) == 2
        first, second = self.call(loss, noisy, clean), self.call(loss, noisy, clean)
        assert torch.equal(first, second)  # no dropout
        assert not any(p.requires_grad for p in other_segmenter.parameters())
        loss.to(torch.float64)
        assert other_segmenter.head.weight.dtype == torch.float64

    def test_value_is_the_cross_entropy_with_the_teachers_labels(self, segmenter, other_segmenter, noisy, clean):
        value = PseudoLabelLoss(segmenter, focus=0, teacher=other_segmenter)(noisy, clean=clean)
        assert torch.isclose(value, F.cross_entropy(segmenter(noisy), other_segmenter(clean).argmax(1)))

    def test_without_clean(self, loss, noisy):
        with pytest.raises(InputError, match="clean=..."):
            loss(noisy)


@pytest.mark.parametrize("focus", [0.0, 2.0])
def test_the_loss_is_the_function_of_its_teacher_and_focus(segmenter, focus):
    noisy, clean = torch.rand(2, 3, 12, 16), torch.rand(2, 3, 12, 16)
    own, taught = PseudoLabelLoss(segmenter, focus=focus), PseudoLabelLoss(segmenter, focus=focus, teacher="self")
    assert torch.equal(own(noisy), pseudo_label(segmenter(noisy), focus=focus))
    assert torch.equal(taught(noisy, clean=clean), pseudo_label(segmenter(noisy), segmenter(clean), focus=focus))
    assert taught(noisy, clean=clean) > own(noisy)  # another image's decision


def test_uniform_is_the_released_value():
    logits = torch.zeros(1, 21, 2, 2)
    assert float(pseudo_label(logits)) == pytest.approx((1 - 1 / 21) ** 2 * math.log(21))
    assert float(pseudo_label(logits)) == pytest.approx(2.761, abs=5e-4)
    assert float(pseudo_label(logits, focus=0)) == pytest.approx(math.log(21))


def test_by_hand_against_a_teacher():
    p = torch.tensor([[0.7, 0.2, 0.1]])
    teacher = torch.tensor([[0.0, 0.0, 1.0]])
    assert float(pseudo_label(p.log(), teacher)) == pytest.approx(-(0.9**2) * math.log(0.1))
    assert float(pseudo_label(p.log())) == pytest.approx(-(0.3**2) * math.log(0.7))


def test_targets_carry_no_gradient_and_maps_are_resized():
    logits, teacher = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 7, 9, requires_grad=True)
    pseudo_label(logits, teacher).backward()
    assert teacher.grad is None and logits.grad.abs().sum() > 0


@pytest.mark.parametrize("focus", [0, 1, 2, 5.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_logits_stay_finite(focus, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype).requires_grad_()
    value = pseudo_label(logits, -logits, focus=focus)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (1, 3, 3, 3), (2, 3)])
def test_a_teacher_of_other_classes_or_images(shape):
    with pytest.raises(ModelError, match="same classes"):
        pseudo_label(torch.zeros(2, 3, 3, 3), torch.zeros(shape))


@pytest.mark.parametrize("focus", [-1, 0.5, math.nan])
def test_focus_out_of_range(focus):
    with pytest.raises(InputError, match="cross-entropy"):
        PseudoLabelLoss(focus=focus)


def test_unknown_teacher():
    with pytest.raises(InputError, match='"self"'):
        PseudoLabelLoss(teacher="clean")
