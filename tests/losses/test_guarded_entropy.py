import math

import pytest
import torch
from losses.tester import LossTester

from segaware.errors import InputError, ModelError
from segaware.losses.entropy import entropy
from segaware.losses.guarded_entropy import GuardedEntropyLoss, guarded_entropy


class TestGuardedEntropyLoss(LossTester):
    needs = ("clean",)

    def build(self, network):
        return GuardedEntropyLoss(network, keep_below=1.0)

    def test_options_are_those_of_the_function(self, segmenter, noisy, clean):
        loss = GuardedEntropyLoss(segmenter, keep_below=0.9, hold=2.0)
        expected = guarded_entropy(segmenter(noisy), segmenter(clean), keep_below=0.9, hold=2.0)
        assert torch.equal(loss(noisy, clean=clean), expected)

    def test_without_clean(self, loss, noisy):
        with pytest.raises(InputError, match="clean=..."):
            loss(noisy)


def test_by_hand():
    sure, unsure = torch.tensor([0.9, 0.1]), torch.tensor([0.6, 0.4])
    logits = torch.stack([sure, unsure]).log()
    clean = torch.tensor([[0.5, 0.5]]).log().expand(2, 2)
    # H(sure) = 0.3251 is below 0.5 ln 2 = 0.3466, H(unsure) = 0.6730 is not
    kept = -(sure * sure.log()).sum()
    hold = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(guarded_entropy(logits, clean, keep_below=0.5, hold=0)) == pytest.approx(float(kept), rel=1e-5)
    assert float(guarded_entropy(logits, clean, keep_below=0.5)) == pytest.approx(float(kept) + hold, rel=1e-5)


def test_of_21_classes_an_entropy_below_1_218_is_sure():
    def of(top):  # one class has ``top``, the others share the rest
        p = torch.full((1, 21), (1 - top) / 20)
        p[0, 0] = top
        return p.log()

    below, above = of(0.78), of(0.77)
    assert float(entropy(below)) < 0.4 * math.log(21) < float(entropy(above))
    assert 0.4 * math.log(21) == pytest.approx(1.218, abs=5e-4)
    assert float(guarded_entropy(below, below, hold=0)) == pytest.approx(float(entropy(below)))
    assert float(guarded_entropy(above, above, hold=0)) == 0


def test_all_kept_and_nothing_held_is_the_entropy():
    logits = torch.randn(2, 4, 3, 3)
    assert torch.isclose(guarded_entropy(logits, logits, keep_below=1, hold=0), entropy(logits))


def test_no_pixel_is_sure():
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    value = guarded_entropy(logits, logits.detach())
    value.backward()
    assert float(value.detach()) == 0 and float(logits.grad.abs().max()) < 1e-7


def test_one_class_for_all_does_not_please_it():
    clean = 100 * torch.eye(4).reshape(1, 4, 2, 2)
    collapsed = torch.zeros(1, 4, 2, 2)
    collapsed[:, 0] = 100
    assert guarded_entropy(clean, clean) < 1e-6 and guarded_entropy(collapsed, clean) > 10


def test_the_clean_side_carries_no_gradient():
    found, clean = torch.randn(1, 3, 2, 2, requires_grad=True), torch.randn(1, 3, 2, 2, requires_grad=True)
    guarded_entropy(found, clean).backward()
    assert clean.grad is None and found.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_logits_stay_finite(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, -1e4]], dtype=dtype).requires_grad_()
    value = guarded_entropy(logits, -logits.detach())
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("options", [{"keep_below": 0}, {"keep_below": 1.1}, {"hold": -1}, {"hold": math.nan}])
def test_bad_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        GuardedEntropyLoss(**options)


def test_shapes_that_differ():
    with pytest.raises(ModelError, match="one size gives one shape"):
        guarded_entropy(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
