"""examples/compare_awareness.py: its pieces fast, the whole of it slow (-m slow)."""

import json
import shutil
import sys
import types
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from segaware import DnCNN, FPNSegmenter
from segaware.entries import load_entry, write_entry
from segaware.errors import EvaluationError, InputError, SegawareError, TrainingError
from segaware.evaluation.sources import CAMVID_CLASSES
from segaware.training.guard import stop_if_dominated


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

    if name.startswith("pool"):
        setting.args.segmenter *= 2
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
    from arena.entrants import Kit, features

    kit = Kit(setting)
    for levels in ((0,), (1, -1)):
        maps = features(kit.home, kit.clean(), *levels)(torch.cat(kit.clean()))
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
    shutil.copytree(tmp_path / "home", tmp_path / "own")
    setting.args.judge = [tmp_path / "own"]
    with pytest.raises(EvaluationError, match="is the training segmenter .*--force"):
        setting.judges()
    setting.args.force = True
    assert len(setting.judges()) == 1
    setting.args.judge = [tmp_path / "home"]
    del setting._cache["judges"]
    with pytest.raises(EvaluationError, match="home names two judges"):
        setting.judges()
    setting.check_classes(0)
    write_entry(tmp_path / "five", FPNSegmenter(5, "squeezenet1_0", None, 8, head="trained"))
    setting.args.segmenter = [tmp_path / "home", tmp_path / "five"]
    setting.check_classes(0)  # the second only joins the pools
    with pytest.raises(InputError, match="five: knows 5 classes .* the labels have 11 .*--contestants"):
        setting.check_classes(1)
    setting.check_classes(2)  # there is none: its contestant is left out


def test_classes_are_looked_at_before_anything_is_trained(arena, setting, tmp_path, monkeypatch):
    write_entry(tmp_path / "five", FPNSegmenter(5, "squeezenet1_0", None, 8, head="trained"))
    worked = []
    monkeypatch.setattr(arena, "Setting", lambda args: types.SimpleNamespace(
        args=args, out=tmp_path, check=dict, check_files=dict, record=dict, check_classes=lambda number: type(setting).check_classes(setting, number)))  # fmt: skip
    monkeypatch.setattr(arena, "work", lambda _, runs: worked.extend(run.name for run in runs))
    monkeypatch.setattr(arena, "save", lambda *_: None)
    setting.args.segmenter = [tmp_path / "five"]
    asked = ["--screen", "--out", str(tmp_path), "--judge", "j", *"--photographs p --camvid c --test-photographs t --contestants kl".split()]
    arena.main(asked)
    assert set(worked) == {"kl"}
    with pytest.raises(InputError, match="5 classes"):
        arena.main([*asked, "ssaid"])


def test_a_term_that_takes_over_is_recorded_as_stopped(arena, setting, monkeypatch):
    from arena import runs

    monkeypatch.setattr(runs, "stop_if_dominated", lambda wrapper: stop_if_dominated(wrapper, steps=8))
    setting.args.steps, setting.args.learning_rate = 100, 1e-2
    photograph = setting.out / "p/1.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(photograph)
    monkeypatch.setattr(setting, "photographs", lambda: ([], [photograph]))
    run = runs.Run("screen", "entropy", 1e6, 0)
    done = runs.train(setting, run)
    assert done["state"] == "stopped" and "entropy" in done["error"] and "instead of" in done["error"]


def test_contestants_without_their_networks_are_left_out(setting):
    from arena.entrants import Skip, entrant, kit_of

    for name, words in (("dms", "second --segmenter"), ("usaid", "--imagenet"), ("d2sm", "--imagenet")):
        with pytest.raises(Skip, match=words):
            entrant(name).terms(kit_of(setting, name))


def test_a_claimed_run_is_left_to_its_owner(arena, tmp_path):
    from arena.runs import claim, claimed

    fcntl = pytest.importorskip("fcntl")
    assert not claimed(tmp_path / "run")
    with claim(tmp_path / "run") as mine:
        assert mine and claimed(tmp_path / "run")
        with open(tmp_path / "run/.claim", "ab") as other, pytest.raises(OSError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with claim(tmp_path / "run") as second:
            assert not second
    assert not claimed(tmp_path / "run")
    with claim(tmp_path / "run") as again:
        assert again


def test_a_claim_where_there_is_no_fcntl(arena, tmp_path, monkeypatch):
    from arena.runs import claim

    free = True

    def locking(descriptor, mode, count):
        if not free:
            raise PermissionError(13, "taken")

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK=2, LK_LOCK=1, locking=locking))
    for free in (True, False):
        with claim(tmp_path / "run") as mine:
            assert mine is free


def test_a_folder_holds_one_comparison(arena, setting):
    arena.same_comparison(setting)
    setting.args.share = 0.2
    with pytest.raises(EvaluationError, match="share 0.1 -> 0.2"):
        arena.same_comparison(setting)


