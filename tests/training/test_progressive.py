"""Stage after stage: order, starts, what is fixed, resuming, and what must not be taken up."""

import json
import shutil

import pytest
import torch
from torch import nn

from segaware import DDFN, DeepLabSegmenter, HRNetSegmenter, from_pretrained
from segaware.cascade import SDABN, SDB
from segaware.errors import TrainingError
from segaware.noise import add_gaussian
from segaware.task_metrics import confusion_matrix, mean_iou
from segaware.training import checkpoint, stage_run
from segaware.training.progressive import train_cascade
from segaware.training.stage_run import StageRun
from segaware.training.stages import StageRecipe
from segaware.training.variants import Entry

RECIPES = {
    "segmenter": StageRecipe(4, 2, (16, 16), "sgd", 0.01, ema=0.5, log_every=1),
    "denoiser": StageRecipe(4, 2, (16, 16), "adam", 1e-3, symmetry="all", weight_decay=1e-4, log_every=1),
}
SAVING = {part: recipe.change(checkpoint_seconds=0.0) for part, recipe in RECIPES.items()}  # after each step


def segmenter():
    return HRNetSegmenter(3, width=2, modules=(1, 1, 1), blocks=1, bottlenecks=1, init="kaiming")


def denoiser():
    return DDFN(condition_channels=3, blocks=1)


@pytest.fixture(scope="module")
def frames():
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(3):
        labels = torch.randint(0, 3, (4, 5), generator=generator).repeat_interleave(6, 0).repeat_interleave(6, 1)
        made.append(((labels * 80 + 20).expand(3, -1, -1).to(torch.uint8).contiguous(), labels.to(torch.uint8)))
    return made


def run(frames, out, **options):
    options = {"recipes": RECIPES, "stages": 2, "progress": False, **options}
    return train_cascade(options.pop("segmenter", segmenter), denoiser, frames, options.pop("recipes"), out, **options)


@pytest.fixture(scope="module")
def whole(frames, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, run(frames, out, closing=True, validation=frames[:1])


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a if "num_batches" not in key)


