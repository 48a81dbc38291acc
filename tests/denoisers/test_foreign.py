"""Networks of other houses under the wrapper: the same answer as calling them by hand, and clear errors."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segaware.denoisers.dncnn import DnCNN
from segaware.denoisers.ffdnet import FFDNet
from segaware.denoisers.liu import LiuDenoiser
from segaware.errors import InputError, ModelError
from segaware.wrapper import SegAwareWrapper


class Conv(nn.Module):
    """A plain network: one convolution, and what it was given is kept for the test to look at."""

    def __init__(self, inputs: int = 3, outputs: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, image):
        self.given = image.detach()
        return self.conv(image)


class Told(Conv):
    """``f(x, sigma)`` that divides by what it was told, as broadcasting allows."""

    def forward(self, image, sigma):
        self.sigma = sigma
        return super().forward(image) / (1 + sigma)


class Optional(Conv):
    def forward(self, image, *, noise_level=None):
        self.level = noise_level
        return super().forward(image)


class Coarse(nn.Module):
    """A U-shaped network that fails unless both sides are multiples of ``multiple``."""

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple = multiple
        self.down = nn.Conv2d(3, 4, multiple, stride=multiple)
        self.up = nn.ConvTranspose2d(4, 3, multiple, stride=multiple)

    def forward(self, image):
        return image + self.up(self.down(image))


@pytest.fixture
def noisy():
    return torch.rand(2, 3, 9, 13) + 0.1 * torch.randn(2, 3, 9, 13)


def plain(denoiser, **options):
    return SegAwareWrapper(denoiser, (), **options)


def learns(wrapper, noisy, sigma=None):
    """One training step's backward reaches every parameter."""
    wrapper(noisy, sigma, clean=noisy.clamp(0, 1)).loss.backward()
    return all(p.grad is not None and p.grad.abs().sum() > 0 for p in wrapper.parameters())


# Our own


@pytest.mark.parametrize("options", [(DnCNN, {"depth": 3}), (LiuDenoiser, {})], ids=["DnCNN", "LiuDenoiser"])
def test_our_blind_ones(options, noisy):
    # built here, after the seed, and not narrow: two random channels may both be dead
    denoiser = options[0](**options[1])
    wrapper = plain(denoiser).eval()
    assert torch.equal(wrapper(noisy), denoiser(noisy))
    assert not wrapper.takes_sigma and wrapper.info == denoiser.info
    assert learns(wrapper, noisy)
    with pytest.raises(InputError, match='blind.*takes_sigma="argument"'):
        wrapper(noisy, 0.1)
    with pytest.raises(InputError, match="repeat the gray channel"):
        wrapper(noisy[:, :1])


@pytest.mark.parametrize("sigma", [0.1, torch.tensor([0.1, 0.2]), torch.rand(2, 1, 9, 13)], ids=["one", "each", "map"])
def test_our_told_one(noisy, sigma):
    denoiser = FFDNet(depth=3, width=8)
    wrapper = plain(denoiser)
    assert wrapper.takes_sigma and torch.equal(wrapper(noisy, sigma), denoiser(noisy, sigma))
    assert learns(wrapper, noisy, sigma)
    with pytest.raises(InputError, match="sigma=25/255"):
        wrapper(noisy)
    with pytest.raises(InputError, match="divide by 255"):
        wrapper(noisy, 25)


# Other conventions


def test_noise_is_subtracted(noisy):
    net = Conv()
    assert torch.allclose(plain(net, predicts="noise")(noisy), noisy - net(noisy))
    assert learns(plain(net, predicts="noise"), noisy)


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 255), (-0.5, 0.5)])
@pytest.mark.parametrize("predicts", ["image", "noise"])
def test_value_range(noisy, low, high, predicts):
    net = Conv()
    wrapper = plain(net, value_range=(low, high), predicts=predicts)
    own = noisy * (high - low) + low
    answer = own - net(own) if predicts == "noise" else net(own)
    assert torch.allclose(wrapper(noisy), (answer - low) / (high - low), atol=1e-5)
    assert torch.allclose(net.given, own)
    assert learns(wrapper, noisy)