def test_what_else_makes_the_comparison(arena, setting, tmp_path):
    from arena.setting import Setting

    (tmp_path / "net.safetensors").write_bytes(b"weights")
    setting.args.imagenet = tmp_path / "net.safetensors"
    (tmp_path / "setting.json").write_text('{"share": 0.1}')  # of an older folder: goes on, and is whole from now on
    arena.same_comparison(setting)
    kept = json.loads((tmp_path / "setting.json").read_text())
    assert kept == setting.record() and kept["test_photographs"].startswith("2 files") and kept["imagenet_weights"] == "9a129038d9a0"
    assert str(tmp_path) not in str({key: kept[key] for key in ("photographs", "camvid", "test_photographs")})
    (tmp_path / "net.safetensors").rename(tmp_path / "same.safetensors")
    setting.args.imagenet = tmp_path / "same.safetensors"
    arena.same_comparison(Setting(setting.args))  # by what it holds, not by its name
    for key, value in (("test_photographs_limit", 1), ("keep_share", [0.3]), ("imagenet", None)):
        before = getattr(setting.args, key)
        setattr(setting.args, key, value)
        with pytest.raises(EvaluationError, match=f"another comparison .{key}(_weights)? .* -> "):
            arena.same_comparison(Setting(setting.args))
        setattr(setting.args, key, before)
    (tmp_path / "t" / "2.png").rename(tmp_path / "t" / "3.png")
    with pytest.raises(EvaluationError, match="test_photographs 2 files"):
        arena.same_comparison(Setting(setting.args))
    setting.args.imagenet = tmp_path / "none"
    with pytest.raises(InputError, match="--imagenet .* no such file"):
        Setting(setting.args).record()


@pytest.mark.parametrize("which, key", [("start", "start_weights"), ("home", "segmenter_weights"), ("strange", "judge_contents")])
def test_other_weights_under_the_same_name_are_another_comparison(arena, setting, tmp_path, which, key):
    from arena.setting import Setting

    write_entry(tmp_path / "strange", FPNSegmenter(11, "squeezenet1_0", None, 4, head="trained", class_names=CAMVID_CLASSES))
    setting.args.judge = [tmp_path / "strange"]
    arena.same_comparison(setting)
    arena.same_comparison(Setting(setting.args))
    net = load_entry(tmp_path / which)
    next(net.parameters()).data += 0.1
    shutil.rmtree(tmp_path / which)
    write_entry(tmp_path / which, net)
    with pytest.raises(EvaluationError, match=f"another comparison .{key} .* -> "):
        arena.same_comparison(Setting(setting.args))


def test_a_report_of_other_images_is_not_kept(setting, tmp_path):
    from arena.judging import test
    from arena.setting import Setting

    for which, names in (("frames", ["0016E5_0"]), ("photographs", ["1", "2"])):
        (tmp_path / f"test-{which}").mkdir()
        (tmp_path / f"test-{which}" / "report.json").write_text(json.dumps({"images": names}))
    test(setting, "kl", tmp_path, {})
    setting.args.test_photographs_limit = 1
    with pytest.raises(EvaluationError, match="2 other images, not these 1"):
        test(Setting(setting.args), "kl", tmp_path, {})


def keep_result(out, phase, run):
    folder = out / phase / f"{run['contestant']}-x{run['factor']:.3g}-s{run['seed']}"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(run))
    return folder


def test_the_choice_of_the_final_is_made_once_and_when_the_screen_is_done(arena, tmp_path, capsys):
    from arena.runs import at_work, claim

    def final(*contestants, factor=None):
        args = Namespace(out=tmp_path, contestants=list(contestants), seeds=[0, 1], carry=1, factor=factor)
        return [(run.name, run.factor, run.seed) for run in arena.jobs(Namespace(args=args), "final")]

    keep_result(tmp_path, "screen", run_of("fidelity", 1.0, 27.0, 0.40))
    keep_result(tmp_path, "screen", run_of("kl", 1.0, 26.95, 0.42))
    with claim(tmp_path / "screen" / "kl-x3-s0"), pytest.raises(TrainingError, match=r"still at work \(kl-x3-s0\)"):
        final()
    with at_work(tmp_path / "screen"), pytest.raises(TrainingError, match=r"still at work \(between two trainings\)"):
        final()
    assert not (tmp_path / "chosen.json").exists() and not list((tmp_path / "screen").glob(".at-work-*"))
    (tmp_path / "screen/kl-x3-s0/recipe.json").touch()  # was ended
    wanted = [(name, 1.0, seed) for seed in (0, 1) for name in ("fidelity", "kl")]
    assert final() == wanted
    told = capsys.readouterr().out
    assert "left out of the choice: kl-x3-s0" in told and "kl x1; to choose anew, delete it" in told
    (tmp_path / "screen/kl-x3-s0/result.json").write_text(json.dumps(run_of("kl", 3.0, 26.95, 0.6)))
    keep_result(tmp_path, "screen", run_of("jacobian", 3.0, 27.0, 0.9))
    assert final() == wanted and ("kl", 1.0, 0) in final("kl")
    (tmp_path / "chosen.json").unlink()
    assert final("kl@random")[0] == ("kl@random", 3.0, 0)  # as the trained one
    assert ("kl", 3.0, 0) in final("kl") and ("kl", 10.6, 1) in final("kl", factor=[10.6]), "what is asked for goes before what was chosen"
    assert final("fidelity", factor=[10.6])[0] == ("fidelity", 1.0, 0)
    assert [name for name, *_ in final()][:2] == ["fidelity", "jacobian"]