def test_it_trains_every_stage_and_saves_the_cascade(whole):
    out, cascade = whole
    names = ["S0", "S1", "D1", "S2", "D2", "S3"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "model"])
    again = from_pretrained(out / "model")
    assert isinstance(again, SDABN) and same(again, cascade) and again.info.training_noise == "AWGN, sigma 50"
    assert same(from_pretrained(out / "D2" / "model"), cascade.blocks[1].denoiser)
    assert same(from_pretrained(out / "S3" / "model"), cascade.closing_segmenter)
    measured = json.loads((out / "model/config.json").read_text())["measured"]
    assert list(measured) == names and "miou" in measured["S1"] and "psnr" in measured["D1"]
    rows = [json.loads(line) for line in (out / "D1/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[0]["rate"] == 1e-3


def test_what_a_stage_measures_by_hand(frames, tmp_path):
    """It goes into cards: one matrix for the set without void, and the mean of the images' PSNR one pixel inside."""
    held = [(image, labels.clone()) for image, labels in frames[:2]]
    held[0][1][:8, :10] = 255
    run(frames, tmp_path, stages=1, validation=held)
    seeing, denoising = (from_pretrained(tmp_path / name / "model") for name in ("S1", "D1"))
    matrix, values = torch.zeros(3, 3, dtype=torch.int64), []
    with torch.no_grad():
        for i, (image, labels) in enumerate(held):
            clean = image[None] / 255
            noisy = add_gaussian(clean, 50 / 255, generator=torch.Generator().manual_seed(i))
            logits = nn.functional.interpolate(seeing(noisy), labels.shape, mode="bilinear", align_corners=False)
            matrix += confusion_matrix(logits.argmax(1), labels[None].long(), 3)[0]
            estimate = SDB(seeing, denoising).step(noisy, None).image
            values.append(10 * torch.log10(1 / (estimate - clean)[..., 1:-1, 1:-1].square().mean()))
    told = {name: json.loads((tmp_path / name / "model/config.json").read_text(encoding="utf-8"))["measured"] for name in ("S1", "D1")}
    assert told["S1"]["miou"] == pytest.approx(100 * float(mean_iou(matrix)), abs=0.02)
    assert told["D1"]["psnr"] == pytest.approx(float(sum(values)) / 2, abs=0.002)
    assert abs(float(values[0] - values[1])) > 0.01


def test_killed_anywhere_it_goes_on_to_the_same(frames, whole, tmp_path, monkeypatch):
    """Dies at the third step of some stages, once; the same call goes on each time."""
    died, steps = set(), {}
    original = StageRun._loss

    def loss(self, *args):
        steps[self.entry.name] = steps.get(self.entry.name, 0) + 1
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3 and self.entry.name in ("S1", "D1", "S3") and self.entry.name not in died:
            died.add(self.entry.name)
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(StageRun, "_loss", loss)
    for _ in range(20):
        try:
            cascade = run(frames, tmp_path, closing=True, recipes=SAVING)
            break
        except KeyboardInterrupt:
            continue
    assert died == {"S1", "D1", "S3"}
    assert same(cascade, whole[1])
    rows = {name: len((tmp_path / name / "log.jsonl").read_text().splitlines()) for name in steps}
    assert steps == {name: rows[name] + (name in died) for name in steps}  # went on: the step that was cut is all that was repeated


def test_muon_steps_matrices_at_twice_the_rate_and_resumes(frames, tmp_path, monkeypatch):
    muon = {part: r.change(optimizer="muon") if part == "denoiser" else r for part, r in SAVING.items()}
    one = run(frames, tmp_path / "one", recipes=muon, stages=1)
    rates, steps = [], []
    original = stage_run.Muon.step

    def step(self, *args):
        rates.append({group["matrix"]: group["lr"] for group in self.param_groups})
        if len(rates) == 3 and not steps:
            steps.append(None)
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(stage_run.Muon, "step", step)
    with pytest.raises(KeyboardInterrupt):
        run(frames, tmp_path / "two", recipes=muon, stages=1)
    assert same(run(frames, tmp_path / "two", recipes=muon, stages=1), one)
    assert all(pair[True] == 2 * pair[False] for pair in rates) and rates[0][False] == 1e-3
    assert not same(one, run(frames, tmp_path / "adam", stages=1))


def test_starts_and_what_is_fixed(frames, tmp_path, monkeypatch):
    seen = {}
    original = StageRun._loop

    def loop(self, *args):
        before = {key: value.clone() for key, value in self.network.state_dict().items()}
        fixed = [m for m in (self.chain, self.eyes) if m is not None]
        held = [{k: v.clone() for k, v in m.state_dict().items()} for m in fixed]
        original(self, *args)
        seen[self.entry.name] = before
        for module, state in zip(fixed, held, strict=True):
            assert not module.training and not any(p.requires_grad for p in module.parameters())
            assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())  # statistics too
        assert any(not torch.equal(before[key], value) for key, value in self.network.state_dict().items())

    monkeypatch.setattr(StageRun, "_loop", loop)
    run(frames, tmp_path)
    trained = {name: from_pretrained(tmp_path / name / "model").state_dict() for name in ("S0", "S1", "D1")}
    for name, start in (("S1", "S0"), ("S2", "S1")):
        assert all(torch.equal(seen[name][key], value) for key, value in trained[start].items() if "num_batches" not in key)
    assert not torch.equal(seen["D2"]["stem.a.weight"], trained["D1"]["stem.a.weight"])  # from scratch
    assert not torch.equal(seen["D2"]["stem.a.weight"], seen["D1"]["stem.a.weight"])


def test_stages_see_what_the_recurrence_says(frames, whole, tmp_path, monkeypatch):
    out, cascade = whole
    noisy, clean = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    found = {}

    def loop(self, *args):
        found[self.entry.name] = self._seen(noisy, clean, torch.zeros(1, 16, 16, dtype=torch.long))

    for name in ("D1", "S2", "D2", "S0", "S1"):
        (tmp_path / name).mkdir()
    for name, before in (("S0", []), ("S1", ["S0"]), ("D1", ["S0", "S1"]), ("S2", ["S0", "S1", "D1"]), ("D2", ["S0", "S1", "D1", "S2"])):
        folder = tmp_path / f"run-{name}"
        for earlier in before:
            shutil.copytree(out / earlier, folder / earlier)
        with monkeypatch.context() as patch:
            patch.setattr(StageRun, "_loop", loop)
            run(frames, folder, until=name, closing=True)
    with torch.no_grad():
        image = cascade.first(1)(noisy)
    expected = {"S0": (clean, clean), "S1": (noisy, noisy), "D1": (noisy, noisy), "S2": (image, image + noisy), "D2": (image, image + noisy)}
    for name, pair in expected.items():
        torch.testing.assert_close(found[name], pair)


def test_the_denoiser_s_loss_is_summed_over_the_inside(frames, tmp_path, monkeypatch):
    recipe = RECIPES["denoiser"]
    entry = Entry("D1", "denoiser", 1)
    stage = StageRun(entry, denoiser(), recipe, tmp_path, torch.device("cpu"), eyes=segmenter().eval())
    noisy, clean = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        loss = stage._loss(noisy, clean, torch.zeros(2, 16, 16, dtype=torch.long), None)
        image = stage.block(noisy) if not stage.block.segmenter.training else None
    assert image is not None
    by_hand = (image - clean)[..., 1:-1, 1:-1].square().sum() / 4
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5])])
def test_the_segmenter_s_loss_is_cross_entropy_and_survives_void(tmp_path, weights):
    entry = Entry("S1", "segmenter", 1)
    stage = StageRun(entry, segmenter().eval(), RECIPES["segmenter"], tmp_path, torch.device("cpu"))
    noisy, labels = torch.rand(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16))
    labels[0, :5] = 255
    with torch.no_grad():
        logits = nn.functional.interpolate(stage.network(noisy), (16, 16), mode="bilinear", align_corners=False)
        expected = nn.functional.cross_entropy(logits, labels, weights, ignore_index=255)
        torch.testing.assert_close(stage._loss(noisy, noisy, labels, weights), expected)
        assert stage._loss(noisy, noisy, torch.full_like(labels, 255), weights) == 0


