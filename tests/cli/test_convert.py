import json

import pytest
import torch
from click.testing import CliRunner

from segaware import DnCNN
from segaware.cli.main import main


@pytest.fixture
def file(tmp_path):
    state = {f"module.dncnn.{k.removeprefix('body.')}": v for k, v in DnCNN(depth=3, width=4).state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    return tmp_path / "a.pth"


def run(*arguments):
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def test_it_says_what_was_loaded(file, tmp_path):
    result = run(file, "--arch", "dncnn", "-o", tmp_path / "model")
    assert result.exit_code == 0
    assert "loaded all 7 tensors into DnCNN(channels=3, depth=3, width=4), 368 parameters" in result.stdout
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["converted_from"]["file"] == "a.pth" and len(config["converted_from"]["sha256"]) == 64


def test_json(file, tmp_path):
    record = json.loads(run(file, "--arch", "DnCNN", "-o", tmp_path / "model", "--json").stdout)
    assert record["loaded"] == 7 and record["arguments"] == {"channels": 3, "depth": 3, "width": 4}


def test_errors_are_one_line(file, tmp_path):
    result = run(file, "--arch", "FFDNet", "-o", tmp_path / "model")
    assert result.exit_code == 2 and "Traceback" not in result.output and not (tmp_path / "model").exists()
    assert run(tmp_path / "none.pth", "--arch", "DnCNN", "-o", tmp_path / "model").exit_code == 2
    assert "known: " in run(file, "--arch", "xyz", "-o", tmp_path / "model").stderr
