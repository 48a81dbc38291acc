"""The blocks of the cascade: the recurrence, its parts, what is refused, and that memory does not grow."""

import functools
import json
import os
import subprocess
import sys
from weakref import finalize

import pytest
import torch
import torch.nn.functional as F
from peak_memory import DEFINE_PEAK
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from segaware import DDFN, SDABN, SDB, DnCNN, FFDNet, HRNetSegmenter, SegAwareWrapper, denoise, from_pretrained
from segaware.cascade import IgnoreCondition, Stage
from segaware.contracts import Denoiser, DenoiserInfo
from segaware.entries import write_entry
from segaware.errors import InputError, ModelError, WeightsError

SEGMENTER = {"num_classes": 4, "width": 4, "modules": (1, 1, 1), "blocks": 1, "bottlenecks": 1}


class Patches(nn.Module):
    """A segmenter of one convolution, stride 4."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes, self.stride, self.class_names = num_classes, 4, None
        self.conv = nn.Conv2d(3, num_classes, 7, stride=4, padding=3)

    def forward(self, image):
        return 20 * self.conv(image)


class TakesSigma(nn.Module):
    """A denoiser that is told both the level and the condition."""

    condition_channels = 4
    info = DenoiserInfo(takes_sigma=True, size_multiple=2)

    def forward(self, noisy, sigma=None, condition=None):
        return noisy * sigma + condition.mean()


def ddfn(**options):
    return DDFN(condition_channels=4, blocks=1, **options)


def cascade(length=3, closing=False, condition="logits"):
    torch.manual_seed(0)
    blocks = [SDB(Patches(), ddfn(), condition=condition) for _ in range(length)]
    net = SDABN(blocks, Patches() if closing else None).eval()
    with torch.no_grad():
        for block in net.blocks:
            block.denoiser.reconstruct.weight.mul_(300)  # images of the order of 1
    return net


@pytest.fixture
def noisy():
    return torch.rand(2, 3, 17, 22) * 1.4 - 0.2


def test_parameters_of_the_paper():
    with torch.device("meta"):
        def block():
            return SDB(HRNetSegmenter(19), DDFN(condition_channels=19))

        nets = {
            4_053_755: SDABN([block()]),
            7_993_334: SDABN([block()], closing_segmenter=HRNetSegmenter(19)),
            8_107_510: SDABN([block(), block()]),
            12_161_265: SDABN([block(), block(), block()]),
        }  # fmt: skip
    assert {n: sum(p.numel() for p in net.parameters()) for n, net in nets.items()} == {n: n for n in nets}


@pytest.mark.parametrize("condition", ["logits", "probs"])
def test_it_is_the_recurrence_written_by_hand(noisy, condition):
    net = cascade(3, closing=True, condition=condition)
    s1, s2, s3 = (block.segmenter for block in net.blocks)
    d1, d2, d3 = (block.denoiser for block in net.blocks)

    def up(logits):
        logits = F.interpolate(logits, size=(17, 22), mode="bilinear", align_corners=False)
        return logits if condition == "logits" else torch.softmax(logits, dim=1)

    with torch.no_grad():
        logits1 = s1(noisy)
        image1 = d1(noisy, condition=up(logits1))
        logits2 = s2(image1)
        image2 = d2(image1 + noisy, condition=up(logits2))
        logits3 = s3(image2)
        image3 = d3(image2 + noisy, condition=up(logits3))
        logits4 = net.closing_segmenter(image3)
        expected = [(logits1, image1), (logits2, image2), (logits3, image3), (logits4, image3)]
        found = list(net.stages(noisy))
        assert torch.equal(net(noisy), image3)
    assert len(found) == 4
    for stage, (logits, image) in zip(found, expected, strict=True):
        assert torch.equal(stage.logits, logits) and torch.equal(stage.image, image)
    assert image3.abs().max() > 1 and image1.min() < 0  # nothing is clamped on the way


def test_logits_and_probabilities_are_two_networks(noisy):
    with torch.no_grad():
        assert not torch.allclose(cascade(1)(noisy), cascade(1, condition="probs")(noisy))


def test_zeroed_heads_make_a_plain_denoiser(noisy):
    torch.manual_seed(0)
    block = SDB(Patches(), ddfn(identity=True)).eval()
    plain = DDFN(blocks=1).eval()
    plain.load_state_dict(block.denoiser.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(block(noisy), plain(noisy))


def test_first_blocks(noisy):
    net = cascade(3)
    net.info = DenoiserInfo(task="denoise+segment", training_noise="AWGN")
    with torch.no_grad():
        images = [stage.image for stage in net.stages(noisy)]
        for n in (1, 2, 3):
            assert torch.equal(net.first(n)(noisy), images[n - 1])
        logits = [stage.logits for stage in net.first(2, closing=True).stages(noisy)]
        expected = [stage.logits for stage in net.stages(noisy)]
    assert len(logits) == 3 and torch.equal(logits[2], expected[2])
    net.train()
    net.blocks[0].segmenter.eval()  # trained on fixed statistics, say
    part = net.first(1)
    assert part.training and not net.blocks[0].segmenter.training and net.blocks[0].denoiser.training
    net.eval()
    assert not net.first(1).training
    assert net.first(1).blocks[0] is net.blocks[0] and net.first(1).info.training_noise == "AWGN"
    assert len(net.first(2)) == 2
    for wrong in (0, 4, -1):
        with pytest.raises(InputError, match="give 1 to 3"):
            net.first(wrong)
    with pytest.raises(InputError, match="no segmenter follows stage 3"):
        net.first(3, closing=True)
    assert cascade(2, closing=True).first(2, closing=True).closing_segmenter is not None


def test_they_are_denoisers(noisy):
    net = cascade(2)
    for denoiser in (net, net.blocks[0]):
        assert isinstance(denoiser, Denoiser)
        assert denoiser.info == DenoiserInfo(receptive_field=None, task="denoise+segment")
        with torch.no_grad():
            direct = denoiser(noisy)
            assert direct.shape == noisy.shape
            torch.testing.assert_close(denoise(noisy, denoiser), direct, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(SegAwareWrapper(denoiser, ())(noisy), direct)
        with pytest.raises(InputError, match="blind"):
            denoiser(noisy, 0.1)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (120, 120), (127, 190)])
def test_any_size(size):
    torch.manual_seed(0)
    net = SDABN([SDB(HRNetSegmenter(**SEGMENTER), ddfn()) for _ in range(2)]).eval()
    with torch.no_grad():
        for logits, image in net.stages(torch.rand(1, 3, *size)):
            assert logits.shape == (1, 4, -(-size[0] // 4), -(-size[1] // 4)) and image.shape == (1, 3, *size)


@pytest.mark.parametrize("answer", [(1, 1), (17, 22)])
def test_segmenters_of_every_stride(noisy, answer):
    segmenter = Patches()
    segmenter.forward = lambda image: F.adaptive_avg_pool2d(image.mean(1, keepdim=True).expand(-1, 4, -1, -1), answer)
    assert SDB(segmenter, ddfn())(noisy).shape == noisy.shape


def test_gradient_reaches_every_part(noisy):
    net = cascade(2, closing=True).train()
    last = list(net.stages(noisy))[-1]
    (last.logits.square().mean() + last.image.square().mean()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_compiles_in_one_graph(noisy):
    net = cascade(2)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(noisy), net(noisy))


def test_stages_come_as_they_are_computed(noisy):
    net = cascade(2)
    seen = []
    net.blocks[1].segmenter.register_forward_hook(lambda *_: seen.append(2))
    stages = net.stages(noisy)
    next(stages)
    assert seen == []
    next(stages)
    assert seen == [2]


def test_a_noise_level_goes_to_those_that_take_one(noisy):
    net = SDABN([SDB(Patches(), ddfn()), SDB(Patches(), TakesSigma())]).eval()
    assert net.info.takes_sigma and net.info.size_multiple == 2
    with torch.no_grad():
        (_, first), (logits, last) = net.stages(noisy, 0.1)
        condition = F.interpolate(logits, noisy.shape[-2:], mode="bilinear", align_corners=False).mean()
        torch.testing.assert_close(last, 0.1 * (first + noisy) + condition)


# --- saving -----------------------------------------------------------------------------------


def saved(tmp_path, blocks=2):
    torch.manual_seed(0)
    parts = [SDB(HRNetSegmenter(**SEGMENTER), ddfn(), condition="probs") for _ in range(blocks)]
    net = SDABN(parts, HRNetSegmenter(**SEGMENTER)).eval()
    return net, write_entry(tmp_path / "cascade", net, {"training_noise": "AWGN, sigma 50"})


def test_saves_and_loads(tmp_path, noisy):
    net, folder = saved(tmp_path)
    again = from_pretrained(folder)
    assert again.info.training_noise == "AWGN, sigma 50" and again.blocks[1].condition == "probs"
    with torch.no_grad():
        for mine, other in zip(net.stages(noisy), again.stages(noisy), strict=True):
            assert torch.equal(mine.logits, other.logits) and torch.equal(mine.image, other.image)
    assert json.loads(json.dumps(net.config)) == json.loads(json.dumps(again.config))


def test_half_precision_weights_give_every_length(tmp_path, noisy):
    net, folder = saved(tmp_path, blocks=3)
    half = write_entry(tmp_path / "half", net, dtype=torch.float16)
    sizes = [(f / "model.safetensors").stat().st_size for f in (half, folder)]
    assert sizes[0] < 0.6 * sizes[1]
    again = from_pretrained(half)
    assert all(p.dtype == torch.float32 for p in again.parameters())
    with torch.no_grad():
        for n in (1, 2, 3):
            torch.testing.assert_close(again.first(n)(noisy), net.first(n)(noisy), rtol=1e-2, atol=1e-2)
            assert len(list(again.first(n).stages(noisy))) == n


def test_a_block_and_an_adapter_save_and_load(tmp_path, noisy):
    torch.manual_seed(0)
    net = SDB(HRNetSegmenter(**SEGMENTER), IgnoreCondition(DnCNN(depth=2, width=4))).eval()
    again = from_pretrained(write_entry(tmp_path / "block", net))
    with torch.no_grad():
        assert torch.equal(net(noisy), again(noisy))


def test_a_missing_stage_is_named(tmp_path):
    net, folder = saved(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["arguments"]["blocks"].append(config["arguments"]["blocks"][0])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"missing \(stage3\."):
        from_pretrained(folder)
    assert {key.partition(".")[0] for key in net.state_dict()} == {"stage1", "stage2", "closing_segmenter"}


def test_what_cannot_be_described_cannot_be_saved(tmp_path):
    net = cascade(2)  # the segmenter states no config
    assert net.config is None and net.blocks[0].config is None
    with pytest.raises(WeightsError, match="no 'config'"):
        write_entry(tmp_path / "cascade", net)


# --- bad input --------------------------------------------------------------------------------


def test_class_counts_must_agree():
    with pytest.raises(InputError, match="segmenter has 4 classes, DDFN takes a condition of 19; build it with condition_channels=4"):
        SDB(Patches(), DDFN(condition_channels=19, blocks=1))
    other = SDB(Patches(8), DDFN(condition_channels=8, blocks=1))
    with pytest.raises(InputError, match="stage 2 has 8 classes, stage 1 has 4"):
        SDABN([SDB(Patches(), ddfn()), other])
    parts = {"segmenter": {"architecture": "HRNetSegmenter", "arguments": SEGMENTER}}
    described = [{**parts, "denoiser": {"architecture": "DDFN", "arguments": {"condition_channels": k, "blocks": 1}}} for k in (4, 8)]
    with pytest.raises(InputError, match="stage 2: .*segmenter has 4 classes, DDFN takes a condition of 8"):
        SDABN(described)
    with pytest.raises(InputError, match="closing segmenter has 8 classes, the blocks 4"):
        SDABN([SDB(Patches(), ddfn())], Patches(8))
    with pytest.raises(InputError, match="stage 2 takes 1 image channels"):
        SDABN([SDB(Patches(), ddfn()), SDB(Patches(), ddfn(channels=1))])


def test_a_plain_denoiser_needs_the_adapter(noisy):
    for plain in (DnCNN(depth=2, width=4), DDFN(blocks=1)):
        with pytest.raises(ModelError, match=r"takes no condition.*IgnoreCondition\(denoiser\)"):
            SDB(Patches(), plain)
    torch.manual_seed(0)
    first, second = DnCNN(depth=2, width=4).eval(), FFDNet(depth=2, width=8).eval()
    net = SDABN([SDB(Patches(), IgnoreCondition(first)), SDB(Patches(8), IgnoreCondition(second))][:1]).eval()
    with torch.no_grad():
        assert torch.equal(net(noisy), first(noisy))
        told = SDB(Patches(8), IgnoreCondition(second))
        assert told.info.takes_sigma and torch.equal(told(noisy, 0.1), second(noisy, 0.1))


def test_parts_that_are_none():
    with pytest.raises(ModelError, match="states no num_classes; .*SegmenterAdapter"):
        SDB(nn.Conv2d(3, 4, 1), ddfn())
    with pytest.raises(ModelError, match="no denoiser of the contract"):
        SDB(Patches(), nn.Conv2d(3, 3, 1))
    with pytest.raises(ModelError, match="SDB: segmenter is a str"):
        SDB("hrnet", ddfn())
    with pytest.raises(InputError, match="'logits' .as released. or 'probs'"):
        SDB(Patches(), ddfn(), condition="onehot")
    with pytest.raises(InputError, match="no blocks"):
        SDABN([])
    with pytest.raises(InputError, match="give a list of blocks"):
        SDABN(SDB(Patches(), ddfn()))
    with pytest.raises(ModelError, match="stage 1 is a DDFN"):
        SDABN([ddfn()])
    with pytest.raises(ModelError, match="stage 2 is described by"):
        SDABN([SDB(Patches(), ddfn()), {"segmenter": Patches(), "denoise": ddfn()}])


def test_what_is_not_finite_names_the_stage(noisy):
    net = cascade(3)
    with torch.no_grad():
        net.blocks[1].segmenter.conv.bias[0] = float("nan")
    for run in (lambda: net(noisy), lambda: list(net.stages(noisy))):
        with pytest.raises(InputError, match=r"SDABN, stage 2, logits of Patches .*NaN"), torch.no_grad():
            run()
    net = cascade(1, closing=True)
    with torch.no_grad():
        net.closing_segmenter.conv.bias[0] = float("inf")
        net(noisy)  # does not ask the closing segmenter
        with pytest.raises(InputError, match="closing segmenter"):
            list(net.stages(noisy))


def test_an_answer_that_is_no_logits_is_named(noisy):
    net = cascade(2)
    net.blocks[1].segmenter.forward = lambda image: {"out": image}
    with pytest.raises(ModelError, match="SDABN, stage 2: Patches gave dict, not logits"):
        net(noisy)
    net.blocks[1].segmenter.forward = lambda image: image
    with pytest.raises(ModelError, match=r"SegmenterAdapter\(network, num_classes\)"):
        net(noisy)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8)])
def test_wrong_images_are_refused_at_once(images):
    with pytest.raises(InputError, match="SDABN"):
        cascade(1)(images)
    with pytest.raises(InputError, match="SDABN"):
        cascade(1).stages(images)  # not only when the first stage is asked for


# --- memory -----------------------------------------------------------------------------------


def living_tensors(run):
    """Largest sum of bytes of all tensors alive at once, looked at after every operation."""

    class Meter(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.now = self.peak = 0
            self.known = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    key, size = storage._cdata, storage.nbytes()
                    if key not in self.known:
                        self.known.add(key)
                        self.now += size
                        finalize(storage, self.freed, key, size)
            self.peak = max(self.peak, self.now)
            return out

        def freed(self, key, size):
            self.known.discard(key)
            self.now -= size

    with torch.no_grad(), Meter() as meter:
        run()
    return meter.peak


def test_the_meter_sees_what_is_kept():
    image = torch.rand(1, 1, 100, 100)  # 40 kB
    assert 75_000 < living_tensors(lambda: (image + 1) * 2) < 90_000

    def keep():
        kept = [image + i for i in range(10)]
        return sum(kept)

    assert living_tensors(keep) > 400_000


def test_intermediate_results_are_freed():
    torch.manual_seed(0)
    net = SDABN([SDB(HRNetSegmenter(**SEGMENTER), DDFN(condition_channels=4, blocks=3)) for _ in range(4)]).eval()
    noisy = torch.rand(1, 3, 64, 64)
    parts = {n: net.first(n) for n in (1, 4)}
    one, four = (living_tensors(functools.partial(part, noisy)) for part in parts.values())
    assert one > 50 * 4 * 64 * 64  # it does measure: the last tensors alone have 56 channels
    assert four < 1.15 * one


PEAK = f"""{DEFINE_PEAK}
import torch
from segaware import DDFN, SDABN, SDB, HRNetSegmenter
torch.set_num_threads(1)
stages = int(sys.argv[1])
net = SDABN([SDB(HRNetSegmenter(19), DDFN(condition_channels=19)) for _ in range(3)]).eval()
with torch.no_grad():
    net(torch.rand(1, 3, 8, 8))
    before = peak()
    net.first(stages)(torch.rand(1, 3, 240, 320))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="one system is enough for a figure of the network")
def test_peak_memory_of_the_process_hardly_grows():
    # glibc keeps small holes in its heap, by chance up to a quarter more; here large blocks go straight back
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    one, three = (
        int(subprocess.run([sys.executable, "-c", PEAK, str(n)], capture_output=True, text=True, check=True, env=env).stdout)
        for n in (1, 3)
    )
    assert one > 20_000  # KiB: the measurement sees the tensors
    assert three < 1.15 * one, (one, three)


def test_a_stage_is_a_pair(noisy):
    logits, image = cascade(1).blocks[0].step(noisy, name="x")
    assert isinstance(Stage(logits, image), tuple) and logits.shape[1] == 4