def test_until_and_on(frames, whole, tmp_path):
    shutil.copytree(whole[0] / "S0", tmp_path / "S0")
    assert run(frames, tmp_path, stages=1, until="S1") is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["S0", "S1"]
    assert same(run(frames, tmp_path, stages=1), whole[1].first(1))


def test_a_start_of_one_s_own(frames, whole, tmp_path):
    out, _ = whole
    run(frames, tmp_path, start=from_pretrained(out / "S0" / "model"), until="S1")
    assert same(from_pretrained(tmp_path / "S1/model"), from_pretrained(out / "S1/model"))
    with pytest.raises(TrainingError, match="stage S1: cannot start from those weights"):
        run(frames, tmp_path / "other", start=denoiser())


# --- what must not be taken up ----------------------------------------------------------------


def refused(frames, out, message, **options):
    with pytest.raises(TrainingError, match=message):
        run(frames, out, **{"closing": True, **options})


def test_another_recipe_is_refused(frames, whole):
    out, _ = whole
    changed = {**RECIPES, "D2": RECIPES["denoiser"].change(learning_rate=2e-3)}
    refused(frames, out, "stage D2 is finished with another recipe .learning_rate 0.001 -> 0.002", recipes=changed)
    free = {part: recipe.change(log_every=7, workers=0, checkpoint_seconds=9.0) for part, recipe in RECIPES.items()}
    assert run(frames, out, recipes=free, closing=True) is not None


def test_another_stage_s_folder_is_refused(frames, whole, tmp_path):
    out, _ = whole
    for name in ("S0", "S1"):
        shutil.copytree(out / name, tmp_path / name)
    shutil.copytree(out / "D2", tmp_path / "D1")
    refused(frames, tmp_path, "stage D1 is finished, but as stage D2")