def test_twins_are_screened_with_the_middle_weight(arena, tmp_path):
    args = Namespace(out=tmp_path, contestants=["kl", "kl@random", "fidelity"], seeds=None, factor=None)
    found = [(run.name, round(run.factor, 2)) for run in arena.jobs(Namespace(args=args), "screen")]
    assert found == [("fidelity", 1.0), ("kl@random", 10.0), ("kl", 10.0), ("kl", 3.0), ("kl", 30.0)]


def test_two_weights_of_a_contestant_are_not_pooled(arena, tmp_path):
    from arena.verdict import collect

    keep_result(tmp_path, "final", run_of("kl", 1.0, 27.0, 0.4))
    assert collect(tmp_path, {})["final"]["runs"]
    args = Namespace(out=tmp_path, contestants=["kl"], seeds=[1], carry=1, factor=[3.0])
    with pytest.raises(EvaluationError, match="kl with two weights, kl-x1-s0 and kl-x3-s1"):
        arena.jobs(Namespace(args=args), "final")
    keep_result(tmp_path, "final", run_of("kl", 3.0, 27.0, 0.4, seed=1))
    with pytest.raises(EvaluationError, match="kl with two weights, kl-x1-s0 and kl-x3-s1"):
        collect(tmp_path, {})


def test_a_final_goes_on_with_the_weight_it_began_with(arena, tmp_path, capsys):
    """Though the screen prefers another since."""
    keep_result(tmp_path, "screen", run_of("fidelity", 1.0, 27.0, 0.4))
    keep_result(tmp_path, "screen", run_of("kl", 10 / 3, 27.0, 0.41))
    args = Namespace(out=tmp_path, contestants=["kl"], seeds=[0, 1], carry=1, factor=None)
    assert {run.factor for run in arena.jobs(Namespace(args=args), "final")} == {10 / 3}
    (tmp_path / "final/kl-x3.33-s0").mkdir(parents=True)
    keep_result(tmp_path, "screen", run_of("kl", 30.0, 27.0, 0.42))
    assert arena.chosen(tmp_path)["factors"]["kl"] == 30.0
    with arena.claim(tmp_path / "final/kl-x3.33-s0"):  # at work
        assert {run.factor for run in arena.jobs(Namespace(args=args), "final")} == {10 / 3}
    assert {run.factor for run in arena.jobs(Namespace(args=args), "final")} == {30.0}  # killed before it had any result
    (tmp_path / "final/kl-x3.33-s0/result.json").write_text(json.dumps(run_of("kl", 3.3301, 27.0, 0.41)))
    capsys.readouterr()
    assert {run.factor for run in arena.jobs(Namespace(args=args), "final")} == {3.3301}  # as the final has it
    assert capsys.readouterr().out.count("kl goes on with the weight it began with, x3.33, not x30") == 1


def test_a_gradient_that_is_not_finite_stops_one_contestant_alone(setting, monkeypatch):
    from arena import runs

    monkeypatch.setattr(runs, "fidelity", lambda image, clean: (image * float("nan")).sum())
    done = runs.train(setting, runs.Run("screen", "kl", 3.0, 0))
    assert done["state"] == "stopped" and "is nan; look at the segmenter" in done["error"] and done["shares"] == {}


def test_photographs_that_are_gone_stop_everything(setting, monkeypatch):
    """No contestant is done with because a disk was not there."""
    from arena import runs

    def gone(setting, name):
        raise TrainingError("2 of 3 training images cannot be used")

    monkeypatch.setattr(runs, "images_of", gone)
    with pytest.raises(TrainingError, match="cannot be used"):
        runs.train(setting, runs.Run("screen", "kl", 3.0, 0))


def test_a_classifier_looks_at_gray_images_and_after_a_full_disk(setting, tmp_path):
    from arena.judging import _Looking, same_class

    class Brightest(torch.nn.Module):
        def forward(self, images):
            assert images.shape[1] == 3
            return images.mean((2, 3))

    item = types.SimpleNamespace(name="a")
    source = types.SimpleNamespace(load=lambda item: types.SimpleNamespace(clean=torch.rand(1, 8, 8)))
    base = types.SimpleNamespace(name="b", kind="of a test", denoise=lambda noisy, cell: noisy)
    file = tmp_path / "classes.jsonl"
    file.write_text('{"image": "a", "noi')
    cell = types.SimpleNamespace(item=item, noise=types.SimpleNamespace(label="sigma 25"))
    _Looking(base, Brightest(), source, file).denoise(torch.rand(1, 8, 8), cell)
    assert same_class(tmp_path) == {"sigma 25": {"a": True}}


