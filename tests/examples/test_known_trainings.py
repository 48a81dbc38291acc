"""examples/arena/known.py: a screen that goes on where it stood on another machine."""

import gzip
import json

import pytest
import torch

from segaware.errors import EvaluationError


def run_of(name, factor=3.0, **more):
    figures = [{"measure": "psnr", "noise": "sigma 25", "contestant": name, "value": 30.0}, {"measure": "miou:j", "noise": "sigma 25", "contestant": name, "value": 0.5}]
    return {"contestant": name, "factor": factor, "seed": 0, "steps": 3, "weights": {}, "state": "trained", "shares": {}, "photographs_psnr": {"25": 30.0},
            "held_out": figures, "precision": "float32", "device": "cpu", "minutes": 1.0, "judging_minutes": 1.0, **more}  # fmt: skip


@pytest.fixture
def kept(setting, tmp_path):
    """The JSON of a comparison of this very setting, from another folder."""

    def write(*runs, name="results.json.gz", **changed):
        record = {"setting": setting.record() | changed, "screen": {"runs": [{**run, "folder": "elsewhere"} for run in runs]}}
        content = json.dumps(record).encode()
        file = tmp_path / "kept" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return file

    return write


@pytest.mark.parametrize("name", ["results.json", "results.json.gz"])
def test_what_was_screened_elsewhere_is_not_trained_again(arena, setting, kept, tmp_path, monkeypatch, capsys, name):
    """The control comes from the JSON, the other is trained; the choice is made of both."""
    file, trained = kept(run_of("fidelity", 1.0), name=name), []

    def train(setting, run):
        trained.append(run.name)
        return run_of(run.name, run.factor, state="stopped", error="of this test")

    monkeypatch.setattr(arena, "train", train)
    monkeypatch.setattr(arena, "Setting", lambda args: setting)
    monkeypatch.setattr(type(setting), "judges", lambda self: [])
    argv = ["--screen", "--out", str(tmp_path), "--judge", "j", "--steps", "3", "--precision", "float32",
            "--photographs", "p", "--camvid", "c", "--test-photographs", "t", "--known", str(file)]  # fmt: skip
    setting.args.contestants, setting.args.factor = ["fidelity", "kl"], [3.0]
    found = arena.main(argv)
    assert trained == ["kl"] and "taken over fidelity-x1-s0" in capsys.readouterr().out
    assert {(r["contestant"], r["folder"]) for r in found["screen"]["runs"]} == {("fidelity", "fidelity-x1-s0"), ("kl", "kl-x3-s0")}
    assert found["screen"]["chosen"]["fidelity"]["miou"] == 0.5
    arena.main(argv)
    assert trained == ["kl"] and "taken over nothing that is not here" in capsys.readouterr().out


def test_nothing_is_written_of_other_steps(setting, kept):
    from arena.known import take_over

    with pytest.raises(EvaluationError, match="different steps.*this call.*kl-x3-s0 of results.json.gz"):
        take_over(setting, kept(run_of("kl")), steps=999_999)
    assert not list(setting.out.glob("screen/*"))


def test_a_setting_tells_what_auto_came_to(setting, kept):
    """On another machine it may come to something else; of older settings that kept the word, each training tells."""
    from arena.known import take_over
    from arena.setting import DEVICE

    from segaware.training.precision import precision_here

    setting.args.precision = "auto"
    assert setting.record()["precision"] == precision_here("auto", torch.device(DEVICE)) != "auto"
    assert take_over(setting, kept(run_of("kl"), precision="auto")) == ["kl-x3-s0"]
    with pytest.raises(EvaluationError, match="precision fp16 -> "):
        take_over(setting, kept(run_of("kl"), precision="fp16"))


def test_what_was_found_here_stays(setting, kept):
    from arena.known import take_over
    from arena.runs import Run

    assert take_over(setting, kept(run_of("kl", minutes=1.0))) == ["kl-x3-s0"]
    assert take_over(setting, kept(run_of("kl", minutes=99.0), run_of("kl", 10.0))) == ["kl-x10-s0"]
    assert Run("screen", "kl", 3.0, 0).result(setting.out)["minutes"] == 1.0


def test_other_comparisons_are_refused(setting, kept):
    """And nothing of them is left in the folder."""
    from arena.known import take_over

    with pytest.raises(EvaluationError, match=r"results.json.gz: of another comparison \(batch_size 7 -> 2; patch_size 9 -> 48\)"):
        take_over(setting, kept(run_of("kl"), batch_size=7, patch_size=9))
    assert not (setting.out / "screen").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"setting": {}, "screen": {}}', b'{"setting": [], "screen": {"runs": []}}', b"\x1f\x8b\x08\x00"]
)
@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_files_that_are_none(setting, tmp_path, name, content):
    from arena.known import take_over

    (tmp_path / name).write_bytes(content)
    with pytest.raises(EvaluationError, match=rf"{name}: .*give (its|the) results.json"):
        take_over(setting, tmp_path / name)


def test_a_training_that_lacks_its_steps(setting, kept):
    from arena.known import take_over

    run = run_of("kl")
    del run["steps"], run["photographs_psnr"]
    with pytest.raises(EvaluationError, match="a training without steps, photographs_psnr; write it anew"):
        take_over(setting, kept(run))


@pytest.mark.parametrize("odd", [{"contestant": "../../kl"}, {"contestant": ["kl"]}, {"seed": "0/../.."}, {"factor": "x"}])
def test_nothing_is_written_beside_the_folder(setting, kept, tmp_path, odd):
    """A name that this version does not know may be a path."""
    from arena.known import take_over

    before = {f for f in tmp_path.rglob("*") if f.name not in ("kept", "results.json.gz")}
    with pytest.raises(EvaluationError, match="is no training of this version"):
        take_over(setting, kept(run_of("fidelity"), run_of("kl") | odd))
    assert {f for f in tmp_path.rglob("*") if f.name not in ("kept", "results.json.gz")} == before


def test_no_such_file_and_the_wrong_phase(arena, setting, tmp_path, capsys):
    from arena.known import take_over

    with pytest.raises(EvaluationError, match="none.json: cannot be read .No such file"):
        take_over(setting, tmp_path / "none.json")
    with pytest.raises(SystemExit):
        arena.parse(["--instead", "--out", "o", "--photographs", "p", "--camvid", "c", "--test-photographs", "t", "--judge", "j", "--known", "r.json"])
    assert "--known goes with --screen or --final" in capsys.readouterr().err
