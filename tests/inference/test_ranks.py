import os
import socket
import subprocess
import sys

import pytest

from segaware.errors import InputError
from segaware.inference.ranks import Ranks, gathered, launched

MEETING = """
import atexit
import torch.distributed as distributed
from segaware.inference.ranks import gathered, launched

# Handlers run last in, first out: this one sees what is left when ours has run.
atexit.register(lambda: print("left behind" if distributed.is_initialized() else "left"))
ranks = launched()
print(gathered({"rank": ranks.index}, ranks), gathered(ranks.index * 10, ranks))
"""


def test_alone_each_has_its_own(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert launched() == Ranks() and launched().first
    assert gathered("value", Ranks()) == ["value"]


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("one", "2")])
def test_numbers_that_make_no_sense(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(InputError, match=f"RANK={rank}, WORLD_SIZE={size}.*unset them"):
        launched()


@pytest.mark.slow
def test_all_meet_and_leave_before_the_end():
    """A group left to the interpreter's end aborts, one time in ten, a process whose work is done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    started = [
        subprocess.Popen([sys.executable, "-c", MEETING], env={**meet, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        ended = [(*process.communicate(timeout=300), process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()
    for stdout, stderr, code in ended:
        assert code == 0, stderr
        assert stdout.split("\n")[:2] == ["[{'rank': 0}, {'rank': 1}] [0, 10]", "left"]
