"""``segaware denoise`` on folders: shards, manifests, processes, batches."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import segaware
from segaware import DnCNN, FFDNet, image_io
from segaware.cli.main import main
from segaware.entries import write_entry
from segaware.image_io import Image
from segaware.inference.batches import Together
from segaware.inference.bench import Bench, Order
from segaware.inference.files import Job
from segaware.inference.pool import Pool
from segaware.inference.shards import Shard, place_of

NAMES = [*(f"{index:02}.png" for index in range(12)), "deep/er/a.tif", "deep/b.png", "deep/c.jpg", "gray.png"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """``in/`` with 16 images of several sizes and kinds, and two small models."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        size = (32, 40) if number < 9 else (20 + number, 33)
        pixels = random.integers(0, 256, (*size, 1 if name == "gray.png" else 3), dtype=np.uint8)
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        image_io.write(tmp_path / "in" / name, Image(pixels // (1 + number % 3)))  # of several noise levels
    torch.manual_seed(3)
    write_entry(tmp_path / "blind", DnCNN(depth=3, width=4))
    write_entry(tmp_path / "other", DnCNN(depth=3, width=4))
    write_entry(tmp_path / "told", FFDNet(depth=3, width=4))
    write_entry(tmp_path / "sharing", DnCNN(depth=3, width=4), {"keep": {"20": 0.8, "80": 0.1}})
    return tmp_path


def run(*arguments, model="./blind"):
    return CliRunner().invoke(main, ["denoise", *map(str, arguments), "-m", model])


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")
    }  # fmt: skip


def records(path: Path) -> list[dict]:
    """Whole lines of a manifest that are about files."""
    found = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            found += [record] if "file" in record else []
    return found


def test_shards_together_are_the_whole(here):
    assert run("in", "-o", "whole").stdout == "done 16, skipped 0, failed 0\n"
    for shard in ("1/3", "2/3", "3/3"):
        assert run("in", "-o", "parts", "--shard", shard, "--manifest", "m.jsonl").exit_code == 0
    assert outputs(here / "whole") == outputs(here / "parts") and sorted(outputs(here / "whole")) == sorted(NAMES)
    lines = records(here / "m.jsonl")
    assert sorted(line["file"] for line in lines) == sorted(NAMES) and {line["shard"] for line in lines} == {"1/3", "2/3", "3/3"}
    assert all(line["status"] == "done" and line["seconds"] >= 0 and line["sigma"] is None and len(line["model_hash"]) == 16 for line in lines)


def test_run_again_does_what_is_left(here):
    arguments = ("in", "-o", "out", "--manifest", "m.jsonl", "--overwrite")
    (here / "in" / "bad.png").write_bytes(b"no image")
    first = run(*arguments)
    assert first.exit_code == 1 and first.stdout == "done 16, skipped 0, failed 1\n" and "bad.png: not an image" in first.stderr
    before = outputs(here / "out")
    (here / "out" / "00.png").unlink()
    (here / "out" / "01.png").write_bytes(b"")
    image_io.write(here / "in" / "bad.png", Image(np.zeros((9, 9, 3), np.uint8)))
    assert run(*arguments).stdout == "done 3, skipped 14, failed 0\n"
    after = outputs(here / "out")
    assert after.pop("bad.png") and after == before
    assert run(*arguments).stdout == "done 0, skipped 17, failed 0\n"
    assert sorted(line["status"] for line in records(here / "m.jsonl")) == ["done"] * 19 + ["failed"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["-m", "./other"], "is the manifest of another run (model ./blind -> ./other, weights of the model "),
        (["--keep", "0.03"], "keep 0.0 -> 0.03"),
        (["--precision", "bfloat16"], "precision auto -> bfloat16"),
        (["-o", "elsewhere"], "output folder "),
        (["--shard", "1/2"], "was begun with 1 shards, not 2; give every job i/1"),
    ],
)
def test_another_run(here, change, words):
    assert run("in", "-o", "out", "--manifest", "m.jsonl").exit_code == 0
    before, manifest = outputs(here / "out"), (here / "m.jsonl").read_bytes()
    result = CliRunner().invoke(main, ["denoise", "in", "-o", "out", "-m", "./blind", "--manifest", "m.jsonl", *change])
    assert result.exit_code == 2 and words in result.stderr and "another manifest" in result.stderr
    assert outputs(here / "out") == before and (here / "m.jsonl").read_bytes() == manifest and not (here / "elsewhere").exists()


