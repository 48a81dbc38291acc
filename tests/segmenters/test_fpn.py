import copy

import pytest
import torch
from safetensors.torch import save_file

from segaware.contracts import Segmenter
from segaware.entries import load_entry, read_config, write_entry
from segaware.errors import InputError, ModelError, WeightsError
from segaware.segmenters import backbones
from segaware.segmenters.fpn import FPNSegmenter

BACKBONES = ["resnet18", "squeezenet1_0", "timm:mobilenetv3_small_100", "timm:convnext_atto", "smp:resnet18"]


@pytest.fixture(scope="module", params=BACKBONES)
def net(request):
    torch.manual_seed(0)
    return FPNSegmenter(5, request.param, width=16, head="trained").eval()


@pytest.mark.parametrize("size", [(1, 1), (48, 48), (70, 50)])
def test_networks_that_add_maps_only_where_all_divide_evenly(size):
    """Built, and then no image of 48 x 48 went in."""
    net = FPNSegmenter(3, "timm:hrnet_w18_small", width=4, head="trained").eval()
    assert net.backbone.size_multiple == 32
    with torch.no_grad():
        assert net(torch.rand(1, 3, *size)).shape == (1, 3, -(-size[0] // 4), -(-size[1] // 4))


@pytest.mark.parametrize("backbone", ["timm:swin_tiny_patch4_window7_224", "timm:coat_lite_tiny"])
def test_networks_of_one_size_are_refused_at_once(backbone):
    with pytest.raises(ModelError, match="takes no image of 36 x 68 or of 64 x 96 pixels"):
        FPNSegmenter(3, backbone, width=4)


@pytest.mark.parametrize(("backbone", "mean"), [("smp:tu-tf_efficientnetv2_b0", 0.485), ("smp:tu-tf_efficientnetv2_s", 0.5), ("smp:tu-mobilevit_xxs", 0.0)])
def test_smp_s_encoders_are_normalised_as_smp_states(backbone, mean):
    """Not as ImageNet is usually: with fetched weights that is another network's input."""
    assert FPNSegmenter(3, backbone, width=4).mean.flatten()[0].item() == pytest.approx(mean)


@pytest.mark.parametrize("classes", [10, 15, 20, 21, 22, 25, 40])
def test_head_and_backbone_have_the_papers_parameters(classes):
    with torch.device("meta"):
        net = FPNSegmenter(classes)
    assert sum(p.numel() for p in net.head_parameters()) == 4_524_544 + 4_609 * classes
    assert sum(p.numel() for p in net.backbone.parameters()) == 42_500_160


def test_released_head_is_gaussian_with_zero_biases():
    torch.manual_seed(0)
    net = FPNSegmenter(21, "resnet18", width=64)
    weights = torch.cat([p.flatten() for p in net.head_parameters() if p.ndim == 4])
    assert weights.mean().abs() < 1e-4
    assert weights.std().item() == pytest.approx(0.01, rel=0.01)
    assert all((p == 0).all() for p in net.head_parameters() if p.ndim == 1)


def test_released_head_is_affine_in_the_features():
    torch.manual_seed(0)
    net = FPNSegmenter(4, "resnet18", width=8).eval().double()
    levels = [
        torch.randn(1, c, s, s, dtype=torch.double) for c, s in zip(net.backbone.channels, (12, 6, 3, 2), strict=True)
    ]
    image = torch.rand(1, 3, 48, 48, dtype=torch.double)
    answers = []
    for scale in (0.0, 1.0, 3.0):
        net.backbone.forward = lambda _, scale=scale: [scale * level for level in levels]
        answers.append(net(image))
    torch.testing.assert_close(answers[2] - answers[0], 3 * (answers[1] - answers[0]))


def test_trained_head_is_spread_out_and_released_nearly_uniform():
    torch.manual_seed(0)
    spread = {
        h: FPNSegmenter(4, "resnet18", width=16, head=h)(torch.rand(2, 3, 48, 48)).std()
        for h in ("released", "trained")
    }
    assert spread["trained"] > 5 * spread["released"]


def test_patches_go_through_as_they_are(net):
    seen = []
    handle = net.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2:]))
    assert net(torch.rand(2, 3, 48, 48)).shape == (2, 5, 12, 12)
    handle.remove()
    assert seen == [(48, 48)]


@pytest.mark.parametrize(
    ("size", "logits"), [((1, 1), (1, 1)), ((3, 70), (1, 18)), ((50, 33), (13, 9)), ((64, 48), (16, 12))]
)
def test_any_size_gives_a_quarter_rounded_up(net, size, logits):
    assert net(torch.rand(1, 3, *size)).shape == (1, 5, *logits)


@pytest.mark.parametrize("size", [(48, 48), (64, 80)])
def test_levels_have_the_strides_they_state(net, size):
    levels = net.backbone(torch.rand(1, 3, *size))
    assert [level.shape[1] for level in levels] == list(net.backbone.channels)
    for level, stride in zip(levels, net.backbone.strides, strict=True):
        assert all(
            side // stride <= got <= -(-side // stride) for side, got in zip(size, level.shape[-2:], strict=True)
        )


def test_gradient_reaches_the_image_through_frozen_weights(net):
    net = copy.deepcopy(net).requires_grad_(False)
    image = torch.rand(1, 3, 48, 48, requires_grad=True)
    net(image).square().sum().backward()
    assert image.grad is not None and (image.grad != 0).float().mean() > 0.9


