import pytest
import torch
import torch.nn.functional as F
from losses.tester import LossTester
from torch import nn

from segaware import SegAwareWrapper
from segaware.errors import InputError
from segaware.losses.sensitivity import (
    SensitivityLoss,
    sensitivity,
    sensitivity_map,
    weighted_fidelity,
    weights_of,
)


class TestSensitivityLoss(LossTester):
    needs = ("clean",)

    def build(self, network):
        return SensitivityLoss(network)

    def call(self, loss, denoised, clean):
        torch.manual_seed(7)  # of the probes
        return super().call(loss, denoised, clean)

    def test_probes_follow_the_global_generator(self, loss, noisy, clean):
        torch.manual_seed(7)
        assert torch.equal(loss(noisy, clean=clean), self.call(loss, noisy, clean))
        assert not torch.equal(loss(noisy, clean=clean), self.call(loss, noisy, clean))

    @pytest.mark.parametrize(("floor", "clip"), [(0.1, 10.0), (0.9, 1.1), (0.0, 3.0)])
    def test_it_is_the_weighted_squares_with_its_range(self, segmenter, noisy, clean, floor, clip):
        value = self.call(SensitivityLoss(segmenter, floor=floor, clip=clip, probes=3), noisy, clean)
        torch.manual_seed(7)
        weights = weights_of(sensitivity(segmenter, clean, probes=3), floor=floor, clip=clip)
        assert float(weights.min()) >= floor - 1e-6 and float(weights.max()) <= clip + 1e-6
        torch.testing.assert_close(value, weighted_fidelity(noisy, clean, weights))

    def test_gray_images_are_repeated(self, loss, noisy, clean):
        # not equal to three channels that are alike: a gray pixel moves all three of them together
        assert self.call(loss, noisy[:, :1], clean[:, :1]) > 0

    def test_no_gradient_needed_around_it(self, loss, noisy, clean):
        with torch.no_grad():
            assert torch.equal(self.call(loss, noisy, clean), self.call(loss, noisy, clean))


def half_blind():
    """Logits that look at the left half alone: twice the pixel in one, minus it in the other."""

    class Half(nn.Module):
        def forward(self, image):
            seen = image.mean(1, keepdim=True) * (torch.arange(image.shape[3]) < image.shape[3] // 2)
            return torch.cat([2 * seen, -seen], dim=1)

    return Half()


def test_the_diagonal_by_hand():
    # J has 2/3 and -1/3 for each channel: J^T v is +-1/3 or +-1, (1/9 + 1)/2 = 5/9 on average
    found = sensitivity(half_blind(), torch.rand(1, 3, 4, 8), probes=2000)
    assert found.shape == (1, 1, 4, 8) and float(found[..., 4:].abs().max()) == 0
    assert torch.allclose(found[..., :4], torch.tensor(5 / 9), atol=0.06)


def test_exact_for_the_trace(segmenter):
    segmenter.double().eval()
    clean = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    whole = torch.autograd.functional.jacobian(segmenter, clean).reshape(-1, clean.numel())
    expected = whole.square().sum(0).reshape(clean.shape).mean(1, keepdim=True)
    found = sensitivity(segmenter, clean, probes=600)
    assert float((found - expected).norm() / expected.norm()) < 0.15


def test_right_for_white_errors_blind_to_those_that_act_together():
    def steps(image):  # logits that see differences of neighbours alone
        return image - image.roll(1, dims=-1)

    clean, white = torch.rand(1, 3, 16, 64), torch.randn(1, 3, 16, 64)
    found = sensitivity(steps, clean, probes=50)
    assert float((found * white.square()).sum() / steps(white).square().sum()) == pytest.approx(1, abs=0.1)
    shift = torch.ones_like(white)
    assert float(steps(shift).abs().max()) == 0 and float((found * shift).sum()) > 1000


def test_weights():
    weights = weights_of(torch.tensor([0.0, 1.0, 1.0, 98.0]).reshape(1, 1, 2, 2), floor=0.2, clip=3)
    assert weights.flatten().tolist() == pytest.approx([0.2, 0.2, 0.2, 3.0])
    assert weights_of(torch.zeros(1, 1, 2, 2)).eq(1).all()


def test_weighted_fidelity_by_hand():
    clean = torch.zeros(1, 3, 1, 2)
    denoised = torch.tensor([1.0, 2.0]).expand(1, 3, 1, 2).clone().requires_grad_()
    weights = torch.tensor([2.0, 0.5]).reshape(1, 1, 1, 2)
    assert float(weighted_fidelity(denoised.detach(), clean, weights)) == pytest.approx((2 * 1 + 0.5 * 4) / 2)
    first = torch.tensor([True, False]).reshape(1, 1, 1, 2)
    assert float(weighted_fidelity(denoised, clean, weights, first)) == pytest.approx(2)
    value = weighted_fidelity(denoised, clean, weights, ~first & first)
    value.backward()
    assert float(value) == 0 and not denoised.grad.any()


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_values_stay_finite(scale):
    denoised = torch.full((1, 3, 4, 4), scale, requires_grad=True)
    value = weighted_fidelity(denoised, torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4))
    value.backward()
    assert value.isfinite() and denoised.grad.isfinite().all()
    steep = sensitivity(lambda image: scale * image, torch.rand(1, 3, 4, 4))
    assert weights_of(steep).eq(1).all()


