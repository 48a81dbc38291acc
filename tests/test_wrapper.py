"""What a training loop relies on: the loss and its terms, whose parameters learn, what is saved."""

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_flatten, tree_unflatten

import segaware
from segaware.contracts import Denoiser
from segaware.denoisers.dncnn import DnCNN
from segaware.denoisers.ffdnet import FFDNet
from segaware.entries import write_entry
from segaware.errors import InputError, ModelError, WeightsError
from segaware.losses import frozen
from segaware.losses.consistency import ConsistencyLoss
from segaware.losses.entropy import EntropySegAwareLoss
from segaware.losses.perceptual import PerceptualLoss
from segaware.losses.pseudo_label import PseudoLabelLoss
from segaware.losses.task import TaskLoss
from segaware.registry import ARCHITECTURES, register
from segaware.wrapper import FIDELITY_SCALE, SegAwareWrapper, WrapperOutput, fidelity


class TinySegmenter(nn.Module):
    """What stands in for the shipped segmenter; registered so that an entry can be made of it."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.config = {"num_classes": num_classes}
        self.num_classes, self.stride, self.class_names = num_classes, 4, None
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, image):
        return self.head(torch.tanh(self.norm(self.stem(image))))


@pytest.fixture
def denoiser():
    return DnCNN(depth=3, width=8)


@pytest.fixture
def segmenter():
    return TinySegmenter()


@pytest.fixture
def clean():
    return torch.rand(2, 3, 12, 16)


@pytest.fixture
def noisy(clean):
    return clean + 0.1 * torch.randn_like(clean)


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """A tiny entry in the place of the shipped segmenter; counts how often it is looked for."""
    monkeypatch.setitem(ARCHITECTURES, "TinySegmenter", "x:y")
    monkeypatch.delitem(ARCHITECTURES, "TinySegmenter")
    register("TinySegmenter", "segaware_tiny:TinySegmenter")
    module = type(pickle)("segaware_tiny")
    module.TinySegmenter = TinySegmenter
    monkeypatch.setitem(__import__("sys").modules, "segaware_tiny", module)
    folder = write_entry(tmp_path / "fpn-camvid", TinySegmenter())
    asked = []
    monkeypatch.setattr(frozen, "shipped_folder", lambda name: asked.append(name) or folder)
    yield asked
    ARCHITECTURES.pop("TinySegmenter", None)


# The loss


def test_fidelity_is_the_released_sum_at_the_released_patch_size():
    denoised, clean = torch.rand(4, 3, 48, 48), torch.rand(4, 3, 48, 48)
    assert FIDELITY_SCALE == 3456
    assert torch.isclose(fidelity(denoised, clean), (denoised - clean).square().sum() / (2 * 4))


def test_output_adds_up(denoiser, segmenter, noisy, clean):
    loss = EntropySegAwareLoss(segmenter)
    wrapper = SegAwareWrapper(denoiser, loss, gamma=0.5).eval()
    output = wrapper(noisy, clean=clean)
    assert isinstance(output, WrapperOutput) and torch.equal(output.denoised, denoiser(noisy))
    assert list(output.terms) == ["fidelity", "entropy"] and output.weights == {"fidelity": 1.0, "entropy": 0.5}
    assert torch.isclose(output.terms["fidelity"], fidelity(denoiser(noisy), clean))
    assert torch.isclose(output.terms["entropy"], loss(denoiser(noisy)))
    assert torch.isclose(output.loss, output.terms["fidelity"] + 0.5 * output.terms["entropy"])


def test_gradient_of_each_term_at_the_denoised_image(denoiser, segmenter, noisy, clean):
    output = SegAwareWrapper(denoiser, EntropySegAwareLoss(segmenter))(noisy, clean=clean)
    by_term = [
        torch.autograd.grad(output.weights[name] * term, output.denoised, retain_graph=True)[0]
        for name, term in output.terms.items()
    ]
    assert all(g.norm() > 0 for g in by_term)
    assert torch.allclose(torch.autograd.grad(output.loss, output.denoised)[0], sum(by_term))


def test_every_loss_by_name_with_what_it_needs(denoiser, segmenter, noisy, clean):
    labels = torch.randint(0, 5, (2, 12, 16))
    losses = [
        EntropySegAwareLoss(segmenter),
        (0.5, PseudoLabelLoss(segmenter, teacher="self")),
        ConsistencyLoss(segmenter),
        PerceptualLoss(segmenter, ["stem"]),
        (2, TaskLoss(segmenter)),
        EntropySegAwareLoss(segmenter, normalize=True),
        (0, EntropySegAwareLoss(segmenter)),
    ]
    output = SegAwareWrapper(denoiser, losses, gamma=3)(noisy, clean=clean, labels=labels)
    assert output.weights == {
        "fidelity": 1.0, "entropy": 3.0, "pseudo_label": 1.5, "consistency": 3.0, "perceptual": 3.0, "task": 6.0, "entropy_2": 3.0,
    }  # fmt: skip
    assert torch.isclose(output.loss, sum(output.weights[n] * t for n, t in output.terms.items()))
    output.loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in denoiser.parameters())
    assert all(p.grad is None for p in segmenter.parameters())
    with pytest.raises(InputError, match="labels=..."):
        SegAwareWrapper(denoiser, TaskLoss(segmenter))(noisy, clean=clean)


def test_a_pair_alone_and_a_loss_of_ones_own(denoiser, noisy, clean):
    class MyOwnLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, denoised, clean):
            return (denoised - clean).abs().mean()

    loss = MyOwnLoss()
    wrapper = SegAwareWrapper(denoiser, (0.1, loss))
    assert wrapper(noisy, clean=clean).weights == {"fidelity": 1.0, "my_own_loss": 0.1}
    assert not any(p.requires_grad for p in loss.parameters())


@pytest.mark.parametrize("options", [{"awareness": ()}, {"awareness": []}, {"gamma": 0}])
def test_fidelity_alone_loads_and_runs_no_segmenter(denoiser, noisy, clean, monkeypatch, options):
    monkeypatch.setattr(frozen, "shipped_folder", lambda name: pytest.fail("looked for the shipped segmenter"))
    output = SegAwareWrapper(denoiser, **options)(noisy, clean=clean)
    assert list(output.terms) == ["fidelity"] and torch.equal(output.loss, output.terms["fidelity"])


def test_gamma_zero_does_not_run_the_given_one(denoiser, segmenter, noisy, clean):
    segmenter.forward = lambda image: pytest.fail("ran")
    SegAwareWrapper(denoiser, EntropySegAwareLoss(segmenter), gamma=0)(noisy, clean=clean)


@pytest.mark.parametrize("awareness", [False, "none", 3, ["entropy"], [(1.0, "entropy")], (-1, nn.Identity())])
def test_what_is_no_awareness(denoiser, awareness):
    with pytest.raises(InputError, match="losses|zero or positive"):
        SegAwareWrapper(denoiser, awareness)


def test_a_term_that_is_no_scalar(denoiser, noisy, clean):
    with pytest.raises(ModelError, match="return a mean"):
        SegAwareWrapper(denoiser, nn.Identity())(noisy, clean=clean)


# The default


def test_the_default_is_the_shipped_segmenter_loaded_at_the_first_loss(denoiser, noisy, clean, shipped):
    wrapper = SegAwareWrapper(denoiser)
    wrapper(noisy)
    assert shipped == []  # denoising alone does not pay for it
    numbers = torch.get_rng_state()
    with torch.inference_mode():  # a validation may come first
        first = wrapper(noisy, clean=clean)
    assert torch.equal(torch.get_rng_state(), numbers)  # a resumed run draws what an unbroken one draws
    wrapper(noisy, clean=clean).loss.backward()
    assert shipped == ["fpn-camvid"] and list(first.terms) == ["fidelity", "entropy"]
    assert all(p.grad.abs().sum() > 0 for p in denoiser.parameters())
    assert len(list(wrapper.parameters())) == len(list(denoiser.parameters()))
    wrapper.double()(noisy.double(), clean=clean.double())


def test_the_shipped_segmenter_is_moved_outside_inference_mode(denoiser, noisy, clean, shipped, monkeypatch):
    """What ``to`` makes anew on a GPU could else never be trained through; here it makes nothing, so it is watched."""
    modes = []
    plain = TinySegmenter.to
    monkeypatch.setattr(TinySegmenter, "to", lambda self, *args: modes.append(torch.is_inference_mode_enabled()) or plain(self, *args))
    with torch.inference_mode():
        SegAwareWrapper(denoiser)(noisy, clean=clean)
    assert modes == [False]


def test_without_the_shipped_segmenter(denoiser, noisy, clean, monkeypatch, tmp_path):
    monkeypatch.setattr("segaware.entries._SHIPPED", tmp_path)
    with pytest.raises(WeightsError, match="fpn-camvid"):
        SegAwareWrapper(denoiser)(noisy, clean=clean)


# Whose parameters, whose checkpoint


def test_parameters_and_checkpoint_are_the_denoisers(denoiser, segmenter):
    wrapper = SegAwareWrapper(denoiser, EntropySegAwareLoss(segmenter))
    assert list(map(id, wrapper.parameters())) == list(map(id, denoiser.parameters()))
    assert not any("segmenter" in name for name, _ in wrapper.named_modules())
    saved = wrapper.state_dict()
    assert list(saved) == list(denoiser.state_dict())
    DnCNN(depth=3, width=8).load_state_dict(saved)  # back to where it came from
    other = SegAwareWrapper(DnCNN(depth=3, width=8), ())
    other.load_state_dict(saved)
    assert all(torch.equal(value, saved[key]) for key, value in other.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


@pytest.mark.parametrize("inner", [DnCNN(depth=3, width=8), nn.ModuleDict({"denoiser": nn.Conv2d(1, 1, 1)})])
def test_checkpoint_through_a_parent(inner):
    parent = nn.Sequential(nn.Identity(), SegAwareWrapper(inner, ()))
    saved = {key: value + 1 for key, value in parent.state_dict().items()}
    assert list(saved) == [f"1.{key}" for key in inner.state_dict()]
    parent.load_state_dict(saved)
    assert all(torch.equal(value, saved[key]) for key, value in parent.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        parent.load_state_dict(dict(list(saved.items())[1:]))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        parent.load_state_dict({**saved, "1.denoisers": torch.zeros(1)})


def test_train_and_to_reach_what_they_should(denoiser, segmenter, noisy, clean):
    wrapper = SegAwareWrapper(denoiser, EntropySegAwareLoss(segmenter)).train()
    running = segmenter.norm.running_mean.clone()
    wrapper(noisy, clean=clean)
    assert denoiser.training and not segmenter.training and torch.equal(segmenter.norm.running_mean, running)
    wrapper.double()
    assert segmenter.head.weight.dtype == torch.float64
    assert wrapper(noisy.double(), clean=clean.double()).loss.dtype in (torch.float32, torch.float64)


def test_the_denoiser_runs_once_a_step(denoiser, segmenter, noisy, clean):
    wrapper = SegAwareWrapper(denoiser, [EntropySegAwareLoss(segmenter), ConsistencyLoss(segmenter)])
    runs = []
    denoiser.register_forward_hook(lambda *_: runs.append(1))
    wrapper(noisy, clean=clean)
    assert len(runs) == 1 and denoiser.body[3].num_batches_tracked == 1


def test_training_lowers_the_loss(segmenter, noisy, clean):
    wrapper = SegAwareWrapper(DnCNN(depth=2, width=8), EntropySegAwareLoss(segmenter))
    optimiser = torch.optim.Adam(wrapper.parameters(), 1e-2)
    values = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = wrapper(noisy, clean=clean).loss
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.5 * values[0]


def test_copies_and_pickles(denoiser, segmenter, noisy, clean):
    wrapper = SegAwareWrapper(denoiser, EntropySegAwareLoss(segmenter)).eval()
    expected = wrapper(noisy, clean=clean).loss
    twin = copy.deepcopy(wrapper)
    assert torch.equal(twin(noisy, clean=clean).loss, expected)
    assert twin.denoiser is not denoiser
    assert torch.equal(pickle.loads(pickle.dumps(SegAwareWrapper(denoiser, ()).eval()))(noisy), wrapper(noisy))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(segmenter, noisy, clean, dtype):
    wrapper = SegAwareWrapper(FFDNet(depth=3, width=8), EntropySegAwareLoss(segmenter))
    with torch.autocast("cpu", dtype):
        output = wrapper(noisy, 0.1, clean=clean)
    assert output.denoised.dtype == torch.float32
    assert {t.dtype for t in output.terms.values()} == {torch.float32}
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in wrapper.parameters())


def test_distributed_data_parallel_sees_the_loss(segmenter, noisy, clean, tmp_path):
    """One process of gloo: the output is traversed, gradients are hooked, checkpoints keep the prefix rule."""
    wrapper = SegAwareWrapper(DnCNN(depth=3, width=8), EntropySegAwareLoss(segmenter))
    plain = copy.deepcopy(wrapper)
    dist.init_process_group("gloo", init_method=(tmp_path / "meet").as_uri(), rank=0, world_size=1)
    try:
        for options in ({}, {"find_unused_parameters": True}):
            parallel = DistributedDataParallel(wrapper, **options)
            parallel.zero_grad()
            plain.zero_grad()
            for model in (parallel, plain):
                model(noisy, clean=clean).loss.backward()
            for mine, other in zip(wrapper.parameters(), plain.parameters(), strict=True):
                assert torch.allclose(mine.grad, other.grad, atol=1e-6)
        parallel.load_state_dict(parallel.state_dict())
        assert all(key.startswith("module.body.") for key in parallel.state_dict())
    finally:
        dist.destroy_process_group()


ONE_OF_TWO = """
import sys, torch
from segaware import SegAwareWrapper
rank, place = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
torch.manual_seed(0)
wrapper = SegAwareWrapper(torch.nn.Conv2d(3, 3, 1), ())
model = torch.nn.parallel.DistributedDataParallel(wrapper, static_graph=True)
torch.manual_seed(rank)
images = torch.rand(1, 3, 8, 8)
for _ in range(2):
    model.zero_grad()
    model(images, clean=images * 0.5).loss.backward()
    print(float(wrapper.denoiser.weight.grad.sum()))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_average_their_gradients_with_a_static_graph(tmp_path):
    command = [sys.executable, "-c", ONE_OF_TWO]
    both = [subprocess.Popen([*command, str(rank), (tmp_path / "meet").as_uri()], stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    first, second = ([float(line) for line in process.communicate(timeout=120)[0].split()] for process in both)
    assert len(first) == 2 and first == pytest.approx(second)


def test_of_the_output_the_loss_is_what_others_hook(denoiser, segmenter, noisy, clean):
    """By its tree: DistributedDataParallel with a static graph, and the terms keep the graph that the log looks at."""
    output = SegAwareWrapper(denoiser, EntropySegAwareLoss(segmenter))(noisy, clean=clean)
    leaves, spec = tree_flatten(output)
    assert leaves == [output.loss]
    again = tree_unflatten([2 * output.loss], spec)
    assert again.loss == 2 * output.loss and again.denoised is output.denoised and again.terms is output.terms
    assert again.gradient_norms() == output.gradient_norms() and again.weights == output.weights


def test_gradient_norms_by_hand(denoiser, segmenter, noisy, clean):
    output = SegAwareWrapper(denoiser, (0.5, EntropySegAwareLoss(segmenter)))(noisy, clean=clean)
    norms = output.gradient_norms()
    expected = 2 * FIDELITY_SCALE / clean.numel() * (output.denoised - clean).norm().detach()
    assert norms["fidelity"] == pytest.approx(float(expected), rel=1e-4)
    (gradient,) = torch.autograd.grad(output.terms["entropy"], output.denoised, retain_graph=True)
    assert norms["entropy"] == pytest.approx(0.5 * float(gradient.norm()), rel=1e-4)
    output.loss.backward()
    with pytest.raises(ModelError, match=r"graph is gone; ask before loss.backward\(\)"):
        output.gradient_norms()


def test_at_gamma_zero_nothing_is_run(denoiser, noisy, clean):
    class Counted(torch.nn.Module):
        name, calls = "counted", 0

        def forward(self, denoised):
            self.calls += 1
            return denoised.mean() * float("nan")

    term = Counted()
    wrapper = SegAwareWrapper(denoiser, term)
    wrapper.gamma = 0
    output = wrapper(noisy, clean=clean)
    assert term.calls == 0 and list(output.terms) == ["fidelity"] and torch.isfinite(output.loss)


def test_a_term_that_comes_late_goes_where_the_wrapper_is(denoiser, segmenter):
    moved = []
    wrapper = SegAwareWrapper(denoiser, EntropySegAwareLoss(segmenter), gamma=0).to("meta")
    term = wrapper._waiting[0]
    term.to = lambda device: moved.append(device)
    wrapper.gamma = 1
    assert [str(device) for device in moved] == ["meta"]


def test_gamma_may_rise_from_zero(denoiser, segmenter, noisy, clean):
    wrapper = SegAwareWrapper(denoiser, EntropySegAwareLoss(segmenter), gamma=0)
    assert list(wrapper(noisy, clean=clean).terms) == ["fidelity"]
    wrapper.gamma = 0.5
    output = wrapper(noisy, clean=clean)
    assert list(output.terms) == ["fidelity", "entropy"] and output.weights["entropy"] == wrapper.gamma == 0.5
    with pytest.raises(InputError, match="gamma -1 must be zero or positive"):
        wrapper.gamma = -1
    assert wrapper.gamma == 0.5


def test_a_compiled_loss_is_told_what_it_needs(denoiser, segmenter, noisy, clean):
    loss = ConsistencyLoss(segmenter)
    expected = SegAwareWrapper(denoiser, loss)(noisy, clean=clean).loss
    assert torch.allclose(SegAwareWrapper(denoiser, torch.compile(loss, backend="eager"))(noisy, clean=clean).loss, expected)
    torch._dynamo.reset()


def test_photons_in_low_light_are_no_eight_bit_image(denoiser, noisy, clean):
    wrapper = SegAwareWrapper(denoiser, ())
    noisy = clean.clone().repeat(1, 1, 8, 8)
    noisy[0, 0, 0, 0] = 14  # seven photons where a white pixel should have half a one: once in a million, and every image has a million
    clean = clean.repeat(1, 1, 8, 8)
    assert wrapper(noisy, clean=clean).loss.isfinite()
    for images, name in ((noisy, "clean"), (noisy + (torch.rand_like(noisy) < 0.01) * 20, "noisy")):
        with pytest.raises(InputError, match=f"{name}: values up to"):
            wrapper(images if name == "noisy" else clean, clean=images if name == "clean" else clean)


def test_compiled_without_a_compiler(denoiser, segmenter, noisy, clean):
    wrapper = SegAwareWrapper(denoiser, EntropySegAwareLoss(segmenter)).eval()
    expected = wrapper(noisy, clean=clean).loss
    assert torch.allclose(torch.compile(wrapper, backend="eager")(noisy, clean=clean).loss, expected)
    torch._dynamo.reset()


# Bad input


@pytest.mark.parametrize(
    ("noisy", "mend"),
    [
        (torch.full((1, 3, 4, 4), math.nan), "nan_to_num"),
        (torch.full((1, 3, 4, 4), -math.inf), "nan_to_num"),
        (torch.full((1, 3, 4, 4), 255.0), "divide by 255"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"images.float\(\) / 255"),
        (torch.zeros(1, 4, 4, 4), "leave alpha out"),
        (torch.zeros(3, 4, 4), r"images\[None\]"),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 5, 5)], "one by one or cropped"),
        (torch.zeros(0, 3, 4, 4), "at least one pixel"),
    ],
)
def test_bad_images(denoiser, noisy, mend):
    wrapper = SegAwareWrapper(denoiser, ())
    with pytest.raises(InputError, match=mend):
        wrapper(noisy)
    if isinstance(noisy, torch.Tensor) and noisy.ndim == 4 and noisy.shape[1] == 3 and len(noisy):
        with pytest.raises(InputError, match="clean.*" + mend):
            wrapper(torch.zeros(1, 3, 4, 4), clean=noisy)


def test_clean_and_labels_must_fit(denoiser, noisy, clean):
    with pytest.raises(InputError, match="cut both alike"):
        SegAwareWrapper(denoiser, ())(noisy, clean=clean[:, :, 1:])
    with pytest.raises(InputError, match="pass clean=..."):
        SegAwareWrapper(denoiser, ())(noisy, labels=torch.zeros(2, 12, 16, dtype=torch.long))


def test_it_is_a_denoiser_and_public(denoiser):
    assert segaware.SegAwareWrapper is SegAwareWrapper
    assert isinstance(SegAwareWrapper(denoiser, ()), Denoiser)