@pytest.mark.parametrize("sigma", [0.25, torch.tensor([0.25, 0.5]), torch.rand(2, 1, 9, 13)], ids=["one", "each", "map"])
def test_sigma_is_found_by_its_name_and_broadcasts(noisy, sigma):
    net = Told()
    wrapper = plain(net)
    assert wrapper.takes_sigma and wrapper.info.takes_sigma
    wrapper(noisy, sigma)
    shaped = torch.as_tensor(sigma).reshape(-1, 1, 1, 1) if not isinstance(sigma, torch.Tensor) or sigma.ndim < 4 else sigma
    assert torch.equal(net.sigma, shaped.expand(2, -1, -1, -1))
    assert torch.allclose(wrapper(noisy, sigma), net(noisy, shaped))
    assert learns(wrapper, noisy, sigma)
    with pytest.raises(InputError, match="needs the noise level"):
        wrapper(noisy)


def test_sigma_follows_the_value_range(noisy):
    net = Told()
    plain(net, value_range=(0, 255))(noisy, 25 / 255)
    assert torch.allclose(net.sigma, torch.full((2, 1, 1, 1), 25.0))
    plain(net, value_range=(-1, 1))(noisy, 0.25)
    assert torch.allclose(net.sigma, torch.full((2, 1, 1, 1), 0.5))


@pytest.mark.parametrize(("form", "expected"), [("vector", torch.full((2,), 0.25)), ("scalar", 0.25)])
def test_other_forms_of_sigma(noisy, form, expected):
    net = Told()
    net.forward = lambda image, sigma: setattr(net, "sigma", sigma) or net.conv(image)
    wrapper = plain(net, takes_sigma=form)
    wrapper(noisy, 0.25)
    assert torch.equal(torch.as_tensor(net.sigma), torch.as_tensor(expected))
    assert isinstance(net.sigma, float) == (form == "scalar")
    with pytest.raises(InputError, match="one sigma"):
        wrapper(noisy, torch.rand(2, 1, 9, 13))
    if form == "scalar":
        with pytest.raises(InputError, match='use "vector"'):
            wrapper(noisy, torch.tensor([0.1, 0.2]))


def test_an_optional_sigma_is_passed_when_given(noisy):
    net = Optional()
    wrapper = plain(net)
    wrapper(noisy)
    assert net.level is None and wrapper.takes_sigma
    wrapper(noisy, 0.1)
    assert net.level.shape == (2, 1, 1, 1)
    with pytest.raises(InputError, match="blind"):
        plain(net, takes_sigma=False)(noisy, 0.1)


def test_sigma_goes_second_where_no_name_says_so(noisy):
    net = Conv()
    net.forward = lambda image, t: setattr(net, "t", t) or net.conv(image)
    assert not plain(net).takes_sigma
    plain(net, takes_sigma=True)(noisy, 0.1)
    assert net.t.shape == (2, 1, 1, 1)


@pytest.mark.parametrize("sigma", [0.25, torch.tensor([0.25, 0.5]), torch.rand(2, 1, 9, 13)], ids=["one", "each", "map"])
def test_a_noise_map_is_a_further_channel(noisy, sigma):
    net = Conv(4, 3)
    wrapper = plain(net, takes_sigma="map", value_range=(0, 2))
    wrapper(noisy, sigma)
    level = torch.as_tensor(sigma)
    level = level if level.ndim == 4 else level.reshape(-1, 1, 1, 1).expand(2, 1, 9, 13)
    assert torch.allclose(net.given, torch.cat([2 * noisy, 2 * level], 1))
    assert learns(wrapper, noisy, sigma)


