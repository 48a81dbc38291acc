"""examples/arena/packed.py: a final that goes on where it stood on another machine."""

import contextlib
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segaware.errors import EvaluationError
from segaware.evaluation.report import SCHEMA, read_report
from segaware.evaluation.results import Results

CLASSES = ["a", "b", "c"]
KEPT = Path(__file__).parents[2] / "docs" / "data"


def measure(folder, which, name, levels, right, held=()):
    """A report of three images as the comparison leaves it: two judges, and a share of the noise given back.

    ``held``: the shares of the held-out drive, which goes into a folder of its own.
    """
    from segaware.evaluation.protocol import Noise, Protocol

    protocol = Protocol(noises=[Noise("gaussian", sigma) for sigma in levels], metrics=("psnr",), harm=True)
    labelled = which == "frames"
    source = {"name": which, "note": "", "block": 1, "classes": CLASSES if labelled else None}
    people = [{"name": n, "kind": "of a test"} for n in ("noisy", name, *(f"{name}+{share}" for share in held or ("keep",)))]
    judges = [{"name": n, "key": n, "class_names": CLASSES} for n in ("home", "judge-a")]
    results, random = Results(protocol, source, ["1", "2", "3"], people, judges, {"device": "cpu"}), np.random.default_rng(right)
    for noise in protocol.conditions:
        for image in results.images:
            for n in results.names:
                matrix = random.integers(0, 9, (3, 3)) + right * np.eye(3, dtype=int)
                judged = {"clean": matrix.tolist(), **({"labels": matrix.T.tolist()} if labelled else {})}
                results.add({"image": image, "contestant": n, "noise": noise.label, "draw": 0, "values": {"psnr": 30 + random.random()},
                             "judges": {j["name"]: judged for j in judges}})  # fmt: skip
    record = {"schema": SCHEMA, "protocol": protocol.to_dict(), "source": source, "images": results.images, "contestants": people, "judges": judges,
              "environment": results.environment, "rows": list(results.rows())}  # fmt: skip
    place = folder / ("held-out" if held else f"test-{which}")
    place.mkdir(parents=True)
    (place / "report.json").write_text(json.dumps(record))
    if not labelled:
        lines = [json.dumps({"image": image, "noise": noise.label, "same": True}) for image in results.images for noise in protocol.conditions]
        (folder / f"test-{which}" / "classes.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def finished(arena, tmp_path, monkeypatch):
    """A final of two contestants with two seeds, and a denoiser beside it; its folder."""
    from functools import partial

    from arena import verdict
    from arena.runs import Run
    from arena.setting import write_json

    monkeypatch.setattr(verdict, "resample", partial(verdict.resample, samples=40))

    out, levels = tmp_path / "there", [25.0, 50.0]
    for index, name in enumerate(("fidelity", "kl")):
        for seed in (0, 1):
            run = Run("final", name, 1.0, seed)
            for which in ("frames", "photographs"):
                measure(run.folder(out), which, name, levels, 10 * (1 + index) + seed)
            figures = [{"measure": "psnr", "noise": "sigma 50", "contestant": name, "value": 30.0}]
            write_json(run.folder(out) / "result.json", {"contestant": name, "factor": 1.0, "seed": seed, "steps": 3, "state": "trained", "held_out": figures, "photographs_psnr": {}})
    measure(out / "beside" / "theirs", "frames", "theirs", levels, 30)
    write_json(out / "beside" / "theirs" / "result.json", {"contestant": "theirs", "kind": "DnCNN", "spec": "theirs.pth", "done": True})
    return out


def test_what_was_done_elsewhere_counts_as_done_here(finished, tmp_path):
    """Every figure, interval and p of the final is the same from packed trainings as from the reports themselves."""
    from arena.packed import PACKED, pack_finished, unpack
    from arena.verdict import collect

    pack_finished(finished, {"share": 0.1})
    files = sorted(finished.glob(f"*/*/{PACKED}"))
    assert len(files) == 5
    here = tmp_path / "here"
    assert [unpack(file, here, {"share": 0.1}).name for file in files] == [file.parent.name for file in files]
    then, now = collect(finished, {}), collect(here, {})
    assert len(now["gaps"]) and {row["measure"] for row in now["reported"]["frames"]["rows"]} >= {"psnr", "miou:judge-a", "consistency:home", "changed:judge-a"}
    assert "matrices" in now["reported"]["frames"]["environment"].pop("kept")
    now["reported"]["photographs"]["environment"].pop("kept")
    assert now == then
    assert [unpack(file, here, {"share": 0.1}) for file in files] == [None] * 5
    assert (here / "beside/theirs" / PACKED).read_bytes() == files[0].read_bytes()


def test_what_is_packed_is_not_packed_again_and_what_is_not_done_is_left_out(finished):
    from arena.packed import PACKED, pack_finished
    from arena.verdict import collect

    assert "theirs" in collect(finished, {})["beside"]
    (finished / "beside/theirs/result.json").write_text(json.dumps({"contestant": "theirs", "kind": "DnCNN", "spec": "theirs.pth", "done": False}))
    (finished / "final/kl-x1-s0" / PACKED).write_bytes(b"as it was")
    pack_finished(finished, {})
    assert (finished / "final/kl-x1-s0" / PACKED).read_bytes() == b"as it was"
    assert (finished / "final/kl-x1-s1" / PACKED).is_file() and not (finished / "beside/theirs" / PACKED).exists()
    found = collect(finished, {})  # measured on the frames alone: pooled now, it would be missing elsewhere
    assert found["beside"] == {} and "theirs" not in {row["contestant"] for row in found["reported"]["frames"]["rows"]}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # it only makes the example importable
@given(st.integers(1, 11), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 3, 1000]), st.floats(0, 1))
def test_a_matrix_of_the_same_figures(arena, classes, seed, most, filled):
    from arena.packed import _counts, matrix_of

    random = np.random.default_rng(seed)
    measured = random.integers(0, most + 1, (classes, classes)) * (random.random((classes, classes)) < filled)
    counts = _counts(measured.tolist())
    made = np.array(matrix_of(counts))
    assert made.shape == measured.shape and made.min() >= 0 and made.sum() == measured.sum()
    assert _counts(made.tolist()) == counts


