import copy
import math

import pytest
import torch
from losses.tester import LossTester
from torch import nn

from segaware import DnCNN, SegAwareWrapper
from segaware.errors import InputError, ModelError
from segaware.losses.d2sm import D2SMLoss, d2sm, patches
from segaware.losses.judge_pool import JudgePoolLoss

HALF_LOG = 0.5 * math.log(1.125)  # 0.05889
TWO, ONE = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])


class TestD2SMLoss(LossTester):
    needs = ("clean",)

    def build(self, network):
        return D2SMLoss(network, patch=6, temperature=0.5)


class TestCleanAnchorsShifted(LossTester):
    needs = ("clean",)

    def build(self, network):
        return D2SMLoss(network, patch=6, anchors="clean", normalize="imagenet")


def test_by_hand():
    assert float(d2sm(TWO, ONE)) == pytest.approx(HALF_LOG, rel=1e-4) == pytest.approx(0.05889, abs=1e-5)
    assert float(d2sm(TWO, ONE, reduction="entry")) == pytest.approx(0.02944, abs=1e-5)


@pytest.mark.parametrize(("length", "expected"), [(512, 7e-7), (8192, 4e-8)])
def test_it_is_tiny_on_features_of_real_length(length, expected):
    """224 rows with 30 % of noise: the +1 of the shift makes every row nearly uniform."""
    source = torch.Generator().manual_seed(0)
    clean = torch.randn(224, length, generator=source)
    rows = clean + 0.3 * torch.randn(224, length, generator=source)
    entry = float(d2sm(rows, clean, reduction="entry"))
    assert entry == pytest.approx(expected, rel=0.2)
    assert float(d2sm(rows, clean)) == pytest.approx(224 * entry, rel=1e-4)


def test_temperature_by_hand():
    p = math.exp(2) / (1 + math.exp(2))
    expected = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    assert float(d2sm(TWO, ONE, temperature=0.5)) == pytest.approx(expected, rel=1e-5)


def test_memory_by_hand():
    # live rows alike, the remembered one at a right angle among the clean: G = (2/3, 1/3), F = (1/2, 1/2)
    memory = torch.stack([TWO[:1], TWO[1:]])
    expected = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert float(d2sm(TWO[:1], TWO[:1], memory)) == pytest.approx(expected, rel=1e-4)
    assert float(d2sm(TWO[:1], TWO[:1], memory, anchors="clean")) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("anchors", ["pair", "clean"])
@pytest.mark.parametrize("temperature", [None, 0.1])
def test_zero_at_equality_positive_elsewhere_blind_to_order(anchors, temperature):
    rows, clean = torch.randn(2, 8, 20)
    options = {"anchors": anchors, "temperature": temperature}
    assert float(d2sm(clean, 3 * clean, **options)) == pytest.approx(0, abs=1e-7)
    value = d2sm(rows, clean, **options)
    order = torch.randperm(8)
    assert value > 0 and torch.isclose(d2sm(rows[order], clean[order], **options), value, rtol=1e-4)


def test_only_the_pair_is_blind_to_a_rotation():
    clean = torch.randn(6, 5, dtype=torch.float64)
    turned = clean @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert float(d2sm(turned, clean)) < 1e-9 < 1e-3 < float(d2sm(turned, clean, anchors="clean"))


def test_gradient_reaches_the_live_denoised_rows_alone():
    rows, clean = torch.randn(2, 4, 6).unbind()
    rows, clean = rows.clone().requires_grad_(), clean.clone().requires_grad_()
    memory = torch.randn(2, 3, 6, requires_grad=True)
    d2sm(rows, clean, memory).backward()
    assert rows.grad.abs().sum() > 0 and clean.grad is None and memory.grad is None


