"""The loop: resumes exactly, logs every term, stops on NaN, runs under two processes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from segaware import DnCNN, EntropySegAwareLoss, FFDNet, SegAwareWrapper, from_pretrained
from segaware.errors import InputError, TrainingError
from segaware.metrics import psnr
from segaware.registry import ARCHITECTURES
from segaware.training import Recipe, checkpoint, fit
from segaware.training.data import Patches, degrade

SMALL = Recipe(
    steps=12, batch_size=2, patch_size=16, log_every=4, validate_every=6, checkpoint_every=5, validation_crop=32,
    validation_sigmas=(25.0,), precision="float32",
)  # fmt: skip


class TinySegmenter(nn.Module):
    num_classes, stride, class_names = 3, 1, None

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image):
        return self.net(image)


def images(count: int = 3, side: int = 24):
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(3, side, side + i, generator=generator) for i in range(count)]


def small_net() -> nn.Module:
    torch.manual_seed(3)
    return DnCNN(depth=4, width=16)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_stopped_run_equals_one_that_never_stopped(tmp_path, optimizer, precision):
    recipe = dataclasses.replace(SMALL, optimizer=optimizer, precision=precision, ema=0.9, clip_norm=10.0)

    class Counting(list):
        def __init__(self, reads):
            super().__init__(images())
            self.reads = reads

        def __getitem__(self, index):
            self.reads.append(index)
            return super().__getitem__(index)

    first, again = [], []
    whole = fit(SegAwareWrapper(small_net(), ()), Counting(first), recipe, tmp_path / "whole", validation=images(1), progress=False)

    class Stop(Exception):
        pass

    class Stopping(list):
        """Breaks the data off in the middle of the run."""

        reads = 0

        def __getitem__(self, index):
            Stopping.reads += 1
            if Stopping.reads == 2 * 8:
                raise Stop
            return super().__getitem__(index)

    with pytest.raises(Stop):
        fit(SegAwareWrapper(small_net(), ()), Stopping(images()), recipe, tmp_path / "cut", validation=images(1), progress=False)
    assert checkpoint.latest(tmp_path / "cut").name == "checkpoint-5"
    torch.manual_seed(99)  # whatever else happened in between
    cut = fit(SegAwareWrapper(small_net(), ()), Counting(again), recipe, tmp_path / "cut", validation=images(1), progress=False)
    assert len(first) - len(again) == 2 * 5  # from the checkpoint on, not from the start
    assert cut.step == whole.step == 12
    assert same(weights(whole.model), weights(cut.model))
    assert cut.psnr == whole.psnr

    def log(out):
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k != "seconds_per_step"} for row in rows]

    assert log(tmp_path / "whole") == log(tmp_path / "cut")


def test_workers_read_the_same_patches_before_and_after_a_stop(tmp_path, monkeypatch):
    recipe = dataclasses.replace(SMALL, optimizer="muon")
    whole = fit(SegAwareWrapper(small_net(), ()), images(), recipe, tmp_path / "whole", progress=False)

    def stopping(self, *args, calls=[], forward=SegAwareWrapper.forward, **options):  # noqa: B006
        calls.append(None)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    shared = dataclasses.replace(recipe, workers=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SegAwareWrapper, "forward", stopping)
        fit(SegAwareWrapper(small_net(), ()), images(), shared, tmp_path / "cut", progress=False)
    assert checkpoint.latest(tmp_path / "cut").name == "checkpoint-5"
    cut = fit(SegAwareWrapper(small_net(), ()), images(), shared, tmp_path / "cut", progress=False)
    assert cut.step == 12 and same(weights(whole.model), weights(cut.model))


SCRIPT = """
import sys, torch
sys.path[:0] = {path!r}
from test_fit import *
recipe = dataclasses.replace(SMALL, steps=60, checkpoint_every=7, optimizer="muon", ema=0.9)
if {hold}:  # to be killed between two checkpoints, whatever the machine is at
    calls = []
    original = SegAwareWrapper.forward
    def forward(self, *args, **options):
        calls.append(None)
        if len(calls) == 10:
            time.sleep(600)
        return original(self, *args, **options)
    SegAwareWrapper.forward = forward