def test_a_training_that_was_stopped(arena, tmp_path):
    from arena.packed import PACKED, pack_finished, unpack
    from arena.runs import Run
    from arena.setting import write_json

    folder = Run("final", "kl", 30.0, 2).folder(tmp_path / "there")
    write_json(folder / "result.json", {"contestant": "kl", "factor": 30.0, "seed": 2, "steps": 3, "state": "stopped", "error": "kl dominates"})
    pack_finished(tmp_path / "there", {})
    found = unpack(folder / PACKED, tmp_path / "here", {})
    assert json.loads((found / "result.json").read_text())["error"] == "kl dominates" and not list(found.glob("test-*"))


ABOUT = {"schema": 1, "protocol": {}, "source": {}, "images": [], "contestants": [], "judges": [], "environment": {}, "rows": [], "classes": None}


def packed(file, **changed):
    record = {"schema": 1, "phase": "final", "setting": {}, "tests": {}, "result": {"contestant": "kl", "factor": 1.0, "seed": 0, "steps": 3}}
    file.write_bytes(lzma.compress(json.dumps(record | changed).encode()))
    return file


@pytest.mark.parametrize(
    "odd, words",
    [
        ({"setting": {"share": 0.2}}, r"of another comparison \(share 0.2 -> 0.1\)"),
        ({"schema": 2}, "of this version"),
        ({"result": []}, "of this version"),
        ({"tests": {"../frames": {}}}, "not whole"),
        ({"tests": {"frames": {"rows": []}}}, "not whole"),
        ({"tests": {"frames": ABOUT | {"rows": 3}}}, "damaged"),
        ({"tests": {"frames": ABOUT | {"rows": [{"judges": {"a": {"clean": ["x"]}}}]}}}, "damaged"),
        ({"tests": {"frames": ABOUT | {"environment": None}}}, "damaged"),
        ({"phase": "screen"}, "is no training"),
        ({"phase": "../final"}, "is no training"),
        ({"result": {"contestant": "../kl", "factor": 1.0, "seed": 0, "steps": 3}}, "is no training"),
        ({"result": {"contestant": "kl", "factor": 1.0, "seed": "0/..", "steps": 3}}, "is no training"),
        ({"result": {"contestant": "kl", "factor": 1.0, "seed": 0}}, "is no training"),
        ({"phase": "beside", "result": {"contestant": "../theirs", "spec": "x"}}, "is no training"),
        ({"phase": "beside", "result": {"contestant": "theirs"}}, "is no training"),
    ],
)
def test_what_does_not_fit_leaves_nothing(arena, tmp_path, odd, words):
    from arena.packed import unpack

    file = packed(tmp_path / "p.json.xz", **odd)
    with pytest.raises(EvaluationError, match=f"p.json.xz: .*{words}"):
        unpack(file, tmp_path / "deep" / "here", {"share": 0.1})
    assert {f.name for f in tmp_path.iterdir()} == {"p.json.xz"}


