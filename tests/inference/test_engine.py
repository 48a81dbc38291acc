import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import segaware
from segaware.contracts import DenoiserInfo
from segaware.entries import write_entry
from segaware.errors import InputError, ModelError, WeightsError
from segaware.inference import engine as engine_module
from segaware.inference.engine import Engine, denoise
from segaware.inference.noise_level import estimate_noise
from segaware.noise import add_poisson


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 75), st.integers(1, 75), st.integers(1, 40))
def test_tiled_is_whole(network, level, height, width, tile):
    noisy = torch.rand(1, 3, height, width)
    whole = denoise(noisy, network, sigma=level, tile="whole")
    assert torch.allclose(denoise(noisy, network, sigma=level, tile=tile), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(97, 131), (128, 64), (1, 200)])
def test_tiled_is_whole_in_float64(network, level, size):
    """In double precision a pixel that saw the wrong neighbour cannot hide behind rounding."""
    noisy = torch.rand(1, 3, *size, dtype=torch.float64)
    network.double()
    whole = denoise(noisy, network, sigma=level, tile="whole")
    for tile in (16, 33):
        assert (denoise(noisy, network, sigma=level, tile=tile) - whole).abs().max() < 1e-12


def test_it_is_the_network(network, level):
    noisy = torch.rand(2, 3, 37, 41)
    with torch.no_grad():
        expected = network(noisy, level)
    assert torch.allclose(denoise(noisy, network, sigma=level), expected, rtol=0, atol=1e-5)


def test_the_module_is_left_as_it_was(network, level):
    network.train()
    next(network.children()).eval()
    modes = [module.training for module in network.modules()]
    before = copy.deepcopy(network.state_dict())
    noisy = torch.rand(1, 3, 16, 16)
    kept = noisy.clone()
    denoise(noisy, network, sigma=level, tile=8)
    assert [module.training for module in network.modules()] == modes
    after = network.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(noisy, kept)