def test_other_networks_before_it_are_refused(frames, whole, tmp_path):
    out, _ = whole
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "S1")
    changed = {**RECIPES, "S1": RECIPES["segmenter"].change(seed=5)}
    refused(frames, tmp_path, "stage D1 is finished after other networks; remove the folder", recipes=changed)


def test_a_half_trained_stage_is_checked_as_well(frames, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(stage_run, "write_entry", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(frames, tmp_path, recipes=SAVING)
    assert checkpoint.latest(tmp_path / "S0").name == "checkpoint-3"
    changed = {**RECIPES, "segmenter": RECIPES["segmenter"].change(momentum=0.5)}
    refused(frames, tmp_path, r"stage S0 is half trained \(checkpoint-3\) with another recipe", recipes=changed)
    refused(frames, tmp_path, "another network", segmenter=lambda: HRNetSegmenter(3, width=4, modules=(1, 1, 1)))


def test_bad_input_names_the_stage(frames, tmp_path):
    bad = [(frames[0][0], torch.full_like(frames[0][1], 3))]
    refused(bad, tmp_path / "a", "stage S0: labels of frame 0 hold 3, but there are 3 classes")
    weights = {**RECIPES, "segmenter": RECIPES["segmenter"].change(class_weights=(1.0, 2.0))}
    refused(frames, tmp_path / "b", "stage S0: 2 class weights for 3 classes", recipes=weights)
    refused(frames, tmp_path / "c", "until='D9': no such stage", until="D9")
    refused(frames, tmp_path / "d", "no stage D9", recipes={**RECIPES, "D9": RECIPES["denoiser"]})
    hot = {**RECIPES, "segmenter": RECIPES["segmenter"].change(learning_rate=1e30, steps=20)}
    refused(frames, tmp_path / "e", "loss of stage S0 is not finite", recipes=hot)


def test_class_weights_by_frequency(frames, tmp_path):
    entry = Entry("S1", "segmenter", 1)
    recipe = RECIPES["segmenter"].change(class_weights="frequency")
    stage = StageRun(entry, segmenter(), recipe, tmp_path, torch.device("cpu"))
    labels = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [255] * 4], dtype=torch.uint8)
    weights = stage._class_weights([(torch.zeros(3, 5, 4, dtype=torch.uint8), labels)])
    torch.testing.assert_close(weights, torch.tensor([2 / (1 + 3**0.5), 2 * 3**0.5 / (1 + 3**0.5), 0.0]))


def test_dropout_draws_by_the_step(frames, tmp_path, monkeypatch):
    """A segmenter with dropout, stopped between steps, goes on to the same weights."""

    def dropping():
        return DeepLabSegmenter(3, "resnet18", None, width=8)

    run(frames, tmp_path / "whole", segmenter=dropping, recipes=SAVING, until="S0", stages=1)
    original, calls = StageRun._loss, []

    def loss(self, *args):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageRun, "_loss", loss)
        run(frames, tmp_path / "parts", segmenter=dropping, recipes=SAVING, until="S0", stages=1)
    run(frames, tmp_path / "parts", segmenter=dropping, recipes=SAVING, until="S0", stages=1)
    assert same(*(from_pretrained(tmp_path / name / "S0/model") for name in ("whole", "parts")))


def test_a_gradient_that_is_not_finite_is_not_taken_up(frames, tmp_path, monkeypatch):
    """The loss alone still looks well at that step."""
    original = StageRun._loss

    def loss(self, *args):
        value = original(self, *args)
        steep = next(self.network.parameters()).flatten()[0] * 0
        return value + steep.sqrt()  # 0, with an infinite slope

    monkeypatch.setattr(StageRun, "_loss", loss)
    with pytest.raises(TrainingError, match="gradient of stage S0 is not finite"):
        run(frames, tmp_path, until="S0")
    assert checkpoint.latest(tmp_path / "S0") is None and not (tmp_path / "S0/model").exists()


def test_several_processes_would_write_the_same_files(frames, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="WORLD_SIZE=2.*one process"):
        run(frames, tmp_path)
