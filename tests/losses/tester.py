"""What every loss keeps: its gradient goes to the denoiser and to nobody else, and it never learns."""

import copy

import pytest
import torch
from torch import nn

from segaware.denoisers.dncnn import DnCNN
from segaware.errors import ModelError
from segaware.losses.frozen import Frozen


class LossTester:
    """A subclass says how its loss is built and what it is told beside the denoised image."""

    needs: tuple[str, ...] = ()

    def build(self, network: nn.Module) -> nn.Module:
        raise NotImplementedError

    def call(self, loss: nn.Module, denoised: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        labels = torch.arange(clean.shape[0] * 12 * 16).reshape(-1, 12, 16) % 5
        offered = {"clean": clean, "labels": labels}
        return loss(denoised, **{name: offered[name] for name in self.needs})

    @pytest.fixture
    def clean(self) -> torch.Tensor:
        return torch.rand(2, 3, 12, 16)

    @pytest.fixture
    def noisy(self, clean) -> torch.Tensor:
        return clean + 0.2 * torch.randn_like(clean)

    @pytest.fixture
    def loss(self, segmenter) -> nn.Module:
        return self.build(segmenter)

    def test_gradient_reaches_every_parameter_of_the_denoiser_and_nobody_elses(self, loss, segmenter, noisy, clean):
        denoiser = DnCNN(depth=3, width=8).eval()
        noisy.requires_grad_()
        self.call(loss, denoiser(noisy), clean).backward()
        for name, parameter in denoiser.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        assert all(p.grad is None for p in segmenter.parameters())
        assert clean.grad is None and noisy.grad.abs().sum() > 0

    def test_scalar_float32_positive(self, loss, noisy, clean):
        value = self.call(loss, noisy, clean)
        assert value.shape == () and value.dtype == torch.float32 and value > 0

    def test_a_validation_in_inference_mode_gives_the_same(self, loss, segmenter, noisy, clean):
        twin = copy.deepcopy(loss)
        torch.manual_seed(7)
        expected = self.call(loss, noisy, clean).detach()
        with torch.inference_mode():
            torch.manual_seed(7)
            value = self.call(twin, noisy * 1, clean * 1)  # made here, as a validation makes them
        assert torch.allclose(value.clone(), expected, rtol=1e-5)

    def test_training_mode_of_a_parent_changes_nothing(self, loss, segmenter, noisy, clean):
        before, state = self.call(loss, noisy, clean), copy.deepcopy(segmenter.state_dict())
        parent = nn.ModuleDict({"loss": loss, "segmenter": segmenter})
        parent.train()
        assert segmenter.training  # the user's own parent may switch it, the loss switches back
        assert torch.equal(self.call(loss, noisy, clean), before)
        assert not any(m.training for m in segmenter.modules())
        assert all(torch.equal(value, state[key]) for key, value in segmenter.state_dict().items())

    def test_hidden_from_optimisers_and_checkpoints(self, loss, segmenter):
        assert list(loss.parameters()) == [] and loss.state_dict() == {}
        assert not any(p.requires_grad for p in segmenter.parameters())

    def test_moves_with_its_parent(self, loss, segmenter, noisy, clean):
        nn.Sequential(loss).to(torch.float64)
        assert {p.dtype for p in segmenter.parameters()} == {torch.float64}
        assert self.call(loss, noisy.double(), clean.double()).dtype == torch.float64
        assert self.call(loss, noisy, clean).isfinite()  # images follow the network's dtype

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_reduction_is_float32_under_autocast(self, loss, noisy, clean, dtype):
        exact = self.call(loss, noisy, clean)
        noisy.requires_grad_()
        with torch.autocast("cpu", dtype):
            value = self.call(loss, noisy, clean)
        value.backward()
        assert value.dtype == torch.float32 and torch.isclose(value, exact, rtol=0.1)
        assert noisy.grad.isfinite().all() and noisy.grad.abs().sum() > 0

    def test_a_network_switched_on_is_refused(self, loss, segmenter, noisy, clean):
        segmenter.head.requires_grad_(True)
        with pytest.raises(ModelError, match="no gradient is left for the denoiser.*requires_grad_\\(False\\)"):
            self.call(loss, noisy, clean)

    def test_gray_images_are_repeated(self, loss, noisy, clean):
        gray, gray_clean = noisy[:, :1], clean[:, :1]
        repeated = self.call(loss, gray.repeat(1, 3, 1, 1), gray_clean.repeat(1, 3, 1, 1))
        assert torch.isclose(self.call(loss, gray, gray_clean), repeated)

    def test_a_copy_is_independent(self, loss, noisy, clean):
        twin = copy.deepcopy(loss)
        networks = [next(v for v in vars(one).values() if isinstance(v, Frozen)).network() for one in (loss, twin)]
        assert networks[0] is not networks[1]
        assert torch.equal(self.call(loss, noisy, clean), self.call(twin, noisy, clean))

    def test_no_module_is_refused(self):
        with pytest.raises(ModelError, match="torch.nn.Module"):
            self.build(TinyFunction)  # a class, not an instance


class TinyFunction(nn.Module):
    """Handed over without being built."""