@pytest.mark.parametrize("shape", [(3, 9, 11), (1, 3, 9, 11), (5, 3, 9, 11), (3, 1, 1), (2, 3, 1, 500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_tensors_come_back_alike(network, level, shape, dtype):
    noisy = torch.rand(shape).to(dtype).requires_grad_()
    clean = denoise(noisy, network, sigma=level)
    assert clean.shape == noisy.shape and clean.dtype == dtype and not clean.requires_grad
    (clean * torch.ones(1, requires_grad=True)).sum().backward()  # no inference tensor: may be used in autograd


def test_not_clamped(halve):
    noisy = torch.tensor([[[[-2.0, 4.0]]]])
    assert denoise(noisy, halve()).tolist() == [[[[-1.0, 2.0]]]]


def test_batches_go_in_pieces(halve, monkeypatch):
    monkeypatch.setattr(engine_module, "WHOLE", 100)
    network = halve()
    noisy = torch.rand(7, 2, 5, 6)
    assert torch.equal(denoise(noisy, network), noisy / 2)
    assert [shape[0] for shape, _ in network.calls] == [3, 3, 1]


@pytest.mark.parametrize(
    ("field", "pixels", "pieces"), [(3, 100, 1), (3, 99, 4), (None, 99, 1)], ids=["small", "large", "unknown field"]
)
def test_auto(halve, monkeypatch, field, pixels, pieces):
    monkeypatch.setattr(engine_module, "WHOLE", pixels)
    monkeypatch.setattr(engine_module, "CORE", 5)
    network = halve(receptive_field=field)
    denoise(torch.rand(1, 1, 10, 10), network)
    assert len(network.calls) == pieces


def test_progress(halve):
    seen = []
    Engine(halve(), tile=4)(torch.rand(1, 1, 8, 12), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


# the noise level


@pytest.mark.parametrize("form", ["float", "vector", "map"])
def test_sigma_reaches_the_right_pixels(form):
    torch.manual_seed(0)
    network = segaware.FFDNet(depth=3, width=8).double().eval()
    noisy = torch.rand(2, 3, 40, 30, dtype=torch.float64)
    sigma = {"float": 0.2, "vector": torch.tensor([0.1, 0.4]), "map": torch.rand(2, 1, 40, 30, dtype=torch.float64)}[
        form
    ]
    with torch.no_grad():
        expected = network(noisy, sigma)
    for tile in ("whole", 12):
        assert torch.allclose(denoise(noisy, network, sigma=sigma, tile=tile), expected, atol=1e-12)


def test_a_map_for_one_unbatched_image(halve):
    network = halve(takes_sigma=True)
    denoise(torch.rand(1, 6, 6), network, sigma=torch.full((1, 6, 6), 0.1))
    assert network.calls[0][1].shape == (1, 1, 6, 6)


def test_one_level_is_told_as_one_number_per_image(halve):
    network = halve(takes_sigma=True)
    denoise(torch.rand(2, 1, 6, 6), network, sigma=0.5)
    assert network.calls[0][1].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("takes", "sigma", "repair"),
    [
        (True, None, "pass sigma"),
        (False, 0.1, "takes no sigma"),
        (True, 25, "divide by 255"),
        (True, -0.1, r"in \[0, 1\]"),
    ],
)
def test_sigma_refused(halve, takes, sigma, repair):
    with pytest.raises(InputError, match=repair):
        denoise(torch.rand(1, 1, 4, 4), halve(takes_sigma=takes), sigma=sigma)


# images that are refused


@pytest.mark.parametrize(
    ("noisy", "repair"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"float\(\) / 255"),
        (torch.full((1, 3, 4, 4), 200.0), "divide by 255"),
        (torch.full((1, 3, 4, 4), float("nan")), "nan_to_num"),
        (torch.full((1, 3, 4, 4), float("inf")), "nan_to_num"),
        (torch.rand(1, 1, 4, 4), "expand"),
        (torch.rand(1, 4, 4, 4), r"\[:, :3\]"),
        (torch.rand(4, 4), "shape"),
        (torch.rand(1, 3, 0, 4), "at least one pixel"),
        ([torch.rand(3, 4, 4), torch.rand(3, 5, 4)], "expected a path"),
        (None, "expected a path"),
    ],
)
def test_bad_images(halve, noisy, repair):
    with pytest.raises(InputError, match=repair):
        denoise(noisy, halve(channels=3))


# models, devices, precisions


def test_a_network_that_cannot_be_copied_is_borrowed_and_given_back():
    class Awkward(nn.Sequential):
        info = DenoiserInfo(channels=1, receptive_field=1)

        def __deepcopy__(self, memo):
            raise RuntimeError("only leaves")

    network = Awkward(nn.Conv2d(1, 1, 1), nn.Dropout(0.9)).train()
    noisy = torch.rand(1, 1, 5, 5)
    clean = denoise(noisy, network)
    assert network.training and network[1].training
    assert torch.allclose(clean, network[0](noisy), atol=1e-6)  # no dropout: it ran in eval mode
    assert len(network) == 2
    with pytest.raises(ModelError, match="yourself first"):
        Engine(network.double(), precision="float32")


def test_names_and_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("segaware.entries._SHIPPED", tmp_path)
    network = segaware.DnCNN(depth=3, width=4).eval()
    folder = write_entry(tmp_path / "tiny", network)
    noisy = torch.rand(1, 3, 8, 8)
    expected = denoise(noisy, network)
    for model in ("tiny", folder, str(folder)):
        assert torch.equal(denoise(noisy, model), expected)
    with pytest.raises(WeightsError, match="did you mean 'tiny'"):
        denoise(noisy, "tinny")
    with pytest.raises(WeightsError, match="no such folder"):
        denoise(noisy, "./someone/model")
    with pytest.raises(WeightsError, match="give the model's folder"):
        denoise(noisy, folder / "config.json")


def test_no_denoisers():
    with pytest.raises(ModelError, match=r"SegAwareWrapper\(network\)"):
        Engine(nn.Conv2d(3, 3, 3))
    with pytest.raises(InputError, match="a name, a folder or a denoiser"):
        Engine(42)


@pytest.mark.parametrize("answer", [lambda x: x[:, :, 1:], lambda x: {"out": x}, lambda x: x.mean()])
def test_a_wrong_answer(halve, answer):
    network = halve()
    network.forward = lambda noisy: answer(noisy)
    with pytest.raises(ModelError, match="wrap it"):
        denoise(torch.rand(1, 1, 4, 4), network)


def test_nan_from_the_network(halve):
    network = halve()
    network.forward = lambda noisy: noisy / 0
    with pytest.raises(ModelError, match="NaN or infinite"):
        denoise(torch.rand(1, 1, 4, 4), network)


def test_out_of_memory_names_the_tile(halve):
    def forward(noisy):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    network = halve()
    network.forward = forward
    with pytest.raises(InputError, match="pass a smaller tile"):
        denoise(torch.rand(1, 1, 4, 4), network)


def test_bfloat16_is_near(network, level):
    noisy = torch.rand(1, 3, 32, 32)
    exact, near = (denoise(noisy, network, sigma=level, precision=p) for p in ("float32", "bfloat16"))
    assert near.dtype == torch.float32
    error = (near - exact).abs().max()
    assert 0 < error < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("options", "repair"),
    [
        ({"tile": 0}, "positive number"),
        ({"tile": "small"}, "'whole'"),
        ({"tile": True}, "positive number"),
        ({"precision": "half"}, "bfloat16"),
        ({"precision": "float16", "device": "cpu"}, "needs CUDA"),
        ({"device": "gpu"}, "use 'auto', 'cpu'"),
    ],
)
def test_bad_options(halve, options, repair):
    with pytest.raises(InputError, match=repair):
        denoise(torch.rand(1, 1, 4, 4), halve(), **options)


def test_a_tile_needs_a_known_field(halve):
    with pytest.raises(InputError, match="'auto' or 'whole'"):
        Engine(halve(receptive_field=None), tile=64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_no_cuda(halve):
    with pytest.raises(InputError, match="not available here; use 'cpu'"):
        Engine(halve(), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_cuda(network, level, precision):
    noisy = torch.rand(1, 3, 60, 70)
    expected = denoise(noisy, network, sigma=level)
    clean = denoise(noisy, network, sigma=level, device="cuda", precision=precision, tile=32)
    assert clean.device == noisy.device
    assert (clean - expected).abs().max() < (1e-5 if precision == "float32" else 0.05) * expected.abs().max()


# wrapped networks


@pytest.mark.parametrize("tile", ["auto", "whole", 16])
def test_a_wrapped_denoiser_is_one(network, level, tile):
    wrapper = segaware.SegAwareWrapper(network, ()).train()
    noisy = torch.rand(1, 3, 40, 30)
    expected = denoise(noisy, network, sigma=level)
    assert torch.allclose(denoise(noisy, wrapper, sigma=level, tile=tile), expected, rtol=0, atol=1e-5)
    assert wrapper.training and network.training


def test_a_network_of_ones_own():
    body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 3, 2, stride=2))
    wrapper = segaware.SegAwareWrapper(body, (), predicts="noise", value_range=(0, 255), size_multiple=2)
    noisy = torch.rand(2, 3, 13, 9)
    with torch.no_grad():
        assert torch.allclose(denoise(noisy, wrapper), wrapper(noisy), atol=1e-5)
    with pytest.raises(InputError, match="'auto' or 'whole'"):
        denoise(noisy, wrapper, tile=8)


def test_a_wrapper_with_its_loss(monkeypatch, tmp_path):
    """The segmenter of the loss is not needed to denoise, nor looked for."""
    monkeypatch.setattr("segaware.entries._SHIPPED", tmp_path)
    assert denoise(torch.rand(3, 9, 9), segaware.SegAwareWrapper(segaware.DnCNN(depth=3, width=4))).shape == (3, 9, 9)


def test_few_photons_are_no_other_scale(halve):
    """At half a photon for white a pixel now and then has five of them: ten times white."""
    clean = torch.full((1, 3, 64, 64), 0.6)
    noisy = add_poisson(clean, peak=0.4, generator=torch.Generator().manual_seed(3))
    assert noisy.max() > 8
    assert denoise(noisy, halve()).shape == noisy.shape and float(estimate_noise(noisy)) > 0.5
    with pytest.raises(InputError, match="divide by 255"):
        denoise(clean * 255, halve())
