"""docs/make_keep_curve.py: what is drawn, and that the table of liu-blind is what the curve says."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_keep_curve", ROOT / "docs" / "make_keep_curve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gains_by_hand(script):
    values = {("psnr", 0.0): 30.0, ("psnr", 0.02): 29.9, ("miou:a", 0.0): 0.4, ("miou:a", 0.02): 0.42, ("miou:b", 0.0): 0.5, ("miou:b", 0.02): 0.49}
    found = script.curves([{"measure": m, "noise": "sigma 50", "share": s, "value": v} for (m, s), v in values.items()])
    gains = {name: levels["sigma 50"][0.02] for name, levels in found.items()}
    assert gains == pytest.approx({"PSNR, dB": -0.1, "a": 2.0, "b": -1.0, "across the judges": 0.5})


def test_the_table_is_the_best_within_a_tenth_of_a_decibel(script):
    found = script.curves(json.loads((ROOT / "docs/data/liu-blind-keep.json").read_text(encoding="utf-8"))["figures"])
    table = json.loads(script.CONFIG.read_text(encoding="utf-8"))["keep"]
    for noise, gains in found["across the judges"].items():
        near = [share for share, cost in found["PSNR, dB"][noise].items() if cost >= -0.10]
        assert max(near, key=gains.get) == table[noise.removeprefix("sigma ")]