@pytest.mark.parametrize("head", ["released", "trained"])
def test_every_parameter_learns(head):
    torch.manual_seed(0)
    net = FPNSegmenter(3, "squeezenet1_0", width=8, head=head).train()
    net(torch.rand(2, 3, 48, 48)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_images_of_a_batch_do_not_mix(net):
    images = torch.rand(3, 3, 32, 48)
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]), rtol=1e-3, atol=1e-4)


def test_normalisation_is_inside_and_stays_out_of_the_state(net):
    assert not {"mean", "std"} & net.state_dict().keys()
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    plain = FPNSegmenter(3, "resnet18", width=8, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    other = FPNSegmenter(3, "resnet18", width=8, mean=mean.tolist(), std=std.tolist()).eval()
    other.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 32, 32)
    normalised = (image - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(other(image), plain(normalised))


def test_it_is_a_segmenter(net):
    assert isinstance(net, Segmenter)
    assert (net.num_classes, net.stride, net.class_names) == (5, 4, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_entry_round_trip(tmp_path, dtype):
    torch.manual_seed(0)
    net = FPNSegmenter(3, "squeezenet1_0", width=8, head="trained", class_names=["a", "b", "c"]).eval()
    with torch.no_grad():
        net.lateral_norm[0].running_var.fill_(3e5)  # more than float16 holds: must come back
    write_entry(tmp_path / "net", net, dtype=dtype)
    assert "weights" not in read_config(tmp_path / "net")["arguments"]
    again = load_entry(tmp_path / "net")
    image = torch.rand(1, 3, 48, 48)
    assert again.class_names == ("a", "b", "c")
    assert again.lateral_norm[0].running_var[0] == 3e5
    torch.testing.assert_close(again(image), net(image), rtol=1e-2, atol=1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "at least 2"),
        ({"width": 7}, "even"),
        ({"head": "other"}, "'released' or 'trained'"),
        ({"class_names": ["a"]}, "1 class names for 21 classes"),
        ({"std": (1, 0, 1)}, "over 0"),
        ({"mean": 0.5}, "three numbers"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        FPNSegmenter(**{"backbone": "resnet18", "width": 8, **arguments})


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnet19", "did you mean 'resnet1"),
        ("vgg", "unknown backbone 'vgg'"),
        ("timm:mobilnet", "unknown backbone"),
        ("timm:vit_tiny_patch16_224", "stride 4"),
        ("smp:nothing", "unknown backbone"),
        ("timm:", "unknown backbone"),
        (None, "unknown backbone"),
    ],
)
def test_unknown_or_unfit_backbones(backbone, message):
    with pytest.raises(ModelError, match=message):
        FPNSegmenter(2, backbone, width=8)


@pytest.mark.parametrize(
    "images", [torch.rand(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.rand(3, 8, 8)]
)
def test_wrong_images_are_refused(net, images):
    with pytest.raises(InputError):
        net(images)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "timm:mobilenetv3_small_100", "smp:resnet18"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_backbone_weights_from_a_file(tmp_path, name, suffix):
    source = backbones.build_backbone(name)
    inner = source.net if ":" in name else source
    state = {key: torch.rand_like(v) if v.is_floating_point() else v for key, v in inner.state_dict().items()}
    file = tmp_path / f"weights{suffix}"
    # the library's file has a classifier too, and old files lack batch normalisation's counter
    stored = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")} | {
        "classifier.1.weight": torch.ones(2),
        "fc.bias": torch.ones(2),
    }
    save_file(stored, file) if suffix == ".safetensors" else torch.save(stored, file)
    loaded = backbones.build_backbone(name, file)
    got = (loaded.net if ":" in name else loaded).state_dict()
    assert all(torch.equal(got[key], value) for key, value in state.items())


def test_wrong_backbone_files_are_refused(tmp_path):
    state = backbones.build_backbone("squeezenet1_0").state_dict()
    file = tmp_path / "w.safetensors"
    first = next(iter(state))
    for wrong, message in (
        ({k: v for k, v in state.items() if k != first}, "1 tensors missing"),
        (state | {"features.99.weight": torch.ones(1)}, "1 tensors unexpected"),
        (state | {first: torch.ones(2)}, "another shape"),
    ):
        save_file(wrong, file)
        with pytest.raises(WeightsError, match=message):
            FPNSegmenter(2, "squeezenet1_0", file, 8)
    for name in ("w.safetensors", "w.pth"):
        (tmp_path / name).write_bytes(b"not a tensor")
        with pytest.raises(WeightsError, match="damaged"):
            FPNSegmenter(2, "squeezenet1_0", tmp_path / name, 8)
    with pytest.raises(WeightsError, match="no such file"):
        FPNSegmenter(2, "squeezenet1_0", tmp_path / "absent.pth", 8)


def test_mismatched_torch_and_torchvision_give_one_error(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(backbones.importlib, "import_module", fail)
    for backbone in ("resnet18", "timm:resnet18", "smp:resnet18"):
        with pytest.raises(
            ModelError, match=r"torch \S+ and torchvision \S+ do not match.*pip install -U torch torchvision"
        ):
            FPNSegmenter(2, backbone)


def test_missing_library_names_its_package():
    with pytest.raises(ModelError, match="pip install no-such-library|pip install no_such_library"):
        backbones.load_library("no_such_library")
