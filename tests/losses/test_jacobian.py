import math

import pytest
import torch
import torch.nn.functional as F
from losses.tester import LossTester
from torch import nn

from segaware.errors import InputError, ModelError
from segaware.losses.consistency import consistency
from segaware.losses.fisher import FisherLoss, fisher
from segaware.losses.jacobian import JacobianLoss, jacobian, push_forward


class TestJacobianLoss(LossTester):
    needs = ("clean",)

    def build(self, network):
        return JacobianLoss(network)

    def test_small_errors_are_the_squared_distance_of_the_logits(self, segmenter, clean):
        loss = JacobianLoss(segmenter.double())
        clean = clean.double()
        denoised = clean + 1e-4 * torch.randn_like(clean)
        value = loss(denoised, clean=clean)
        assert float(value / F.mse_loss(segmenter(denoised), segmenter(clean))) == pytest.approx(1, abs=1e-3)

    def test_it_is_quadratic_in_the_error(self, loss, noisy, clean):
        value = loss(noisy, clean=clean)
        assert torch.isclose(loss(clean + 3 * (noisy - clean), clean=clean), 9 * value, rtol=1e-4)
        assert float(loss(clean, clean=clean)) == 0

    def test_gradient_is_that_of_the_whole_jacobian(self, segmenter, clean):
        loss, clean = JacobianLoss(segmenter.double()), clean[:1, :, :8, :8].double()
        error = (0.2 * torch.randn_like(clean)).requires_grad_()
        loss(clean + error, clean=clean).backward()
        whole = torch.autograd.functional.jacobian(segmenter, clean).reshape(-1, clean.numel())
        expected = 2 * whole.T @ (whole @ error.detach().flatten()) / len(whole)
        assert torch.allclose(error.grad.flatten(), expected, rtol=1e-8)

    def test_features(self, segmenter, noisy, clean):
        segmenter.requires_grad_(False).eval()
        loss = JacobianLoss(features=lambda image: [2 * image, segmenter(image)])
        plain = JacobianLoss(segmenter)(noisy, clean=clean)
        assert torch.isclose(loss(noisy, clean=clean), (4 * F.mse_loss(noisy, clean) + plain) / 2)


class TestFisherLoss(LossTester):
    needs = ("clean",)

    def build(self, network):
        return FisherLoss(network)

    def test_small_errors_are_the_divergence_of_the_predictions(self, segmenter, clean):
        loss = FisherLoss(segmenter.double())
        clean = clean.double()
        denoised = clean + 1e-3 * torch.randn_like(clean)
        with torch.no_grad():
            expected = consistency(segmenter(denoised), segmenter(clean))
        assert float(loss(denoised, clean=clean) / expected) == pytest.approx(1, abs=1e-2)


def test_jacobian_by_hand():
    linear = nn.Conv2d(1, 2, 1, bias=False)
    linear.weight.data = torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1)
    clean = torch.rand(1, 1, 2, 2)
    value = JacobianLoss(linear)(clean + 0.1, clean=clean)
    assert float(value.detach()) == pytest.approx((0.3**2 + 0.4**2) / 2, rel=1e-4)
    assert float(jacobian(torch.tensor([[3.0, 1.0]]))) == 5


def test_fisher_by_hand():
    logits, change = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[2.0, 0.0]])
    assert float(fisher(logits, change)) == pytest.approx(0.5 * (0.75 * 4 - 1.5**2))  # 0.375
    assert float(fisher(logits, change + 100)) == pytest.approx(0.375, rel=1e-4)  # a common shift changes nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_logits_stay_finite(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype)
    change = (-logits).requires_grad_()
    for value in (fisher(logits, change), jacobian(change)):
        (grad,) = torch.autograd.grad(value, change)
        assert value.dtype == torch.float32 and value.isfinite() and grad.isfinite().all()


def test_attention_has_a_forward_mode():
    class Attend(nn.Module):
        def forward(self, image):
            tokens = image.flatten(2).transpose(1, 2)
            return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).reshape(image.shape)

    clean = torch.rand(1, 3, 4, 4)
    assert math.isfinite(JacobianLoss(Attend())(clean + 0.1, clean=clean))


def test_what_has_no_derivative():
    class Cut(nn.Module):
        def forward(self, image):
            return torch.from_numpy(image.detach().numpy()).requires_grad_()

    clean = torch.rand(1, 3, 4, 4)
    with pytest.raises(ModelError, match="keep it in torch"):
        JacobianLoss(Cut())(clean, clean=clean)

    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, image):
            return image.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    with pytest.raises(ModelError, match="SensitivityLoss"):
        push_forward(Odd.apply, clean, clean, where="here")


def test_bad_input(segmenter):
    image = torch.rand(1, 3, 8, 8)
    for loss in (JacobianLoss(segmenter), FisherLoss(segmenter)):
        with pytest.raises(InputError, match="clean=..."):
            loss(image)
    with pytest.raises(InputError, match="images of one size"):
        push_forward(segmenter, image, image[..., :4], where="here")
    with pytest.raises(InputError, match="give one"):
        JacobianLoss(segmenter, features=lambda image: image)
    with pytest.raises(ModelError, match="give one shape"):
        fisher(torch.zeros(1, 3), torch.zeros(1, 4))