@pytest.mark.parametrize("multiple", [8, 64])
def test_sizes_are_padded_and_cropped(multiple):
    net = Coarse(multiple)
    noisy = torch.rand(1, 3, multiple + 5, multiple - 3)
    wrapper = plain(net, size_multiple=multiple)
    padded = F.pad(noisy, (0, 3, 0, multiple - 5), mode="reflect")
    assert torch.equal(wrapper(noisy), net(padded)[..., : multiple + 5, : multiple - 3])
    assert wrapper.info.size_multiple == multiple
    assert torch.equal(wrapper(padded), net(padded))  # nothing to pad, nothing done
    assert learns(wrapper, noisy)
    for size in ((multiple + 5, multiple + 5), (2, 2)):
        with pytest.raises(ModelError, match="size_multiple"):
            plain(net)(torch.rand(1, 3, *size))


class Windows(Conv):
    """Squares of 4 x 4 by a view, as window attention has them."""

    def forward(self, image):
        batch, channels, height, width = image.shape
        image.reshape(batch, channels, height // 4, 4, width // 4, 4)
        return super().forward(image)


class Mirrored(Conv):
    def forward(self, image):
        return super().forward(F.pad(image, (8, 8, 8, 8), mode="reflect"))[..., 8:-8, 8:-8]


class Einops(Conv):
    def forward(self, image):
        raise RuntimeError("Error while processing rearrange-reduction pattern.\n Shape mismatch, can't divide axis of length 7 in chunks of 2")


@pytest.mark.parametrize("net", [nn.PixelUnshuffle(2), Windows(), Mirrored(), Einops()], ids=["folds", "windows", "mirrors", "einops"])
def test_what_a_network_says_of_sizes_gets_the_repair(net):
    with pytest.raises(ModelError, match=r"shape \(1, 3, 7, 7\); if its sides must be multiples .* pass size_multiple to the wrapper"):
        plain(net)(torch.rand(1, 3, 7, 7))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 8, 16]), st.sampled_from(["image", "noise"]))
def test_every_size_comes_back(height, width, multiple, predicts):
    noisy = torch.rand(1, 3, height, width)
    net = Told()
    given = []
    net.register_forward_pre_hook(lambda _module, args: given.append(args[0].shape[2:]))
    wrapper = plain(net, size_multiple=multiple, predicts=predicts, value_range=(-1, 1))
    for sigma in (0.1, torch.rand(1, 1, height, width)):
        assert wrapper(noisy, sigma).shape == noisy.shape
    assert all(side % multiple == 0 for size in given for side in size)


def test_multiples_of_both_sides_meet():
    assert plain(FFDNet(depth=2, width=4), size_multiple=3).info.size_multiple == 6


# Other libraries


def test_deepinv(noisy):
    models = pytest.importorskip("deepinv.models")
    dncnn = models.DnCNN(depth=4, nf=8, pretrained=None)
    wrapper = plain(dncnn)
    assert torch.equal(wrapper(noisy, 0.1), dncnn(noisy, 0.1)) and torch.equal(wrapper(noisy), dncnn(noisy))
    assert learns(wrapper, noisy)
    drunet = models.DRUNet(nc=(4, 4, 8, 8), nb=1, pretrained=None).train()
    wrapper = plain(drunet)
    for sigma in (0.1, torch.tensor([0.1, 0.2]), torch.rand(2, 1, 9, 13)):
        assert torch.equal(wrapper(noisy, sigma), drunet(noisy, sigma))
    assert learns(wrapper, noisy, 0.1)
    with pytest.raises(InputError, match="needs the noise level"):
        wrapper(noisy)


def _spandrel(inputs: int):
    spandrel = pytest.importorskip("spandrel")
    state = {}
    for index in range(0, 16, 2):
        into, out = (inputs if index == 0 else 8), (3 if index == 14 else 8)
        state[f"model.{index}.weight"] = 0.1 * torch.randn(out, into, 3, 3)
        state[f"model.{index}.bias"] = torch.zeros(out)
    return spandrel.ModelLoader().load_from_state_dict(state)