def test_a_training_that_is_not_finished_stays(arena, tmp_path):
    from arena.packed import unpack

    begun = tmp_path / "here/final/kl-x1-s0"
    begun.mkdir(parents=True)
    (begun / "log.jsonl").write_text("a step")
    with pytest.raises(EvaluationError, match="kl-x1-s0: a training that is not finished is in the place of .*; finish it, or delete"):
        unpack(packed(tmp_path / "p.json.xz"), tmp_path / "here", {})
    assert [f.name for f in begun.iterdir()] == ["log.jsonl"] and [f.name for f in (tmp_path / "here").iterdir()] == ["final"]


def test_half_of_it_counts_for_nothing(arena, finished, tmp_path, monkeypatch):
    """A full disk at the last of its files: no folder that a later call would take for a training."""
    from arena import packed as module

    file, whole = module.pack(finished / "final/kl-x1-s0", {}), module.write_json

    def full(path, value):
        if path.name == "result.json":
            raise OSError(28, "no space left")
        whole(path, value)

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(EvaluationError, match="kl-x1-s0: cannot be written .no space left.; free space"):
        module.unpack(file, tmp_path / "here", {})
    assert not [f for f in (tmp_path / "here").rglob("*") if f.is_file()] and not [*(tmp_path / "here").glob(".*")]


def test_two_processes_that_take_over_the_same(arena, finished, tmp_path, monkeypatch):
    from arena import packed as module

    file, replace = module.pack(finished / "final/kl-x1-s0", {}), module.os.replace

    def late(source, target):
        if Path(target).name == "kl-x1-s0":
            monkeypatch.setattr(module.os, "replace", replace)
            assert module.unpack(file, tmp_path / "here", {}).name == "kl-x1-s0", "the other one, meanwhile"
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", late)
    assert module.unpack(file, tmp_path / "here", {}) is None
    assert (tmp_path / "here/final/kl-x1-s0/result.json").is_file() and not [*(tmp_path / "here").glob(".*")]


def test_other_judges_under_the_same_names_are_not_pooled(arena, finished):
    from arena.verdict import collect

    report = finished / "final/kl-x1-s1/test-frames/report.json"
    report.write_text(report.read_text().replace('"key": "judge-a"', '"key": "judge-a, trained anew"'))
    with pytest.raises(EvaluationError, match="kl-x1-s1/test-frames: measured with other judges than the control's; move .*kl-x1-s1 away"):
        collect(finished, {})


def test_judges_of_another_python_are_the_same_judges(arena, finished, tmp_path):
    """Their keys tell the version of Python; what they hold is compared with the setting."""
    from arena.packed import PACKED, pack_finished, unpack
    from arena.verdict import collect

    for report in finished.glob("final/*-s1/test-*/report.json"):
        report.write_text(report.read_text().replace('"key": "judge-a"', '"key": "judge-a, of Python 3.99"'))
    pack_finished(finished, {"judge_contents": ["a"]})
    here = tmp_path / "here"
    for file in sorted(finished.glob(f"*/*-s?/{PACKED}")):
        unpack(file, here, {"judge_contents": ["a"]})
    assert collect(here, {})["gaps"][0]["paired_seeds"] == 2
    with pytest.raises(EvaluationError, match="of another comparison .judge_contents"):
        unpack(file, tmp_path / "other", {"judge_contents": ["b"]})


