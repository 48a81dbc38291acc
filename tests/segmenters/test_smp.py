import copy
import json

import pytest
import torch

from segaware import DeepLabSegmenter, SMPSegmenter
from segaware.contracts import Segmenter
from segaware.entries import load_entry, read_config, write_entry
from segaware.errors import InputError, ModelError, WeightsError
from segaware.segmenters.adapters import freeze

#: A U-Net of 110 thousand parameters, with stride 4 at its coarsest.
TINY = {"architecture": "Unet", "encoder": "tu-resnet10t", "depth": 2, "options": {"decoder_channels": [8, 4]}}


@pytest.fixture
def net():
    return SMPSegmenter(3, **TINY, class_names=["a", "b", "c"]).eval()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 70), (16, 16), (50, 33)])
@pytest.mark.parametrize("depth", [2, 4])
def test_any_size_gives_as_many_logits_as_pixels(size, depth):
    net = SMPSegmenter(5, "Unet", "tu-resnet10t", depth, options={"decoder_channels": [8] * depth}).eval()
    with torch.no_grad():
        logits = net(torch.rand(2, 3, *size))
    assert logits.shape == (2, 5, *size) and torch.isfinite(logits).all() and net.stride == 1


def test_normalisation_is_the_encoder_s_unless_given():
    plain = SMPSegmenter(3, "Unet", "tu-mobilevit_xxs", 5, options={"decoder_channels": [8] * 5})
    assert plain.config["mean"] == [0.0] * 3 and plain.config["std"] == [1.0] * 3 and plain.mean.abs().max() == 0
    given = SMPSegmenter(3, **TINY, mean=[0.1, 0.2, 0.3], std=None)
    assert given.config["mean"] == [0.1, 0.2, 0.3] and given.config["std"] == pytest.approx([0.229, 0.224, 0.225])


def test_networks_that_want_multiples_of_32_get_them():
    net = SMPSegmenter(4, "Linknet", "resnet18").eval()
    assert net.size_multiple == 32 and net.stride == 1
    image = torch.rand(1, 3, 33, 50)
    whole = torch.cat([image, image[:, :, -1:].expand(-1, -1, 31, -1)], dim=2)
    with torch.no_grad():
        assert net(image).shape == (1, 4, 33, 50)
        torch.testing.assert_close(net(image), net(whole)[:, :, :33])


def test_it_is_smp_s_network_on_the_normalised_image(net):
    image = torch.rand(1, 3, 16, 24)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(net(image), net.model((image - mean) / std))


def test_parameters_are_the_encoder_s_or_the_head_s(net):
    head, encoder = net.head_parameters(), list(net.backbone.parameters())
    assert not {id(p) for p in head} & {id(p) for p in encoder}
    assert len(head) + len(encoder) == len(list(net.parameters())) and all(p.requires_grad for p in net.parameters())


def test_every_parameter_and_the_image_get_a_gradient(net):
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # timm closes each residual branch with a scale of zero
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    (net(image) * torch.randn(2, 3, 32, 32)).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert image.grad.any()


def test_frozen_it_stays_as_it_is_and_gradients_pass(net):
    net = freeze(net)
    net.train()
    before = copy.deepcopy(net.state_dict())
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    net(image).square().sum().backward()
    assert (image.grad != 0).float().mean() > 0.9
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()) and not net.training
    assert all(p.grad is None for p in net.parameters())


def test_images_of_a_batch_do_not_mix(net):
    images = torch.rand(3, 3, 32, 48)
    images[0] = float("nan")
    with torch.no_grad():
        together = net(images)
        torch.testing.assert_close(together[1:2], net(images[1:2]), rtol=1e-3, atol=1e-4)
    assert together[0].isnan().any() and torch.isfinite(together[1:]).all()


def test_it_is_a_segmenter(net):
    assert isinstance(net, Segmenter)
    assert (net.num_classes, net.stride, net.class_names) == (3, 1, ("a", "b", "c"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_entry_round_trip(tmp_path, net, dtype):
    write_entry(tmp_path / "net", net, dtype=dtype)
    arguments = json.loads(json.dumps(read_config(tmp_path / "net")))["arguments"]
    assert "weights" not in arguments and arguments["options"] == {"decoder_channels": [8, 4]}
    image = torch.rand(1, 3, 33, 48)
    for again in (load_entry(tmp_path / "net"), SMPSegmenter.from_pretrained(tmp_path / "net")):
        assert type(again) is SMPSegmenter and again.class_names == ("a", "b", "c") and not again.training
        with torch.no_grad():
            close = {"rtol": 0, "atol": 0} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
            torch.testing.assert_close(again(image), net(image), **close)
    with pytest.raises(WeightsError, match="SMPSegmenter, not DeepLabSegmenter"):
        DeepLabSegmenter.from_pretrained(tmp_path / "net")


def test_a_copy_and_the_first_call_change_no_weights(net):
    """The first call looks at the scores, and ``stride`` tries a small image: neither leaves a trace."""
    net.train()
    before = copy.deepcopy(net.state_dict())
    assert net.stride == 1 and net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert copy.deepcopy(net).config == net.config


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_classes": 1}, InputError, "at least 2"),
        ({"class_names": ["a"]}, InputError, "1 class names for 3 classes"),
        ({"std": (1, 0, 1)}, InputError, "over 0"),
        ({"options": {"classes": 4}}, InputError, "options classes: set by arguments"),
        ({"architecture": "Vnet"}, ModelError, "does not build Vnet"),
        ({"encoder": "resnet19"}, ModelError, "does not build Unet on resnet19"),
        ({"depth": 3}, ModelError, "does not build"),  # two decoder widths for three stages
        ({"options": {"odd": 1}}, ModelError, "does not build"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SMPSegmenter(**{"num_classes": 3, **TINY, **arguments})


@pytest.mark.parametrize(
    "images", [torch.rand(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.rand(3, 8, 8), torch.rand(1, 3, 0, 8)]
)
def test_wrong_images_are_refused(net, images):
    with pytest.raises(InputError):
        net(images)
