import pytest
import torch
from torch import nn

from segaware.contracts import DenoiserInfo
from segaware.errors import InputError, ModelError
from segaware.label_free import agreement, consistency, do_no_harm
from segaware.metrics import psnr
from segaware.task_metrics import confusion_matrix, mean_iou


class Judge(nn.Module):
    """Scores of four classes at stride 2, by brightness and hue."""

    num_classes, stride, class_names = 4, 2, None

    def forward(self, images):
        small = nn.functional.avg_pool2d(images, 2)
        return torch.cat([small, small.mean(1, keepdim=True) ** 2 + 0.2], dim=1)


class Classifier(nn.Module):
    def forward(self, images):
        return torch.cat([images.mean((2, 3)), images.amax((2, 3))], dim=1)


class Blind:
    """Adds a fixed error; refuses a noise level."""

    info = DenoiserInfo()

    def __init__(self, error=0.0):
        self.error = error

    def __call__(self, noisy):
        return noisy + self.error


class Told:
    info = DenoiserInfo(takes_sigma=True)

    def __call__(self, noisy, sigma=None):
        assert sigma is not None
        return noisy + sigma


JUDGE = Judge().eval()


def enlarged(logits, side):
    return nn.functional.interpolate(logits, (side, side), mode="bilinear", align_corners=False)


def test_the_same_image_is_fully_consistent():
    clean = torch.rand(3, 3, 12, 10)
    found = consistency(JUDGE, clean, clean)
    assert found.miou.tolist() == [1, 1, 1]
    assert found.top_k.keys() == {1}  # five of four classes would be all
    assert found.top_k[1].tolist() == [1, 1, 1]


def test_consistency_falls_with_noise_and_counts_what_it_says():
    clean = torch.rand(2, 3, 32, 32)
    values, tops = [], []
    for sigma in (0.02, 0.1, 0.4):
        denoised = clean + sigma * torch.randn_like(clean)
        found = consistency(JUDGE, denoised, clean, k=(1, 2))
        values.append(mean_iou(found.matrices.sum(0)).item())
        tops.append(found.top_k[1].mean().item())
        assert (found.top_k[2] >= found.top_k[1]).all()
    assert values == sorted(values, reverse=True) and tops == sorted(tops, reverse=True) and values[-1] < 0.6
    up = [enlarged(JUDGE(images.clamp(0, 1)), 32).argmax(1) for images in (denoised, clean)]
    assert torch.equal(found.matrices, confusion_matrix(up[0], up[1], 4))  # rows: the class on the clean image
    assert torch.equal(found.miou, mean_iou(found.matrices))


def test_consistency_of_a_classifier_is_top_k_agreement():
    clean = torch.rand(4, 3, 8, 8)
    denoised = clean.flip(1)
    found = consistency(Classifier().eval(), denoised, clean, k=(1, 6))
    scores = [Classifier()(x) for x in (denoised, clean)]
    assert found.top_k[1].tolist() == (scores[0].argmax(1) == scores[1].argmax(1)).double().tolist()
    assert (found.top_k[6] == 1).all()
    with pytest.raises(InputError, match="read top_k"):
        _ = found.miou


def test_kept_logits_give_the_same():
    clean = torch.rand(2, 3, 16, 16)
    denoised = (clean + 0.2 * torch.randn_like(clean)).clamp(0, 1)
    whole = consistency(JUDGE, denoised, clean)
    kept = agreement(JUDGE(denoised), JUDGE(clean), size=(16, 16))
    assert torch.equal(whole.matrices, kept.matrices) and torch.equal(whole.top_k[1], kept.top_k[1])


def test_no_harm_is_done_by_the_identity():
    clean = torch.rand(2, 3, 12, 12)
    for denoiser in (Blind(), Told(), lambda images: images):
        harm = do_no_harm(denoiser, clean, judge=JUDGE)
        assert harm.psnr.tolist() == [float("inf")] * 2 and harm.changed.tolist() == [0, 0]
    assert do_no_harm(Blind(), clean).changed is None


def test_harm_is_measured():
    clean = torch.rand(2, 3, 12, 12) * 0.5
    harm = do_no_harm(Blind(0.1), clean, judge=JUDGE)
    assert torch.allclose(harm.psnr, psnr(clean + 0.1, clean)) and harm.psnr[0].item() == pytest.approx(20, abs=1e-3)
    swapped = do_no_harm(lambda images: images.flip(1), clean, judge=JUDGE)
    was, now = (enlarged(JUDGE(images), 12).argmax(1) for images in (clean, clean.flip(1)))
    assert torch.allclose(swapped.changed, (was != now).double().mean((1, 2))) and swapped.changed.min() > 0
    assert set(do_no_harm(lambda x: x.flip(1), clean, judge=Classifier().eval()).changed.tolist()) <= {0.0, 1.0}


IMAGES = torch.rand(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "repair"),
    [
        (lambda: consistency(JUDGE, IMAGES, IMAGES[:, :, :4]), InputError, "equal sizes"),
        (lambda: consistency(JUDGE, IMAGES[0], IMAGES[0]), InputError, r"images\[None\]"),
        (lambda: consistency(Judge().train(), IMAGES, IMAGES), ModelError, r"eval\(\)"),
        (lambda: consistency(lambda x: {"out": x}, IMAGES, IMAGES), ModelError, "SegmenterAdapter"),
        (lambda: consistency(lambda x: x / 0, 0 * IMAGES, IMAGES), ModelError, "NaN"),
        (lambda: agreement(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2)), InputError, "one shape"),
        (lambda: agreement(torch.zeros(1, 3), torch.zeros(1, 3), k=(5,)), InputError, "at least one"),
        (lambda: do_no_harm(lambda x: x[:, :, 1:], IMAGES), ModelError, "same shape"),
        (lambda: do_no_harm(Blind(), IMAGES.byte()), InputError, "float"),
    ],
)
def test_refusals(call, error, repair):
    with pytest.raises(error, match=repair):
        call()


def test_images_on_another_scale_are_not_called_perfect():
    bright = torch.rand(1, 3, 8, 8) * 255  # clamped they would all be white
    for call in (lambda: consistency(Judge().eval(), bright, bright), lambda: do_no_harm(Blind(), bright)):
        with pytest.raises(InputError, match="divide by 255"):
            call()
    with pytest.raises(InputError, match="NaN"):
        consistency(Judge().eval(), bright / 0 * 0, bright / 255)


def test_a_denoiser_that_would_learn_from_clean_images():
    net = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ModelError, match=r"denoiser is in training mode.*\.eval\(\)"):
        do_no_harm(net, torch.rand(2, 3, 8, 8))
    assert net[0].num_batches_tracked == 0
    do_no_harm(net.eval(), torch.rand(2, 3, 8, 8))