def test_outputs_that_the_manifest_does_not_know(here):
    """A run that was killed between the image and its line, and somebody's file of that name."""
    assert run("in", "-o", "out").exit_code == 0
    (here / "out" / "00.png").write_bytes(b"mine")
    result = run("in", "-o", "out", "--manifest", "m.jsonl")
    assert result.exit_code == 1 and result.stdout == "done 15, skipped 0, failed 1\n"
    assert "00.png: is there already, is not of this run" in result.stderr and "--overwrite" in result.stderr
    assert (here / "out" / "00.png").read_bytes() == b"mine" and sorted(outputs(here / "out")) == sorted(NAMES)
    assert not [path for path in (here / "out").rglob(".*")]
    assert run("in", "-o", "out", "--manifest", "m.jsonl", "--overwrite").stdout == "done 1, skipped 15, failed 0\n"
    assert image_io.read(here / "out" / "00.png").width == 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["in", "-o", "out", "--shard", "0/2"], "add one: 1/2"),
        (["in", "-o", "out", "--shard", "two"], "give i/n"),
        (["in/00.png", "-o", "out.png", "--shard", "1/2"], "are for folders"),
        (["in/00.png", "-o", "out.png", "--manifest", "m.jsonl"], "are for folders"),
        (["in", "-o", "out", "--processes", "0"], "neither a number from 1"),
        (["in", "-o", "out", "--batch", "some"], "neither a number from 1"),
        (["in", "-o", "out", "--manifest", "in/00.png"], "is no manifest of segaware"),
        (["in", "-o", "out", "--sigma", "25", "--manifest", "m.jsonl"], "leave --sigma out"),
        (["in", "-o", "out", "--sigma", "25", "--processes", "2"], "leave --sigma out"),
    ],
)
def test_usage(here, arguments, words):
    before = outputs(here)
    result = run(*arguments)
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.stderr
    assert outputs(here) == before


@pytest.mark.parametrize(("model", "options"), [("./blind", []), ("./told", ["-s", "25"]), ("./told", ["-s", "auto"]), ("./blind", ["--keep", "0.1"]), ("./sharing", ["--keep", "machine"])])
def test_batches_change_no_bit(here, monkeypatch, model, options):
    monkeypatch.setattr("segaware.inference.batches._PIXELS", {"cpu": 4 * 32 * 40})
    sizes = []
    original = Together._pass
    monkeypatch.setattr(Together, "_pass", lambda self, group: sizes.append(len(group)) or original(self, group))
    assert run("in", "-o", "together", *options, model=model).exit_code == 0
    assert sizes.count(4) in (1, 2) and sizes.count(1) >= 4, "nine images: a trial, another batch if it was the same, the rest alone"
    assert run("in", "-o", "alone", "--batch", 1, *options, model=model).exit_code == 0
    assert outputs(here / "together") == outputs(here / "alone")


def test_each_image_of_a_batch_is_given_its_own_share(here, monkeypatch):
    monkeypatch.setattr("segaware.inference.batches._PIXELS", {"cpu": 4 * 32 * 40})
    shares = []
    original = Bench(Order("./sharing", keep="machine")).engine.share
    monkeypatch.setattr("segaware.inference.engine.Engine.share", lambda self, *given: shares.append(original(*given).flatten().tolist()) or original(*given))
    assert run("in", "-o", "out", "--keep", "machine", "--batch", 4, model="./sharing").exit_code == 0
    assert max(len({round(share, 2) for share in batch}) for batch in shares) > 2, "three noise levels at least"
    monkeypatch.undo()
    os.chdir(here)
    for name in NAMES[:4]:
        alone = segaware.denoise(here / "in" / name, "./sharing", keep="machine").pixels
        assert np.abs(image_io.read(here / "out" / name).pixels.astype(int) - alone).max() <= 1


def test_another_table_of_shares_is_another_run(here):
    """Half of the images would have been given back by the one, half by the other."""
    call = ("in", "-o", "out", "--keep", "machine", "--manifest", "m.jsonl")
    assert run(*call, model="./sharing").exit_code == 0 and run(*call, model="./sharing").stdout == "done 0, skipped 16, failed 0\n"
    config = here / "sharing" / "config.json"
    config.write_text(config.read_text().replace("0.8", "0.7"))
    result = run(*call, model="./sharing")
    assert result.exit_code == 2 and "keep [[20.0, 0.8], [80.0, 0.1]] -> [[20.0, 0.7], [80.0, 0.1]]" in result.stderr


def test_a_batch_that_changes_a_bit_is_not_kept_to(here, monkeypatch):
    engine = Bench(Order("./blind")).engine
    original = engine._forward
    monkeypatch.setattr(engine, "_forward", lambda noisy, level: original(noisy, level) * (1 + 1e-6 * (len(noisy) > 1)))
    monkeypatch.setattr("segaware.inference.batches._PIXELS", {"cpu": 4 * 32 * 40})
    together = Together(engine, None, "auto")
    jobs = [Job(here / "in" / name, here / "out" / name) for name in NAMES[:8]]
    assert [outcome.status for outcome in together(jobs)] == ["done"] * 8 and set(together.same.values()) == {False}
    monkeypatch.undo()
    os.chdir(here)
    assert run("in", "-o", "alone", "--batch", 1).exit_code == 0
    assert all((here / "out" / name).read_bytes() == (here / "alone" / name).read_bytes() for name in NAMES[:8])


