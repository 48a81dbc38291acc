import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.tester import LossTester
from torch import nn

from segaware.errors import InputError, ModelError
from segaware.losses.entropy import EntropySegAwareLoss, entropy


class TestEntropySegAwareLoss(LossTester):
    def build(self, network):
        return EntropySegAwareLoss(network)

    @pytest.mark.parametrize("options", [{"normalize": True}, {"balance": 0.5}, {"normalize": True, "balance": 1.0}])
    def test_options_are_those_of_the_function(self, segmenter, noisy, options):
        loss = EntropySegAwareLoss(segmenter, **options)
        assert torch.equal(loss(noisy), entropy(segmenter(noisy), **options))


def test_uniform_is_log_k():
    assert float(entropy(torch.zeros(2, 21, 3, 4))) == pytest.approx(math.log(21))
    assert float(entropy(torch.full((2, 21, 3, 4), 7.0), normalize=True)) == pytest.approx(1.0)


def test_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]])
    expected = -(p * p.log()).sum(1).mean()
    assert torch.isclose(entropy(p.log()[..., None, None]), expected)
    assert torch.isclose(entropy(p.log()), expected)  # a classifier's logits


def test_gradient_by_hand():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    entropy(logits).backward()
    p = logits.detach().softmax(1)
    each = -(p * p.log()).sum(1, keepdim=True)
    assert torch.allclose(logits.grad, -p * (p.log() + each) / 6)


@pytest.mark.parametrize("logits", [torch.zeros(1, 21), torch.eye(21)[:1] * 60])
def test_no_gradient_where_all_is_open_or_all_is_decided(logits):
    logits.requires_grad_()
    entropy(logits).backward()
    assert float(logits.grad.abs().max()) < 1e-7


def test_it_is_the_sum_over_classes_and_the_mean_over_pixels():
    one, two = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    both = torch.cat([one, two])
    assert torch.isclose(entropy(both), (entropy(one) + entropy(two)) / 2)
    assert torch.isclose(entropy(both.repeat(1, 1, 3, 5)), entropy(both))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_extreme_logits_stay_finite(dtype, balance):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [0.0, 0.0, 1e4]], dtype=dtype).requires_grad_()
    value = entropy(logits, balance=balance)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and logits.grad.isfinite().all()


def test_a_class_that_is_ruled_out_adds_nothing():
    open_classes = torch.randn(2, 3, 4, 4)
    logits = torch.cat([open_classes, torch.full((2, 1, 4, 4), -torch.inf)], dim=1).requires_grad_()
    value = entropy(logits)
    value.backward()
    assert torch.isclose(value.detach(), entropy(open_classes)) and logits.grad.isfinite().all() and logits.grad[:, :3].any()


def test_balance_subtracts_the_entropy_of_the_mean_prediction():
    logits = torch.randn(2, 4, 3, 3)
    mean = logits.softmax(1).mean((0, 2, 3))
    assert torch.isclose(entropy(logits, balance=0.7), entropy(logits) + 0.7 * (mean * mean.log()).sum())


def test_balance_tells_collapse_from_confidence():
    sure = 100 * torch.eye(4).reshape(1, 4, 2, 2)  # each pixel another class
    collapsed = torch.zeros(1, 4, 2, 2)
    collapsed[:, 0] = 100
    assert torch.isclose(entropy(sure), entropy(collapsed), atol=1e-6)
    assert entropy(sure, balance=1.0) < entropy(collapsed, balance=1.0) - 1


def test_a_trainable_head_collapses_and_leaves_no_gradient():
    """Why heads are frozen: a bias alone brings the entropy to zero, and then nothing flows."""
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    head = nn.Conv2d(3, 4, 1)
    before = torch.autograd.grad(entropy(head(image)), image)[0].abs().sum()
    optimiser = torch.optim.Adam([head.bias], lr=1.0)
    for _ in range(40):
        optimiser.zero_grad()
        entropy(head(image)).backward()
        optimiser.step()
    value = entropy(head(image))
    after = torch.autograd.grad(value, image)[0].abs().sum()
    assert value < 1e-3 and after < 1e-2 * before


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(2, 30), st.integers(1, 9), st.integers(1, 9), st.floats(0, 50))
def test_range_for_every_shape(batch, classes, height, width, scale):
    value = float(entropy(scale * torch.randn(batch, classes, height, width)))
    assert -1e-6 <= value <= math.log(classes) + 1e-5


@pytest.mark.parametrize(
    ("logits", "mend"),
    [
        (torch.zeros(2, 1, 3, 3), "give two"),
        (torch.zeros(2, 4, 3, 3, dtype=torch.long), "return the scores"),
        (torch.zeros(4), r"\(B, K"),
        ({"out": torch.zeros(2, 4, 3, 3)}, "SegmenterAdapter"),
    ],
)
def test_what_are_no_logits(logits, mend):
    with pytest.raises(ModelError, match=mend):
        entropy(logits)


def test_probabilities_are_refused():
    loss = EntropySegAwareLoss(nn.Sequential(nn.Conv2d(3, 5, 1), nn.Softmax(dim=1)))
    with pytest.raises(ModelError, match="leave its softmax out"):
        loss(torch.rand(1, 3, 4, 4))


def test_a_class_count_that_lies_is_refused(segmenter):
    segmenter.num_classes = 21
    with pytest.raises(ModelError, match="num_classes=21 but gave 5"):
        EntropySegAwareLoss(segmenter)(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("balance", [-1.0, math.nan, math.inf])
def test_balance_out_of_range(balance):
    with pytest.raises(InputError, match="zero or positive"):
        EntropySegAwareLoss(nn.Conv2d(3, 4, 1), balance=balance)
    with pytest.raises(InputError, match="zero or positive"):
        entropy(torch.zeros(1, 4), balance=balance)
