import copy
import math

import pytest
import torch
import torch.nn.functional as F
from losses.tester import LossTester
from torch import nn

from segaware.errors import InputError
from segaware.losses.consistency import ConsistencyLoss
from segaware.losses.d2sm import D2SMLoss
from segaware.losses.entropy import EntropySegAwareLoss
from segaware.losses.jacobian import JacobianLoss
from segaware.losses.judge_pool import JudgePoolLoss, view
from segaware.losses.pseudo_label import PseudoLabelLoss
from segaware.losses.task import TaskLoss


class TestJudgePoolLoss(LossTester):
    needs = ("clean",)

    def build(self, network):
        return JudgePoolLoss([network], flip=False, scales=(1.0,))

    def test_one_judge_and_one_view_is_the_loss(self, loss, segmenter, noisy, clean):
        assert torch.equal(loss(noisy, clean=clean), ConsistencyLoss(segmenter)(noisy, clean=clean))

    def test_a_copy_is_independent(self, loss, noisy, clean):
        twin = copy.deepcopy(loss)
        networks = [one.losses[0].network.network() for one in (loss, twin)]
        assert networks[0] is not networks[1]
        assert torch.equal(self.call(loss, noisy, clean), self.call(twin, noisy, clean))


class TestEveryJudgeFlipAndScale(LossTester):
    needs = ("clean",)

    def build(self, network):
        return JudgePoolLoss([network], JacobianLoss, scales=(0.5, 1.0, 1.5))

    def call(self, loss, denoised, clean):
        torch.manual_seed(1)
        return super().call(loss, denoised, clean)

    def test_a_copy_is_independent(self, loss):
        assert copy.deepcopy(loss).losses[0] is not loss.losses[0]

    def test_what_is_drawn_follows_the_global_generator(self, segmenter, other_segmenter, noisy, clean):
        pool = JudgePoolLoss([segmenter, other_segmenter], scales=(0.5, 1.0))

        def run():
            torch.manual_seed(3)
            return [float(pool(noisy, clean=clean)) for _ in range(40)]

        values = run()
        assert values == run() and len(set(values)) == 8  # 2 judges x 2 flips x 2 scales
        expected = {
            float(ConsistencyLoss(judge)(view(noisy, flip=flip, scale=scale), clean=view(clean, flip=flip, scale=scale)))
            for judge in (segmenter, other_segmenter)
            for flip in (False, True)
            for scale in (0.5, 1.0)
        }
        assert set(values) == expected

    def test_draws_are_as_many_whatever_the_options(self, segmenter, noisy, clean):
        states = []
        for options in ({}, {"flip": False, "scales": (1.0,)}):
            torch.manual_seed(0)
            JudgePoolLoss([segmenter], **options)(noisy, clean=clean)
            states.append(torch.rand(1))
        assert torch.equal(*states)


def test_view():
    images = torch.rand(1, 3, 8, 12)
    assert view(images, flip=False, scale=1) is images
    assert torch.equal(view(images, flip=True, scale=1), images.flip(3))
    assert view(images, flip=False, scale=1.25).shape == (1, 3, 10, 15)
    assert torch.allclose(view(images, flip=True, scale=0.5).mean((2, 3)), images.mean((2, 3)), atol=0.03)
    assert view(images, flip=True, scale=0.01).shape == (1, 3, 1, 1)


def test_labels_are_mirrored_with_the_image():
    pixelwise = nn.Conv2d(3, 5, 1)
    pool = JudgePoolLoss([pixelwise], TaskLoss, scales=(1.0,))
    image, labels = torch.rand(1, 3, 6, 7), torch.randint(0, 5, (1, 6, 7))
    expected = F.cross_entropy(pixelwise(image), labels)
    for _ in range(8):
        assert torch.isclose(pool(image, labels=labels), expected)


def test_all_ignored(segmenter):
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    value = JudgePoolLoss([segmenter], TaskLoss)(image, labels=torch.full((1, 8, 8), 255))
    value.backward()
    assert float(value.detach()) == 0 and not image.grad.any()


def test_a_loss_that_takes_nothing_else(segmenter):
    assert JudgePoolLoss([segmenter], EntropySegAwareLoss)(torch.rand(1, 3, 8, 8)) > 0


def test_a_loss_that_can_do_without_clean(segmenter):
    assert JudgePoolLoss([segmenter], PseudoLabelLoss)(torch.rand(1, 3, 8, 8)) > 0


@pytest.mark.parametrize("scales", [(), (0,), (-1.0,), (math.nan,)])
def test_bad_scales(segmenter, scales):
    with pytest.raises(InputError, match="positive"):
        JudgePoolLoss([segmenter], scales=scales)


def test_no_judges(segmenter):
    with pytest.raises(InputError, match="at least one"):
        JudgePoolLoss([])
    with pytest.raises(InputError, match="in a list"):
        JudgePoolLoss(segmenter)
    with pytest.raises(InputError, match="clean=..."):
        JudgePoolLoss([segmenter])(torch.rand(1, 3, 8, 8))


def test_a_memory_is_asked_at_one_scale(segmenter, other_segmenter):
    """D2SM's rows would change their length with the scale."""
    pool = JudgePoolLoss((judge for judge in (segmenter, other_segmenter)), lambda judge: D2SMLoss(judge, patch=None))
    assert pool.scales == (1.0,) and len(pool.losses) == 2 and JudgePoolLoss([segmenter]).scales == (0.75, 1.0, 1.25)
    for seed in range(6):
        torch.manual_seed(seed)
        assert pool(torch.rand(2, 3, 12, 16, requires_grad=True), clean=torch.rand(2, 3, 12, 16)).isfinite()


def test_compiled_inside(segmenter):
    noisy, clean = torch.rand(2, 1, 3, 12, 16)
    pool = JudgePoolLoss([segmenter], lambda judge: torch.compile(ConsistencyLoss(judge), backend="eager"), flip=False, scales=(1,))
    assert pool.takes == ("clean",) and torch.isclose(pool(noisy, clean=clean), ConsistencyLoss(segmenter)(noisy, clean=clean))