@pytest.mark.parametrize("judge, pooled", [("unet-camvid", True), ("runs/unet-camvid", False)])
def test_packs_that_do_not_tell_what_their_judges_hold(arena, finished, tmp_path, judge, pooled):
    """Those that ship are known by their names; of others the keys must be the same."""
    from arena.packed import PACKED, pack_finished, unpack
    from arena.verdict import collect

    for report in finished.glob("final/*-s1/test-*/report.json"):
        report.write_text(report.read_text().replace('"key": "judge-a"', '"key": "judge-a, of Python 3.99"'))
    pack_finished(finished, {"judge": [judge]})
    for file in sorted(finished.glob(f"*/*-s?/{PACKED}")):
        unpack(file, tmp_path / "here", {"judge": [judge], "judge_contents": ["a"]})
    with contextlib.nullcontext() if pooled else pytest.raises(EvaluationError, match="measured with other judges than the control's"):
        assert collect(tmp_path / "here", {})["gaps"][0]["paired_seeds"] == 2


@pytest.mark.parametrize("planned, words", [({"steps": 4}, "different steps.* 4 .this call.*of packed"), ({"steps": 3}, "kl with two weights")])
def test_nothing_is_taken_over_that_does_not_fit(arena, finished, tmp_path, planned, words):
    from arena.packed import PACKED, pack_finished, unpack

    pack_finished(finished, {})
    here = tmp_path / "here"
    (here / "final/kl-x3-s7").mkdir(parents=True)
    (here / "final/kl-x3-s7/result.json").write_text(json.dumps({"contestant": "kl", "factor": 3.0, "seed": 7, "steps": planned["steps"]}))
    with pytest.raises(EvaluationError, match=words):
        unpack(finished / "final/kl-x1-s0" / PACKED, here, {}, **planned)
    assert [folder.name for folder in (here / "final").iterdir()] == ["kl-x3-s7"]


@pytest.mark.parametrize("content", [b"", b"{}", lzma.compress(b"{"), lzma.compress(b"[]"), lzma.compress(b"{}")[:-9]])
def test_files_that_are_none(arena, tmp_path, content):
    from arena.packed import unpack

    (tmp_path / "x.xz").write_bytes(content)
    with pytest.raises(EvaluationError, match="x.xz: .*give the packed.json.xz of a training"):
        unpack(tmp_path / "x.xz", tmp_path, {})
    with pytest.raises(EvaluationError, match="none.xz: cannot be read .No such file"):
        unpack(tmp_path / "none.xz", tmp_path, {})


def test_a_final_begun_elsewhere_goes_on(arena, setting, finished, monkeypatch, capsys, tmp_path):
    """The first seed comes from there, the second is trained; both are pooled."""
    from arena.packed import PACKED, pack_finished

    pack_finished(finished, setting.record())
    setting.args.out, trained = tmp_path / "here", []

    def train(setting, run):
        trained.append((run.name, run.seed))
        return {"contestant": run.name, "factor": run.factor, "seed": run.seed, "steps": 3, "state": "stopped", "error": "of this test", "minutes": 0.0}

    monkeypatch.setattr(arena, "train", train)
    monkeypatch.setattr(arena, "Setting", lambda args: setting)
    monkeypatch.setattr(type(setting), "judges", lambda self: [])
    setting.args.screen, setting.args.final, setting.args.factor, setting.args.seeds = False, True, [1.0], [0, 1]
    setting.args.contestants = ["fidelity", "kl"]
    argv = ["--final", "--out", str(tmp_path / "here"), "--judge", "j", "--steps", "3", "--precision", "float32", "--factor", "1",
            "--photographs", "p", "--camvid", "c", "--test-photographs", "t", "--known"]  # fmt: skip
    kept = [str(finished / "final" / f"{name}-x1-s{seed}" / PACKED) for name, seed in (("fidelity", 0), ("fidelity", 1), ("kl", 0))]
    found = arena.main([*argv, *kept])
    assert trained == [("kl", 1)] and "taken over fidelity-x1-s0" in capsys.readouterr().out
    row = next(row for row in found["reported"]["frames"]["rows"] if (row["measure"], row["contestant"]) == ("miou:judge-a", "fidelity"))
    assert row["seed_names"] == ["0", "1"]
    assert (tmp_path / "here/final/kl-x1-s1" / PACKED).is_file()