fit(SegAwareWrapper(small_net(), ()), images(), recipe, {out!r}, progress=False)
"""


def test_killed_and_resumed(tmp_path):
    def run(out, hold=False):
        code = SCRIPT.format(path=[str(Path(__file__).parent), *sys.path], out=str(out), hold=hold)
        return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert run(tmp_path / "whole").wait() == 0
    process = run(tmp_path / "killed", hold=True)
    deadline = time.monotonic() + 120
    while checkpoint.latest(tmp_path / "killed") is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL) if hasattr(signal, "SIGKILL") else process.kill()
    assert process.wait(60) != 0 and not (tmp_path / "killed/model").exists()
    assert checkpoint.latest(tmp_path / "killed").name == "checkpoint-7"
    assert run(tmp_path / "killed").wait() == 0
    assert same(weights(tmp_path / "whole/model"), weights(tmp_path / "killed/model"))


def test_learns_and_logs_every_term(tmp_path):
    recipe = dataclasses.replace(SMALL, steps=60, log_every=10, sigma=(25.0, 25.0))
    awareness = [(0.5, EntropySegAwareLoss(TinySegmenter()))]
    smooth = [image.mean((1, 2), keepdim=True).expand_as(image).contiguous() for image in images()]
    fit(SegAwareWrapper(small_net(), awareness, gamma=2.0), smooth, recipe, tmp_path, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    for row in rows:
        assert set(row["terms"]) == {"fidelity", "entropy"}
        assert row["terms"]["entropy"]["weight"] == 1.0
        assert row["terms"]["fidelity"]["gradient"] > 0 and row["terms"]["entropy"]["gradient"] > 0
        assert row["seconds_per_step"] > 0
        total = sum(term["value"] * term["weight"] for term in row["terms"].values())
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    assert rows[-1]["terms"]["fidelity"]["value"] < rows[0]["terms"]["fidelity"]["value"]


def test_batch_norm_keeps_what_it_comes_with(tmp_path):
    recipe = dataclasses.replace(SMALL, fixed_norm_steps=1000, measure_norm=False)
    net = small_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fit(SegAwareWrapper(net, ()), images(), recipe, tmp_path, progress=False)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) == ("running" in key or "num_batches" in key), key


@pytest.mark.parametrize("fixed", [4, 1000])
def test_batch_norm_is_measured_then_fixed(tmp_path, fixed):
    recipe = dataclasses.replace(SMALL, fixed_norm_steps=fixed, learning_rate=1e-9)  # weights stand still
    net = small_net()
    fit(SegAwareWrapper(net, ()), images(), recipe, tmp_path, progress=False)
    first = net.body[:3]  # conv, relu, conv before the first normalisation
    patches = Patches(images(), recipe)
    values = torch.stack([first(patches[step].noisy).mean((0, 2, 3)) for step in range(8 if fixed == 4 else 0, 12)])
    torch.testing.assert_close(net.body[3].running_mean, values.mean(0), rtol=1e-3, atol=1e-5)
    assert net.body[3].momentum == 0.1


def test_nan_names_step_and_term(tmp_path):
    class Bad(nn.Module):
        name = "bad"
        calls = 0

        def forward(self, denoised):
            self.calls += 1
            return denoised.mean() * (float("nan") if self.calls == 8 else 1.0)

    with pytest.raises(TrainingError, match=r"step 8: the loss .*term bad .*checkpoint-5"):
        fit(SegAwareWrapper(small_net(), Bad()), images(), SMALL, tmp_path, progress=False)


def test_a_gradient_that_is_not_finite_reaches_no_weight(tmp_path):
    class Steep(nn.Module):
        """Finite everywhere, but its slope is infinite at 0."""

        name = "steep"

        def forward(self, denoised):
            return (denoised * 0).sum().abs().sqrt()

    net = small_net()
    before = {k: v.clone() for k, v in net.named_parameters()}
    with pytest.raises(TrainingError, match="step 1: the gradient .*term steep .*nothing was saved"):
        fit(SegAwareWrapper(net, Steep()), images(), SMALL, tmp_path, progress=False)
    assert all(torch.equal(before[k], v) for k, v in net.named_parameters())


def test_the_wrapper_holds_what_was_written_and_random_numbers_are_left_alone(tmp_path):
    net = small_net()
    state = torch.get_rng_state()
    result = fit(SegAwareWrapper(net, ()), images(), dataclasses.replace(SMALL, ema=0.9), tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    written, held = weights(result.model), net.state_dict()
    assert all(torch.equal(held[k], v) for k, v in written.items()) and not net.training


class Foreign(nn.Module):
    """Not of this package, and in a scale of its own."""

    def __init__(self):
        super().__init__()
        self.config = {"of": object()}  # nobody's business
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, noisy):
        assert noisy.max() > 2, "in 0 to 255"
        return noisy - self.layer(noisy)


@pytest.mark.parametrize("foreign", [True, False])
def test_what_is_written_is_called_as_it_was_trained(tmp_path, foreign):
    torch.manual_seed(0)
    wrapper = SegAwareWrapper(Foreign() if foreign else small_net(), (), value_range=(0, 255))
    result = fit(wrapper, images(), dataclasses.replace(SMALL, steps=3), tmp_path, progress=False)
    loaded = from_pretrained(result.model, **({"denoiser": Foreign()} if foreign else {})).eval()
    noisy = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(noisy), wrapper(noisy))
    with pytest.raises(TrainingError, match="called .* -> .*another folder"):
        fit(SegAwareWrapper(wrapper.denoiser, ()), images(), dataclasses.replace(SMALL, steps=3), tmp_path, progress=False)


def test_a_model_tells_of_the_noise_it_was_trained_with_last(tmp_path):
    """Not of that of its start."""
    start = from_pretrained("liu-blind")
    assert start.info.training_noise == "additive Gaussian noise, sigma 0-55 of 255, blind" and "BSDS500" in start.provenance["training_data"]["name"]
    recipe = dataclasses.replace(SMALL, steps=1, noise="poisson", peak=30.0, validate_every=9)
    result = fit(SegAwareWrapper(start, ()), images(), recipe, tmp_path / "on", progress=False)
    loaded = from_pretrained(result.model)
    assert loaded.info.training_noise == "Poisson noise, peak 30"
    assert loaded.provenance["training_data"]["name"].startswith("3 further images; before: ") and "Poisson noise, peak 30" in (result.model / "README.md").read_text()
    told = fit(SegAwareWrapper(FFDNet(), ()), images(), dataclasses.replace(SMALL, steps=1, sigma=(25.0, 25.0)), tmp_path / "new", progress=False)
    loaded = from_pretrained(told.model)
    assert loaded.info.training_noise == "additive Gaussian noise, sigma 25 of 255, told" and "training_data" not in loaded.provenance


def test_a_registered_denoiser_is_found_again_by_its_name(tmp_path, monkeypatch):
    for name, known in (("Mine", True), ("DnCNN", False)):  # another that is called as one of ours is not ours
        module = types.ModuleType(f"of_a_user_{name.lower()}")
        module.Net = type(name, (DnCNN,), {"__module__": module.__name__, "__qualname__": "Net" if known else "DnCNN"})
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if known:
            monkeypatch.setitem(ARCHITECTURES, name, f"{module.__name__}:Net")
        result = fit(SegAwareWrapper(module.Net(depth=3, width=4), ()), images(), dataclasses.replace(SMALL, steps=1), tmp_path / name, progress=False)
        if known:
            assert type(from_pretrained(result.model)) is module.Net
        else:
            with pytest.raises(InputError, match="denoiser=network"):
                from_pretrained(result.model)


def test_a_network_that_is_refused_stays_as_it_was(tmp_path):
    fit(SegAwareWrapper(DnCNN(depth=4, width=8), ()), images(), SMALL, tmp_path, progress=False)
    net = DnCNN(depth=5, width=8)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(TrainingError, match="is of another network .body.* in it, but .*in the denoiser"):
        fit(SegAwareWrapper(net, ()), images(), SMALL, tmp_path, progress=False)
    assert same(before, net.state_dict())
    with pytest.raises(TrainingError, match="is of another network .* has shape"):
        fit(SegAwareWrapper(DnCNN(depth=4, width=9), ()), images(), SMALL, tmp_path, progress=False)


def test_a_checkpoint_of_another_kind_of_training(tmp_path):
    fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False)
    file = checkpoint.latest(tmp_path) / "state.json"
    whole = json.loads(file.read_text())
    for lacking in ("recipe", "optimizer"):
        file.write_text(json.dumps({key: value for key, value in whole.items() if key != lacking}))
        with pytest.raises(TrainingError, match="of another kind of training; choose another folder"):
            fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False)


@pytest.mark.parametrize("at", [5, 8])  # before the statistics are measured, and just then
def test_dropout_and_measured_statistics_resume_exactly(tmp_path, at):
    def net():
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(0.2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))

    recipe = dataclasses.replace(SMALL, fixed_norm_steps=4, checkpoint_every=at, ema=0.9)
    fit(SegAwareWrapper(net(), ()), images(), recipe, tmp_path / "whole", progress=False)
    once = checkpoint.save

    def last_words(*args):
        once(*args)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(checkpoint, "save", last_words)
        fit(SegAwareWrapper(net(), ()), images(), recipe, tmp_path / "cut", progress=False)
    torch.manual_seed(99)
    fit(SegAwareWrapper(net(), ()), images(), recipe, tmp_path / "cut", progress=False)
    assert same(weights(tmp_path / "whole/model"), weights(tmp_path / "cut/model"))


@pytest.mark.parametrize("noise", ["poisson", "poisson-gaussian"])
def test_validation_has_the_noise_of_the_recipe(tmp_path, noise):
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, noisy):
            return noisy * self.gain

    recipe = dataclasses.replace(SMALL, steps=1, noise=noise, peak=20.0, learning_rate=1e-9, validation_sigmas=(51.0,))
    gray = [torch.full((3, 64, 64), 0.5)]
    result = fit(SegAwareWrapper(Same(), ()), gray, recipe, tmp_path, validation=gray, progress=False)
    variance = 0.5 / 20 + (0 if noise == "poisson" else 0.2**2)
    expected = -10 * torch.log10(torch.tensor(variance)).item()
    (level, value), = result.psnr.items()
    assert level == ("poisson" if noise == "poisson" else "51")
    assert value == pytest.approx(expected, abs=1.0)  # clamping gains a little


def test_a_size_that_the_network_cannot_take_is_told_before_the_first_step(tmp_path):
    class Folding(nn.Module):
        def __init__(self):
            super().__init__()
            self.fold, self.unfold = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
            self.conv = nn.Conv2d(12, 12, 3, padding=1)

        def forward(self, noisy):
            return self.unfold(self.conv(self.fold(noisy)))

    held_out = [torch.rand(3, 40, 40), torch.rand(3, 20, 31)]
    with pytest.raises(TrainingError, match="validation, an image of 20 x 31 pixels: .* pass size_multiple"):
        fit(SegAwareWrapper(Folding(), ()), images(), SMALL, tmp_path, validation=held_out, progress=False)
    assert checkpoint.latest(tmp_path) is None and not (tmp_path / "log.jsonl").exists()
    assert fit(SegAwareWrapper(Folding(), (), size_multiple=2), images(), SMALL, tmp_path, validation=held_out, progress=False).psnr


def test_what_is_validated_is_what_is_written(tmp_path):
    recipe = dataclasses.replace(SMALL, ema=0.9, learning_rate=1e-2, schedule="constant", fixed_norm_steps=3)
    net = small_net()
    result = fit(SegAwareWrapper(net, ()), images(), recipe, tmp_path, validation=images(1), progress=False)
    clean = images(1)[0][None]
    noisy = degrade(clean, recipe, 25 / 255, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert result.psnr["25"] == pytest.approx(psnr(net(noisy), clean, clamp=True).item(), abs=1e-3)
    tensors, _, _ = checkpoint.load(checkpoint.latest(tmp_path))
    assert not torch.equal(tensors["model"]["body.0.weight"], tensors["ema"]["body.0.weight"])
    for key in ("body.3.running_mean", "body.3.running_var"):  # measured, so not remembered from before
        assert torch.equal(tensors["model"][key], tensors["ema"][key])


def trained(out, **changes):
    net = small_net()
    fit(SegAwareWrapper(net, ()), images(), dataclasses.replace(SMALL, **changes), out, progress=False)
    return net


def test_clipping(tmp_path):
    def moved(name, **changes):
        start = dict(small_net().named_parameters())
        return max(float((p - start[k]).detach().abs().max()) for k, p in trained(tmp_path / name, **changes).named_parameters())

    # Adam takes the size of a gradient out again, but not against its epsilon
    assert moved("clipped", clip_norm=1e-12) < 1e-3 * moved("free")


def test_float32_steps_are_in_float32(tmp_path):
    plain, lower, last = (
        trained(tmp_path / name, precision=precision, float32_steps=steps).state_dict()
        for name, precision, steps in (("a", "float32", 0), ("b", "bf16", 0), ("c", "bf16", 12))
    )
    assert same(plain, last) and not same(plain, lower)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format(tmp_path, channels_last):
    weight = trained(tmp_path, channels_last=channels_last).body[2].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_a_setting_that_would_not_go_on(tmp_path):
    fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False)
    with pytest.raises(TrainingError, match="images 3 -> 4"):
        fit(SegAwareWrapper(small_net(), ()), images(4), SMALL, tmp_path, progress=False)
    with pytest.raises(TrainingError, match="terms {} -> {'entropy': 2.0}"):
        fit(SegAwareWrapper(small_net(), EntropySegAwareLoss(TinySegmenter()), gamma=2.0), images(), SMALL, tmp_path, progress=False)


def test_precision_is_the_recipes(tmp_path):
    with pytest.raises(TrainingError, match="needs CUDA"):
        fit(SegAwareWrapper(small_net(), ()), images(), dataclasses.replace(SMALL, precision="fp16"), tmp_path, progress=False)

    class Lower:
        mixed_precision = "bf16"

    with pytest.raises(TrainingError, match="set the recipe's precision"):
        fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False, accelerator=Lower())
    Lower.mixed_precision, Lower.gradient_accumulation_steps = "no", 4
    with pytest.raises(TrainingError, match="gradient_accumulation_steps=4.*batch_size"):
        fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False, accelerator=Lower())
    with pytest.raises(TrainingError, match="poisson-gaussian"):
        recipe = dataclasses.replace(SMALL, noise="poisson")
        fit(SegAwareWrapper(FFDNet(depth=2, width=8), ()), images(), recipe, tmp_path, progress=False)


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path):
    fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False)
    (tmp_path / ".checkpoint-13.partial").mkdir()
    (tmp_path / ".checkpoint-13.partial/state.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path).name == "checkpoint-12"
    tensors, optimizer, record = checkpoint.load(tmp_path / "checkpoint-12")
    for step in (12, 14):  # over itself, and after it
        checkpoint.save(tmp_path, step, tensors, optimizer, record)
        assert [p.name for p in tmp_path.glob("*checkpoint-*")] == [f"checkpoint-{step}"]
        assert same(checkpoint.load(checkpoint.latest(tmp_path))[0]["model"], tensors["model"])


@pytest.mark.parametrize("part", ["save_file", "os.replace"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, part):
    owner, name = (checkpoint, part) if part == "save_file" else (checkpoint.os, "replace")
    original, calls = getattr(owner, name), []

    def full(*args, **options):
        if "checkpoint-5" not in str(args) and "checkpoint" in str(args):
            calls.append(args)
            raise OSError(28, "No space left on device")
        return original(*args, **options)

    monkeypatch.setattr(owner, name, full)
    with pytest.raises((TrainingError, OSError), match="No space left"):
        fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False)
    assert calls and checkpoint.latest(tmp_path).name == "checkpoint-5"
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "checkpoint-5")[2]["step"] == 5
    assert fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False).step == 12


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingError, match="No space left.*then resume"):
        fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False)
    assert checkpoint.latest(tmp_path) is None and not list(tmp_path.glob(".*"))


def test_another_recipe_or_network_is_refused(tmp_path):
    fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False)
    with pytest.raises(TrainingError, match="learning_rate 0.001 -> 0.01"):
        fit(SegAwareWrapper(small_net(), ()), images(), dataclasses.replace(SMALL, learning_rate=0.01), tmp_path, progress=False)
    with pytest.raises(TrainingError, match="another network"):
        fit(SegAwareWrapper(DnCNN(depth=5, width=16), ()), images(), SMALL, tmp_path, progress=False)
    with pytest.raises(TrainingError, match="holds a checkpoint"):
        fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, resume=False, progress=False)


def test_a_trapezoid_may_be_prolonged_until_it_falls(tmp_path):
    recipe = dataclasses.replace(SMALL, schedule="trapezoid", cooldown=0, steps=6)
    longer = dataclasses.replace(recipe, steps=12, cooldown=4)
    fit(SegAwareWrapper(small_net(), ()), images(), recipe, tmp_path / "a", progress=False)
    fit(SegAwareWrapper(small_net(), ()), images(), longer, tmp_path / "b", progress=False)
    assert fit(SegAwareWrapper(small_net(), ()), images(), longer, tmp_path / "a", progress=False).step == 12
    assert same(weights(tmp_path / "a/model"), weights(tmp_path / "b/model"))
    with pytest.raises(TrainingError, match="steps 12 -> 20"):
        fit(SegAwareWrapper(small_net(), ()), images(), dataclasses.replace(longer, steps=20), tmp_path / "a", progress=False)


def test_what_a_trapezoid_may_change():
    saved = dataclasses.replace(SMALL, schedule="trapezoid", steps=100, cooldown=20).to_dict()
    recipe = Recipe.from_dict(saved)
    for step, change, refused in (
        (80, {"steps": 200, "cooldown": 50}, False),
        (81, {"steps": 200}, True),  # the fall has begun
        (80, {"cooldown": 30}, True),  # it would have begun
        (80, {"fixed_norm_steps": 10}, False),
        (80, {"fixed_norm_steps": 100}, True),  # statistics would have been fixed from the start
        (80, {"learning_rate": 1.0}, True),
        (80, {"log_every": 1}, False),
    ):
        assert bool(dataclasses.replace(recipe, **change).changes(saved, step)) == refused, (step, change)


def test_damaged_checkpoint_is_named(tmp_path):
    fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False)
    file = checkpoint.latest(tmp_path) / "state.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="damaged"):
        fit(SegAwareWrapper(small_net(), ()), images(), SMALL, tmp_path, progress=False)


@pytest.mark.parametrize("data", [[], "no-such-folder", 5])
def test_no_data(tmp_path, data):
    with pytest.raises(TrainingError, match="folder|images"):
        fit(SegAwareWrapper(small_net(), ()), data, SMALL, tmp_path, progress=False)


def test_frozen_denoiser_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no trainable parameters"):
        fit(SegAwareWrapper(small_net().requires_grad_(False), ()), images(), SMALL, tmp_path, progress=False)


PROCESSES = """
import sys
sys.path[:0] = {path!r}
from test_fit import *
torch.manual_seed(5)
recipe = dataclasses.replace(SMALL, batch_size={batch}, steps=4, optimizer={optimizer!r}, ema=0.5, clip_norm=1e3)
out = Path({out!r})
result = fit(SegAwareWrapper(FFDNet(depth=4, width=24), ()), images(), recipe, out, validation=images(2), progress=False)
assert result.psnr["25"] > 5  # on every process
# batch normalisation on fixed statistics: measured over the parts of all processes
net = DnCNN(depth=4, width=16)
recipe = dataclasses.replace(recipe, optimizer="adam", fixed_norm_steps=4)
fit(SegAwareWrapper(net, ()), images(), recipe, out / "norm", progress=False)
# a dead channel, which all begin anew alike
net.body[3].weight.data[0], net.body[3].bias.data[0] = 0, -1
recipe = dataclasses.replace(recipe, steps=2, measure_norm=False, renew=True)
fit(SegAwareWrapper(net, ()), images(), recipe, out / "renewed", progress=False)
assert net.body[3].weight[0] != 0
# what the last process refuses all refuse
def refuse(*_):
    raise TrainingError("not this one")
