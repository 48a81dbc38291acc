import copy

import pytest
import torch
from torch import nn

from segaware import FPNSegmenter, HRNetSegmenter
from segaware.errors import InputError, ModelError
from segaware.losses.backbone_features import BackboneFeatures
from segaware.losses.consistency import ConsistencyLoss
from segaware.segmenters.smp import SMPSegmenter


@pytest.fixture(scope="module")
def fpn():
    torch.manual_seed(0)
    return FPNSegmenter(3, backbone="squeezenet1_0", width=16).eval()


@pytest.mark.parametrize("make", [lambda: HRNetSegmenter(3), lambda: SMPSegmenter(3, "Unet", "resnet18")])
def test_levels_begin_at_stride_4(make):
    images = torch.rand(1, 3, 64, 96)
    for strides, levels in (((4,), (0,)), ((8,), (1,)), ((4, 8), (0, 1))):
        maps = BackboneFeatures(make().eval(), levels)(images)
        assert [m.shape[-2:] for m in maps] == [(64 // s, 96 // s) for s in strides]


def test_they_are_the_segmenters_own_levels(fpn):
    images = torch.rand(2, 3, 32, 48)
    levels = fpn.backbone((images - fpn.mean) / fpn.std)
    middle, last = BackboneFeatures(fpn, (1, -1))(images)
    assert torch.equal(middle, levels[1]) and torch.equal(last, levels[-1])


@pytest.mark.parametrize("make", [
    lambda: FPNSegmenter(3, "timm:hrnet_w18_small", width=4), lambda: FPNSegmenter(3, "squeezenet1_0", width=4),
    lambda: SMPSegmenter(3, "Unet", "resnet18"), lambda: HRNetSegmenter(3, width=2, modules=(1, 1, 1), blocks=1, bottlenecks=1),
])  # fmt: skip
@pytest.mark.parametrize("size", [(48, 80), (37, 50), (5, 9)])
def test_sizes_that_the_segmenter_takes_its_features_take(make, size):
    net, images = make().eval(), torch.rand(1, 3, *size)
    maps = BackboneFeatures(net, (0, 1))(images)
    assert [m.shape[-2:] for m in maps] == [tuple(-(-side // stride) for side in size) for stride in (4, 8)]
    net(images)


def test_calibrated_features_have_mean_square_one_over_the_batches(fpn):
    batches = [torch.rand(2, 3, 32, 32), 0.2 * torch.rand(1, 3, 32, 32)]
    features = BackboneFeatures(fpn, (0, 1))
    assert features.calibrate(batches) is features
    squares = [[float(m.detach().square().mean()) for m in features(images)] for images in batches]
    assert [sum(column) / 2 for column in zip(*squares, strict=True)] == pytest.approx([1.0, 1.0], rel=1e-4)
    scales = features.scales.clone()
    assert torch.equal(features.calibrate(batches).scales, scales), "calibrating again changes nothing"
    with pytest.raises(InputError, match="one batch"):
        features.calibrate([])


def test_the_loss_reaches_the_image_and_not_the_segmenter(fpn):
    clean = torch.rand(1, 3, 32, 32)
    denoised = (clean + 0.1 * torch.randn_like(clean)).requires_grad_()
    loss = ConsistencyLoss(features=BackboneFeatures(fpn).calibrate(clean))
    loss(denoised, clean=clean).backward()
    assert denoised.grad.abs().sum() > 0 and all(p.grad is None for p in fpn.parameters())
    assert float(loss(clean, clean=clean)) == 0


def test_what_has_no_backbone_or_not_so_many_levels(fpn):
    with pytest.raises(ModelError, match="Sequential shows no backbone.*callable"):
        BackboneFeatures(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ModelError, match=r"levels \[7\] of a backbone with 3"):
        BackboneFeatures(fpn, (7,))(torch.rand(1, 3, 32, 32))
    for levels in ((), "1", (1.5,)):
        with pytest.raises(InputError, match="whole numbers"):
            BackboneFeatures(fpn, levels)


@pytest.mark.parametrize("clean", [torch.full((1, 3, 32, 32), 200.0), torch.full((1, 3, 32, 32), torch.nan), torch.rand(3, 32, 32), torch.rand(1, 1, 32, 32)])
def test_patches_that_are_no_images_are_not_calibrated_on(fpn, clean):
    features = BackboneFeatures(fpn)
    with pytest.raises(InputError, match="calibrate"):
        features.calibrate(clean)
    assert float(features.scales) == 1


def test_calibrating_is_without_a_trace():
    """On a network still in training mode: measured as it will be used, and its running statistics stay."""
    net = SMPSegmenter(3, "Unet", "resnet18").train()
    net.head_of_its_own = nn.Identity().eval()
    before, images = copy.deepcopy(net.state_dict()), torch.rand(2, 3, 64, 64)
    scales = BackboneFeatures(net, (0, 1)).calibrate(images).scales
    assert net.training and net.model.training and not net.head_of_its_own.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(scales, BackboneFeatures(net.eval(), (0, 1)).calibrate(images).scales)
