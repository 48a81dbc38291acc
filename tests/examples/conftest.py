"""The comparison of examples/compare_awareness.py, on names of files alone."""

from pathlib import Path

import pytest
import torch

from segaware import DnCNN, FPNSegmenter
from segaware.entries import write_entry
from segaware.evaluation.sources import CAMVID_CLASSES

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def arena(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import compare_awareness

    return compare_awareness


@pytest.fixture
def setting(arena, tmp_path):
    """A setting with names of files alone: two generated pictures, a tiny segmenter."""
    from arena.setting import Setting

    frames = [f"c/{split}{kind}/{clip}_0.png" for split, clip in (("train", "0001TP"), ("val", "0016E5")) for kind in ("", "annot")]
    for name in ("p/1.png", "t/1.png", "t/2.png", *frames):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write_entry(tmp_path / "start", DnCNN(depth=3, width=4))
    write_entry(tmp_path / "home", FPNSegmenter(11, "squeezenet1_0", None, 8, head="trained", class_names=CAMVID_CLASSES))
    args = arena.parse(["--screen", "--out", str(tmp_path), "--judge", "j", "--photographs", str(tmp_path / "p"),
                        "--camvid", str(tmp_path / "c"), "--test-photographs", str(tmp_path / "t"), "--start", str(tmp_path / "start"), "--segmenter", str(tmp_path / "home"), "--steps", "3",
                        "--batch-size", "2", "--patch-size", "48", "--precision", "float32", "--probes", "1"])  # fmt: skip
    args.judge = []  # a test that judges names its own
    made = Setting(args)
    made.check_files = lambda: None  # there are names alone
    labels = torch.full((50, 60), 255, dtype=torch.uint8)
    made._cache["images"] = [(torch.rand(3, 50, 60), labels), (torch.rand(3, 50, 60), labels.clone().fill_(3))]
    return made