def test_a_bad_file_in_a_batch_fails_alone(here):
    (here / "in" / "00.png").write_bytes((here / "in" / "00.png").read_bytes()[:700])
    result = run("in", "-o", "out", "--batch", 4)
    assert result.exit_code == 1 and result.stdout == "done 15, skipped 0, failed 1\n" and "00.png: truncated" in result.stderr


def test_ranks_split_the_images(here, monkeypatch):
    """As the processes of a launcher do, one after the other and without meeting."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    seen = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        result = run("in", "-o", "out", "--manifest", "m.jsonl")
        assert result.exit_code == 0 and bool(result.stdout) == (rank == "0")
        seen.append(len(records(here / "m.jsonl")))
    names = [line["file"] for line in records(here / "m.jsonl")]
    assert 0 < seen[0] < seen[1] == 16 and sorted(names) == sorted(NAMES)
    assert set(names[: seen[0]]) == {name for name in NAMES if Shard(1, 1, 0, 2).holds(place_of(name))}
    monkeypatch.setenv("RANK", "2")
    assert "unset them to run alone" in run("in", "-o", "out").stderr


# --- processes that are killed ----------------------------------------------------------------------

#: ``python -m segaware``, but for one thing: after so many records, half of the next line, and no more.
KILLED = """
import json, os, runpy, signal, sys
from segaware.inference.manifest import Manifest
whole, left = Manifest._append, [int(sys.argv.pop(1))]
def append(self, record):
    if left[0] == 0:
        os.write(self._fd, json.dumps(record).encode()[:40])
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= "file" in record
    whole(self, record)
