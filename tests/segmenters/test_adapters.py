import copy
import pickle
from types import SimpleNamespace

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

from segaware import FPNSegmenter, SMPSegmenter
from segaware.contracts import Segmenter
from segaware.errors import InputError, ModelError
from segaware.evaluation.judges import Judge
from segaware.losses.jacobian import JacobianLoss
from segaware.segmenters.adapters import SegmenterAdapter, freeze, read_logits


class Toy(nn.Module):
    """Scores (B, K, H/stride, W/stride) by one convolution, handed out in the given form."""

    def __init__(self, classes=3, stride=1, form=lambda scores: scores, multiple=1):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, stride, stride=stride)
        self.norm = nn.BatchNorm2d(classes)
        self.form, self.multiple = form, multiple

    def forward(self, x):
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise RuntimeError(f"side must be a multiple of {self.multiple}")
        return self.form(self.norm(self.conv(x)))


FORMS = {
    "tensor": (lambda t: t, None),
    "dict out": (lambda t: {"aux": 0 * t, "out": t}, None),
    "dict logits": (lambda t: {"logits": t}, None),
    "tuple": (lambda t: (t, torch.zeros(1)), None),
    "list": (lambda t: [t], None),
    "object": (lambda t: SimpleNamespace(loss=None, logits=t), None),
    "named key": (lambda t: {"seg": t}, "seg"),
    "named attribute": (lambda t: SimpleNamespace(seg=t), "seg"),
    "index": (lambda t: (None, t), 1),
    "function": (lambda t: {"deep": {"er": t}}, lambda o: o["deep"]["er"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found(form):
    wrap, key = FORMS[form]
    logits = torch.rand(1, 3, 4, 4)
    assert read_logits(wrap(logits), key) is logits
    assert SegmenterAdapter(Toy(form=wrap), 3, output=key)(torch.rand(1, 3, 5, 7)).shape == (1, 3, 5, 7)


@pytest.mark.parametrize(
    ("output", "key", "message"),
    [
        ({"seg": torch.rand(1)}, None, r"dict with keys \['seg'\]: no logits found"),
        (SimpleNamespace(), None, "no logits found"),
        ("text", None, "no logits found"),
        ((), None, "no logits found"),
        (None, None, "no logits found"),
        ({"out": torch.rand(1)}, "seg", "has no 'seg'"),
        ((torch.rand(1),), 3, "has no 3"),
    ],
)
def test_what_holds_no_logits_is_refused(output, key, message):
    with pytest.raises(ModelError, match=message):
        read_logits(output, key)


def torchvision_net(name):
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4)


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_torchvision(name):
    net = SegmenterAdapter(torchvision_net(name), 4)
    for size in ((33, 50), (1, 1)):
        assert net(torch.rand(1, 3, *size)).shape == (1, 4, *size)
    assert net.stride == 1 and isinstance(net, Segmenter)


@pytest.mark.parametrize("name", ["FPN", "Unet", "DeepLabV3Plus", "Segformer"])
@pytest.mark.parametrize("aux", [False, True])
def test_smp_takes_any_size(name, aux):
    if aux and name != "Unet":
        pytest.skip("one network with a tuple is enough")
    model = getattr(smp, name)("resnet18", encoder_weights=None, classes=4, aux_params={"classes": 2} if aux else None)
    net = SegmenterAdapter(model, 4)
    for size in ((33, 50), (1, 1), (64, 64)):
        assert net(torch.rand(1, 3, *size)).shape == (1, 4, *size)
    assert net.size_multiple in (1, 16, 32)


def test_hugging_face_style_at_stride_4():
    net = SegmenterAdapter(Toy(stride=4, form=lambda t: SimpleNamespace(logits=t), multiple=4), 3, size_multiple=4)
    assert net.stride == 4
    assert net(torch.rand(2, 3, 30, 41)).shape == (2, 3, 8, 11)


def test_a_classifier_gives_one_answer_an_image():
    net = SegmenterAdapter(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)), 5)
    assert net(torch.rand(2, 3, 9, 8)).shape == (2, 5, 1, 1)
    assert net.stride == 0


def test_padding_does_not_move_the_image():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 30, 41)
    toy = Toy().eval()
    plain, padded = SegmenterAdapter(toy, 3), SegmenterAdapter(toy, 3, size_multiple=32)
    torch.testing.assert_close(padded(image), plain(image))


def test_normalisation_is_inside():
    seen = []
    toy = Toy()
    toy.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    SegmenterAdapter(toy, 3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1))(torch.ones(1, 3, 2, 2))
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([2.0, 1.0, 0.5]))


def test_probabilities_become_logits():
    torch.manual_seed(0)
    toy = Toy(form=lambda t: (8 * t).softmax(1))
    image = torch.rand(1, 3, 6, 6, requires_grad=True)
    net = SegmenterAdapter(toy, 3, from_logits=False)
    torch.testing.assert_close(net(image).softmax(1), toy((image - net.mean) / net.std), rtol=1e-3, atol=1e-5)
    net(image).logsumexp(1).sum().backward()
    assert torch.isfinite(image.grad).all()


def test_certain_probabilities_stay_finite():
    net = SegmenterAdapter(
        Toy(form=lambda t: torch.nn.functional.one_hot(t.argmax(1), 3).movedim(-1, 1).float()), 3, from_logits=False
    )
    assert torch.isfinite(net(torch.rand(1, 3, 6, 6))).all()


