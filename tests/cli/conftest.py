"""A zoo of tiny models in a temporary folder, in place of the shipped one."""

import pytest

from segaware import DnCNN, FFDNet
from segaware.entries import write_entry


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    zoo = tmp_path / "zoo"
    measured = {"psnr": {"15": 33.5, "25": 31.0}, "command": "python score.py"}
    noise, data = "AWGN, sigma 0-55", {"name": "BSDS500 train", "terms": "research"}
    write_entry(
        zoo / "dncnn-blind",
        DnCNN(depth=3, width=4),
        {"training_noise": noise, "training_data": data, "measured": measured},
    )
    write_entry(zoo / "ffdnet", FFDNet(depth=3, width=4), {"training_data": "BSDS500 train"})
    monkeypatch.setattr("segaware.entries._SHIPPED", zoo)
    return zoo
