"""The common tester of the denoiser's contract. A denoiser's test file subclasses it:

    class TestDnCNN(DenoiserTester):
        cls = DnCNN
        small = {"depth": 3, "width": 8}                # quick, used where nothing else is said
        variants = [{"depth": 2}, {"channels": 1}]      # every documented option, at least once
        reach = [{"depth": 3, "width": 2}]              # forms whose receptive field is measured
        counts = [({}, 669_312)]                        # parameters by options
        refused = [{"depth": 1}]                        # arguments the constructor must refuse
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segaware.contracts import Denoiser
from segaware.entries import load_entry, write_entry
from segaware.errors import InputError


def random_images(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def open_all_gates(model: nn.Module) -> nn.Module:
    """Positive weights, averaging: with positive pixels no ReLU shuts, and every path shows in a gradient."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.weight.abs_().add_(0.01).div_(module.weight[0].numel())
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1.0)
            if getattr(module, "bias", None) is not None:
                module.bias.abs_()
    return model


def stir(model: nn.Module) -> nn.Module:
    """Random weights everywhere: what a network can depend on must not hang on how it starts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


class DenoiserTester:
    cls: type[nn.Module]
    small: dict[str, Any] = {}
    variants: list[dict[str, Any]] = []
    reach: list[dict[str, Any]] = []
    counts: list[tuple[dict[str, Any], int]] = []
    refused: list[dict[str, Any]] = []

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the tests that ask for ``variant``, ``form``, ``count`` or ``bad`` once for each listed one."""
        for argument, values in (
            ("variant", [{}, *self.variants]), ("form", self.reach), ("count", self.counts), ("bad", self.refused),
        ):  # fmt: skip
            if argument in metafunc.fixturenames:
                metafunc.parametrize(argument, values, ids=str)

    def make(self, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        return self.cls(**{**self.small, **options}).eval()

    @staticmethod
    def sigma(model: nn.Module) -> float | None:
        return 0.1 if model.info.takes_sigma else None

    def noisy(self, model: nn.Module, height: int = 16, width: int = 16, batch: int = 2, **options: Any) -> Tensor:
        return random_images(batch, model.info.channels or 3, height, width, **options)

    # --- the contract -------------------------------------------------------------------------

    def test_is_a_denoiser(self):
        model = self.make()
        assert isinstance(model, Denoiser)
        assert model.info.receptive_field >= 3 and model.info.size_multiple >= 1

    @pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 3), (17, 23), (32, 32)])
    def test_keeps_every_size(self, variant, size):
        model = self.make(**variant)
        noisy = self.noisy(model, *size)
        with torch.no_grad():
            denoised = model(noisy, self.sigma(model))
        assert denoised.shape == noisy.shape and denoised.dtype == noisy.dtype
        assert torch.isfinite(denoised).all()

    @pytest.mark.parametrize("channels", [1, 5])
    def test_takes_any_number_of_channels(self, channels):
        model = self.make(channels=channels)
        assert model.info.channels == channels
        noisy = random_images(1, channels, 9, 11)
        assert model(noisy, self.sigma(model)).shape == noisy.shape

    def test_leaves_its_input_alone(self):
        model = self.make()
        noisy = self.noisy(model)
        before = noisy.clone()
        model(noisy, self.sigma(model))
        assert torch.equal(noisy, before)

    def test_images_of_a_batch_do_not_meet(self, variant):
        model = self.make(**variant)
        noisy = self.noisy(model, 13, 10, batch=3)
        with torch.no_grad():
            together = model(noisy, self.sigma(model))
            alone = torch.cat([model(image[None], self.sigma(model)) for image in noisy])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)

    def test_gradient_reaches_every_parameter(self, variant):
        model = self.make(**variant)
        noisy = self.noisy(model).requires_grad_()
        model(noisy, self.sigma(model)).square().mean().backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not without
        assert noisy.grad.abs().sum() > 0

    def test_trains_a_step(self):
        model = self.make().train()
        clean = self.noisy(model)
        noisy = clean + 0.1 * random_images(*clean.shape, seed=2)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)

        def error() -> Tensor:
            return (model(noisy, self.sigma(model)) - clean).square().mean()

        first = error()
        first.backward()
        optimizer.step()
        assert error() < first

    def test_receptive_field_is_as_stated(self, form):
        """Measured by the gradient of single output pixels: the widest window, and how far it reaches to a side."""
        model = open_all_gates(self.make(**form)).double()
        multiple, field = model.info.size_multiple, model.info.receptive_field
        halo = field // 2 + multiple - 1  # what the engine may rely on: windows are off-centre within the grid
        origin = -(-(halo + 1) // multiple) * multiple  # on the grid, far enough from the border
        side = -(-(origin + multiple + halo + 2) // multiple) * multiple
        noisy = random_images(1, model.info.channels, side, side, dtype=torch.float64).add_(0.5).requires_grad_()
        denoised = model(noisy, self.sigma(model))
        extents = []
        for offset in range(multiple):
            at = origin + offset
            (gradient,) = torch.autograd.grad(denoised[0, :, at, at].sum(), noisy, retain_graph=True)
            touched = gradient[0].abs().sum(0) > 0
            for axis in (0, 1):
                index = touched.any(axis).nonzero().flatten()
                low, high = int(index.min()), int(index.max())
                assert at - low <= halo and high - at <= halo
                extents.append(high - low + 1)
        assert max(extents) == field

    def test_tiles_may_start_at_multiples_only(self, form):
        """Shifting the input by ``size_multiple`` shifts the output; shifting by half of it does not."""
        model = open_all_gates(self.make(**form)).double()
        multiple = model.info.size_multiple
        halo = model.info.receptive_field // 2 + multiple - 1
        side = (-(-2 * halo // multiple) + 3) * multiple
        noisy = random_images(1, model.info.channels, side, side, dtype=torch.float64)

        def difference(shift: int) -> float:
            whole = model(noisy, self.sigma(model))[:, :, shift:, shift:]
            part = model(noisy[:, :, shift:, shift:], self.sigma(model))
            inner = slice(halo, -halo)
            assert part[:, :, inner, inner].numel()
            return float((whole - part)[:, :, inner, inner].detach().abs().max())

        assert difference(multiple) < 1e-13
        if multiple > 1:
            assert difference(multiple // 2) > 1e-12

    def test_works_under_bf16_autocast(self):
        model = self.make()
        noisy = self.noisy(model)
        with torch.no_grad():
            exact = model(noisy, self.sigma(model))
            with torch.autocast("cpu", torch.bfloat16):
                rounded = model(noisy, self.sigma(model))
        assert rounded.is_floating_point() and torch.isfinite(rounded).all()
        torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))  # some answer little as built

    def test_memory_layout_changes_nothing(self):
        model = self.make()
        noisy = self.noisy(model)
        with torch.no_grad():
            exact = model(noisy, self.sigma(model))
            last = model.to(memory_format=torch.channels_last)(
                noisy.contiguous(memory_format=torch.channels_last), self.sigma(model)
            )
        torch.testing.assert_close(last, exact, rtol=1e-4, atol=1e-5)

    def test_compiles_in_one_graph(self):
        model = self.make()
        noisy = self.noisy(model, 9, 10)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(noisy, self.sigma(model)), model(noisy, self.sigma(model)))

    # --- building, saving ---------------------------------------------------------------------

    def test_number_of_parameters(self, count):
        options, parameters = count
        assert sum(p.numel() for p in self.cls(**options).parameters()) == parameters

    def test_config_rebuilds_it(self, variant):
        model = self.make(**variant)
        config = json.loads(json.dumps(model.config))
        assert config.items() >= {**self.small, **variant}.items()
        twin = self.cls(**config)
        twin.load_state_dict(model.state_dict())
        assert twin.info == model.info

    def test_same_seed_same_weights(self):
        first, second = self.make().state_dict(), self.make().state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_saves_and_loads(self, dtype, tmp_path):
        model = self.make()
        noisy = self.noisy(model)
        loaded = load_entry(write_entry(tmp_path / "entry", model, {"training_noise": "AWGN"}, dtype=dtype))
        assert type(loaded) is type(model) and not loaded.training
        assert loaded.info.training_noise == "AWGN"
        assert all(value.dtype == torch.float32 for value in loaded.state_dict().values() if value.is_floating_point())
        with torch.no_grad():
            expected, found = model(noisy, self.sigma(model)), loaded(noisy, self.sigma(model))
        if dtype == torch.float32:
            assert torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))

    def test_constructor_refuses(self, bad):
        with pytest.raises(InputError, match=self.cls.__name__):
            self.cls(**bad)

    # --- bad input ----------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("images", "repair"),
        [
            (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"images\.float\(\) / 255"),
            (torch.zeros(3, 8, 8), r"images\[None\]"),
            (torch.zeros(1, 1, 8, 8), "repeat the gray channel"),
            (torch.zeros(1, 4, 8, 8), "leave alpha out"),
            (torch.zeros(1, 8, 9, 3), "permute"),
            (torch.zeros(1, 7, 8, 8), "channels=7"),
            (torch.zeros(0, 3, 8, 8), "at least one pixel"),
            (torch.zeros(1, 3, 0, 8), "at least one pixel"),
            ([torch.zeros(3, 8, 8)], r"torch\.stack"),
            (None, r"torch\.as_tensor"),
        ],
        ids=str,
    )
    def test_bad_images_are_told_the_repair(self, images, repair):
        model = self.make()
        with pytest.raises(InputError, match=repair):
            model(images, self.sigma(model))

    def test_sigma_is_taken_or_refused(self):
        model = self.make()
        noisy = self.noisy(model)
        if not model.info.takes_sigma:
            with pytest.raises(InputError, match="blind"):
                model(noisy, 0.1)
            return
        for sigma, repair in [
            (None, "sigma=25/255"), (25, "25/255"), (-0.1, r"in \[0, 1\]"), (float("nan"), r"in \[0, 1\]"),
            (torch.full((3,), 0.1), r"\(2,\)"), (torch.full((2, 1, 4, 4), 0.1), r"\(2, 1, 16, 16\)"),
            (torch.full((2, 3, 16, 16), 0.1), r"\(2, 1, 16, 16\)"),
        ]:  # fmt: skip
            with pytest.raises(InputError, match=repair):
                model(noisy, sigma)

    def test_sigma_in_all_its_forms(self):
        model = stir(self.make())
        if not model.info.takes_sigma:
            assert torch.equal(model(self.noisy(model)), model(self.noisy(model), None))
            return
        noisy = self.noisy(model, 7, 9)
        level = torch.tensor([0.1, 0.1])
        with torch.no_grad():
            expected = model(noisy, 0.1)
            for sigma in (torch.tensor(0.1), level[:1], level, level.double(), torch.full((2, 1, 7, 9), 0.1)):
                assert torch.equal(model(noisy, sigma), expected)
            mixed = model(noisy, torch.tensor([0.1, 0.3]))
            assert torch.allclose(mixed[0], expected[0], atol=1e-6)
            assert torch.allclose(mixed[1], model(noisy, 0.3)[1], atol=1e-6)
            assert not torch.allclose(mixed[1], expected[1], atol=1e-6)