@pytest.mark.parametrize("from_logits", [True, False])
def test_one_channel_is_two_classes(from_logits):
    torch.manual_seed(0)
    toy = Toy(1, form=(lambda t: t) if from_logits else torch.sigmoid)
    net = SegmenterAdapter(toy, 2, from_logits=from_logits)
    image = torch.rand(1, 3, 6, 6)
    answer = toy((image - net.mean) / net.std)
    torch.testing.assert_close(net(image).softmax(1)[:, 1:], answer.sigmoid() if from_logits else answer)


@pytest.mark.parametrize(
    ("toy", "options", "message"),
    [
        (Toy(form=lambda t: t.softmax(1)), {}, "probabilities, not logits"),
        (Toy(form=lambda t: 50 * t), {"from_logits": False}, "no probabilities"),
        (Toy(4), {}, "has 4 channels, but num_classes is 3"),
        (Toy(1), {}, "has 1 channels, but num_classes is 3"),
        (Toy(form=lambda t: t.argmax(1)), {}, "class indices"),
        (Toy(form=lambda t: [t[:, :2], t]), {}, r"FPNSegmenter\('timm"),
        (Toy(multiple=32), {}, "size_multiple=32"),
        (Toy(stride=2), {"stride": 4}, "stride 4 promised, but 40 x 40 pixels gave 20 x 20"),
    ],
)
def test_what_breaks_the_contract_is_named(toy, options, message):
    with pytest.raises(ModelError, match=message):
        SegmenterAdapter(toy, 3, **options)(torch.rand(1, 3, 40, 40))


def test_sigmoids_are_not_taken_for_logits():
    """Nothing sums to 1 there, so the spread in [0, 1] tells; who knows better may say so."""
    for channels, classes in ((1, 2), (4, 4)):
        net = nn.Sequential(nn.Conv2d(3, channels, 1), nn.Sigmoid())
        nn.init.normal_(net[0].weight, std=20)
        image = torch.rand(1, 3, 16, 16)
        with pytest.raises(ModelError, match="as sigmoids give them: give from_logits=False"):
            SegmenterAdapter(net, classes)(image)
        measured = SegmenterAdapter(net, classes)
        assert measured.stride == 1  # of an image of one colour, which tells nothing of the scores
        with pytest.raises(ModelError, match="as sigmoids give them"):
            measured(image)
        with pytest.raises(ModelError, match="as sigmoids give them"):
            Judge("one", SegmenterAdapter(net, classes))(image[0])
        assert SegmenterAdapter(net, classes, from_logits=False)(image).amax() <= 0
        assert SegmenterAdapter(net, classes, from_logits=True)(image).shape[1] == classes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_of_another_type_is_given_its_own(dtype):
    net = nn.Conv2d(3, 4, 1).to(dtype)
    image = torch.rand(1, 3, 40, 56)
    adapter = SegmenterAdapter(net, 4)
    assert adapter(image).dtype == dtype
    torch.testing.assert_close(adapter(image).float(), net.float()((image - adapter.mean) / adapter.std), rtol=0.05, atol=0.05)


def test_a_segmenter_is_not_wrapped_again():
    """It normalises itself: the logits would be those of an image normalised twice."""
    with pytest.raises(InputError, match="SMPSegmenter is a segmenter already .* use it as it is"):
        SegmenterAdapter(SMPSegmenter(3, encoder="resnet18"), 3)
    with pytest.raises(InputError, match="FPNSegmenter is a segmenter already"):
        SegmenterAdapter(FPNSegmenter(3, "squeezenet1_0", width=4), 3)


def test_what_torch_cannot_do_is_no_matter_of_size():
    """Jacobian losses say which operation has no forward mode, and what to take instead."""

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images):
            return images.mean((2, 3), keepdim=True).clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Net(nn.Module):
        def forward(self, images):
            return Backward.apply(images)

    image = torch.rand(1, 3, 40, 56)  # no multiples of 32
    with pytest.raises(ModelError, match="without forward-mode derivative .* take SensitivityLoss"):
        JacobianLoss(SegmenterAdapter(Net(), 3))(image, clean=image)


def test_errors_of_a_network_at_a_regular_size_are_its_own():
    with pytest.raises(RuntimeError, match="multiple of 64"):
        SegmenterAdapter(Toy(multiple=64), 3)(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("net", {}, "give the built nn.Module"),
        (Toy(), {"num_classes": 1}, "at least 2"),
        (Toy(), {"class_names": ["a"]}, "1 class names"),
        (Toy(), {"size_multiple": 0}, "at least 1"),
        (Toy(), {"std": (0, 0, 0)}, "over 0"),
    ],
)
def test_bad_arguments(model, options, message):
    with pytest.raises(InputError, match=message):
        SegmenterAdapter(model, **{"num_classes": 3, **options})


def test_frozen_through_the_parents_train():
    toy = Toy()
    parent = nn.Sequential(SegmenterAdapter(toy, 3)).train()
    before = copy.deepcopy(toy.state_dict())
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    parent(image).square().sum().backward()
    assert not any(module.training for module in toy.modules())
    assert all(p.grad is None and not p.requires_grad for p in toy.parameters())
    assert image.grad.abs().min() > 0
    assert all(torch.equal(before[key], value) for key, value in toy.state_dict().items())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_frozen_survives_copies(again):
    frozen = freeze(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()))
    twin = again(frozen)
    parent = nn.Sequential(twin).train()
    assert twin is not frozen and parent[0] is twin
    assert not twin.training and not twin[1].training
    assert twin.train() is twin


def test_trainable_leaves_the_network_alone():
    toy = Toy().train()
    net = SegmenterAdapter(toy, 3, trainable=True)
    assert net.stride == 1 and toy.training  # measuring the stride puts the mode back
    assert all(p.requires_grad for p in toy.parameters())
    assert net.eval().train() is net and toy.training