def test_the_control_is_taken_from_where_it_was_found(arena, tmp_path):
    with pytest.raises(TrainingError, match="no control that was trained here"):
        arena.control_of(tmp_path)
    found = keep_result(tmp_path, "screen", run_of("fidelity", 1.0, 27.0, 0.4))
    (tmp_path / "final" / found.name).mkdir(parents=True)  # begun
    with pytest.raises(TrainingError, match="without --known"):
        arena.control_of(tmp_path)
    (found / "model").mkdir()
    assert arena.control_of(tmp_path) == found
    other = keep_result(tmp_path, "final", run_of("fidelity", 1.0, 27.0, 0.4, seed=2))
    (other / "model").mkdir()
    assert arena.control_of(tmp_path) == other


def test_who_is_left_out_is_known_to_all_processes(arena, setting, tmp_path):
    from arena.runs import Run
    from arena.verdict import collect

    (tmp_path / "skipped.json").write_text('{"liu-joint": "old"}')
    for name in ("dms", "usaid", "pool-kl"):
        arena.work(setting, [Run("screen", name, 1.0, 0)])
    assert sorted(file.name for file in (tmp_path / "skipped").iterdir()) == ["dms.json", "pool-kl.json", "usaid.json"]
    reasons = collect(tmp_path, {})["skipped"]
    assert set(reasons) == {"liu-joint", "dms", "usaid", "pool-kl"} and "second --segmenter" in reasons["dms"]


def run_of(name, factor, psnr, miou, seed=0, **more):
    figures = [{"measure": "psnr", "noise": "sigma 50", "contestant": name, "value": psnr}]
    figures += [{"measure": f"miou:{judge}", "noise": "sigma 50", "contestant": name, "value": v} for judge, v in (("home", 0.99), ("a", miou), ("b", miou))]
    return {"contestant": name, "factor": factor, "seed": seed, "state": "trained", "held_out": figures, **more}


def test_the_weight_is_chosen_within_the_budget(arena):
    from arena.verdict import carried, choose

    runs = [run_of("fidelity", 1, 27.0, 0.40), run_of("kl", 1, 26.95, 0.42), run_of("kl", 3, 26.8, 0.50),
            run_of("jacobian", 1, 26.7, 0.60), run_of("jacobian", 3, 26.5, 0.65), run_of("ssaid", 1, 26.99, 0.41),
            run_of("kl@random", 1, 26.99, 0.45)]  # fmt: skip
    chosen = choose(runs)
    assert chosen["kl"]["factor"] == 1 and chosen["kl"]["gain"] == pytest.approx(0.02) and chosen["kl"]["cost"] == pytest.approx(0.05)
    assert chosen["jacobian"]["factor"] == 1  # none within 0.10 dB: the least cost
    assert carried(chosen, 1) == ["fidelity", "kl", "ssaid"]


def test_a_weight_is_chosen_over_its_seeds(arena):
    from arena.verdict import choose

    runs = [run_of("fidelity", 1, 27.0, 0.40), run_of("fidelity", 1, 28.0, 0.50, seed=1),
            run_of("kl", 1, 26.95, 0.43), run_of("kl", 1, 27.97, 0.53, seed=1),
            run_of("kl", 3, 26.98, 0.46), run_of("kl", 3, 27.98, 0.46, seed=1), run_of("kl", 3, 30.0, 0.99, seed=7)]  # fmt: skip
    chosen = choose(runs)["kl"]
    assert chosen["factor"] == 1 and chosen["gain"] == pytest.approx(0.03) and chosen["cost"] == pytest.approx(0.04)
    assert choose(runs[:1] + runs[2:])["kl"]["factor"] == 3  # one seed alone has a control
    assert choose(runs[6:])["kl"]["miou"] == pytest.approx(0.99)  # no control at all
    assert choose([run for run in runs if (run["factor"], run["seed"]) != (1, 1) or run["contestant"] == "fidelity"])["kl"]["factor"] == 3  # lost a seed


def test_trainings_that_differ_are_not_compared(arena, tmp_path):
    from arena.verdict import alike, collect

    keep_result(tmp_path, "final", run_of("fidelity", 1.0, 27.0, 0.4, steps=4000, precision="bf16"))
    keep_result(tmp_path, "final", run_of("kl", 1.0, 27.0, 0.4, steps=4000))  # an older one, which does not tell
    assert len(collect(tmp_path, {})["final"]["runs"]) == 2
    runs = arena.runs_of(tmp_path, "final")
    alike(tmp_path, runs, steps=4000, precision="bf16")
    with pytest.raises(EvaluationError, match=r"different precision would be compared: float32 \(this call\), bf16 \(fidelity-x1-s0\); give the same --precision"):
        alike(tmp_path, runs, steps=4000, precision="float32")
    keep_result(tmp_path, "final", run_of("kl", 1.0, 27.0, 0.4, seed=1, steps=8000))
    with pytest.raises(EvaluationError, match=r"different steps .*4000 \(fidelity-x1-s0\), 8000 \(kl-x1-s1\)"):
        collect(tmp_path, {})