if os.environ.get("RANK", "1") == "1":
    sys.modules["segaware.training.fit"].renew = refuse
with pytest.raises(TrainingError, match="not this one"):
    fit(SegAwareWrapper(DnCNN(depth=4, width=16), ()), images(), recipe, out / "refused", progress=False)
torch.save(net.state_dict(), out / f"process-{{os.environ.get('RANK', '0')}}.pt")
"""


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("muon", marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, launcher, optimizer):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = tmp_path / "train.py"
    for name, batch, started in (("one", 4, []), ("two", 2, launcher)):
        code = PROCESSES.format(path=[str(Path(__file__).parent), *sys.path], batch=batch, out=str(tmp_path / name), optimizer=optimizer)
        script.write_text(code)
        done = subprocess.run([sys.executable, *started, str(script)], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = weights(tmp_path / "one/model"), weights(tmp_path / "two/model")
    # Newton-Schulz runs in bfloat16: last-bit differences of the mean gradient grow there
    tolerance = 1e-6 if optimizer == "adam" else 2e-4
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=tolerance)
    rows = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert [len(r) for r in rows] == [2, 2]  # one process writes
    one, two = (torch.load(tmp_path / f"two/process-{rank}.pt") for rank in (0, 1))
    assert same(one, two)
    one, two = weights(tmp_path / "one/norm/model"), weights(tmp_path / "two/norm/model")
    for key in one:
        if "running_var" in key:  # of more, smaller batches: about the same
            torch.testing.assert_close(one[key], two[key], rtol=0.05, atol=0)
