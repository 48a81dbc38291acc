import copy
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from segaware import HRNetSegmenter
from segaware.contracts import Segmenter
from segaware.entries import load_entry, write_entry
from segaware.errors import InputError, ModelError, WeightsError
from segaware.segmenters.hrnet import convert_hrnet

TINY = {"width": 4, "modules": (1, 1, 1), "blocks": 1, "bottlenecks": 1, "init": "kaiming"}


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return HRNetSegmenter(5, init="kaiming").eval()


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(1)
    return timm.create_model("hrnet_w18_small_v2", pretrained=False).eval()


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"num_classes": 19}, 3_939_579),
        ({"num_classes": 8}, 3_936_598),
        ({"num_classes": 21}, 3_940_121),
        ({"num_classes": 19, "width": 26, "bottlenecks": 3}, 7_997_371),
        ({"num_classes": 19, "width": 22, "modules": (1, 4, 3)}, 8_050_023),
    ],
)
def test_number_of_parameters(options, parameters):
    with torch.device("meta"):
        net = HRNetSegmenter(**options)
    assert count(net) == parameters


def test_parameters_by_part(net):
    pieces = {
        "layer1": 145_408, "transition1": 124_524, "stage2": 65_340, "transition2": 23_472,
        "stage3": 884_304, "transition3": 93_600, "stage4": 2_485_224,
    }  # fmt: skip
    assert {name: count(getattr(net.trunk, name)) for name in pieces} == pieces
    assert count(net.trunk) == 3_860_720
    assert sum(p.numel() for p in net.head_parameters()) == count(net) - 3_860_720


def test_trunk_has_timm_s_names_and_shapes(net, theirs):
    converted = convert_hrnet(theirs.state_dict())
    own = {key: value.shape for key, value in net.state_dict().items() if key.startswith("trunk.")}
    assert {key: value.shape for key, value in converted.items()} == own
    assert len(own) == 864


def branches_of(theirs, image):
    x = theirs.act1(theirs.bn1(theirs.conv1(image)))
    return theirs.stages(theirs.act2(theirs.bn2(theirs.conv2(x))))


def test_timm_with_bilinear_fusion_is_the_same_function(net, theirs):
    ours, bilinear = copy.deepcopy(net), copy.deepcopy(theirs)
    ours._load(theirs.state_dict(), "timm")
    for module in bilinear.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = "bilinear", False
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = ours.trunk(image)
        for mine, expected, plain in zip(found, branches_of(bilinear, image), branches_of(theirs, image), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(mine, plain, rtol=1e-2, atol=1e-2)  # timm's own answers something else


def test_head_by_hand(net):
    image = torch.rand(1, 3, 40, 56)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        branches = net.trunk((image - mean) / std)
        assert [tuple(x.shape[1:]) for x in branches] == [(18, 10, 14), (36, 5, 7), (72, 3, 4), (144, 2, 2)]
        joined = torch.cat([F.interpolate(x, (10, 14), mode="bilinear", align_corners=False) for x in branches], 1)
        torch.testing.assert_close(net(image), net.head(joined), rtol=1e-4, atol=1e-5)
    kinds = [type(m).__name__ for m in net.head]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    assert net.head[0].weight.shape == (270, 270, 1, 1) and net.head[0].bias is not None


def test_batch_normalisation_is_the_released_one(net):
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.01, 1e-5)}


def test_initialisation():
    torch.manual_seed(0)
    net = HRNetSegmenter(3, **{**TINY, "init": "released"})
    weights = torch.cat([m.weight.flatten() for m in net.modules() if isinstance(m, nn.Conv2d)])
    assert weights.std().item() == pytest.approx(0.001, rel=0.02)
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in net.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("size", "logits"),
    [((1, 1), (1, 1)), ((3, 70), (1, 18)), ((48, 48), (12, 12)), ((120, 120), (30, 30)), ((127, 190), (32, 48))],
)
def test_any_size_gives_a_quarter_rounded_up(net, size, logits):
    with torch.no_grad():
        assert net(torch.rand(1, 3, *size)).shape == (1, 5, *logits)


def test_every_parameter_and_the_image_get_a_gradient():
    torch.manual_seed(0)
    net = HRNetSegmenter(3, **TINY).train()
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    (net(image) * torch.randn(2, 3, 16, 16)).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert image.grad.any()


