import copy
import json

import pytest
import torch
import torch.nn.functional as F

from segaware import DeepLabSegmenter, FPNSegmenter
from segaware.contracts import Segmenter
from segaware.entries import load_entry, read_config, write_entry
from segaware.errors import InputError, ModelError, WeightsError
from segaware.segmenters.adapters import freeze

TINY = {"width": 8, "rates": (1, 2)}
BACKBONES = ["squeezenet1_0", "resnet18", "timm:mobilenetv3_small_100"]


def spread(net):
    """Classifier weights that let something through: fresh ones say the same everywhere to 1e-2."""
    torch.nn.init.normal_(net.classify.weight, 0.0, 1.0)
    return net


@pytest.fixture(scope="module", params=BACKBONES)
def net(request):
    torch.manual_seed(0)
    return spread(DeepLabSegmenter(5, request.param, **TINY)).eval()


@pytest.fixture
def small():
    return spread(DeepLabSegmenter(3, class_names=["a", "b", "c"], **TINY)).eval()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 70), (17, 16), (50, 33), (64, 48)])
def test_any_size_gives_a_quarter_rounded_up(net, size):
    with torch.no_grad():
        logits = net(torch.rand(2, 3, *size))
    assert logits.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4)) and torch.isfinite(logits).all()


def test_number_of_parameters_of_the_judge():
    """SqueezeNet, one batch normalisation, the pyramid, the finest level, two separable convolutions, the classifier."""
    with torch.device("meta"):
        net = DeepLabSegmenter(11)
    found = sum(p.numel() for p in net.head_parameters())
    width, deep, fine = 128, 512, 256
    norm = 2 * width
    pyramid = 2 * (deep * width + norm) + 3 * (9 * deep * width + norm) + 5 * width * width + norm
    low = fine * 48 + 2 * 48
    separable = sum(9 * c + 2 * c + c * width + norm for c in (width + 48, width))
    assert found == 2 * deep + pyramid + low + separable + 11 * width + 11
    assert sum(p.numel() for p in net.backbone.parameters()) == 735_424
    assert found + 735_424 == sum(p.numel() for p in net.parameters())


def test_decoder_by_hand(small):
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        levels = small.backbone((image - small.mean) / small.std)
        deep = F.interpolate(small.pyramid(small.norm(levels[-1])), size=(8, 12), mode="bilinear", align_corners=False)
        want = small.classify(small.decoder(torch.cat([deep, small.low(levels[0])], dim=1)))
        torch.testing.assert_close(small(image), want)


def test_what_is_padded_does_not_change_what_is_there(small):
    """17 rows are padded to 32 by repeating the last one, as if the image went on so."""
    image = torch.rand(1, 3, 17, 16)
    whole = torch.cat([image, image[:, :, -1:].expand(-1, -1, 15, -1)], dim=2)
    with torch.no_grad():
        torch.testing.assert_close(small(image), small(whole)[:, :, :5])


@pytest.mark.parametrize("rates", [(1,), (6, 12, 18)])
def test_every_parameter_and_the_image_get_a_gradient(rates):
    net = spread(DeepLabSegmenter(3, width=8, rates=rates)).train()
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    (net(image) * torch.randn(2, 3, 16, 16)).sum().backward()
    # a dilated kernel wider than the map touches it with its centre alone, but that is a gradient too
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert image.grad.any()


def test_frozen_it_stays_as_it_is_and_gradients_pass(net):
    net = freeze(copy.deepcopy(net))
    net.train()
    before = copy.deepcopy(net.state_dict())
    image = torch.rand(1, 3, 48, 48, requires_grad=True)
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


def test_dropout_is_of_training_alone(small):
    assert [m.p for m in small.modules() if isinstance(m, torch.nn.Dropout)] == [0.1]  # torchvision's would be 0.5
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(small(image), small(image))


def test_it_is_a_segmenter(small):
    assert isinstance(small, Segmenter)
    assert (small.num_classes, small.stride, small.class_names) == (3, 4, ("a", "b", "c"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_entry_round_trip(tmp_path, small, dtype):
    write_entry(tmp_path / "net", small, dtype=dtype)
    assert "weights" not in json.loads(json.dumps(read_config(tmp_path / "net")))["arguments"]
    image = torch.rand(1, 3, 33, 48)
    for again in (load_entry(tmp_path / "net"), DeepLabSegmenter.from_pretrained(tmp_path / "net")):
        assert type(again) is DeepLabSegmenter and again.class_names == ("a", "b", "c") and not again.training
        with torch.no_grad():
            close = {"rtol": 0, "atol": 0} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
            torch.testing.assert_close(again(image), small(image), **close)
    with pytest.raises(WeightsError, match="DeepLabSegmenter, not FPNSegmenter"):
        FPNSegmenter.from_pretrained(tmp_path / "net")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "at least 2"),
        ({"width": 0}, "at least 1"),
        ({"rates": ()}, "at least 1"),
        ({"rates": (0, 6)}, "at least 1"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"class_names": ["a"]}, "1 class names for 3 classes"),
        ({"std": (1, 0, 1)}, "over 0"),
        ({"mean": 0.5}, "three numbers"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        DeepLabSegmenter(**{"num_classes": 3, **TINY, **arguments})


def test_unknown_backbone():
    with pytest.raises(ModelError, match="did you mean 'resnet"):
        DeepLabSegmenter(3, "resnet19", **TINY)


@pytest.mark.parametrize(
    "images", [torch.rand(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.rand(3, 8, 8), torch.rand(1, 3, 0, 8)]
)
def test_wrong_images_are_refused(small, images):
    with pytest.raises(InputError):
        small(images)
