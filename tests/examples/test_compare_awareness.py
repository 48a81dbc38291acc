"""examples/compare_awareness.py: its pieces fast, the whole of it slow (-m slow)."""

import fcntl
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from segaware import DnCNN, FPNSegmenter
from segaware.entries import write_entry
from segaware.errors import EvaluationError, InputError, TrainingError
from segaware.evaluation.sources import CAMVID_CLASSES

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def arena(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import compare_awareness

    return compare_awareness


@pytest.fixture
def setting(arena, tmp_path):
    """A setting without files: two generated pictures, a tiny segmenter."""
    from arena.setting import Setting

    write_entry(tmp_path / "start", DnCNN(depth=3, width=4))
    write_entry(tmp_path / "home", FPNSegmenter(11, "squeezenet1_0", None, 8, head="trained", class_names=CAMVID_CLASSES))
    args = arena.parse(["--screen", "--out", str(tmp_path), "--photographs", "p", "--camvid", "c", "--test-photographs", "t", "--judge", "j",
                        "--start", str(tmp_path / "start"), "--segmenter", str(tmp_path / "home"), "--steps", "3",
                        "--batch-size", "2", "--patch-size", "48", "--precision", "float32", "--probes", "1"])  # fmt: skip
    made = Setting(args)
    labels = torch.full((50, 60), 255, dtype=torch.uint8)
    made._cache["images"] = [(torch.rand(3, 50, 60), labels), (torch.rand(3, 50, 60), labels.clone().fill_(3))]
    return made


def test_every_contestant_of_the_plan_is_there(arena):
    names = arena.every()
    assert len(names) == len(set(names)) and names[0] == "fidelity" and {"usaid", "dms", "kl@random", "pool-kl"} <= set(names)
    assert arena.resolve(["later", "fidelity"])[0] == "fidelity"
    assert "kl@random" in arena.resolve(["control"]) and "kl" not in arena.resolve(["control"])
    with pytest.raises(InputError, match="no contestant 'jacobain'; did you mean 'jacobian'"):
        arena.resolve(["jacobain"])
    with pytest.raises(InputError):  # has no segmenter to be untrained
        arena.resolve(["d2sm@random"])


@pytest.mark.parametrize("name", ["kl", "sensitivity", "pool-kl", "features-last", "jacobian@random", "ssaid"])
def test_weights_give_the_stated_share(setting, name):
    from arena.entrants import entrant, kit_of
    from arena.runs import gradient_shares, images_of

    from segaware.training.data import Patches
    from segaware.wrapper import fidelity

    (weight,) = gradient_shares(setting, name, batches=1)
    assert gradient_shares(setting, name) == [weight]  # remembered
    batch = Patches(images_of(setting, name), setting.recipe(12_345))[0]
    ((_, loss),) = entrant(name).terms(kit_of(setting, name))
    image = setting.start()(batch.noisy).detach().requires_grad_()
    torch.manual_seed(0)
    offered = {"clean": batch.clean, "labels": batch.labels}
    takes = ("clean",) if name in ("kl", "features-last", "jacobian@random") else ("labels",) if name == "ssaid" else tuple(offered)
    (own,) = torch.autograd.grad(loss(image, **{k: offered[k] for k in takes}), image)
    (whole,) = torch.autograd.grad(fidelity(image, batch.clean), image)
    assert float(weight["weight"] * own.norm() / whole.norm()) == pytest.approx(0.1, rel=1e-3)


def test_features_of_all_segmenters_have_one_scale(setting):
    from arena.entrants import Features, Kit

    kit = Kit(setting)
    for levels in ((0,), (1, -1)):
        maps = Features(kit.home, kit.clean(), *levels)(torch.cat(kit.clean()))
        assert [float(m.detach().square().mean()) for m in maps] == pytest.approx([1.0] * len(levels), rel=1e-3)


def test_the_released_loss_has_no_gradient_until_it_is_attached(setting):
    from arena.entrants import Detached

    from segaware.losses.pseudo_label import PseudoLabelLoss

    loss = PseudoLabelLoss(setting.home()[0])
    image = torch.rand(1, 3, 48, 48, requires_grad=True)
    assert not Detached(loss)(image).requires_grad and loss(image).requires_grad


def test_a_term_that_is_all_void_is_zero_and_finite(setting):
    from arena.entrants import entrant, kit_of

    ((_, loss),) = entrant("ssaid").terms(kit_of(setting, "ssaid"))
    image = torch.rand(2, 3, 48, 48, requires_grad=True)
    value = loss(image, labels=torch.full((2, 48, 48), 255))
    (gradient,) = torch.autograd.grad(value, image)
    assert value == 0 and torch.equal(gradient, torch.zeros_like(gradient))


def test_classes_and_judges_that_do_not_fit(setting, tmp_path):
    setting.args.judge = [tmp_path / "home"]
    with pytest.raises(EvaluationError, match="is the training segmenter .*--force"):
        setting.judges()
    setting.args.force = True
    assert len(setting.judges()) == 1
    setting.check_classes()
    write_entry(tmp_path / "five", FPNSegmenter(5, "squeezenet1_0", None, 8, head="trained"))
    setting.args.segmenter = [tmp_path / "five"]
    with pytest.raises(InputError, match="5 classes .* the labels have 11"):
        setting.check_classes()


def test_contestants_without_their_networks_are_left_out(setting):
    from arena.entrants import Skip, entrant, kit_of

    for name, words in (("dms", "second --segmenter"), ("usaid", "--imagenet"), ("d2sm", "--imagenet")):
        with pytest.raises(Skip, match=words):
            entrant(name).terms(kit_of(setting, name))


def test_a_claimed_run_is_left_to_its_owner(arena, tmp_path):
    from arena.runs import claim

    with claim(tmp_path / "run") as mine:
        assert mine
        with open(tmp_path / "run/.claim", "ab") as other, pytest.raises(OSError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with claim(tmp_path / "run") as second:
            assert not second
    with claim(tmp_path / "run") as again:
        assert again


def test_a_folder_holds_one_comparison(arena, setting):
    arena.same_comparison(setting)
    setting.args.share = 0.2
    with pytest.raises(EvaluationError, match="share 0.1 -> 0.2"):
        arena.same_comparison(setting)


def run_of(name, factor, psnr, miou, **more):
    figures = [{"measure": "psnr", "noise": "sigma 50", "contestant": name, "value": psnr}]
    figures += [{"measure": f"miou:{judge}", "noise": "sigma 50", "contestant": name, "value": v} for judge, v in (("home", 0.99), ("a", miou), ("b", miou))]
    return {"contestant": name, "factor": factor, "seed": 0, "state": "trained", "held_out": figures, **more}


def test_the_weight_is_chosen_within_the_budget(arena):
    from arena.verdict import carried, choose

    runs = [run_of("fidelity", 1, 27.0, 0.40), run_of("kl", 1, 26.95, 0.42), run_of("kl", 3, 26.8, 0.50),
            run_of("jacobian", 1, 26.7, 0.60), run_of("jacobian", 3, 26.5, 0.65), run_of("ssaid", 1, 26.99, 0.41),
            run_of("kl@random", 1, 26.99, 0.45)]  # fmt: skip
    chosen = choose(runs)
    assert chosen["kl"]["factor"] == 1 and chosen["kl"]["gain"] == pytest.approx(0.02) and chosen["kl"]["cost"] == pytest.approx(0.05)
    assert chosen["jacobian"]["factor"] == 1  # none within 0.10 dB: the least cost
    assert carried(chosen, 1) == ["fidelity", "kl", "ssaid"]


def test_give_back_is_chosen_by_level(arena):
    from arena.verdict import best_keep

    figures = []
    for share, psnr, miou in ((0, 27.0, 0.40), (0.02, 26.97, 0.42), (0.1, 26.5, 0.45)):
        name = "x" if share == 0 else f"x+{share:g}"
        figures += run_of(name, 1, psnr, miou)["held_out"]
    assert best_keep(figures, "x") == {"sigma 50": 0.02}
    assert arena._for_all_levels({"sigma 25": 0.0, "sigma 50": 0.02}) == {"sigma 15": 0.0, "sigma 25": 0.0, "sigma 35": 0.0, "sigma 50": 0.02}


def test_gap_and_retention_from_counts(arena):
    """Two judges: the control gets 40 of 100 pixels a class right, clean 80, the contestant 60 (and 70 at home)."""
    from arena.verdict import gaps, plain

    from segaware.evaluation.results import Measure
    from segaware.evaluation.significance import resample

    def matrices(right):
        return np.stack([np.array([[right, 100 - right], [100 - right, right]], dtype=float)] * 6)

    class Panel:
        noises, names, block, images = ["sigma 50"], ["fidelity", "kl"], 1, list(range(6))
        measures = [Measure(f"miou:{judge}", judge, "iou") for judge in ("home", "a", "b")]
        weights = resample(6, samples=50)

        def clean(self, judge):
            return matrices(80)

        def data(self, name, measure, noise):
            return matrices({"fidelity": 40, "kl": 70 if measure.judge == "home" else 60}[name])

        def seeds(self, name, measure, noise):  # the second seed of the control is not there yet
            return {"0": self.data(name, measure, noise)} | ({"1": matrices(90)} if name == "kl" else {})

    def iou(right):
        return right / (200 - right)

    rows = {row["contestant"]: row for row in gaps(Panel())}
    assert rows["kl"]["gain"] == pytest.approx(iou(60) - iou(40)) and rows["kl"]["judges"] == ["a", "b"]
    assert rows["kl"]["closed"] == pytest.approx((iou(60) - iou(40)) / (iou(80) - iou(40)))
    assert rows["kl"]["retention"] == pytest.approx((iou(60) - iou(40)) / (iou(70) - iou(40)))
    assert rows["kl"]["seed_gains"] == [pytest.approx(iou(60) - iou(40))] and rows["kl"]["p_holm"] < 0.1
    json.dumps(plain(gaps(Panel())), allow_nan=False)


def test_missing_arguments_are_named(arena, capsys):
    for options, words in ((["--screen"], "--out is needed"), (["--screen", "--out", "x"], "--photographs is needed")):
        with pytest.raises(SystemExit):
            arena.parse(options)
        assert words in capsys.readouterr().err


def test_a_final_without_screen(arena, tmp_path):
    with pytest.raises(TrainingError, match="run --screen first"):
        arena.jobs(Namespace(args=Namespace(out=tmp_path, contestants=None, seeds=None, carry=5)), "final")


@pytest.mark.slow
def test_smoke(arena, tmp_path, monkeypatch, capsys):
    """Screen, final and segmenters on generated data; a second call repeats nothing."""
    found = arena.main(["--smoke", "--out", str(tmp_path)])
    assert {run["contestant"] for run in found["screen"]["runs"]} >= {"fidelity", "kl", "ssaid", "released-detached"}
    by_name = {run["contestant"]: run for run in found["screen"]["runs"] if run["factor"] == 1}
    assert by_name["released-detached"]["shares"] == {"pseudo_label_detached": [0, 0, 0, 0]}
    same = [next(f["value"] for f in by_name[n]["held_out"] if f["contestant"] == n and f["measure"] == "psnr") for n in ("fidelity", "released-detached")]
    assert same[0] == same[1]  # the released training is that of the control, bit for bit
    assert {run["seed"] for run in found["final"]["runs"]} == {0, 1}
    rows = found["reported"]["frames"]["rows"]
    assert {row["measure"] for row in rows} >= {"psnr", "ssim", "miou:home", "miou:judge-a", "consistency:judge-b", "changed:judge-a"}
    assert {row["noise"] for row in rows} == {"sigma 15", "sigma 25", "sigma 35", "sigma 50", "clean"}
    assert all(len(row["seeds"]) == 2 for row in rows) and found["gaps"]
    assert "same-class" in {row["measure"] for row in found["reported"]["photographs"]["rows"]}
    assert {row["segmenter"] for row in found["instead"]["rows"]} == {"home", "tuned on noisy", "tuned on denoised"}
    capsys.readouterr()
    monkeypatch.setattr(arena, "train", lambda *_: pytest.fail("a finished training was repeated"))
    again = arena.main(["--smoke", "--out", str(tmp_path)])
    assert again == found and sys.modules["arena.runs"]