def test_a_factor_that_only_looks_alike(arena, tmp_path):
    from arena.runs import Run

    keep_result(tmp_path, "final", run_of("kl", 10.61, 27.0, 0.4))
    assert Run("final", "kl", 10.61, 0).result(tmp_path)["factor"] == 10.61
    with pytest.raises(TrainingError, match="holds factor 10.61, not 10.64"):
        Run("final", "kl", 10.64, 0).result(tmp_path)


def test_a_screen_that_was_cut_short_is_told(arena, tmp_path, capsys):
    screen = Namespace(args=Namespace(out=tmp_path, contestants=["kl", "dms", "fidelity"], seeds=None, factor=[1.0]))
    assert len(arena.jobs(screen, "screen")) == 3
    (tmp_path / "skipped").mkdir()
    (tmp_path / "skipped/dms.json").write_text('{"dms": "needs another"}')
    for name in ("fidelity", "jacobian"):
        (tmp_path / "screen" / f"{name}-x1-s0").mkdir(exist_ok=True)
        (tmp_path / "screen" / f"{name}-x1-s0/result.json").write_text(json.dumps(run_of(name, 1.0, 27.0, 0.4)))
    arena.freeze(tmp_path, 1)
    assert "left out of the choice: kl-x1-s0\n" in capsys.readouterr().out


def test_the_control_is_waited_for(arena, tmp_path, monkeypatch):
    """Another process is measuring it: what it finds on held-out data is there before the rest is."""
    from arena.runs import Run, claim

    folder = tmp_path / "final" / "fidelity-x1-s0"
    assert arena.control_figures(tmp_path, Run("final", "kl", 1.0, 0)) is None
    waited = []

    def wait(seconds):
        waited.append(seconds)
        (folder / "held-out").mkdir(exist_ok=True)
        (folder / "held-out/report.json").touch()

    monkeypatch.setattr(arena.time, "sleep", wait)
    monkeypatch.setattr(arena, "read_report", lambda place: place)
    monkeypatch.setattr(arena, "figures", lambda place: [place.name])
    with claim(folder):
        assert arena.control_figures(tmp_path, Run("final", "kl", 1.0, 0)) == ["held-out"]
    assert [seconds for seconds in waited if seconds >= 1] == [1.0]


def test_give_back_is_chosen_by_level(arena):
    from arena.verdict import best_keep

    figures = []
    for share, psnr, miou in ((0, 27.0, 0.40), (0.02, 26.97, 0.42), (0.1, 26.5, 0.45)):
        name = "x" if share == 0 else f"x+{share:g}"
        figures += run_of(name, 1, psnr, miou)["held_out"]
    assert best_keep(figures, "x") == {"sigma 50": 0.02}
    for psnr, share in ((27.5, 0.0), (27.06, 0.02), (26.55, 0.1)):  # beyond the budget itself; one budget for both; better than it
        assert best_keep(figures, "x", run_of("fidelity", 1, psnr, 0.4)["held_out"]) == {"sigma 50": share}
    assert arena._for_all_levels({"sigma 25": 0.0, "sigma 50": 0.02}) == {"sigma 15": 0.0, "sigma 25": 0.0, "sigma 35": 0.0, "sigma 50": 0.02}


@pytest.mark.parametrize("seed, against", [(0, "fidelity"), (1, "kl")])
def test_give_back_is_measured_from_the_control_of_the_seed(arena, setting, tmp_path, monkeypatch, seed, against):
    from arena.runs import Run

    keep_result(tmp_path, "final", run_of("fidelity", 3.0, 27.05, 0.4))
    own = run_of("kl", 1.0, 27.0, 0.4)["held_out"] + run_of("kl+0.04", 1.0, 26.92, 0.5)["held_out"]
    monkeypatch.setattr(arena, "train", lambda *_: {"steps": 3, "state": "trained", "shares": {}, "minutes": 0.0})
    monkeypatch.setattr(arena, "held_out", lambda *_: None)
    monkeypatch.setattr(arena, "figures", lambda _: own)
    monkeypatch.setattr(arena, "test", lambda *_: None)
    arena.work(setting, [Run("final", "kl", 1.0, seed)])
    found = Run("final", "kl", 1.0, seed).result(tmp_path)
    assert found["keep_against"] == against and found["keep"] == {"sigma 50": 0.0 if seed == 0 else 0.04}


def test_numbers_as_json_keeps_them(arena):
    from arena.verdict import plain

    found = plain({"a": (1 / 3, float("nan"), float("inf")), 5: [np.float32(2), 123456789, True, "x", None]})
    assert found == {"a": [1 / 3, None, "inf"], "5": [2.0, 123456789, True, "x", None]}
    assert plain([1 / 3, -2e-9 / 3, 1234567.89, 123456789], 7) == [0.3333333, -6.666667e-10, 1234568.0, 123456789]