def test_kept_maps_need_no_segmenter(segmenter):
    image = torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8)
    maps = sensitivity_map(segmenter, image)
    assert maps.shape == (12, 16) and maps.dtype == torch.uint8 and 2 <= int(maps.min()) and int(maps.max()) <= 128
    clean, labels = image[None].float() / 255, maps[None].long()
    denoised = clean + 0.1 * torch.randn_like(clean)
    value = SensitivityLoss()(denoised, clean=clean, labels=labels)
    assert torch.isclose(value, ((denoised - clean).square() * labels / 16).mean())
    ones = torch.full((1, 12, 16), 16)
    assert torch.isclose(SensitivityLoss()(denoised, clean=clean, labels=ones), F.mse_loss(denoised, clean))
    assert SensitivityLoss().state_dict() == {}


def test_in_the_wrapper(segmenter):
    wrapper = SegAwareWrapper(nn.Conv2d(3, 3, 3, padding=1), SensitivityLoss())
    noisy = torch.rand(1, 3, 8, 8)
    output = wrapper(noisy, clean=noisy, labels=torch.full((1, 8, 8), 255))
    assert float(output.terms["sensitivity"]) == 0  # all ignored
    with pytest.raises(InputError, match="sensitivity_map"):
        wrapper(noisy, clean=noisy)


def test_bad_input(segmenter):
    clean = torch.rand(1, 3, 4, 4)
    with pytest.raises(InputError, match="make them with sensitivity_map"):
        SensitivityLoss()(clean, clean=clean, labels=torch.rand(1, 4, 4))
    with pytest.raises(InputError, match="cut like the images"):
        SensitivityLoss()(clean, clean=clean, labels=torch.zeros(1, 4, 5, dtype=torch.long))
    with pytest.raises(InputError, match="floor"):
        SensitivityLoss(segmenter, clip=20)
    with pytest.raises(InputError, match="at least 1"):
        SensitivityLoss(segmenter, probes=0)
    with pytest.raises(InputError, match="image by image"):
        sensitivity_map(segmenter, clean)
    for image, mend in ((clean[0] * torch.nan, "NaN"), (clean[0] * 255, "divide by 255"), ((clean[0] * 255).int(), "convert with")):
        with pytest.raises(InputError, match=f"sensitivity_map.*{mend}"):
            sensitivity_map(segmenter, image)


def test_a_floor_below_the_grid_is_not_rounded_to_nothing(segmenter):
    image = torch.rand(3, 12, 16)
    steep = image * torch.linspace(0, 1, 16)
    assert int(sensitivity_map(segmenter, steep, floor=0.01).min()) >= 1
