"""The command line's evaluation, killed in the middle of a line by the system and run again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from segaware import DnCNN, FPNSegmenter
from segaware.cli.main import main
from segaware.entries import write_entry

#: ``python -m segaware``, but for one thing: when so many cells are written, half of the next, and no more.
KILLED = """
import os, runpy, signal, sys
from segaware.evaluation.cells import Cells
whole, left = Cells.put, [int(sys.argv.pop(1))]
def put(self, key, results):
    if left[0] == 0:
        self._file.write(b'{"key":"' + key.encode() + b'","results":{"psnr')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    whole(self, key, results)
Cells.put = put
runpy.run_module("segaware", run_name="__main__")
"""


@pytest.fixture
def arguments(folder, tmp_path):
    """Six images, two levels and the clean input, a blind denoiser, a judge: 36 cells."""
    write_entry(tmp_path / "small", DnCNN(depth=3, width=4))
    write_entry(tmp_path / "looks", FPNSegmenter(3, "squeezenet1_0", width=8, head="trained"))
    return ["evaluate", str(folder), "-m", str(tmp_path / "small"), "-j", str(tmp_path / "looks"), "-s", "15", "-s", "50", "--harm",
            "--format", "json", "--picture", "more/im4"]  # fmt: skip


def rows(out: Path) -> list:
    """What was measured, without how long it took."""
    record = json.loads((out / "report.json").read_text(encoding="utf-8"))
    for row in record["rows"]:
        row["values"].pop("seconds", None)
    return [record["rows"], record["summary"], record["comparisons"]]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_killed_evaluation_goes_on(arguments, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert CliRunner().invoke(main, [*arguments, "-o", str(whole)]).exit_code == 0
    lines = (whole / "cells.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 36

    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums in another order would differ in the last bits
    command = [sys.executable, "-c", KILLED, "17", *arguments, "-o", str(killed)]
    ended = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    left = (killed / "cells.jsonl").read_bytes().splitlines(keepends=True)
    assert len(left) == 18 and not left[-1].endswith(b"\n") and not (killed / "report.json").exists()

    again = CliRunner().invoke(main, [*arguments, "-o", str(killed)])
    assert again.exit_code == 0, again.output
    finished = (killed / "cells.jsonl").read_bytes().splitlines(keepends=True)
    assert finished[:17] == left[:17], "finished cells stay as they are"
    keys = [json.loads(line)["key"] for line in finished]
    assert keys == [json.loads(line)["key"] for line in lines], "and none is computed twice"
    assert rows(killed) == rows(whole)
    kept = [{path.relative_to(out / "pictures") for path in (out / "pictures").rglob("*.png")} for out in (whole, killed)]
    assert kept[0] == kept[1] and len(kept[0]) == 2 + 3 * 2 * 2