def test_differences_and_gaps_from_counts(arena):
    """Two judges: the control gets 40 of 100 pixels a class right, clean 80, the contestant 60 (and 70 at home)."""
    from arena.verdict import Panel, gaps, plain, table

    from segaware.evaluation.results import Measure
    from segaware.evaluation.significance import resample

    def matrices(right):
        return np.stack([np.array([[right, 100 - right], [100 - right, right]], dtype=float)] * 6)

    class Fake(Panel):
        def __init__(self, *more):
            self.names = ["fidelity", "kl", *more, "theirs"]

        noises, block, images = ["sigma 50"], 1, list(range(6))
        beside = ("theirs",)
        measures = [Measure(f"miou:{judge}", judge, "iou") for judge in ("home", "a", "b")]
        weights = resample(6, samples=50)

        def clean(self, judge):
            return matrices(80)

        def seeds(self, name, measure, noise):  # each has lost a seed: only 0 is a pair
            if name == "theirs":
                return dict.fromkeys("012", matrices(50))
            if name == "fidelity+keep":  # something is given back
                return {"0": matrices(45)}
            own = matrices({"fidelity": 40, "ssaid": 55, "kl": 70 if measure.judge == "home" else 60}[name.removesuffix("+keep")])  # to kl nothing is
            return {"0": own, "1": matrices(90)} if name != "fidelity" else {"2": matrices(10), "0": own}

    def iou(right):
        return right / (200 - right)

    rows = {row["contestant"]: row for row in gaps(Fake())}
    assert rows["kl"]["gain"] == pytest.approx(iou(60) - iou(40)) and rows["kl"]["judges"] == ["a", "b"]
    assert rows["kl"]["closed"] == pytest.approx((iou(60) - iou(40)) / (iou(80) - iou(40)))
    assert rows["kl"]["retention"] == pytest.approx((iou(60) - iou(40)) / (iou(70) - iou(40)))
    assert rows["kl"]["seed_gains"] == [pytest.approx(iou(60) - iou(40))] and rows["kl"]["p_holm"] < 0.1 and rows["kl"]["paired_seeds"] == 1
    assert rows["kl"]["over:theirs"] == pytest.approx(iou(75) - iou(50)) and rows["kl"]["over:theirs_p_holm"] < 0.1
    assert "over:theirs" not in rows["theirs"] and rows["theirs"]["gain"] == pytest.approx(iou(50) - iou(25))
    row = next(row for row in table(Fake()) if (row["measure"], row["contestant"]) == ("miou:a", "kl"))
    assert row["value"] == pytest.approx(iou(75)) and row["seeds"] == pytest.approx([iou(60), iou(90)]) and row["seed_names"] == ["0", "1"]
    against = row["against"]["fidelity"]
    assert against["difference"] == pytest.approx(iou(60) - iou(40)) and against["paired_seeds"] == 1
    json.dumps(plain(gaps(Fake())), allow_nan=False)

    taught = {row["contestant"]: row for row in gaps(Fake("ssaid", "ssaid+keep"))}  # with labels: what the others are above it
    assert taught["kl"]["over:ssaid"] == pytest.approx(iou(75) - iou(72.5)) and taught["kl"]["over:ssaid_p_holm"] < 1
    assert "over:ssaid" not in taught["ssaid"] and not any("over:ssaid+keep" in row for row in taught.values())

    # what gives nothing back is no further test: kl+keep is told what kl is told
    fewer, more = ({row["contestant"]: row for row in gaps(Fake(*names))} for names in (("fidelity+keep",), ("kl+keep", "fidelity+keep")))
    for key in ("p_holm", "over_keep_p_holm", "over:theirs_p_holm"):
        assert more["kl"][key] == more["kl+keep"][key] == fewer["kl"][key]
    assert fewer["kl"]["p_holm"] == pytest.approx(3 * fewer["kl"]["p"]), "kl, given-back noise and theirs"
    family = [row["against"] for row in table(Fake("kl+keep", "fidelity+keep")) if row["measure"] == "miou:a"]
    assert family[1]["fidelity"]["p_holm"] == pytest.approx(5 * family[1]["fidelity"]["p"]), "five pairs, told nine times"


def test_missing_arguments_are_named(arena, capsys):
    for options, words in ((["--screen"], "--out is needed"), (["--screen", "--out", "x"], "--photographs is needed")):
        with pytest.raises(SystemExit):
            arena.parse(options)
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("bad, words", [
    ("--keep-share 1.5", "--keep-share 1.5: shares between 0 and 1"), ("--keep-share 0.02 0.02", "each once"), ("--held-every 0", "--held-every 0: at least 1"),
    ("--test-every 0", "at least 1"), ("--steps 0", "--steps 0: at least 1"), ("--test-photographs-limit 0", "at least 1"),
    ("--share 0", "--share 0: a positive number"), ("--share nan", "positive"), ("--factor 0", "--factor 0: a positive"), ("--probes 0", "positive"), ("--carry -1", "positive"),
    ("--segmenter-rate -1", "--segmenter-rate -1: a positive"),
])  # fmt: skip
def test_numbers_that_make_no_sense(arena, bad, words, capsys):
    with pytest.raises(SystemExit):
        arena.parse(["--final", "--out", "x", "--photographs", "p", "--camvid", "c", "--test-photographs", "t", "--judge", "j", *bad.split()])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("key, value, words", [
    ("choose_sigma", [25.0, 25.0], "twice"), ("choose_sigma", [-1.0], "sigma -1"), ("optimizer", "muom", "muom"), ("learning_rate", -1.0, "learning_rate"),
    ("precision", "bf17", "bf17"), ("validation_crop", 0, "validation_crop"), ("imagenet", "t/1.png", "--imagenet .*not SqueezeNet 1.0"),
    ("judge", ["nobody"], "nobody"), ("segmenter", ["five"], "--segmenter .*knows 5 classes .*train one on these labels .examples.train_segmenter.py.$"),
])  # fmt: skip
def test_a_folder_is_not_bound_to_what_is_refused(arena, setting, key, value, words, monkeypatch, tmp_path):
    write_entry(tmp_path / "five", FPNSegmenter(5, "squeezenet1_0", None, 8, head="trained"))
    if key == "segmenter":
        value = [tmp_path / "five"]
    setattr(setting.args, key, tmp_path / value if key == "imagenet" else value)
    monkeypatch.setattr(arena, "Setting", lambda args: setting)
    with pytest.raises(SegawareError, match=words):
        arena.main(["--screen", "--out", "x", "--photographs", "p", "--camvid", "c", "--test-photographs", "t", "--judge", "j"])
    assert not (setting.out / "setting.json").exists()