def test_images_of_a_batch_do_not_mix(net):
    images = torch.rand(3, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(net(images)[1:2], net(images[1:2]), rtol=1e-3, atol=1e-4)


def test_it_is_a_segmenter():
    net = HRNetSegmenter(2, **TINY, class_names=("a", "b"))
    assert isinstance(net, Segmenter)
    assert (net.num_classes, net.stride, net.class_names) == (2, 4, ("a", "b"))


def test_entry_round_trip(tmp_path):
    net = HRNetSegmenter(3, **TINY, mean=(0.1, 0.2, 0.3), class_names=["a", "b", "c"]).eval()
    write_entry(tmp_path / "net", net)
    again = load_entry(tmp_path / "net")
    json.dumps(again.config)
    image = torch.rand(1, 3, 40, 33)
    with torch.no_grad():
        assert torch.equal(again(image), net(image))
    assert again.class_names == ("a", "b", "c")


# --- weights ----------------------------------------------------------------------------------


def official(net):
    """As the segmentation code saves it: its names, the wrapper's prefix, and the weights of its loss."""
    state = {
        f"model.{key.removeprefix('trunk.') if key.startswith('trunk.') else key.replace('head.', 'last_layer.')}": value
        for key, value in net.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    return {**state, "loss.criterion.weight": torch.ones(net.num_classes)}


@pytest.mark.parametrize("container", [None, "model_weights", "state_dict"])
def test_official_segmentation_checkpoints_load(tmp_path, container):
    torch.manual_seed(0)
    net = HRNetSegmenter(3, **TINY)
    file = tmp_path / "official.pth"
    torch.save(official(net) if container is None else {container: official(net), "epoch": 3}, file)
    loaded = HRNetSegmenter(3, file, **TINY).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in net.state_dict().items() if "num_batches" not in key)
    with pytest.raises(WeightsError, match="num_classes=3"):
        HRNetSegmenter(4, file, **TINY)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_imagenet_checkpoints_bring_the_trunk_alone(tmp_path, theirs, suffix):
    file = tmp_path / f"imagenet{suffix}"
    state = theirs.state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    torch.manual_seed(5)
    net = HRNetSegmenter(3, file)
    assert torch.equal(net.trunk.stage4[1].fuse_layers[0][3][0].weight, state["stage4.1.fuse_layers.0.3.0.weight"])
    assert net.head[0].weight.std() < 0.01  # as it was


def test_only_an_explicit_word_fetches_weights(monkeypatch, theirs):
    asked = []

    def create_model(name, pretrained=False):
        asked.append((name, pretrained))
        return theirs

    monkeypatch.setattr(timm, "create_model", create_model)
    HRNetSegmenter(3, **TINY)
    assert asked == []
    net = HRNetSegmenter(3, "imagenet")
    assert asked == [("hrnet_w18_small_v2", True)]
    assert torch.equal(net.trunk.conv1.weight, theirs.conv1.weight)
    with pytest.raises(ModelError, match="default form only"):
        HRNetSegmenter(3, "imagenet", width=26)


def test_wrong_files_are_refused(tmp_path):
    state = official(HRNetSegmenter(3, **TINY))
    file = tmp_path / "w.pth"
    for wrong, message in (
        ({k: v for k, v in state.items() if "stage4" not in k}, "missing .trunk.stage4"),
        (state | {"model.more.weight": torch.ones(1)}, "1 tensors unexpected .more.weight"),
        (state | {"model.conv1.weight": torch.ones(2)}, "another shape .*width 4"),
        ({}, "missing"),
    ):
        torch.save(wrong, file)
        with pytest.raises(WeightsError, match=message):
            HRNetSegmenter(3, file, **TINY)
    torch.save([1, 2], file)
    with pytest.raises(WeightsError, match="holds a list"):
        HRNetSegmenter(3, file, **TINY)
    for name in ("w.safetensors", "w.pth"):
        (tmp_path / name).write_bytes(b"not a tensor")
        with pytest.raises(WeightsError, match="damaged"):
            HRNetSegmenter(3, tmp_path / name, **TINY)
    with pytest.raises(WeightsError, match="no such file"):
        HRNetSegmenter(3, tmp_path / "absent.pth", **TINY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "at least 2"),
        ({"width": 0}, "at least 1"),
        ({"modules": (1, 3)}, "three stages"),
        ({"init": "other"}, "'released' or 'kaiming'"),
        ({"class_names": ["a"]}, "1 class names for 3 classes"),
        ({"std": (1, 0, 1)}, "over 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        HRNetSegmenter(**{"num_classes": 3, **arguments})


@pytest.mark.parametrize(
    "images", [torch.rand(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.rand(3, 8, 8)]
)
def test_wrong_images_are_refused(net, images):
    with pytest.raises(InputError):
        net(images)