@pytest.mark.parametrize("value", [1e4, -1e4, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_and_zero_features_stay_finite(value, dtype):
    rows = torch.full((3, 4), value, dtype=dtype).requires_grad_()
    found = d2sm(rows, torch.randn(3, 4).to(dtype))
    found.backward()
    assert found.dtype == torch.float32 and found.isfinite() and rows.grad.isfinite().all()


def test_patches():
    images = torch.arange(2 * 1 * 5 * 7).reshape(2, 1, 5, 7).float()
    cut = patches(images, 2)
    assert cut.shape == (12, 1, 2, 2)
    assert torch.equal(cut[0], images[0, :, :2, :2]) and torch.equal(cut[4], images[0, :, 2:4, 2:4])
    assert torch.equal(cut[11], images[1, :, 2:4, 4:6])
    assert patches(images, 6).shape == (2, 1, 5, 6) and patches(images, None) is images


def steps(loss, count, start=0):
    values = []
    for step in range(start, start + count):
        clean = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        values.append(loss((clean**2).requires_grad_(), clean=clean).detach())
    return values


def test_the_queue_fills_wraps_and_is_left_alone_without_gradient(segmenter):
    loss = D2SMLoss(segmenter, queue=5)
    image = torch.rand(2, 3, 8, 8)
    loss(image, clean=image)
    assert loss.memory is None
    sizes, rows = [], []
    for step in range(4):
        steps(loss, 1, step)
        sizes.append(loss.memory.shape[1])
        rows.append(loss.memory[:, -2:])
    assert sizes == [2, 4, 5, 5]
    assert torch.equal(loss.memory, torch.cat([rows[1][:, 1:], rows[2], rows[3]], dim=1))
    assert not loss.memory.requires_grad and torch.allclose(loss.memory.norm(dim=2), torch.ones(2, 5))
    before = loss.memory
    with torch.no_grad():
        loss(image.requires_grad_(), clean=image)
    assert loss.memory is before


@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "entry"}, {"temperature": 0.5}, {"anchors": "clean"}, {"anchors": "clean", "temperature": 0.5}, {"normalize": "imagenet"}, {"patch": 4}],
    ids=str,
)
def test_the_loss_is_the_formula_of_rows_memory_and_options(segmenter, options):
    loss = D2SMLoss(segmenter, queue=5, **options)
    steps(loss, 2)
    remembered = loss.memory.clone()
    clean = torch.rand(2, 3, 8, 8)
    denoised = (clean**2).requires_grad_()

    def rows(images):
        if options.get("patch"):
            images = torch.stack([image[:, y : y + 4, x : x + 4] for image in images for y in (0, 4) for x in (0, 4)])
        if options.get("normalize"):
            images = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        return segmenter(images).flatten(1)

    form = {key: value for key, value in options.items() if key in ("reduction", "temperature", "anchors")}
    expected = d2sm(rows(denoised), rows(clean), remembered, **form)
    value = loss(denoised, clean=clean)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-9)
    alone = d2sm(rows(denoised), rows(clean), **form)
    assert float((alone - expected).detach().abs()) > 1e-3 * float(expected.detach())  # the memory counts


def test_state_dict_round_trip_goes_on_as_it_was(segmenter):
    loss, straight = D2SMLoss(segmenter, queue=5), D2SMLoss(segmenter, queue=5)
    expected = steps(straight, 5)
    steps(loss, 3)
    fresh = D2SMLoss(segmenter, queue=5)
    fresh.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert torch.equal(torch.stack(steps(fresh, 2, 3)), torch.stack(expected[3:]))
    fresh.load_state_dict({})
    assert fresh.memory is None


@pytest.mark.parametrize("pool", [False, True])
def test_the_wrapper_keeps_it_out_of_the_denoiser_and_hands_it_over(segmenter, pool):
    def build():
        loss = D2SMLoss(segmenter)
        return SegAwareWrapper(DnCNN(depth=3, width=4), JudgePoolLoss([segmenter], lambda judge: loss) if pool else loss)

    first, second = build(), build()
    image = torch.rand(2, 3, 8, 8)
    assert first.awareness_state() == {}
    first(image, clean=image)
    state = first.awareness_state()
    assert [value.shape[:2] for value in state.values()] == [(2, 2)]
    assert all("memory" not in key for key in first.state_dict())
    second.load_awareness_state(state)
    assert all(torch.equal(state[key], value) for key, value in second.awareness_state().items())
    second.load_awareness_state({})
    assert second.awareness_state() == {}


def test_bad_input(segmenter):
    loss, image = D2SMLoss(segmenter), torch.rand(2, 3, 8, 8)
    with pytest.raises(InputError, match="batch of two"):
        loss(image[:1], clean=image[:1])
    with pytest.raises(InputError, match="clean=..."):
        loss(image)
    steps(loss, 1)
    with pytest.raises(InputError, match="images of one size"):
        loss(torch.rand(2, 3, 16, 8), clean=torch.rand(2, 3, 16, 8))
    with pytest.raises(ModelError, match="flatten each sample"):
        d2sm(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ModelError, match=r"give \(2, Q, 3\)"):
        d2sm(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2, 4))
    with pytest.raises(ModelError, match="one feature tensor"):
        D2SMLoss(nn.Sequential(_Named()))(image, clean=image)


class _Named(nn.Module):
    def forward(self, image):
        return {"out": image}


@pytest.mark.parametrize(
    "options", [{"reduction": "sum"}, {"anchors": "both"}, {"temperature": 0}, {"queue": -1}, {"patch": 0}, {"normalize": "x"}]
)
def test_bad_options(options):
    with pytest.raises(InputError, match="D2SMLoss"):
        D2SMLoss(**options)