def test_images_that_cannot_be_measured_are_found_before_the_first_training(setting, tmp_path):
    from arena.setting import Setting

    def picture(name, width, height):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / name)

    whole = Setting(setting.args)
    with pytest.raises(InputError, match="1 images, of which none can be held out; give four"):
        whole.check_files()
    for i in range(4):
        picture(f"p/{i}.png", 64, 64)
    for split, clip in (("train", "0001TP"), ("train", "0006R0"), ("val", "0016E5")):
        picture(f"c/{split}/{clip}_0.png", 64, 64)
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / f"c/{split}annot/{clip}_0.png")
    with pytest.raises(SegawareError, match="1.png"):  # an empty file
        whole.check_files()
    picture("t/1.png", 96, 192)
    picture("t/2.png", 191, 96)
    with pytest.raises(InputError, match="2 has 191 x 96 pixels, NIQE needs two blocks"):
        whole.check_files()
    picture("t/2.png", 192, 96)
    whole.check_files()


def test_a_share_once_chosen_stays(arena, setting, tmp_path):
    """After a kill some sets are measured with it: the control may have come in the meantime."""
    from arena.runs import Run

    run, own = Run("final", "kl", 1.0, 0), [
        {"measure": "miou:j", "noise": "sigma 50", "contestant": name, "value": value} for name, value in (("kl", 0.4), ("kl+0.02", 0.5))
    ] + [{"measure": "psnr", "noise": "sigma 50", "contestant": name, "value": value} for name, value in (("kl", 26.0), ("kl+0.02", 25.95))]  # fmt: skip
    assert arena.keep_of(tmp_path, run, own) == {"keep": {"sigma 50": 0.02}, "keep_against": "kl"}
    control = [{"measure": "psnr", "noise": "sigma 50", "contestant": "fidelity", "value": 27.0}]
    keep_result(tmp_path, "final", {"contestant": "fidelity", "factor": 1.0, "seed": 0, "held_out": control})
    assert arena.keep_of(tmp_path, run, own) == {"keep": {"sigma 50": 0.02}, "keep_against": "kl"}
    (tmp_path / "final/kl-x1-s0/keep.json").unlink()
    assert arena.keep_of(tmp_path, run, own) == {"keep": {"sigma 50": 0.0}, "keep_against": "fidelity"}


def test_results_are_not_lost(arena, setting, tmp_path):
    """Those of a folder that holds nothing else, and those that a screen would write over."""
    results = tmp_path / "kept" / "results.json"
    results.parent.mkdir()
    results.write_text("{}")
    with pytest.raises(EvaluationError, match="holds no comparison"):
        arena.main(["--collect", "--out", str(results.parent)])
    setting.args.out = results.parent
    with pytest.raises(EvaluationError, match="is written anew here"):
        arena.taken(setting, results.parent / ".." / "kept" / "results.json", {})
    assert results.read_text() == "{}" and [f.name for f in results.parent.iterdir()] == ["results.json"]


def test_a_damaged_file_is_named(arena, setting, tmp_path):
    keep_result(tmp_path, "screen", run_of("kl", 1.0, 27.0, 0.4))
    (tmp_path / "screen/kl-x1-s0/result.json").write_text('{"contestant": "k')
    with pytest.raises(EvaluationError, match="kl-x1-s0/result.json: damaged .*move it away"):
        arena.runs_of(tmp_path, "screen")


def test_one_folder_of_images_is_not_four_levels(arena, tmp_path):
    (tmp_path / "s25").mkdir()
    for name in (f"theirs={tmp_path / 's25'}", f"theirs={tmp_path / 's25'}+0.03"):
        ((spec, denoiser),) = arena.opened([name])
        with pytest.raises(EvaluationError, match="one folder of ready images for 4 noise levels"):
            arena.known_beside(tmp_path, denoiser, spec)
    ((spec, denoiser),) = arena.opened([f"theirs={tmp_path}/s{{sigma}}"])
    assert not arena.known_beside(tmp_path, denoiser, spec)["done"]