def test_what_is_taken_over_reads_as_a_report(finished, tmp_path):
    from arena.packed import pack, unpack

    file = pack(finished / "final" / "kl-x1-s0", {})
    report = read_report(unpack(file, tmp_path / "here", {}) / "test-frames")
    assert report.images == ["1", "2", "3"] and report.names == ["noisy", "kl", "kl+keep"]


def test_the_street_that_was_chosen_on_is_pooled_as_well(arena, finished, tmp_path):
    """From what the choice was made on, nothing measured anew: alone, and with the share of each level given back."""
    from arena.judging import chosen_on
    from arena.verdict import collect

    keep, shares = {"sigma 25": 0.0, "sigma 50": 0.04}, (0.02, 0.04)
    for seed in (0, 1):
        for name, right in (("fidelity", 20), ("kl", 25)):
            folder = finished / "final" / f"{name}-x1-s{seed}"
            measure(folder, "frames", name, [25.0, 50.0], right + seed, held=shares)
            chosen_on(folder, name, keep)
            held, drive = read_report(folder / "held-out"), read_report(folder / "test-drive")
            assert drive.names == ["noisy", name, f"{name}+keep"]
            for measure_ in drive.measures:
                for noise, other in (("sigma 25", name), ("sigma 50", f"{name}+0.04"), ("clean", name)):
                    level = drive.noises.index(noise)
                    np.testing.assert_array_equal(drive.data(measure_, 2, level), held.data(measure_, held.names.index(other), level))
                    np.testing.assert_array_equal(drive.data(measure_, 1, level), held.data(measure_, held.names.index(name), level))
    then = (finished / "final/kl-x1-s0/test-drive/report.json").stat().st_mtime_ns
    chosen_on(finished / "final/kl-x1-s0", "kl", keep)
    assert (finished / "final/kl-x1-s0/test-drive/report.json").stat().st_mtime_ns == then, "once"
    found = collect(finished, {})
    assert {gap["contestant"] for gap in found["drive_gaps"]} == {"fidelity+keep", "kl", "kl+keep"}
    assert found["drive_gaps"][0]["paired_seeds"] == 2 and found["reported"]["drive"]["images"] == 3
    assert found["drive_gaps"] != found["gaps"]

    from arena.packed import PACKED, pack_finished, unpack

    pack_finished(finished, {})
    for file in sorted((finished / "final").glob(f"*/{PACKED}")):
        unpack(file, tmp_path / "here", {})
    there = collect(tmp_path / "here", {})
    assert there["drive_gaps"] == found["drive_gaps"]


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(folder.name for folder in KEPT.glob("awareness-*") if folder.is_dir()))
def test_a_page_is_what_its_kept_trainings_say(arena, tmp_path, page):
    """Every figure, interval and p of docs/data/PAGE.json.gz, made anew from what was found on each image."""
    from arena.packed import unpack
    from arena.verdict import collect

    printed = json.loads(gzip.decompress((KEPT / f"{page}.json.gz").read_bytes()))
    for file in sorted((KEPT / page).glob("*.json.xz")):
        unpack(file, tmp_path, printed["setting"])
    found = json.loads(json.dumps(collect(tmp_path, printed["setting"])))
    assert [run["folder"] for run in found["final"]["runs"]] == [run["folder"] for run in printed["final"]["runs"]]
    assert len(found["gaps"]) == len(printed["gaps"]) > 0
    assert _near(found["gaps"], printed["gaps"])
    assert _near(found["drive_gaps"], printed["drive_gaps"])
    for which in printed["reported"]:
        assert _near(found["reported"][which]["rows"], printed["reported"][which]["rows"])


def _near(own, other):
    """Alike but for the last of seven digits, which is that of one numpy."""
    if isinstance(own, dict):
        return own.keys() == other.keys() and all(_near(own[key], other[key]) for key in own)
    if isinstance(own, list):
        return len(own) == len(other) and all(map(_near, own, other))
    return own == (pytest.approx(other, rel=2e-6, abs=1e-9) if isinstance(other, float) else other)