Manifest._append = append
runpy.run_module("segaware", run_name="__main__")
"""

unix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")


def start(*command, **options):
    # sums in another order would differ in the last bits
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, *map(str, command)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@unix
def test_two_killed_shards_go_on(here):
    assert run("in", "-o", "whole").exit_code == 0
    arguments = ["in", "-o", "out", "--manifest", "m.jsonl"]
    killed = [start("-c", KILLED, left, "denoise", *arguments, "-m", "./blind", "--shard", f"{i}/2") for i, left in ((1, 2), (2, 3))]
    for process in killed:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, stderr
    left = (here / "m.jsonl").read_bytes()
    lines = left.splitlines(keepends=True)
    assert len(records(here / "m.jsonl")) == 5 and not lines[-1].endswith(b"\n"), "five lines, and two halves"
    assert run(*arguments, "--shard", "2/2").exit_code == 0
    assert run(*arguments, "--shard", "1/2").exit_code == 0
    assert outputs(here / "out") == outputs(here / "whole")
    assert (here / "m.jsonl").read_bytes().startswith(left), "added to, never changed"
    assert sorted(line["file"] for line in records(here / "m.jsonl")) == sorted(NAMES), "and each done once"
    assert not [path for path in (here / "out").rglob(".*")]


@unix
@pytest.mark.slow
def test_a_pool_and_a_worker_that_is_killed(here):
    jobs = [Job(here / "in" / name, here / "out" / name) for name in NAMES]
    found = []
    with Pool(Order("./blind", batch=1), 2) as pool:
        workers = [worker.process for worker in pool._workers]

        def report(outcome):
            found.append((outcome.job.source.name, outcome.status))
            if len(found) == 4:
                os.kill(pool._workers[0].process.pid, signal.SIGKILL)

        pool.run(((job,) for job in jobs), report)
    assert sorted(found) == sorted((job.source.name, "done") for job in jobs)
    assert not any(worker.is_alive() for worker in workers) and pool._workers == []
    assert run("in", "-o", "whole").exit_code == 0
    assert outputs(here / "out") == outputs(here / "whole")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_pool_that_is_interrupted(here, ending):
    for number in range(60):
        image_io.write(here / "in" / f"more{number}.png", Image(np.full((200, 200, 3), number, np.uint8)))
    arguments = ["in", "-o", "out", "--manifest", "m.jsonl", "--batch", "1"]
    process = start(
        "-m", "segaware", "denoise", *arguments, "-m", "./blind", "--processes", "2", start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job has it ignored
    )  # fmt: skip
    until = time.monotonic() + 300
    while not (here / "m.jsonl").exists() or len(records(here / "m.jsonl")) < 3:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    below = children(process.pid)
    if ending == signal.SIGINT:
        os.killpg(process.pid, ending)  # what Ctrl-C does
    else:
        os.kill(process.pid, ending)
    _, stderr = process.communicate(timeout=120)
    expected = {signal.SIGINT: 130, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}
    assert process.returncode == expected[ending] and "Traceback" not in stderr, stderr
    while any(alive(pid) for pid in below):
        assert time.monotonic() < until, "workers are left"
        time.sleep(0.05)
    done = {line["file"] for line in records(here / "m.jsonl") if line["status"] == "done"}
    there = outputs(here / "out")
    assert done <= there.keys() and 3 <= len(done) < 76
    if ending != signal.SIGKILL:
        assert len(there.keys() - done) <= 2, "a worker may be stopped between its image and its word"
        assert not [path for path in (here / "out").rglob(".*")]
    result = run(*arguments)
    assert result.exit_code == 0 and result.stdout == f"done {76 - len(done)}, skipped {len(done)}, failed 0\n"
    assert run("in", "-o", "whole", "--batch", 1).exit_code == 0
    assert outputs(here / "out") == outputs(here / "whole")


# --- several processes of a launcher ----------------------------------------------------------------

@pytest.mark.slow
def test_accelerate_launch_denoise(here, launcher, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    process = start(*launcher, "-m", "segaware", "denoise", "in", "-o", "out", "-m", "./blind", "--manifest", "m.jsonl")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert stdout.count("done 16, skipped 0, failed 0") == 1, "one of them speaks for both"
    assert sorted(line["file"] for line in records(here / "m.jsonl")) == sorted(NAMES), "and each image is done once"
    assert run("in", "-o", "whole").exit_code == 0
    assert outputs(here / "out") == outputs(here / "whole")


@pytest.mark.slow
def test_accelerate_launch_evaluate(here, launcher, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    arguments = ["evaluate", "in", "-m", "./blind", "-m", "./told", "-s", "25", "-j", "none", "--seed-by", "index", "--format", "json"]
    process = start(*launcher, "-m", "segaware", *arguments, "-o", "both")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert stdout.count("16 images of in") == 1
    assert CliRunner().invoke(main, [*arguments, "-o", "alone"]).exit_code == 0
    rows = []
    for folder in ("both", "alone"):
        report = json.loads((here / folder / "report.json").read_text())
        for row in report["rows"]:
            row["values"].pop("seconds", None)
        rows.append([report["rows"], report["summary"]])
    assert rows[0] == rows[1] and not (here / "both" / ".ranks").exists()
    keys = [json.loads(line)["key"] for line in (here / "both" / "cells.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 16 * 3


def test_evaluate_on_several_processes_needs_a_folder(here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    result = CliRunner().invoke(main, ["evaluate", "in", "-m", "./blind", "-j", "none"])
    assert result.exit_code == 2 and "give -o DIR" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("link", ["gray.png", "deep"])
def test_a_link_among_the_outputs_does_not_lead_back_to_the_originals(here, link):
    before = outputs(here / "in")
    (here / "out").mkdir()
    (here / "out" / link).symlink_to(here / "in" / link)
    result = run("in", "-o", "out", "--overwrite")
    lost = sum(name == link or name.startswith(f"{link}/") for name in NAMES)
    assert result.exit_code == 1 and result.output.count("leads into the input folder") == lost
    assert f"done {len(NAMES) - lost}" in result.output and outputs(here / "in") == before


def test_a_folder_that_cannot_be_read_is_a_failure(here, monkeypatch):
    """Whoever runs as root may read everything: the system's refusal is played."""
    scandir = os.scandir

    def refused(path="."):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    result = run("in", "-o", "out", "--manifest", "run.jsonl")
    assert result.exit_code == 1 and "deep: cannot be read (Permission denied)" in result.output
    assert [row["file"] for row in records(here / "run.jsonl") if row["status"] == "failed"] == ["deep"]
    result = run("in/deep", "-o", "elsewhere")
    assert result.exit_code == 2 and "cannot be read" in result.output and "no images" not in result.output


def test_links_among_the_inputs(here):
    """One to a folder is named, not passed over; an output that is the input itself, by a link, is not written."""
    (here / "photos").mkdir()
    originals = here / "in"
    (here / "photos/00.png").symlink_to(originals / "00.png")
    (here / "photos/day2").symlink_to(originals / "deep", target_is_directory=True)
    before = outputs(originals)
    done = run("photos", "-o", "in", "--overwrite")
    assert done.exit_code == 1 and outputs(originals) == before
    assert "is the input" in done.stderr and "which would be lost" in done.stderr
    assert "day2" in done.stderr and "not followed" in done.stderr


def test_a_folder_that_is_not_there_yet(here):
    done = run("in/00.png", "-o", "new/")
    assert done.exit_code == 0, done.stderr
    assert [path.name for path in (here / "new").iterdir()] == ["00.png"]