def test_the_repair_for_another_denoiser_of_the_same_name(arena, tmp_path):
    """What was taken over would be taken over again if its folder were deleted."""
    ((spec, denoiser),) = arena.opened(["theirs=liu-blind"])
    place = tmp_path / "beside/theirs"
    (place / "test-frames").mkdir(parents=True)
    (place / "result.json").write_text(json.dumps({"contestant": "theirs", "weights": "others", "done": True}))
    with pytest.raises(EvaluationError, match="leave --beside out, or give another name"):
        arena.known_beside(tmp_path, denoiser, spec)
    (place / "test-frames/cells.jsonl").touch()
    with pytest.raises(EvaluationError, match="or delete that folder"):
        arena.known_beside(tmp_path, denoiser, spec)


def test_a_segmenter_trained_behind_another_control(setting, tmp_path, monkeypatch):
    from arena import tuning

    folder = tmp_path / "segmenters/denoised"
    write_entry(folder, setting.home()[0], {"recipe": {"behind": tuning.contents(setting.start())}})
    assert tuning.tune(setting, "denoised", setting.start()).num_classes == 11
    with pytest.raises(TrainingError, match="trained behind another denoiser"):
        tuning.tune(setting, "denoised", DnCNN(depth=3, width=4))


def test_segmenters_judged_behind_another_control(setting, tmp_path):
    from arena import tuning

    for name, denoiser in (("now", setting.start()), ("then", DnCNN(depth=3, width=4))):
        write_entry(tmp_path / name / "model", denoiser)
    (tmp_path / "segmenters.json").write_text(json.dumps({"behind": tuning.contents(load_entry(tmp_path / "then/model"))}))
    assert tuning.instead(setting, tmp_path / "then")
    with pytest.raises(TrainingError, match="segmenters.json: of another control than there is now"):
        tuning.instead(setting, tmp_path / "now")
    (tmp_path / "segmenters.json").write_text(json.dumps({"behind": 64 * "0"}))  # told of the version of Python as well
    assert tuning.instead(setting, tmp_path / "now")


@pytest.mark.parametrize("named, words", [
    (["theirs"], "give NAME=SPEC"), (["../x=noisy"], "give NAME=SPEC"), (["kl=noisy"], "there is a kl already"), (["clean=noisy"], "there is a clean already"),
    (["a=nlm", "a=dncnn-blind"], "there is a a already"), (["a=nothing-like-it"], "nothing-like-it"),
])  # fmt: skip
def test_denoisers_beside_that_cannot_be_named(arena, named, words):
    with pytest.raises(EvaluationError, match=words):
        arena.opened(named)


def test_denoisers_beside_are_measured_once(arena, setting, tmp_path, monkeypatch, capsys):
    from arena import judging

    measured = []
    monkeypatch.setattr(judging, "test", lambda setting, name, folder, keep, denoiser: measured.append((name, folder, keep)))
    others = arena.opened([f"theirs={tmp_path / 'start'}"])
    arena.measure(setting, others)
    arena.measure(setting, others)
    assert measured == [("theirs", tmp_path / "beside/theirs", {})]
    with pytest.raises(EvaluationError, match="holds the figures of .*start; leave --beside out, or give another name"):
        arena.measure(setting, [("other", others[0][1])])
    write_entry(tmp_path / "start", DnCNN(depth=3, width=4))
    with pytest.raises(EvaluationError, match="holds figures of other weights, .*; leave --beside out, or give another name"):
        arena.measure(setting, arena.opened([f"theirs={tmp_path / 'start'}"]))
    data = ["--out", "x", "--photographs", "p", "--camvid", "c", "--test-photographs", "t", "--judge", "j"]
    for options, words in ((["--screen", "--beside", "a=noisy"], "--beside goes with --final"), (["--final", "--factor", "1", "3"], "takes one --factor")):
        with pytest.raises(SystemExit):
            arena.parse([*options, *data])
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
    assert found["beside"] == {"older": "DnCNN, blind"} and {gap["contestant"] for gap in found["gaps"] if "over:older" in gap} >= {"entropy", "fidelity+keep"}
    assert {row["contestant"] for row in rows} >= {"older", "entropy+keep"} and "older+keep" not in {row["contestant"] for row in rows}
    assert "same-class" in {row["measure"] for row in found["reported"]["photographs"]["rows"]}
    assert {row["segmenter"] for row in found["instead"]["rows"]} == {"home", "tuned on noisy", "tuned on denoised"}
    cells = [json.loads(line)["key"] for file in tmp_path.glob("final/*/test-*/cells.jsonl") for line in file.read_text().splitlines()]
    assert cells and len(cells) == len(set(cells)), "what is the same for all, the noisy images, is measured once"
    capsys.readouterr()
    monkeypatch.setattr(arena, "train", lambda *_: pytest.fail("a finished training was repeated"))
    again = arena.main(["--smoke", "--out", str(tmp_path)])
    assert again == found and sys.modules["arena.runs"]