def test_spandrel_network(noisy):
    descriptor = _spandrel(3)
    wrapper = plain(descriptor.model)
    assert torch.equal(wrapper(noisy), descriptor.model(noisy)) and learns(wrapper, noisy)


def test_spandrel_network_with_a_noise_map(noisy):
    descriptor = _spandrel(4)
    wrapper = plain(descriptor.model, takes_sigma="map")
    one = noisy[:1].clamp(0, 1)
    by_hand = descriptor(one)  # always at 15 / 255, and clamped
    assert torch.allclose(wrapper(one, 15 / 255).clamp(0, 1), by_hand, atol=1e-6)
    assert learns(wrapper, noisy, 0.1)
    with pytest.raises(ModelError, match='takes_sigma="map"'):
        plain(descriptor.model)(noisy)


def test_spandrel_descriptors_are_refused():
    with pytest.raises(ModelError, match=r"SegAwareWrapper\(descriptor.model\)"):
        plain(_spandrel(3))
    with pytest.raises(ModelError, match=r'SegAwareWrapper\(descriptor.model, takes_sigma="map"\)'):
        plain(_spandrel(4))


# Breaches of the contract


def broken(answer):
    net = Conv()
    net.forward = lambda image: answer(net.conv(image))
    return net


class Infers(Conv):
    @torch.inference_mode()
    def forward(self, image):
        return self.conv(image)


@pytest.mark.parametrize(
    ("net", "mend"),
    [
        (broken(lambda y: y[..., 1:-1]), "size_multiple=8"),
        (broken(lambda y: y[:, :1]), "returns the shape of its image"),
        (broken(lambda y: y[0]), "returns the shape of its image"),
        (broken(lambda y: y.detach()), r"look in its forward for torch.no_grad, .detach\(\)"),
        (broken(lambda y: torch.from_numpy(y.detach().numpy())), "cut from autograd"),
        (broken(lambda y: (255 * y).to(torch.uint8)), "round when saving"),
        (broken(lambda y: {"image": y}), "returned dict, not a tensor.*picks the image out"),
        (broken(lambda y: [y]), "returned list, not a tensor"),
        (Infers(), "take the decorator away"),
    ],
)
def test_breaches_are_named_with_their_repair(net, mend, noisy):
    with pytest.raises(ModelError, match=mend):
        plain(net)(noisy, clean=noisy)


def test_no_gradient_is_no_breach_where_none_is_wanted(noisy):
    plain(broken(lambda y: y.detach()))(noisy)
    with torch.no_grad():
        assert plain(Conv())(noisy, clean=noisy).loss.isfinite()
    with torch.inference_mode():
        assert plain(Infers())(noisy).shape == noisy.shape
    assert plain(Conv().requires_grad_(False))(noisy, clean=noisy).loss.isfinite()


def test_wrong_channels_for_a_network_that_does_not_say(noisy):
    with pytest.raises(ModelError, match="channels it was built for"):
        plain(Conv())(noisy[:, :1])


def test_other_errors_of_a_network_pass_unchanged(noisy):
    def fail(_):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="^out of luck$"):
        plain(broken(fail))(noisy)


@pytest.mark.parametrize("what", [lambda image: image, Conv, None, "DnCNN"])
def test_what_is_no_module(what):
    with pytest.raises(ModelError, match="torch.nn.Module"):
        plain(what)


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"predicts": "residual"}, '"image" or "noise"'),
        ({"value_range": (1, -1)}, "black, white"),
        ({"value_range": (0, 1, 2)}, "black, white"),
        ({"size_multiple": 0}, "at least 1"),
        ({"takes_sigma": "yes"}, "say True, False or one of"),
        ({"takes_sigma": None}, "say True, False or one of"),
        ({"gamma": -1.0}, "zero or positive"),
        ({"gamma": float("nan")}, "zero or positive"),
    ],
)
def test_arguments_out_of_range(options, mend):
    with pytest.raises(InputError, match=mend):
        plain(Conv(), **options)
